"""Content-Length (RFC 9112 section 6.3, RFC 9110 section 8.6)."""

from . import Case

HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n"
BIG = "malformed (400), or larger than the body limit (413)"


def post(id, lines, content, status, note, **more):
    raw = b"POST / HTTP/1.1\r\nHost: a.example\r\n" + lines + b"\r\n" + content
    return Case(f"length/{id}", raw, status, note, **more)


def length(id, value, status, note, content=b"hello", **more):
    return post(id, b"Content-Length: " + value + b"\r\n", content, status, note, **more)


CASES = [
    length("plain", b"5", 200, "9112 6.3"),
    length("zero", b"0", 200, "9112 6.3", b""),
    length("leading-zero", b"05", (200, 400), "9110 8.6: 1*DIGIT", why="legal grammar, refusing is stricter"),
    length("leading-zeros-many", b"0" * 30 + b"5", (200, 400), "9110 8.6: 1*DIGIT", why="legal grammar, refusing is stricter"),
    length("list-same", b"5, 5", 400, "reference/l7.md 4: list refused"),
    length("list-different", b"5, 6", 400, "9112 6.3: invalid"),
    length("list-empty-element", b"5,", 400, "9112 6.3: invalid"),
    post("twice-same", b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello", 400, "reference/l7.md 4: duplicate refused"),
    post("twice-different", b"Content-Length: 5\r\nContent-Length: 0\r\n", b"hello" + HIDDEN, 400, "9112 6.3: invalid"),
    post("twice-case", b"Content-Length: 5\r\ncontent-length: 0\r\n", b"hello", 400, "9112 6.3"),
    length("plus", b"+5", 400, "9110 8.6: digits"),
    length("minus", b"-5", 400, "9110 8.6: digits"),
    length("minus-zero", b"-0", 400, "9110 8.6: digits"),
    length("space-inside", b"5 5", 400, "9110 8.6: digits"),
    length("tab-inside", b"5\t5", 400, "9110 8.6: digits"),
    length("hex", b"0x5", 400, "9110 8.6: digits"),
    length("fraction", b"5.0", 400, "9110 8.6: digits"),
    length("exponent", b"5e0", 400, "9110 8.6: digits"),
    length("letters", b"abc", 400, "9110 8.6: digits"),
    length("quoted", b'"5"', 400, "9110 8.6: digits"),
    length("semicolon", b"5;a=b", 400, "9110 8.6: digits"),
    length("underscore", b"5_0", 400, "9110 8.6: digits"),
    length("full-width-digit", b"\xef\xbc\x95", 400, "9110 8.6: ASCII digits"),
    length("empty", b"", 400, "9110 8.6: at least one digit", b""),
    length("surrounding-tabs", b"\t5\t", 200, "9112 5: OWS"),
    length("vertical-tab", b"\x0b5", 400, "9110 5.6.3: VT is not OWS"),
    length("nul", b"5\0", 400, "9110 5.5"),
    length("bare-cr", b"5\r0", 400, "9112 2.2"),
    length("bare-lf", b"5\n", 400, "9112 2.2"),
    length("overflow-64", b"18446744073709551621", (400, 413), "9110 8.6: wraps to 5 in 64 bits", why=BIG),
    length("overflow-32", b"4294967301", 413, "wraps to 5 in 32 bits; above the body limit"),
    length("max-64", b"18446744073709551615", (413, 400), "2^64 - 1", why=BIG),
    length("max-63-plus", b"9223372036854775808", (413, 400), "2^63", why=BIG),
    length("fifty-digits", b"9" * 50, (400, 413), "9110 8.6: anticipate large numerals", why=BIG),
    post("space-before-colon", b"Content-Length : 5\r\n", b"hello", 400, "9112 5.1"),
    post("folded", b"Content-Length:\r\n 5\r\n", b"hello", 400, "9112 5.2"),
    post("hidden-get-after-zero", b"Content-Length: 0\r\n", HIDDEN, 200, "two requests, both seen as such", answers=2),
    Case("length/get-with-body", b"GET / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello", 200, "9110 9.3.1: a GET may carry content, framing counts", body=b"hello"),
    Case("length/get-with-hidden-request", b"GET / HTTP/1.1\r\nHost: a.example\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN, 200, "the body is no request", body=HIDDEN),
    Case("length/head-with-body", b"HEAD / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello", 200, "9110 9.3.2", body=b"hello"),
    Case("length/in-1.0", b"POST / HTTP/1.0\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello", 200, "1945 7.2.2", body=b"hello", closes=True),
    Case("length/missing-in-1.0-post", b"POST / HTTP/1.0\r\nHost: a.example\r\n\r\n", (200, 400, 411), "9112 6.3: length 0", why="1945 wants a length for POST, 9112 takes it as 0", closes=True),
    # Both framings: 9112 6.3 lets a proxy close after reinterpreting; this one refuses.
    post("and-te", b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\nX", 400, "9112 6.3: CL.TE"),
    post("and-te-reversed", b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", b"5c\r\n" + HIDDEN, 400, "9112 6.3: TE.CL"),
    post("zero-and-te", b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n", 400, "9112 6.3"),
    post("and-te-identity", b"Content-Length: 5\r\nTransfer-Encoding: identity\r\n", b"hello", (400, 501), "9112 6.3", why="both framings (400) and a coding that is none (501)"),
    post("and-te-x", b"Content-Length: 5\r\nTransfer-Encoding: xchunked\r\n", b"hello", (400, 501), "9112 6.1", why="both framings (400) and an unknown coding (501)"),
    post("and-te-empty", b"Content-Length: 5\r\nTransfer-Encoding:\r\n", b"hello", (400, 501), "9112 6.1", why="both framings (400) and an unknown coding (501)"),
    post("and-te-space-colon", b"Content-Length: 5\r\nTransfer-Encoding : chunked\r\n", b"0\r\n\r\n", 400, "9112 5.1"),
    post("and-te-after-lf", b"Content-Length: 5\r\nX: y\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n", 400, "9112 2.2"),
    post("and-te-twice", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", b"0\r\n\r\n", (400, 501), "9112 6.3", why="both framings (400) and a coding that is none (501)"),
    Case("length/and-te-on-get", b"GET / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "9112 6.3"),
]
