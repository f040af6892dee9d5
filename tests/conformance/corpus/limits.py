"""Sizes and counts against the default limits: max_head_size 32k, max_headers 100, body 1m."""

from . import Case

HOST = b"Host: a.example\r\n"

CASES = [
    Case("limit/target-8k", b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 200, "9112 3: at least 8000 octets"),
    Case("limit/target-40k", b"GET /" + b"a" * 40000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414, "9110 15.5.15"),
    Case("limit/target-never-ends", b"GET /" + b"a" * 70000, 414, "9110 15.5.15: refused before the line ends"),
    Case("limit/query-40k", b"GET /?" + b"a" * 40000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414, "9110 15.5.15"),
    Case("limit/field-16k", b"GET / HTTP/1.1\r\n" + HOST + b"X-A: " + b"a" * 16000 + b"\r\n\r\n", 200, "within max_head_size"),
    Case("limit/field-40k", b"GET / HTTP/1.1\r\n" + HOST + b"X-A: " + b"a" * 40000 + b"\r\n\r\n", 431, "6585 5"),
    Case("limit/field-never-ends", b"GET / HTTP/1.1\r\n" + HOST + b"X-A: " + b"a" * 70000, 431, "6585 5: refused before the line ends"),
    Case("limit/name-40k", b"GET / HTTP/1.1\r\n" + HOST + b"X" * 40000 + b": a\r\n\r\n", 431, "6585 5"),
    Case("limit/fields-sum-40k", b"GET / HTTP/1.1\r\n" + HOST + (b"X-A: " + b"a" * 990 + b"\r\n") * 40 + b"\r\n", 431, "6585 5: all fields together"),
    Case("limit/fields-90", b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\r\n" * 89 + b"\r\n", 200, "within max_headers"),
    Case("limit/fields-101", b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\r\n" * 100 + b"\r\n", 431, "max_headers counts Host too: 101"),
    Case("limit/fields-1000", b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\r\n" * 1000 + b"\r\n", 431, "6585 5"),
    Case("limit/fields-many-tiny", b"GET / HTTP/1.1\r\n" + HOST + b"a:\r\n" * 8000 + b"\r\n", 431, "6585 5"),
    Case("limit/body-length", b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1048577\r\n\r\n", 413, "9110 15.5.14: known from the head"),
    Case("limit/body-length-exact", b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1048576\r\n\r\n" + b"a" * 1048576, 200, "within the limit"),
    Case("limit/body-chunked", b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b"a" * 65536 + b"\r\n") * 17 + b"0\r\n\r\n", 413, "9110 15.5.14: known only on the way", forwarded="partial"),
    Case("limit/body-expect", b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 2000000\r\nExpect: 100-continue\r\n\r\n", 413, "9110 10.1.1: a final status instead of 100"),
    Case("limit/expect-unknown", b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nExpect: 200-ok\r\n\r\nhello", 417, "9110 10.1.1"),
    Case("limit/expect-list", b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nExpect: 100-continue, x\r\n\r\nhello", 417, "9110 10.1.1"),
]
