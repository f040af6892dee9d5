use proptest::prelude::*;

use super::*;
use crate::protocol::http1::{HeadScanner, Scan};

const LIMITS: Limits = Limits { head_bytes: 16 * 1024, headers: 100 };

fn parse(head: impl AsRef<[u8]>, method: Method) -> Result<ResponseHead, ResponseError> {
    let mut response = ResponseHead::new();
    response.parse(head.as_ref(), &LIMITS, method).map(|()| response)
}

fn get(head: impl AsRef<[u8]>) -> Result<ResponseHead, ResponseError> {
    parse(head, Method::Get)
}

#[test]
fn a_plain_line_is_what_would_be_written() {
    for (head, line) in [
        ("HTTP/1.1 200 OK\r\nA: b\r\n\r\n", Some("HTTP/1.1 200 OK\r\n")),
        ("HTTP/1.1 404 Not  Found\r\n\r\n", Some("HTTP/1.1 404 Not  Found\r\n")),
        ("HTTP/1.1 200 \r\n\r\n", Some("HTTP/1.1 200 \r\n")),
        ("HTTP/1.1 200\r\n\r\n", None),
        ("HTTP/1.0 200 OK\r\n\r\n", None),
    ] {
        let head = head.as_bytes();
        let found = get(head).unwrap().plain_line(head);
        assert_eq!(found.map(|span| span.of(head)), line.map(str::as_bytes), "{line:?}");
    }
    assert_eq!(ResponseHead::new().plain_line(b""), None);
}

#[test]
fn parts() {
    let head = b"HTTP/1.1 404 Not  Found\r\nContent-Length: 3\r\nX-A: b\r\nConnection: X-A\r\n\r\n";
    let response = get(head).unwrap();
    assert_eq!(response.status, 404);
    assert_eq!(response.reason.of(head), b"Not  Found");
    assert_eq!(response.version, Version::Http11);
    assert_eq!(response.framing, Framing::Length(3));
    assert_eq!(response.header(head, "x-a"), Some(&b"b"[..]));
    assert!(response.connection_lists(head, b"x-a"));
    assert!(response.persistent && !response.upgrade && !response.is_interim());
}

#[test]
fn status_lines() {
    let accepted: &[(&[u8], u16, &[u8])] = &[
        (b"HTTP/1.1 200 OK", 200, b"OK"),
        (b"HTTP/1.1 200 ", 200, b""),
        (b"HTTP/1.1 200", 200, b""),
        (b"HTTP/1.0 599 \xe9t\xe9", 599, b"\xe9t\xe9"),
    ];
    for (line, status, reason) in accepted {
        let head = [line, &b"\r\n\r\n"[..]].concat();
        let response = get(&head).unwrap();
        assert_eq!((response.status, response.reason.of(&head)), (*status, *reason));
    }
    let refused = [
        "HTTP/1.1 099 x",
        "HTTP/1.1 600 x",
        "HTTP/1.1 999 x",
        "HTTP/1.1 000 x",
        "HTTP/1.1 20 OK",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 2x0 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1\t200 OK",
        "HTTP/1.1 200\tOK",
        "HTTP/1.1 200 O\x07K",
        "HTTP/1.1 200 O\0K",
        "HTTP/1.1",
        "HTTP/2 200 OK",
        "HTTP/2.0 200 OK",
        "HTTP/1.2 200 OK",
        "http/1.1 200 OK",
        "ICY 200 OK",
        " HTTP/1.1 200 OK",
        "\r\nHTTP/1.1 200 OK",
        "HTTP/1.1 200 OK\r\n A: b",
    ];
    for line in refused {
        assert!(get(format!("{line}\r\n\r\n")).is_err(), "{line:?}");
    }
}

#[test]
fn line_ends() {
    let refused: &[&[u8]] = &[
        b"HTTP/1.1 200 OK\n\r\n",
        b"HTTP/1.1 200 OK\r\n\n",
        b"HTTP/1.1 200\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nbody",
        b"",
    ];
    for head in refused {
        assert!(get(head).is_err(), "{:?}", String::from_utf8_lossy(head));
    }
}

#[test]
fn framing() {
    use FramingError::*;
    /// Framing and persistence.
    type Verdict = Result<(Framing, bool), FramingError>;
    let table: &[(&str, &str, Verdict)] = &[
        ("1.1 200", "", Ok((Framing::Close, false))),
        ("1.0 200", "Connection: keep-alive\r\n", Ok((Framing::Close, false))),
        ("1.1 200", "Content-Length: 0\r\n", Ok((Framing::Length(0), true))),
        ("1.1 200", "Content-Length: 5\r\nConnection: close\r\n", Ok((Framing::Length(5), false))),
        ("1.0 200", "Content-Length: 5\r\n", Ok((Framing::Length(5), false))),
        (
            "1.0 200",
            "Content-Length: 5\r\nConnection: keep-alive\r\n",
            Ok((Framing::Length(5), true)),
        ),
        ("1.1 200", "Transfer-Encoding: chunked\r\n", Ok((Framing::Chunked, true))),
        ("1.1 204", "", Ok((Framing::None, true))),
        ("1.1 204", "Content-Length: 0\r\n", Ok((Framing::None, true))),
        ("1.1 204", "Content-Length: 5\r\n", Ok((Framing::None, false))),
        ("1.1 204", "Transfer-Encoding: chunked\r\n", Ok((Framing::None, false))),
        ("1.1 304", "Content-Length: 5\r\n", Ok((Framing::None, true))),
        ("1.1 304", "Transfer-Encoding: chunked\r\n", Ok((Framing::None, true))),
        ("1.1 100", "", Ok((Framing::None, true))),
        ("1.1 103", "Content-Length: 0\r\n", Ok((Framing::None, true))),
        ("1.1 100", "Content-Length: 5\r\n", Err(BodyForbidden)),
        ("1.1 101", "Transfer-Encoding: chunked\r\n", Err(BodyForbidden)),
        ("1.1 101", "", Ok((Framing::None, false))),
        ("1.1 200", "Content-Length: 5\r\nContent-Length: 5\r\n", Err(LengthRepeated)),
        ("1.1 200", "Content-Length: 5, 5\r\n", Err(Length)),
        ("1.1 200", "Content-Length: -1\r\n", Err(Length)),
        ("1.1 200", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Err(LengthAndCoding)),
        ("1.1 304", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Err(LengthAndCoding)),
        ("1.0 200", "Transfer-Encoding: chunked\r\n", Err(CodingInHttp10)),
        ("1.1 200", "Transfer-Encoding: gzip\r\n", Err(CodingUnknown)),
        ("1.1 200", "Transfer-Encoding: gzip, chunked\r\n", Err(CodingUnknown)),
        ("1.1 200", "Transfer-Encoding: chunked, chunked\r\n", Err(Coding)),
        (
            "1.1 200",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            Err(CodingRepeated),
        ),
    ];
    for (line, fields, expected) in table {
        let got = get(format!("HTTP/{line} x\r\n{fields}\r\n"));
        let got = got.map(|response| (response.framing, response.persistent));
        assert_eq!(got, expected.map_err(ResponseError::Framing), "{line:?} {fields:?}");
    }
}

#[test]
fn request_method_rules_out_a_body() {
    let with_length = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    let without = "HTTP/1.1 200 OK\r\n\r\n";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for head in [with_length, without, chunked] {
        let response = parse(head, Method::Head).unwrap();
        assert_eq!((response.framing, response.persistent), (Framing::None, true), "{head}");
        let response = parse(head, Method::Connect).unwrap();
        assert_eq!((response.framing, response.persistent), (Framing::None, false), "{head}");
    }
    let refused = "HTTP/1.1 403 No\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(parse(refused, Method::Connect).unwrap().framing, Framing::Length(5));
}

#[test]
fn interim() {
    let table = [(100, true, false), (101, false, true), (103, true, false), (200, false, false)];
    for (status, interim, upgrade) in table {
        let response = get(format!("HTTP/1.1 {status} x\r\n\r\n")).unwrap();
        assert_eq!((response.is_interim(), response.upgrade), (interim, upgrade), "{status}");
    }
}

proptest! {
    /// One look and two come to the same, whatever follows the head.
    #[test]
    fn what_is_taken_the_scanner_finds_and_the_parser_reads_alike(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "A: b\r\n", "Content-Length: 5\r\n", "Connection: close\r\n", "\r\n", "\r\n", "\n", "\r", "\0", "x",
        ]), 0..6),
        head_bytes in 0_usize..80,
        headers in 0_usize..4,
    ) {
        let bytes = ["HTTP/1.1 200 OK\r\n", &pieces.concat()].concat().into_bytes();
        let limits = Limits { head_bytes, headers };
        let mut taken = ResponseHead::new();
        if let Some(length) = taken.take(&bytes, &limits) {
            let found = HeadScanner::for_response().scan(&bytes, &limits);
            prop_assert_eq!(found, Ok(Scan::Complete(length)));
            let mut parsed = ResponseHead::new();
            let verdict = parsed.parse(&bytes[..length], &limits, Method::Get);
            prop_assert_eq!(taken.parse(&bytes[..length], &limits, Method::Get), verdict);
            prop_assert_eq!(format!("{taken:?}"), format!("{parsed:?}"));
        }
    }

    #[test]
    fn any_bytes(head in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = get(&head);
    }

    #[test]
    fn any_bytes_in_a_field(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
        let head = [&b"HTTP/1.1 200 OK\r\n"[..], &bytes, b"\r\n\r\n"].concat();
        if get(&head).is_ok() {
            let text = String::from_utf8_lossy(&head).replace("\r\n", "");
            prop_assert!(!text.contains(['\r', '\n', '\0']));
        }
    }
}
