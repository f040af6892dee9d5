use super::*;
use crate::protocol::http1;

type Fields<'a> = &'a [(&'a str, &'a str)];

const GET: Fields<'_> =
    &[(":method", "GET"), (":scheme", "https"), (":authority", "a.example"), (":path", "/x?y")];

fn assemble(kind: Kind, end: bool, fields: Fields<'_>) -> Result<(String, Summary), Fault> {
    let mut assembler = Assembler::default();
    assembler.begin(kind);
    for (name, value) in fields {
        assembler.field(name.as_bytes(), value.as_bytes(), 100, 32 * 1024);
    }
    let mut out = Vec::new();
    let summary = assembler.finish(end, &mut out)?;
    Ok((String::from_utf8(out).unwrap(), summary))
}

fn request(end: bool, more: Fields<'_>) -> Result<String, Fault> {
    assemble(Kind::Request, end, &[GET, more].concat()).map(|(text, _)| text)
}

#[test]
fn requests() {
    let start = "GET /x?y HTTP/1.1\r\nhost: a.example\r\n";
    for (end, more, lines) in [
        (true, &[][..], ""),
        (true, &[("accept", "*/*"), ("te", "trailers")], "accept: */*\r\nte: trailers\r\n"),
        (true, &[("host", "A.example"), ("a", "")], "a: \r\n"),
        (true, &[("cookie", "a=1"), ("b", "c"), ("cookie", "d=2")], "b: c\r\ncookie: a=1; d=2\r\n"),
        (true, &[("content-length", "0")], "content-length: 0\r\n"),
        (false, &[("content-length", "5")], "content-length: 5\r\n"),
        (false, &[], "transfer-encoding: chunked\r\n"),
    ] {
        assert_eq!(request(end, more), Ok(format!("{start}{lines}\r\n")));
    }
}

#[test]
fn every_head_that_leaves_here_is_one_head_to_http1() {
    for (end, more) in [(true, &[][..]), (false, &[("a", "b"), ("cookie", "x=y")])] {
        let text = request(end, more).unwrap();
        let mut head = http1::RequestHead::new();
        head.parse(text.as_bytes(), &http1::Limits { head_bytes: 32 * 1024, headers: 100 })
            .unwrap();
        assert_eq!(head.framing.is_empty(), end);
    }
}

#[test]
fn malformed_requests() {
    for more in [
        &[("Accept", "*/*")][..],
        &[("a b", "c")],
        &[("", "c")],
        &[("a", "b\r\nc: d")],
        &[("a", "b\nc")],
        &[("a", "b\0")],
        &[("a", " b")],
        &[("a", "b\t")],
        &[("connection", "close")],
        &[("transfer-encoding", "chunked")],
        &[("keep-alive", "1")],
        &[("proxy-connection", "close")],
        &[("upgrade", "websocket")],
        &[("te", "gzip")],
        &[("te", "trailers, gzip")],
        &[("host", "b.example")],
        &[("host", "a.example"), ("host", "a.example")],
        &[("content-length", "1")],
        &[("content-length", "0"), ("content-length", "0")],
        &[("content-length", "+1")],
        &[("content-length", "")],
        &[("content-length", "99999999999999999999")],
        &[(":path", "/")],
        &[(":unknown", "x")],
        &[(":status", "200")],
        &[(":protocol", "websocket")],
        &[("a", "b"), (":protocol", "websocket")],
    ] {
        assert_eq!(request(true, more), Err(Fault::Malformed), "{more:?}");
    }
    for fields in [
        &[][..],
        &[(":scheme", "http"), (":authority", "a"), (":path", "/")],
        &[(":method", "GET"), (":authority", "a"), (":path", "/")],
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a")],
        &[(":method", "GET"), (":scheme", "http"), (":path", "/")],
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "")],
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "http://b/")],
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "x")],
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "*")],
        &[(":method", "OPTIONS"), (":scheme", "http"), (":authority", "a"), (":path", "*x")],
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/ HTTP/1.1")],
        &[(":method", "GET x"), (":scheme", "http"), (":authority", "a"), (":path", "/")],
        &[(":method", "GET"), (":scheme", "ftp"), (":authority", "a"), (":path", "/")],
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a,b"), (":path", "/")],
        &[(":method", "GET"), (":scheme", "http"), (":authority", "u@a"), (":path", "/")],
        &[(":method", "CONNECT"), (":scheme", "http"), (":authority", "a:1"), (":path", "/")],
    ] {
        let fault = assemble(Kind::Request, true, fields).map(|_| ());
        assert_eq!(fault, Err(Fault::Malformed), "{fields:?}");
    }
}

#[test]
fn options_of_the_server_itself() {
    let fields =
        &[(":method", "OPTIONS"), (":scheme", "http"), (":authority", "a"), (":path", "*")];
    let (text, _) = assemble(Kind::Request, true, fields).unwrap();
    assert_eq!(text, "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n");
}

#[test]
fn what_is_too_large() {
    let crumbs = vec![("cookie", "a"); 101];
    assert_eq!(request(true, &crumbs), Err(Fault::TooLarge));
    let long = "v".repeat(20_000);
    assert_eq!(request(true, &[("a", &long), ("b", &long)]), Err(Fault::TooLarge));
}

#[test]
fn a_websocket_is_a_get_with_upgrade() {
    let fields = &[
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/chat"),
        ("sec-websocket-version", "13"),
    ];
    let (text, summary) = assemble(Kind::Request, false, fields).unwrap();
    assert!(summary.websocket);
    assert_eq!(
        text,
        "GET /chat HTTP/1.1\r\nhost: a\r\nsec-websocket-version: 13\r\n\
         connection: upgrade\r\nupgrade: websocket\r\n\r\n"
    );
    assert!(assemble(Kind::Request, true, fields).is_err(), "nothing could follow");
}

#[test]
fn responses() {
    for (end, fields, text) in [
        (true, &[(":status", "200")][..], "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        (true, &[(":status", "204")], "HTTP/1.1 204 No Content\r\n\r\n"),
        (
            true,
            &[(":status", "200"), ("content-length", "7")],
            "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n",
        ),
        (
            false,
            &[(":status", "299"), ("a", "b")],
            "HTTP/1.1 299 \r\na: b\r\ntransfer-encoding: chunked\r\n\r\n",
        ),
        (
            false,
            &[(":status", "103"), ("link", "x")],
            "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n",
        ),
    ] {
        assert_eq!(assemble(Kind::Response, end, fields).unwrap().0, text);
    }
    for (end, fields) in [
        (true, &[][..]),
        (true, &[(":status", "20")]),
        (true, &[(":status", "600")]),
        (true, &[(":status", "+20")]),
        (false, &[(":status", "101")]),
        (true, &[(":status", "100")]),
        (true, &[(":status", "200"), (":status", "200")]),
        (true, &[("a", "b"), (":status", "200")]),
        (true, &[(":status", "200"), (":path", "/")]),
    ] {
        let fault = assemble(Kind::Response, end, fields).map(|_| ());
        assert_eq!(fault, Err(Fault::Malformed), "{fields:?}");
    }
}

#[test]
fn trailers() {
    let (text, _) = assemble(Kind::Trailers, true, &[("a", "b")]).unwrap();
    assert_eq!(text, "a: b\r\n");
    assert!(assemble(Kind::Trailers, false, &[("a", "b")]).is_err(), "they end the stream");
    assert!(assemble(Kind::Trailers, true, &[(":status", "200")]).is_err());
    assert!(assemble(Kind::Trailers, true, &[("content-length", "1")]).is_err());
}

#[test]
fn own_heads() {
    let (start, fields) = fields_of(b"HTTP/1.1 200 OK\r\nA: b: c\r\nEmpty: \r\n\r\nbody: x\r\n");
    assert_eq!(start, b"HTTP/1.1 200 OK");
    let fields: Vec<_> = fields.collect();
    assert_eq!(fields, [(&b"A"[..], &b"b: c"[..]), (b"Empty", b"")]);
}
