"""Field lines (RFC 9112 section 5, RFC 9110 section 5)."""

from . import Case


def get(id, lines, status, note, **more):
    raw = b"GET / HTTP/1.1\r\nHost: a.example\r\n" + lines + b"\r\n"
    return Case(f"field/{id}", raw, status, note, **more)


CASES = [
    get("fold-space", b"X-A: b\r\n c\r\n", 400, "9112 5.2: obs-fold"),
    get("fold-tab", b"X-A: b\r\n\tc\r\n", 400, "9112 5.2: obs-fold"),
    get("fold-empty", b"X-A: b\r\n \r\n", 400, "9112 5.2: obs-fold"),
    get("fold-te", b"Transfer-Encoding:\r\n chunked\r\n", 400, "9112 5.2: obs-fold"),
    Case("field/fold-first-line", b"GET / HTTP/1.1\r\n Host: a.example\r\nHost: a.example\r\n\r\n", 400, "9112 2.2: whitespace after the start line"),
    Case("field/tab-first-line", b"GET / HTTP/1.1\r\n\tX: y\r\nHost: a.example\r\n\r\n", 400, "9112 2.2: whitespace after the start line"),
    get("space-before-colon", b"X-A : b\r\n", 400, "9112 5.1: MUST 400"),
    get("tab-before-colon", b"X-A\t: b\r\n", 400, "9112 5.1: MUST 400"),
    get("space-in-name", b"X A: b\r\n", 400, "9110 5.1: token"),
    get("empty-name", b": b\r\n", 400, "9110 5.1: token"),
    get("no-colon", b"X-A b\r\n", 400, "9112 5"),
    get("no-colon-one-word", b"Garbage\r\n", 400, "9112 5"),
    get("name-non-ascii", b"X-\xc3\xa4: b\r\n", 400, "9110 5.1: token"),
    get("name-control", b"X-\x01: b\r\n", 400, "9110 5.1: token"),
    get("name-nul", b"X-\0A: b\r\n", 400, "9110 5.1: token"),
    get("name-parenthesis", b"X(A): b\r\n", 400, "9110 5.1: token"),
    get("name-slash", b"X/A: b\r\n", 400, "9110 5.1: token"),
    get("name-quote", b'"X-A": b\r\n', 400, "9110 5.1: token"),
    get("name-at", b"X@A: b\r\n", 400, "9110 5.1: token"),
    get("name-equals", b"X=A: b\r\n", 400, "9110 5.1: token"),
    get("name-brackets", b"X[A]: b\r\n", 400, "9110 5.1: token"),
    get("name-vertical-tab", b"X-A\x0b: b\r\n", 400, "9110 5.1: token"),
    get("name-odd-token", b"!#$%&'*+.^`|~-1: b\r\n", 200, "9110 5.6.2: every tchar"),
    get("value-empty", b"X-A:\r\n", 200, "9110 5.5", present=("x-a",)),
    get("value-no-space", b"X-A:b\r\n", 200, "9112 5: OWS"),
    get("value-colon", b"X-A:: b:c\r\n", 200, "9110 5.5"),
    get("value-obs-text", b"X-A: \xe4\xff\r\n", 200, "9110 5.5: obs-text is opaque", present=("x-a",)),
    get("value-tab-inside", b"X-A: b\tc\r\n", 200, "9110 5.5: HTAB inside"),
    get("value-nul", b"X-A: b\0c\r\n", 400, "9110 5.5: NUL is dangerous"),
    get("value-nul-at-the-end", b"X-A: b\0\r\n", 400, "9110 5.5"),
    get("value-control", b"X-A: b\x01c\r\n", 400, "9110 5.5: CTL"),
    get("value-escape", b"X-A: \x1b[31m\r\n", 400, "9110 5.5: CTL"),
    get("value-delete", b"X-A: b\x7fc\r\n", 400, "9110 5.5: CTL"),
    get("value-bare-cr", b"X-A: b\rc\r\n", 400, "9112 2.2: bare CR"),
    get("value-bare-cr-header", b"X-A: b\rTransfer-Encoding: chunked\r\n", 400, "9112 2.2: bare CR"),
    get("value-cr-cr-lf", b"X-A: b\r\r\n", 400, "9112 2.2: bare CR"),
    get("value-bare-lf", b"X-A: b\nX-B: c\r\n", 400, "9112 2.2: bare LF refused"),
    get("value-bare-lf-te", b"X-A: b\nTransfer-Encoding: chunked\r\n", 400, "9112 2.2: bare LF refused"),
    get("name-bare-lf", b"X-\nA: b\r\n", 400, "9112 2.2"),
    get("name-bare-cr", b"X-\rA: b\r\n", 400, "9112 2.2"),
    get("cr-after-colon", b"X-A:\rb\r\n", 400, "9112 2.2"),
    Case("field/end-lf-lf", b"GET / HTTP/1.1\r\nHost: a.example\n\n", 400, "9112 2.2: bare LF refused"),
    Case("field/end-crlf-lf", b"GET / HTTP/1.1\r\nHost: a.example\r\n\n", 400, "9112 2.2: bare LF refused"),
    Case("field/end-lf-crlf", b"GET / HTTP/1.1\r\nHost: a.example\n\r\n", 400, "9112 2.2: bare LF refused"),
    Case("field/end-cr-cr", b"GET / HTTP/1.1\r\nHost: a.example\r\r\n\r\n", 400, "9112 2.2: bare CR"),
    Case("field/end-crlf-cr-x", b"GET / HTTP/1.1\r\nHost: a.example\r\n\rX\r\n\r\n", 400, "9112 2.2: bare CR"),
    Case("field/all-lf", b"GET / HTTP/1.1\nHost: a.example\n\n", 400, "9112 2.2: bare LF refused"),
    get("underscore", b"X_Real_IP: 1.2.3.4\r\nX-A: b\r\n", 200, "issue 2: names with underscores are dropped by default", absent=("x_real_ip",), present=("x-a",)),
    get("underscore-content-length", b"Content_Length: 10\r\n", 200, "as above", absent=("content_length",)),
    get("underscore-te", b"Transfer_Encoding: chunked\r\n", 200, "as above", absent=("transfer_encoding", "transfer-encoding")),
    get("many-same", b"X-A: b\r\n" * 50, 200, "9110 5.3", present=("x-a",)),
]
