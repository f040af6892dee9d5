use proptest::prelude::*;

use super::*;
use crate::protocol::http1::{HeadScanner, Scan};

const LIMITS: Limits = Limits { head_bytes: 16 * 1024, headers: 100 };

fn parse(head: impl AsRef<[u8]>) -> Result<RequestHead, RequestError> {
    let mut request = RequestHead::new();
    request.parse(head.as_ref(), &LIMITS).map(|()| request)
}

/// A GET in HTTP/1.1 with `Host` and these lines.
fn with(lines: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n").into_bytes()
}

fn error(head: impl AsRef<[u8]>) -> RequestError {
    let head = head.as_ref();
    parse(head).err().unwrap_or_else(|| panic!("accepted: {:?}", String::from_utf8_lossy(head)))
}

#[test]
fn a_plain_line_is_what_would_be_written() {
    for (head, line) in [
        ("GET /a HTTP/1.1\r\nHost: a\r\n\r\n", Some("GET /a HTTP/1.1\r\n")),
        (
            "\r\nM-SEARCH http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            Some("M-SEARCH http://a/ HTTP/1.1\r\n"),
        ),
        ("GET /a HTTP/1.0\r\nHost: a\r\n\r\n", None),
    ] {
        let head = head.as_bytes();
        let found = parse(head).unwrap().plain_line(head);
        assert_eq!(found.map(|span| span.of(head)), line.map(str::as_bytes));
    }
    assert_eq!(RequestHead::new().plain_line(b""), None);
}

#[test]
fn parts() {
    let head = b"\r\n\r\nPOST /a?b HTTP/1.1\r\nHost: \t example.com:8080\t \r\nX-Empty:\r\nX-Obs: \xe9\t!\r\ncontent-length:5\r\n\r\n";
    let request = parse(head).unwrap();
    assert_eq!(request.method, Method::Post);
    assert_eq!(request.method_span.of(head), b"POST");
    assert_eq!(request.target.of(head), b"/a?b");
    assert_eq!(request.version, Version::Http11);
    assert_eq!(request.host.unwrap().of(head), b"example.com:8080");
    assert_eq!(request.framing, Framing::Length(5));
    assert_eq!(request.fields.len(), 4);
    assert_eq!(request.header(head, "x-empty"), Some(&b""[..]));
    assert_eq!(request.header(head, "x-obs"), Some(&b"\xe9\t!"[..]));
    assert_eq!(request.header(head, "x-none"), None);
    assert!(request.persistent && !request.expect_continue && !request.upgrade_websocket);
}

#[test]
fn reuse_leaves_nothing_behind() {
    let mut request = RequestHead::new();
    let first = with(
        "Connection: upgrade, x-a\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n",
    );
    request.parse(&first, &LIMITS).unwrap();
    assert!(request.expect_continue);
    let second = b"PUT /b HTTP/1.0\r\n\r\n";
    request.parse(second, &LIMITS).unwrap();
    assert_eq!(request.method, Method::Put);
    assert_eq!(request.version, Version::Http10);
    assert_eq!(request.framing, Framing::None);
    assert_eq!(request.host, None);
    assert!(request.fields.is_empty() && !request.persistent && !request.expect_continue);
    assert_eq!(request.connection, ConnectionOptions::default());
}

#[test]
fn what_was_taken_counts_for_one_head_only() {
    let (first, second) = (with("A: b\r\n"), with("B: c\r\n"));
    let mut request = RequestHead::new();
    assert_eq!(request.take(&first, &LIMITS), Some(first.len()));
    request.clear();
    request.parse(&second, &LIMITS).unwrap();
    assert_eq!(request.header(&second, "b"), Some(&b"c"[..]));
    assert_eq!(request.take(&first, &LIMITS), Some(first.len()));
    request.parse(&first, &LIMITS).unwrap();
    request.parse(&second, &LIMITS).unwrap();
    assert_eq!(request.header(&second, "b"), Some(&b"c"[..]));
    assert_eq!(request.take(&first, &LIMITS), Some(first.len()));
    assert_eq!(request.take(&first[1..first.len() - 1], &LIMITS), None);
    request.parse(&second, &LIMITS).unwrap();
    assert_eq!(request.header(&second, "b"), Some(&b"c"[..]));
}

#[test]
fn request_lines() {
    let refused: &[(&str, u16)] = &[
        ("GET  / HTTP/1.1", 400),
        ("GET /  HTTP/1.1", 400),
        ("GET / HTTP/1.1 ", 400),
        (" GET / HTTP/1.1", 400),
        ("GET\t/ HTTP/1.1", 400),
        ("GET /\tHTTP/1.1", 400),
        ("GET /a b HTTP/1.1", 400),
        ("GET /\x0b HTTP/1.1", 400),
        ("GET / ", 400),
        ("GET /", 400),
        ("GET", 400),
        ("GET  HTTP/1.1", 400),
        ("/ HTTP/1.1", 400),
        ("G(T / HTTP/1.1", 400),
        ("G\u{e9}T / HTTP/1.1", 400),
        ("GET / HTTP/1", 400),
        ("GET / HTTP/1.", 400),
        ("GET / HTTP/11.1", 400),
        ("GET / HTTP/1.10", 400),
        ("GET / HTTP/2", 400),
        ("GET / http/1.1", 400),
        ("GET / Http/1.1", 400),
        ("GET / HTTP/ 1.1", 400),
        ("GET / HTTP 1.1", 400),
        ("GET / HTTPS/1.1", 400),
        ("GET / HTTP/x.1", 400),
        ("GET / HTTP/-1.1", 400),
        ("GET / ICY/1.1", 400),
        ("GET / HTTP/0.9", 505),
        ("GET / HTTP/1.2", 505),
        ("GET / HTTP/1.9", 505),
        ("GET / HTTP/2.0", 505),
        ("GET / HTTP/3.0", 505),
        ("PRI * HTTP/2.0", 505),
        ("GET / HTTP/9.9", 505),
    ];
    for (line, status) in refused {
        let error = error(format!("{line}\r\nHost: a\r\n\r\n"));
        assert_eq!(error.status(), *status, "{line:?}: {error}");
    }
    let methods = [
        ("get", Method::Other),
        ("!#$%&'*+-.^_`|~09aZ", Method::Other),
        ("GETX", Method::Other),
        ("CONNECT", Method::Connect),
        ("LOCK", Method::Lock),
    ];
    for (name, method) in methods {
        let head = format!("{name} * HTTP/1.1\r\nHost: a\r\n\r\n");
        let request = parse(&head).unwrap();
        assert_eq!(request.method, method);
        assert_eq!(request.method_span.of(head.as_bytes()), name.as_bytes());
    }
    let head = |length| format!("{} / HTTP/1.1\r\nHost: a\r\n\r\n", "A".repeat(length));
    assert!(parse(head(METHOD_BYTES_MAX)).is_ok());
    assert_eq!(error(head(METHOD_BYTES_MAX + 1)).status(), 501);
}

#[test]
fn line_ends_and_extent() {
    let bare_lf = RequestError::Head(HeadError::BareLf);
    assert_eq!(error(b"GET / HTTP/1.1\nHost: a\r\n\r\n"), bare_lf);
    assert_eq!(error(b"GET / HTTP/1.1\r\nHost: a\n\r\n"), bare_lf);
    assert_eq!(error(b"GET / HTTP/1.1\r\nHost: a\nB: c\r\n\r\n"), bare_lf);
    assert_eq!(error(b"GET / HTTP/1.1\r\nHost: a\r\n\n"), bare_lf);
    assert_eq!(error(b"GET / HTTP/1.0\n\r\n"), bare_lf);
    assert_eq!(error(b"GET / HTTP/1.0\n\n"), bare_lf);
    let extent = RequestError::Head(HeadError::Extent);
    assert_eq!(error(b""), extent);
    assert_eq!(error(b"GET / HTTP/1.1\r\nHost: a\r\n"), extent);
    assert_eq!(error(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nX"), extent);
    let empty_lines = RequestError::Head(HeadError::EmptyLines);
    assert_eq!(error(b"\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), empty_lines);
    assert_eq!(error(b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), empty_lines);
    assert_eq!(error(b"GET / HTTP/1.1\r\nHost: a\r\nB: c\rd\r\n\r\n").status(), 400);
}

#[test]
fn field_lines() {
    let refused = [
        "A : b",
        "A\t: b",
        ": b",
        "A",
        "A b: c",
        " A: b",
        "\tA: b",
        "A: b\r\n c",
        "A: b\r\n\tc",
        "A:\r\n b",
        "A(: b",
        "A\"B: c",
        "\u{e9}: b",
        "A: b\0",
        "A: b\x01c",
        "A: \x0bb",
        "A: b\x7f",
        "A: b\x1b[0m",
        "A\0: b",
    ];
    for line in refused {
        assert_eq!(error(with(&format!("{line}\r\n"))).status(), 400, "{line:?}");
        let first = format!("GET / HTTP/1.1\r\n{line}\r\nHost: a\r\n\r\n");
        assert_eq!(error(first).status(), 400, "{line:?}");
    }
    for line in ["A:b", "A:\tb \t", "A_b: c", "!#$%&'*+-.^_`|~09: x", "A: \u{e9}\t\"", "A:"] {
        parse(with(&format!("{line}\r\n"))).unwrap();
    }
}

#[test]
fn framing() {
    use FramingError::*;
    let table: &[(&str, Result<Framing, FramingError>)] = &[
        ("", Ok(Framing::None)),
        ("Content-Length: 0\r\n", Ok(Framing::Length(0))),
        ("Content-Length: \t5 \r\n", Ok(Framing::Length(5))),
        ("Transfer-Encoding: CHUNKED\r\n", Ok(Framing::Chunked)),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", Err(LengthRepeated)),
        ("Content-Length: 5\r\ncontent-length: 6\r\n", Err(LengthRepeated)),
        ("Content-Length: 5, 5\r\n", Err(Length)),
        ("Content-Length: +5\r\n", Err(Length)),
        ("Content-Length: 5 5\r\n", Err(Length)),
        ("Content-Length:\r\n", Err(Length)),
        ("Content-Length: 18446744073709551616\r\n", Err(Length)),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Err(LengthAndCoding)),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", Err(LengthAndCoding)),
        ("Transfer-Encoding: gzip\r\nContent-Length: 5\r\n", Err(LengthAndCoding)),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Err(CodingRepeated)),
        ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", Err(CodingRepeated)),
        ("Transfer-Encoding: chunked, chunked\r\n", Err(Coding)),
        ("Transfer-Encoding: chunked, gzip\r\n", Err(Coding)),
        ("Transfer-Encoding:\r\n", Err(Coding)),
        ("Transfer-Encoding: gzip, chunked\r\n", Err(CodingUnknown)),
        ("Transfer-Encoding: identity\r\n", Err(CodingUnknown)),
    ];
    for (lines, expected) in table {
        let got = parse(with(lines)).map(|request| request.framing);
        assert_eq!(got, expected.map_err(RequestError::Framing), "{lines:?}");
    }
    let head = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(error(head), RequestError::Framing(CodingInHttp10));
    assert_eq!(error(with("Transfer-Encoding: x\r\n")).status(), 501);
    // Only the real names frame anything.
    let request = parse(with("Content_Length: 5\r\nXTransfer-Encoding: chunked\r\n")).unwrap();
    assert_eq!(request.framing, Framing::None);
}

#[test]
fn hosts() {
    assert_eq!(error(b"GET / HTTP/1.1\r\n\r\n"), RequestError::HostMissing);
    assert_eq!(error(with("host: a\r\n")), RequestError::HostRepeated);
    parse(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let twice = "GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n";
    assert_eq!(error(twice), RequestError::HostRepeated);
    for host in ["", "a b", "a,b", "u@a", "a/b", "a?b", "a#b", "a:b", "a:65536", "[::1", "a:80:80"]
    {
        for version in ["1.0", "1.1"] {
            let error = error(format!("GET / HTTP/{version}\r\nHost: {host}\r\n\r\n"));
            assert!(matches!(error, RequestError::Host(_)), "{host:?}: {error}");
            assert_eq!(error.status(), 400);
        }
    }
}

#[test]
fn persistence() {
    let table = [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: foo, Close\r\n", false),
        ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
        ("1.1", "Connection: foo\r\n", true),
        ("1.1", "Connection: enclose\r\n", true),
        ("1.1", "Proxy-Connection: close\r\n", true),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
        ("1.0", "Proxy-Connection: keep-alive\r\n", false),
    ];
    for (version, lines, persistent) in table {
        let head = format!("GET / HTTP/{version}\r\nHost: a\r\n{lines}\r\n");
        assert_eq!(parse(&head).unwrap().persistent, persistent, "{head:?}");
    }
}

#[test]
fn expectations() {
    let expects = |version: &str, lines: &str| {
        parse(format!("POST / HTTP/{version}\r\nHost: a\r\n{lines}\r\n"))
            .map(|request| request.expect_continue)
    };
    assert_eq!(expects("1.1", "Expect: 100-Continue\r\nContent-Length: 1\r\n"), Ok(true));
    assert_eq!(expects("1.1", "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n"), Ok(true));
    assert_eq!(expects("1.1", "Expect: 100-continue\r\nContent-Length: 0\r\n"), Ok(false));
    assert_eq!(expects("1.1", "Expect: 100-continue\r\n"), Ok(false));
    assert_eq!(expects("1.0", "Expect: 100-continue\r\nContent-Length: 1\r\n"), Ok(false));
    for lines in [
        "Expect: x\r\n",
        "Expect:\r\n",
        "Expect: 100-continue, x\r\n",
        "Expect: 100-continue\r\nExpect: 100-continue\r\n",
    ] {
        assert_eq!(expects("1.1", lines), Err(RequestError::Expectation), "{lines:?}");
    }
    assert_eq!(RequestError::Expectation.status(), 417);
}

#[test]
fn upgrades() {
    let table = [
        ("Connection: Upgrade\r\nUpgrade: WebSocket\r\n", true),
        ("Connection: keep-alive, upgrade\r\nUpgrade: websocket\r\n", true),
        ("Upgrade: websocket\r\n", false),
        ("Connection: upgrade\r\n", false),
        ("Connection: upgrade\r\nUpgrade: h2c\r\n", false),
        ("Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n", false),
        ("Connection: upgrade\r\nUpgrade: websocket, h2c\r\n", false),
        ("Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n", false),
        ("Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: websocket\r\n", false),
        ("Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n", false),
        ("Connection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n", false),
    ];
    for (lines, websocket) in table {
        assert_eq!(parse(with(lines)).unwrap().upgrade_websocket, websocket, "{lines:?}");
    }
    for line in ["POST / HTTP/1.1", "GET / HTTP/1.0"] {
        let head =
            format!("{line}\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
        assert!(!parse(head).unwrap().upgrade_websocket, "{line}");
    }
}

#[test]
fn nominated_fields() {
    let head = with(
        "Connection: close, X-Foo,, host, Content-Length\r\nConnection: x-bar, X-Forwarded-For, transfer-encoding\r\n",
    );
    let request = parse(&head).unwrap();
    for name in ["x-foo", "X-BAR", "close"] {
        assert!(request.connection_lists(&head, name.as_bytes()), "{name}");
    }
    for name in
        ["host", "content-length", "Transfer-Encoding", "x-forwarded-for", "x-fo", "x-fooo", ""]
    {
        assert!(!request.connection_lists(&head, name.as_bytes()), "{name}");
    }
    let head = with("Connection: keep-alive, upgrade\r\n");
    let request = parse(&head).unwrap();
    assert!(request.connection_lists(&head, b"Keep-Alive"));
    assert!(request.connection_lists(&head, b"Upgrade"));
    assert!(!request.connection_lists(&head, b"Cookie"));
}

#[test]
fn limits() {
    let limits = Limits { head_bytes: 64, headers: 2 };
    let mut request = RequestHead::new();
    let two = b"GET / HTTP/1.1\r\nHost: a\r\nB: c\r\n\r\n";
    assert_eq!(request.parse(two, &limits), Ok(()));
    let three = b"GET / HTTP/1.1\r\nHost: a\r\nB: c\r\nD: e\r\n\r\n";
    let too_many = RequestError::Head(HeadError::TooManyFields);
    assert_eq!(request.parse(three, &limits), Err(too_many));
    assert_eq!((too_many.status(), too_many.fault()), (431, Fault::Limit));
    let long = with(&format!("B: {}\r\n", "c".repeat(64)));
    let too_large = RequestError::Head(HeadError::TooLarge);
    assert_eq!(request.parse(&long, &limits), Err(too_large));

    let unbounded = Limits { head_bytes: usize::MAX, headers: usize::MAX };
    let exact = with(&format!("B: {}\r\n", "c".repeat(65_535 - 32)));
    assert_eq!((exact.len(), request.parse(&exact, &unbounded)), (65_535, Ok(())));
    let over = with(&format!("B: {}\r\n", "c".repeat(65_535 - 31)));
    assert_eq!(request.parse(&over, &unbounded), Err(too_large));
    assert_eq!(request.parse(&with(&"B: c\r\n".repeat(255)), &unbounded), Ok(()));
    assert_eq!(request.parse(&with(&"B: c\r\n".repeat(256)), &unbounded), Err(too_many));

    let options = with(&format!("Connection: {}\r\n", ",".repeat(64)));
    let too_many = RequestError::Head(HeadError::TooManyOptions);
    assert_eq!(request.parse(&options, &LIMITS), Err(too_many));
    assert_eq!(
        request.parse(&with(&format!("Connection: {}\r\n", ",".repeat(63))), &LIMITS),
        Ok(())
    );
}

/// Heads made of plausible and hostile pieces, so that many get far.
fn lines() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop::sample::select(vec![
        "GET / HTTP/1.1\r\n",
        "POST /x HTTP/1.0\r\n",
        "Host: a\r\n",
        "Host: b:1\r\n",
        "\r\n",
        "\n",
        "\r",
        "Content-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Connection: close, x\r\n",
        "Upgrade: websocket\r\n",
        "Expect: 100-continue\r\n",
        " ",
        "\t",
        ":",
        "\0",
        "a",
        "A: b\r\n",
    ]);
    prop::collection::vec(pieces, 0..12).prop_map(|pieces| pieces.concat().into_bytes())
}

/// Invariants of whatever was accepted, checked on the bytes without the parser.
fn check_accepted(head: &[u8], request: &RequestHead) {
    let text = String::from_utf8_lossy(head);
    assert!(!text.replace("\r\n", "").contains(['\r', '\n', '\0']), "{text:?}");
    assert!(text.ends_with("\r\n\r\n"));
    let lower = text.to_ascii_lowercase();
    let count = |name: &str| lower.lines().filter(|line| line.starts_with(name)).count();
    assert!(count("content-length:") + count("transfer-encoding:") <= 1, "{text:?}");
    assert!(count("host:") <= 1);
    assert_eq!(request.fields.len(), text.trim_matches(['\r', '\n']).lines().count() - 1);
    for field in &request.fields {
        assert!(!field.name.is_empty());
        let value = field.value.of(head);
        assert_eq!(crate::protocol::http1::fields::trim(value), value);
    }
}

proptest! {
    #[test]
    fn accepts_only_what_is_unambiguous(head in lines()) {
        if let Ok(request) = parse(&head) {
            check_accepted(&head, &request);
        }
    }

    #[test]
    fn any_bytes(head in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&head);
    }

    #[test]
    fn any_bytes_in_a_field(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
        let mut head = b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec();
        head.extend_from_slice(&bytes);
        head.extend_from_slice(b"\r\n\r\n");
        if let Ok(request) = parse(&head) {
            check_accepted(&head, &request);
        }
    }

    /// One look and two come to the same, whatever follows the head.
    #[test]
    fn what_is_taken_the_scanner_finds_and_the_parser_reads_alike(
        plain in any::<bool>(),
        head in lines(),
        head_bytes in 0_usize..120,
        headers in 0_usize..6,
    ) {
        let bytes = if plain { [&with("A: b\r\n")[..], &head].concat() } else { head };
        let limits = Limits { head_bytes, headers };
        let mut taken = RequestHead::new();
        if let Some(length) = taken.take(&bytes, &limits) {
            prop_assert_eq!(HeadScanner::new().scan(&bytes, &limits), Ok(Scan::Complete(length)));
            let mut parsed = RequestHead::new();
            let verdict = parsed.parse(&bytes[..length], &limits);
            prop_assert_eq!(taken.parse(&bytes[..length], &limits), verdict);
            prop_assert_eq!(format!("{taken:?}"), format!("{parsed:?}"));
        } else if plain && HeadScanner::new().scan(&bytes, &limits).is_ok() {
            prop_assert!(false, "a plain head was not taken");
        }
    }

    /// The scanner delimits exactly what the parser takes.
    #[test]
    fn scanner_agrees(head in lines()) {
        let scanned = HeadScanner::new().scan(&head, &LIMITS);
        if parse(&head).is_ok() {
            prop_assert_eq!(scanned, Ok(Scan::Complete(head.len())));
        }
        if let Ok(Scan::Complete(end)) = scanned {
            let extent = RequestError::Head(HeadError::Extent);
            let bare_lf = RequestError::Head(HeadError::BareLf);
            let verdict = parse(&head[..end]).err();
            prop_assert!(verdict != Some(extent) && verdict != Some(bare_lf));
        }
    }
}
