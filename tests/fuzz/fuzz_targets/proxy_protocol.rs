//! Any bytes: no panic, nothing consumed that is not there, and what is read can be written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringgate::protocol::proxy_protocol::{Header, Parsed, encode_v1, encode_v2, parse};

fuzz_target!(|input: &[u8]| {
    let Ok(Parsed::Complete { header, consumed }) = parse(input) else { return };
    assert!(consumed <= input.len());
    assert_eq!(parse(&input[..consumed]), Ok(Parsed::Complete { header, consumed }));
    for cut in 0..consumed {
        assert_eq!(parse(&input[..cut]), Ok(Parsed::Incomplete));
    }
    let Header { addresses: Some((source, destination)) } = header else { return };
    for encode in [encode_v1, encode_v2] {
        let mut out = Vec::new();
        encode(&mut out, source, destination);
        let consumed = out.len();
        assert_eq!(parse(&out), Ok(Parsed::Complete { header, consumed }));
    }
});
