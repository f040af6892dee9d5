"""Transfer-Encoding in requests (RFC 9112 sections 6.1 and 7): exactly `chunked`, once, in 1.1."""

from . import Case

BODY = b"5\r\nhello\r\n0\r\n\r\n"
OTHER = "9112 6.1: 501 for a coding not understood; 6.3: 400 when chunked is not final"


def te(id, value, status, note, **more):
    return lines(id, b"Transfer-Encoding: " + value + b"\r\n", status, note, **more)


def lines(id, fields, status, note, **more):
    raw = b"POST / HTTP/1.1\r\nHost: a.example\r\n" + fields + b"\r\n" + BODY
    return Case(f"te/{id}", raw, status, note, **more)


CASES = [
    te("plain", b"chunked", 200, "9112 7.1", body=b"hello"),
    te("tab-before", b"\tchunked", 200, "9112 5: OWS", body=b"hello"),
    te("spaces-after", b"chunked  \t", 200, "9112 5: OWS", body=b"hello"),
    te("upper-case", b"CHUNKED", (200, 400, 501), "9112 7: codings are case-insensitive", body=b"hello", why="the issue accepts exactly `chunked`; 9112 takes any case"),
    te("mixed-case", b"Chunked", (200, 400, 501), "9112 7: codings are case-insensitive", body=b"hello", why="as te/upper-case"),
    te("x", b"xchunked", (501, 400), "9112 6.1", why=OTHER),
    te("chunkedx", b"chunkedx", (501, 400), "9112 6.1", why=OTHER),
    te("identity", b"identity", (501, 400), "9112 6.1: identity was removed", why=OTHER),
    te("gzip", b"gzip", (501, 400), "9112 6.1", why=OTHER),
    te("gzip-chunked", b"gzip, chunked", 501, "9112 6.1: legal, not implemented"),
    te("chunked-gzip", b"chunked, gzip", (400, 501), "9112 6.3: chunked not final", why=OTHER),
    te("chunked-chunked", b"chunked, chunked", (400, 501), "9112 6.1: not more than once", why=OTHER),
    te("chunked-identity", b"chunked, identity", (400, 501), "9112 6.3: chunked not final", why=OTHER),
    te("identity-chunked", b"identity, chunked", (501, 400), "9112 6.1", why=OTHER),
    te("trailing-comma", b"chunked,", (400, 501), "9110 5.6.1: empty element; not exactly chunked", why=OTHER),
    te("leading-comma", b", chunked", (400, 501), "9110 5.6.1: empty element; not exactly chunked", why=OTHER),
    te("parameter", b"chunked;q=1", (400, 501), "9112 7: chunked has no parameters", why=OTHER),
    te("parameter-space", b"chunked ; a", (400, 501), "9112 7: chunked has no parameters", why=OTHER),
    te("quoted", b'"chunked"', (400, 501), "9112 7: token", why=OTHER),
    te("single-quoted", b"'chunked'", (501, 400), "9112 7: another token", why=OTHER),
    te("space-inside", b"chun ked", (400, 501), "9112 7: token", why=OTHER),
    te("empty", b"", (400, 501), "9112 6.1", why=OTHER),
    te("vertical-tab-before", b"\x0bchunked", (400, 501), "9110 5.6.3: VT is not OWS", why="a CTL in a value (400) or an unknown coding (501)"),
    te("vertical-tab-after", b"chunked\x0b", (400, 501), "9110 5.6.3: VT is not OWS", why="as above"),
    te("form-feed", b"\x0cchunked", (400, 501), "9110 5.6.3: FF is not OWS", why="as above"),
    te("nul-after", b"chunked\0", 400, "9110 5.5: NUL"),
    te("no-break-space", b"\xa0chunked", (400, 501), "9110 5.6.3: NBSP is not OWS", why=OTHER),
    te("utf8-bom", b"\xef\xbb\xbfchunked", (400, 501), "9112 7", why=OTHER),
    te("bare-cr-before", b"\rchunked", 400, "9112 2.2"),
    te("bare-cr-after", b"chunked\r", 400, "9112 2.2"),
    te("bare-lf-before", b"\nchunked", 400, "9112 2.2"),
    te("folded", b"\r\n chunked", 400, "9112 5.2"),
    te("folded-tail", b"chunked\r\n , identity", 400, "9112 5.2"),
    lines("space-before-colon", b"Transfer-Encoding : chunked\r\n", 400, "9112 5.1"),
    lines("tab-before-colon", b"Transfer-Encoding\t: chunked\r\n", 400, "9112 5.1"),
    lines("leading-space-name", b" Transfer-Encoding: chunked\r\n", 400, "9112 5.2"),
    lines("no-space-after-colon", b"Transfer-Encoding:chunked\r\n", 200, "9112 5: OWS", body=b"hello"),
    lines("name-case", b"tRANSFER-eNCODING: chunked\r\n", 200, "9110 5.1", body=b"hello"),
    lines("twice", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", (400, 501), "9112 6.1: not more than once", why=OTHER),
    lines("twice-identity", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", (400, 501), "9112 6.3: chunked not final", why=OTHER),
    lines("twice-x-first", b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n", (400, 501), "9112 6.1", why=OTHER),
    lines("twice-empty", b"Transfer-Encoding:\r\nTransfer-Encoding: chunked\r\n", (400, 501), "9110 5.6.1", why=OTHER),
    lines("bare-cr-hides-it", b"X: y\rTransfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400, "9112 2.2"),
    Case("te/in-1.0", b"POST / HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY, 400, "9112 6.1: framing faulty"),
    Case("te/in-1.0-keep-alive", b"POST / HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY, 400, "9112 6.1"),
    Case("te/on-get", b"GET / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY, 200, "9112 6: framing is independent of the method", body=b"hello"),
    Case("te/on-get-hidden", b"GET / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /two HTTP/1.1\r\nHost: a.example\r\n\r\n", 200, "two requests, both seen as such", answers=2),
]
