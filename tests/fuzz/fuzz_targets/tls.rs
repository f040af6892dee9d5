//! Any bytes as what a peer sends before and inside TLS: no panic, nothing read that is not there.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringgate::protocol::tls::client_hello::{Hello, server_name};
use ringgate::protocol::tls::message::{Messages, Peer};
use ringgate::protocol::tls::record::{Version, record_len};
use ringgate::protocol::tls::x509;

fuzz_target!(|input: &[u8]| {
    if let Ok(Some(length)) = record_len(input) {
        assert!((5..=5 + (1 << 14) + 2048).contains(&length));
    }
    if let Hello::Whole(Some(name)) = server_name(input) {
        assert!(!name.is_empty() || input.contains(&b'.'));
        assert!(name.is_ascii() && name.len() <= 255);
        let length = u32::from_be_bytes([0, input[1], input[2], input[3]]) as usize;
        assert_eq!(server_name(&input[..4 + length - 1]), Hello::Incomplete);
    }
    if let Some(fields) = x509::fields(input) {
        assert!(fields.subject.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    }
    let _ = x509::is_ocsp_response(input);
    for version in [Version::Tls12, Version::Tls13] {
        collect(input, version, Peer::Client);
        collect(input, version, Peer::Server);
    }
});

fn collect(input: &[u8], version: Version, peer: Peer) {
    let (mut whole, mut torn) = (Messages::new(version, peer), Messages::new(version, peer));
    whole.push(input);
    let mut seen = Vec::new();
    while let Ok(Some(message)) = whole.pop() {
        seen.push(message);
    }
    let mut again = Vec::new();
    for byte in input {
        torn.push(&[*byte]);
        while let Ok(Some(message)) = torn.pop() {
            again.push(message);
        }
    }
    assert_eq!(seen, again);
}
