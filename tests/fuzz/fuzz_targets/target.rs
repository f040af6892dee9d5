//! Request targets: the normal form is stable and unambiguous. The first byte chooses the method.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringgate::protocol::http1::{Method, Target, normalise_host};

fuzz_target!(|data: &[u8]| {
    let Some((choice, raw)) = data.split_first() else { return };
    let method = match choice % 4 {
        0 => Method::Options,
        1 => Method::Connect,
        _ => Method::Get,
    };
    let (mut once, mut twice) = (Target::new(), Target::new());
    if once.parse(method, raw).is_err() {
        assert!(once.path_and_query(raw).is_empty());
        return;
    }
    assert_ne!(method, Method::Connect);
    if let Some(authority) = once.authority(raw) {
        normalise_host(authority, &mut Vec::new()).expect("the parser has checked it");
    }
    let normal = once.path_and_query(raw);
    twice.parse(method, normal).expect("a normal form is a target");
    assert_eq!(normal, twice.path_and_query(normal));
    if once.is_asterisk(raw) {
        return;
    }
    let path = std::str::from_utf8(once.path(raw)).expect("only ASCII passes");
    assert!(path.starts_with('/') && !path.contains("//") && !path.contains('\\'));
    assert!(path.split('/').all(|segment| !matches!(segment, "." | "..")));
});
