//! Request heads: the scanner finds the same end however the bytes arrive, and what the parser
//! accepts has one reading.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringgate::protocol::http1::{
    Framing, HeadError, HeadScanner, Limits, RequestError, RequestHead, Scan, normalise_host,
};

const LIMITS: Limits = Limits { head_bytes: 4096, headers: 32 };

fn scan_torn(bytes: &[u8], size: usize) -> Result<Scan, HeadError> {
    let mut scanner = HeadScanner::new();
    let mut before = 0;
    for piece in bytes.chunks(size) {
        match scanner.scan(piece, &LIMITS)? {
            Scan::Complete(end) => return Ok(Scan::Complete(before + end)),
            Scan::Partial => before += piece.len(),
        }
    }
    Ok(Scan::Partial)
}

/// Reads the accepted head again, naively.
fn check_accepted(head: &[u8], request: &RequestHead) {
    let text = String::from_utf8_lossy(head);
    assert!(!text.replace("\r\n", "").contains(['\r', '\n', '\0']));
    let lower = text.to_ascii_lowercase();
    let count = |name: &str| lower.lines().filter(|line| line.starts_with(name)).count();
    assert!(count("host:") <= 1);
    match (count("content-length:"), count("transfer-encoding:")) {
        (0, 0) => assert_eq!(request.framing, Framing::None),
        (1, 0) => assert!(matches!(request.framing, Framing::Length(_))),
        (0, 1) => assert_eq!(request.framing, Framing::Chunked),
        other => panic!("{other:?} framing fields accepted"),
    }
    for field in &request.fields {
        request.connection_lists(head, field.name.of(head));
    }
    if let Some(host) = request.host {
        normalise_host(host.of(head), &mut Vec::new()).expect("the parser has checked it");
    }
}

fuzz_target!(|data: &[u8]| {
    let whole = HeadScanner::new().scan(data, &LIMITS);
    for size in [1, 2, 7] {
        assert_eq!(scan_torn(data, size), whole);
    }
    let mut request = RequestHead::new();
    if let Some(length) = request.take(data, &LIMITS) {
        assert_eq!(whole, Ok(Scan::Complete(length)));
    }
    request.clear();
    if request.parse(data, &LIMITS).is_ok() {
        assert_eq!(whole, Ok(Scan::Complete(data.len())));
        check_accepted(data, &request);
    }
    if let Ok(Scan::Complete(end)) = whole {
        let verdict = request.parse(&data[..end], &LIMITS);
        assert_ne!(verdict, Err(RequestError::Head(HeadError::Extent)));
        if verdict.is_ok() {
            check_accepted(&data[..end], &request);
        }
    }
});
