"""Host (RFC 9112 section 3.2, RFC 9110 section 7.2)."""

from . import Case


def host(id, value, status, note, **more):
    raw = b"GET / HTTP/1.1\r\nHost: " + value + b"\r\n\r\n"
    return Case(f"host/{id}", raw, status, note, **more)


CASES = [
    Case("host/missing", b"GET / HTTP/1.1\r\nX-A: b\r\n\r\n", 400, "9112 3.2: MUST 400"),
    Case("host/missing-in-1.0", b"GET / HTTP/1.0\r\nX-A: b\r\n\r\n", 200, "9112 3.2: only 1.1 must send it", closes=True),
    Case("host/missing-absolute", b"GET http://a.example/ HTTP/1.1\r\nX-A: b\r\n\r\n", 400, "9112 3.2: any 1.1 request that lacks it"),
    Case("host/twice", b"GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n", 400, "9112 3.2: more than one line"),
    Case("host/twice-same", b"GET / HTTP/1.1\r\nHost: a.example\r\nHost: a.example\r\n\r\n", 400, "9112 3.2: more than one line"),
    Case("host/twice-in-1.0", b"GET / HTTP/1.0\r\nHost: a.example\r\nHost: b.example\r\n\r\n", 400, "9112 3.2"),
    Case("host/twice-case", b"GET / HTTP/1.1\r\nHost: a.example\r\nhOST: b.example\r\n\r\n", 400, "9112 3.2: names are case-insensitive"),
    Case("host/space-before-colon-second", b"GET / HTTP/1.1\r\nHost: a.example\r\nHost : b.example\r\n\r\n", 400, "9112 5.1"),
    Case("host/folded", b"GET / HTTP/1.1\r\nHost:\r\n a.example\r\n\r\n", 400, "9112 5.2: obs-fold"),
    host("empty", b"", (400, 200), "9112 3.2: allowed only where the target has no authority", why="http URIs have a non-empty host; 9112 lets clients send it empty"),
    host("port", b"a.example:8080", 200, "9110 7.2", host="a.example:8080"),
    host("empty-port", b"a.example:", (200, 400), "3986 3.2.3: port may be empty", why="grammar allows it, refusing is stricter"),
    host("upper-case", b"A.EXAMPLE", 200, "9110 4.2.3"),
    host("trailing-dot", b"a.example.", (200, 400), "3986 3.2.2: the absolute form of a name", why="legal, seldom meant"),
    host("ipv6", b"[::1]:80", 200, "3986 3.2.2: IP-literal"),
    host("ipv6-unclosed", b"[::1", 400, "3986 3.2.2"),
    host("ipv6-bare", b"::1", 400, "3986 3.2.2: needs brackets"),
    host("ipv6-tail", b"[::1]x", 400, "3986 3.2.2"),
    host("ipv6-not-hex", b"[zz]", 400, "3986 3.2.2"),
    host("userinfo", b"user@a.example", 400, "9110 7.2: no userinfo"),
    host("userinfo-password", b"user:pass@a.example", 400, "9110 7.2: no userinfo"),
    host("comma", b"a.example,b.example", 400, "reference/l7.md 4: comma in authority"),
    host("comma-space", b"a.example, b.example", 400, "reference/l7.md 4: comma in authority"),
    host("space", b"a.example b.example", 400, "3986 3.2.2"),
    host("tab", b"a.example\tb", 400, "3986 3.2.2"),
    host("slash", b"a.example/b", 400, "3986 3.2"),
    host("backslash", b"a.example\\b", 400, "3986 3.2"),
    host("question-mark", b"a.example?b", 400, "3986 3.2"),
    host("fragment", b"a.example#b", 400, "3986 3.2"),
    host("url", b"http://a.example", 400, "9110 7.2: host and port only"),
    host("port-too-large", b"a.example:65536", 400, "3986 3.2.3, TCP: 16 bits"),
    host("port-letters", b"a.example:http", 400, "3986 3.2.3: digits"),
    host("port-sign", b"a.example:+80", 400, "3986 3.2.3: digits"),
    host("port-twice", b"a.example:80:80", 400, "3986 3.2.3"),
    host("nul", b"a.example\0", 400, "9110 5.5"),
    host("non-ascii", b"\xc3\xa4.example", 400, "3986 3.2.2"),
    host("percent", b"a%2eexample", (400, 200), "3986 3.2.2: allowed in reg-name", why="legal grammar, refusing is stricter"),
    host("percent-broken", b"a%2", 400, "3986 2.1"),
    host("angle", b"<script>", 400, "3986 3.2.2"),
    host("dot-dot", b"..", (400, 200), "3986 3.2.2: legal reg-name, nginx refuses it", why="grammar allows it, refusing is stricter"),
]
