"""Chunked bodies (RFC 9112 section 7.1). The head is good, so a refusal may come after forwarding
began: the origin must then never see the end of the message."""

from . import Case

HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n"
LARGE = "malformed (400), or larger than the body limit (413)"


def good(id, wire, body, note, **more):
    return Case(f"chunked/{id}", _post(wire), 200, note, body=body, **more)


def bad(id, wire, note, status=400, **more):
    return Case(f"chunked/{id}", _post(wire), status, note, forwarded="partial", **more)


def either(id, wire, note, why, **more):
    return Case(f"chunked/{id}", _post(wire), (200, 400), note, forwarded="accepted", why=why, **more)


def _post(wire):
    return b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n" + wire


CASES = [
    good("plain", b"5\r\nhello\r\n0\r\n\r\n", b"hello", "9112 7.1"),
    good("empty", b"0\r\n\r\n", b"", "9112 7.1"),
    good("several", b"1\r\nh\r\n4\r\nello\r\n0\r\n\r\n", b"hello", "9112 7.1"),
    good("hex-lower", b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789", "9112 7.1"),
    good("hex-upper", b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789", "9112 7.1"),
    good("leading-zeros", b"0005\r\nhello\r\n0\r\n\r\n", b"hello", "9112 7.1: 1*HEXDIG"),
    good("last-zeros", b"5\r\nhello\r\n000\r\n\r\n", b"hello", "9112 7.1: 1*\"0\""),
    good("crlf-as-data", b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n", "9112 7.1"),
    good("data-like-end", b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n", "9112 7.1"),
    good("hidden-as-data", b"%x\r\n" % len(HIDDEN) + HIDDEN + b"\r\n0\r\n\r\n", HIDDEN, "data is no request"),
    good("extension", b"5;a=b\r\nhello\r\n0\r\n\r\n", b"hello", "9112 7.1.1: ignored, and removed"),
    good("extension-quoted", b'5;a="b;c"\r\nhello\r\n0;x\r\n\r\n', b"hello", "9112 7.1.1"),
    good("trailer", b"5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n", b"hello", "9112 7.1.2"),
    good("pipelined", b"5\r\nhello\r\n0\r\n\r\n" + HIDDEN, None, "two requests, both seen as such", answers=2),
    either("extension-spaces", b"5 ; a = b\r\nhello\r\n0\r\n\r\n", "9112 7.1.1: BWS", "BWS is legal, refusing it is stricter"),
    Case("chunked/zeros-many", _post(b"0" * 40 + b"5\r\nhello\r\n0\r\n\r\n"), (413, 200, 400), "9112 7.1", why="legal grammar, a bound on digits is stricter"),
    either("trailer-content-length", b"5\r\nhello\r\n0\r\nContent-Length: 50\r\n\r\n", "9110 6.5.1: never merged, never forwarded", "dropping and refusing are both allowed"),
    either("trailer-te", b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n", "9110 6.5.1", "dropping and refusing are both allowed"),
    either("trailer-host", b"5\r\nhello\r\n0\r\nHost: b.example\r\n\r\n", "9110 6.5.1", "dropping and refusing are both allowed"),
    either("trailer-connection", b"5\r\nhello\r\n0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "9110 6.5.1", "dropping and refusing are both allowed"),
    bad("size-empty", b"\r\nhello\r\n0\r\n\r\n", "9112 7.1: at least one digit"),
    bad("size-0x", b"0x5\r\nhello\r\n0\r\n\r\n", "9112 7.1: HEXDIG"),
    bad("size-plus", b"+5\r\nhello\r\n0\r\n\r\n", "9112 7.1: HEXDIG"),
    bad("size-minus", b"-5\r\nhello\r\n0\r\n\r\n", "9112 7.1: HEXDIG"),
    bad("size-minus-zero", b"5\r\nhello\r\n-0\r\n\r\n", "9112 7.1: HEXDIG"),
    bad("size-space-before", b" 5\r\nhello\r\n0\r\n\r\n", "9112 7.1"),
    bad("size-tab-before", b"\t5\r\nhello\r\n0\r\n\r\n", "9112 7.1"),
    bad("size-space-after", b"5 \r\nhello\r\n0\r\n\r\n", "9112 7.1: BWS only before an extension"),
    bad("size-tab-after", b"5\t\r\nhello\r\n0\r\n\r\n", "9112 7.1: BWS only before an extension"),
    bad("size-space-inside", b"0 5\r\nhello\r\n0\r\n\r\n", "9112 7.1"),
    bad("size-not-hex", b"g\r\nhello\r\n0\r\n\r\n", "9112 7.1"),
    bad("size-hex-then-letter", b"5g\r\nhello\r\n0\r\n\r\n", "9112 7.1"),
    bad("size-h-suffix", b"5h\r\nhello\r\n0\r\n\r\n", "9112 7.1"),
    bad("size-underscore", b"0_5\r\nhello\r\n0\r\n\r\n", "9112 7.1"),
    bad("size-fraction", b"5.0\r\nhello\r\n0\r\n\r\n", "9112 7.1"),
    bad("size-comma", b"5,5\r\nhello\r\n0\r\n\r\n", "9112 7.1"),
    bad("size-nul", b"5\0\r\nhello\r\n0\r\n\r\n", "9112 7.1"),
    bad("size-full-width", b"\xef\xbc\x95\r\nhello\r\n0\r\n\r\n", "9112 7.1"),
    bad("size-overflow-64", b"10000000000000005\r\nhello\r\n0\r\n\r\n", "9112 7.1: wraps to 5 in 64 bits", (413, 400), why=LARGE),
    bad("size-overflow-32", b"100000005\r\nhello\r\n0\r\n\r\n", "wraps to 5 in 32 bits", (413, 400), why=LARGE),
    bad("size-max-64", b"ffffffffffffffff\r\nhello\r\n0\r\n\r\n", "2^64 - 1", (413, 400), why=LARGE),
    bad("size-max-63", b"8000000000000000\r\nhello\r\n0\r\n\r\n", "2^63", (413, 400), why=LARGE),
    bad("size-minus-two", b"fffffffffffffffe\r\nhello\r\n0\r\n\r\n", "-2 in 64 bits (CVE-2013-2028)", (413, 400), why=LARGE),
    bad("size-many-digits", b"f" * 40 + b"\r\nhello\r\n0\r\n\r\n", "9112 7.1: anticipate large numerals", (413, 400), why=LARGE),
    bad("size-lf", b"5\nhello\r\n0\r\n\r\n", "9112 7.1: CRLF"),
    bad("size-cr", b"5\rhello\r\n0\r\n\r\n", "9112 7.1: CRLF"),
    bad("size-cr-x-lf", b"5\rX\nhello\r\n0\r\n\r\n", "9112 7.1: CRLF"),
    bad("size-cr-cr-lf", b"5\r\r\nhello\r\n0\r\n\r\n", "9112 7.1: CRLF"),
    bad("data-lf", b"5\r\nhello\n0\r\n\r\n", "9112 7.1: CRLF after data"),
    bad("data-cr", b"5\r\nhello\r0\r\n\r\n", "9112 7.1: CRLF after data"),
    bad("data-no-crlf", b"5\r\nhello0\r\n\r\n", "9112 7.1: CRLF after data"),
    bad("data-too-long", b"5\r\nhelloX\r\n0\r\n\r\n", "9112 7.1: CRLF after data"),
    bad("data-two-bytes-spill", b"5\r\nhelloXX0\r\n\r\n", "the two bytes after data are checked, not skipped"),
    bad("data-lf-cr", b"5\r\nhello\n\r0\r\n\r\n", "9112 7.1: CRLF after data"),
    bad("last-lf", b"5\r\nhello\r\n0\n\r\n", "9112 7.1: CRLF"),
    bad("last-end-lf", b"5\r\nhello\r\n0\r\n\n", "9112 7.1: CRLF"),
    bad("last-end-cr-x", b"5\r\nhello\r\n0\r\n\rX\r\n\r\n", "9112 7.1: CRLF"),
    bad("last-lf-lf", b"5\r\nhello\r\n0\n\n" + HIDDEN, "9112 7.1: CRLF"),
    bad("extension-lf", b"5;a\nhello\r\n0\r\n\r\n", "9112 7.1.1: bare LF ends nothing"),
    bad("extension-lf-inside", b"5;a\nb\r\nhello\r\n0\r\n\r\n", "9112 7.1.1"),
    bad("extension-cr-inside", b"5;a\rb\r\nhello\r\n0\r\n\r\n", "9112 7.1.1: bare CR"),
    bad("extension-quoted-lf", b'5;a="\n"\r\nhello\r\n0\r\n\r\n', "9110 5.6.4: no LF in quoted-string"),
    bad("extension-quoted-crlf", b'5;a="\r\n"\r\nhello\r\n0\r\n\r\n', "9110 5.6.4: the CRLF ends the line, the quote stays open"),
    bad("extension-nul", b"5;a\0b\r\nhello\r\n0\r\n\r\n", "9112 7.1.1"),
    bad("extension-control", b"5;a=\x01\r\nhello\r\n0\r\n\r\n", "9112 7.1.1"),
    bad("extension-too-long", b"5;" + b"a" * 20000 + b"\r\nhello\r\n0\r\n\r\n", "9112 7.1.1: limit the length", (413, 400, 431), why="9112 names 4xx"),
    bad("extension-without-semicolon", b"5 a=b\r\nhello\r\n0\r\n\r\n", "9112 7.1.1"),
    bad("extension-on-last-lf", b"5\r\nhello\r\n0;a\n\r\n", "9112 7.1.1"),
    bad("trailer-lf", b"5\r\nhello\r\n0\r\nX-T: 1\n\r\n", "9112 2.2: bare LF"),
    bad("trailer-cr", b"5\r\nhello\r\n0\r\nX-T: 1\r2\r\n\r\n", "9112 2.2: bare CR"),
    bad("trailer-nul", b"5\r\nhello\r\n0\r\nX-T: \0\r\n\r\n", "9110 5.5"),
    bad("trailer-fold", b"5\r\nhello\r\n0\r\nX-T: 1\r\n 2\r\n\r\n", "9112 5.2"),
    bad("trailer-first-fold", b"5\r\nhello\r\n0\r\n X-T: 1\r\n\r\n", "9112 5.2"),
    bad("trailer-space-colon", b"5\r\nhello\r\n0\r\nX-T : 1\r\n\r\n", "9112 5.1"),
    bad("trailer-no-colon", b"5\r\nhello\r\n0\r\nGET /hidden HTTP/1.1\r\n\r\n", "9112 5"),
    bad("trailer-empty-name", b"5\r\nhello\r\n0\r\n: x\r\n\r\n", "9110 5.1"),
    bad("trailer-too-large", b"5\r\nhello\r\n0\r\nX-T: " + b"a" * 70000 + b"\r\n\r\n", "9110 5.4: limits hold for trailers", (431, 400, 413), why="9110 5.4 names 4xx"),
    bad("trailer-too-many", b"5\r\nhello\r\n0\r\n" + b"X-T: 1\r\n" * 2000 + b"\r\n", "9110 5.4: limits hold for trailers", (431, 400, 413), why="9110 5.4 names 4xx"),
]
