"""Request targets (RFC 9112 section 3.2, RFC 3986): one normalised form routes and is forwarded."""

from . import Case


def get(id, target, status, note, forwarded_as=None, **more):
    raw = b"GET " + target + b" HTTP/1.1\r\nHost: a.example\r\n\r\n"
    return Case(f"target/{id}", raw, status, note, target=forwarded_as, **more)


ROOT = "3986 5.2.4 drops what goes above the root; refusing it is stricter"
OPEN = "outside the grammar of 3986, widely sent; refusing and escaping are both safe"

CASES = [
    get("query", b"/a?b=c&d=%2F../x", 200, "3986 3.4: the query is not a path", "/a?b=c&d=%2F../x"),
    get("empty-query", b"/a?", 200, "3986 3.4", None),
    get("dot-segment", b"/a/./b", 200, "3986 5.2.4", "/a/b"),
    get("dot-dot-segment", b"/a/../b", 200, "3986 5.2.4", "/b"),
    get("dot-dot-at-the-end", b"/a/b/..", 200, "3986 5.2.4", "/a/"),
    get("dot-at-the-end", b"/a/.", 200, "3986 5.2.4", "/a/"),
    get("dot-encoded", b"/a/%2e%2e/b", 200, "3986 6.2.2.2 before 5.2.4", "/b"),
    get("dot-encoded-half", b"/a/.%2E/b", 200, "3986 6.2.2.2 before 5.2.4", "/b"),
    get("dot-dot-above-root", b"/../etc/passwd", (400, 200), "3986 5.2.4", why=ROOT, forwarded_as="/etc/passwd"),
    get("dot-dot-far-above-root", b"/a/../../../b", (400, 200), "3986 5.2.4", why=ROOT, forwarded_as="/b"),
    get("three-dots", b"/a/.../b", 200, "3986 5.2.4: not a dot segment", "/a/.../b"),
    get("double-slash", b"//a//b", 200, "reference/l7.md 4: slashes merged once, for routing and forwarding", "/a/b"),
    get("double-slash-dot-dot", b"/a//../b", 200, "merged first as nginx does, so that .. removes a", "/b"),
    get("unreserved-encoded", b"/%41%7e%2D", 200, "3986 6.2.2.2: unreserved are decoded", "/A~-"),
    get("hex-case", b"/%c3%a4", 200, "3986 6.2.2.1: upper-case hex digits", "/%C3%A4"),
    get("reserved-stay-encoded", b"/a%3Fb%23c%25d", 200, "3986 2.2: decoding would change the meaning", "/a%3Fb%23c%25d"),
    get("double-encoded", b"/%252e%252e/a", 200, "3986 2.4: decoded once", "/%252e%252e/a"),
    get("encoded-nul", b"/a%00b", 400, "reference/l7.md 4: %00 refused"),
    get("encoded-slash", b"/a%2fb", 400, "reference/l7.md 4: %2f refused"),
    get("encoded-slash-upper", b"/a%2Fb", 400, "reference/l7.md 4: %2f refused"),
    get("encoded-backslash", b"/a%5cb", 400, "reference/l7.md 4: %5c refused"),
    get("encoded-slash-traversal", b"/a/..%2f..%2fb", 400, "reference/l7.md 4"),
    get("encoded-crlf", b"/a%0d%0aX:%20y", (200, 400), "3986 2.1: stays encoded", why="control characters in a path may be refused", forwarded_as="/a%0D%0AX:%20y"),
    get("percent-alone", b"/a%", 400, "3986 2.1: two hex digits"),
    get("percent-one-digit", b"/a%4", 400, "3986 2.1: two hex digits"),
    get("percent-not-hex", b"/a%zz", 400, "3986 2.1: two hex digits"),
    get("percent-u", b"/a%u0041", 400, "3986 2.1: two hex digits"),
    get("fragment", b"/a#b", 400, "9112 3.2.1: no fragment in a target"),
    get("backslash", b"/a\\b", (400, 200), "3986 2.2: not a URI character", why=OPEN, forwarded_as=None),
    get("backslash-traversal", b"/a\\..\\b", (400, 200), "3986 2.2: not a URI character", why=OPEN),
    get("angle-brackets", b"/<a>", (200, 400), "3986 2", why=OPEN),
    get("braces-and-pipe", b"/{a|b}", (200, 400), "3986 2", why=OPEN),
    get("quote", b'/"a"', (200, 400), "3986 2", why=OPEN),
    get("non-ascii", b"/\xc3\xa4", 400, "3986 2: US-ASCII only"),
    get("latin-1", b"/\xe4", 400, "3986 2: US-ASCII only"),
    get("nul", b"/a\0b", 400, "9112 3.2"),
    get("control", b"/a\x01b", 400, "9112 3.2"),
    get("delete", b"/a\x7fb", 400, "9112 3.2"),
    get("query-non-ascii", b"/a?\xc3\xa4", (400, 200), "3986 3.4", why=OPEN),
    get("query-encoded-nul", b"/a?x=%00", (200, 400), "3986 3.4: opaque here", why="a query is data; refusing is stricter"),
    get("query-control", b"/a?x=\x01", 400, "9112 3.2"),
    get("relative", b"a/b", 400, "9112 3.2: no such form"),
    get("empty", b"", 400, "9112 3.2"),
    get("question-mark-only", b"?a", 400, "9112 3.2.1: origin-form starts with a slash"),
    get("asterisk-get", b"*", 400, "9112 3.2.4: only with OPTIONS"),
    get("semicolon-parameter", b"/a;x=1/../b", 200, "3986 3.3: one opaque segment", "/b"),
    get("absolute", b"http://a.example/x?y", 200, "9112 3.2.2: absolute-form must be accepted", None, host="a.example"),
    get("absolute-other-host", b"http://b.example/x", (200, 400), "9112 3.2.2: Host is ignored, the target's authority counts", why="replacing Host is the rule, refusing the contradiction is stricter", host="b.example"),
    get("absolute-upper-case-scheme", b"HTTP://a.example/x", 200, "3986 3.1: schemes are case-insensitive", None, host="a.example"),
    get("absolute-no-path", b"http://a.example", 200, "9110 4.2.3: an empty path is /", "/"),
    get("absolute-query-no-path", b"http://a.example?x", (200, 400), "9110 4.2.3", why=OPEN),
    get("absolute-ftp", b"ftp://a.example/x", 400, "9112 3.2.2: not a scheme served here"),
    get("absolute-userinfo", b"http://u:p@a.example/x", 400, "9110 4.2.4: userinfo is an error"),
    get("absolute-empty-host", b"http:///x", 400, "9110 4.2.1: empty host is invalid"),
    get("absolute-bad-port", b"http://a.example:99999/x", 400, "3986 3.2.3: port"),
    get("absolute-space-host", b"http://a%20b/x", (400, 200), "3986 3.2.2", why="percent-encoding is allowed in reg-name"),
    get("absolute-dot-dot", b"http://a.example/../x", (400, 200), "3986 5.2.4", why=ROOT),
    get("absolute-double-slash", b"http:/a.example/x", 400, "9112 3.2"),
    get("authority-form-get", b"a.example:80", 400, "9112 3.2.3: only with CONNECT"),
    Case("target/asterisk-options", b"OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n", (200, 204), "9112 3.2.4", forwarded="accepted", why="forwarded as * or answered here"),
    Case("target/connect", b"CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\r\n", (405, 501, 400), "9110 9.3.6: not a forward proxy", why="9110 names 405 and 501; 400 for a target of no accepted form"),
    Case("target/connect-path", b"CONNECT / HTTP/1.1\r\nHost: a.example\r\n\r\n", (400, 405, 501), "9112 3.2.3", why="as target/connect"),
    Case("target/trace", b"TRACE / HTTP/1.1\r\nHost: a.example\r\n\r\n", (200, 405, 501), "9110 9.3.8", why="forwarding and refusing are both allowed"),
]
