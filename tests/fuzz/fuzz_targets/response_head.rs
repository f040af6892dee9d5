//! Response heads; the first byte chooses the request's method.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringgate::protocol::http1::{Framing, HeadScanner, Limits, Method, ResponseHead, Scan};

const LIMITS: Limits = Limits { head_bytes: 4096, headers: 32 };

fuzz_target!(|data: &[u8]| {
    let Some((choice, head)) = data.split_first() else { return };
    let method = match choice % 4 {
        0 => Method::Head,
        1 => Method::Connect,
        _ => Method::Get,
    };
    let mut response = ResponseHead::new();
    if response.parse(head, &LIMITS, method).is_err() {
        return;
    }
    let scanned = HeadScanner::for_response().scan(head, &LIMITS);
    assert_eq!(scanned, Ok(Scan::Complete(head.len())));
    let text = String::from_utf8_lossy(head);
    assert!(!text.replace("\r\n", "").contains(['\r', '\n', '\0']));
    assert!((100..=599).contains(&response.status));
    if method == Method::Head || response.status < 200 {
        assert_eq!(response.framing, Framing::None);
    }
    assert!(!(response.persistent && response.framing == Framing::Close));
    assert!(!response.reason.of(head).contains(&b'\r'));
});
