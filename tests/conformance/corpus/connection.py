"""Connection, Upgrade and pipelines (RFC 9110 sections 7.6.1 and 7.8, RFC 9112 section 9)."""

from . import Case

HOST = b"Host: a.example\r\n"
TWO = b"GET /two HTTP/1.1\r\nHost: a.example\r\n\r\n"
ESSENTIAL = "ignoring the nomination and refusing it are both safe"
WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


def get(id, lines, status, note, after=b"", **more):
    return Case(f"connection/{id}", b"GET / HTTP/1.1\r\n" + HOST + lines + b"\r\n" + after, status, note, **more)


def post(id, lines, status, note, body=b"hello", **more):
    raw = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n" + lines + b"\r\n" + body
    return Case(f"connection/{id}", raw, status, note, **more)


CASES = [
    get("close", b"Connection: close\r\n", 200, "9112 9.6", closes=True),
    get("close-upper", b"Connection: CLOSE\r\n", 200, "9110 7.6.1: case-insensitive", closes=True),
    get("close-in-list", b"Connection: x, close\r\n", 200, "9110 7.6.1", closes=True),
    get("close-second-line", b"Connection: x\r\nConnection: close\r\n", 200, "9110 7.6.1", closes=True),
    get("close-hides-request", b"Connection: close\r\n", 200, "9112 9.6: nothing after close is processed", TWO, closes=True, answers=1),
    get("keep-alive", b"Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n", 200, "9110 7.6.1", absent=("keep-alive", "connection")),
    get("nominated", b"Connection: X-Hop\r\nX-Hop: 1\r\nX-End: 2\r\n", 200, "9110 7.6.1: removed", absent=("x-hop",), present=("x-end",)),
    get("nominated-case", b"Connection: x-hOP\r\nX-Hop: 1\r\n", 200, "9110 7.6.1: removed", absent=("x-hop",)),
    get("nominated-list", b"Connection: , X-A ,,X-B,\r\nX-A: 1\r\nX-B: 2\r\n", 200, "9110 5.6.1: empty elements", absent=("x-a", "x-b")),
    get("nominates-host", b"Connection: Host\r\n", (200, 400), "9110 7.6.1: must not be listed", why=ESSENTIAL, host="a.example"),
    get("nominates-xff", b"Connection: X-Forwarded-For\r\n", 200, "what the proxy sets is not the client's to remove", present=("x-forwarded-for",)),
    get("nominates-real-ip", b"Connection: X-Real-IP, X-Forwarded-Proto\r\n", 200, "as above", present=("x-real-ip", "x-forwarded-proto")),
    post("nominates-content-length", b"Connection: Content-Length\r\n", (200, 400), "9110 7.6.1", why=ESSENTIAL),
    Case("connection/nominates-te", b"POST / HTTP/1.1\r\n" + HOST + b"Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", (200, 400), "9110 7.6.1", why=ESSENTIAL, body=b"hello"),
    get("not-a-token", b"Connection: a b\r\n", (200, 400), "9110 7.6.1", why="malformed option, no harm"),
    get("proxy-connection", b"Proxy-Connection: keep-alive\r\n", 200, "9112 C.2.2: removed", absent=("proxy-connection",)),
    get("te", b"TE: trailers, gzip\r\nConnection: TE\r\n", 200, "9110 10.1.4: at most `trailers`"),
    get("te-unlisted", b"TE: gzip\r\n", 200, "9110 10.1.4: hop-by-hop", absent=("te",)),
    get("upgrade-unlisted", b"Upgrade: websocket\r\n", 200, "9110 7.8: without Connection: upgrade it is nothing", absent=("upgrade",)),
    get("proxy-authorization", b"Proxy-Authorization: Basic eDp5\r\n", 200, "9110 11.7.2: not for the origin", absent=("proxy-authorization",)),
    get("h2c", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n", 200, "reference/l7.md 4: h2c is never forwarded", absent=("upgrade", "http2-settings", "connection")),
    get("h2c-unlisted-settings", b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n", 200, "as above", absent=("upgrade", "http2-settings")),
    get("h2c-and-websocket", b"Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n", 200, "only websocket may remain", why="", absent=("http2-settings",)),
    get("upgrade-tls", b"Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n", 200, "only websocket is forwarded", absent=("upgrade",)),
    get("websocket-refused-then-request", WEBSOCKET, 200, "CVE-2026-2833: bytes after an Upgrade are a request until 101", TWO, answers=2),
    Case("connection/websocket-in-1.0", b"GET / HTTP/1.0\r\n" + HOST + WEBSOCKET + b"\r\n", 200, "9110 7.8: Upgrade in 1.0 is ignored", absent=("upgrade",), closes=True),
    Case("connection/http-1.0", b"GET / HTTP/1.0\r\n" + HOST + b"\r\n", 200, "9112 9.3", closes=True),
    Case("connection/http-1.0-hides-request", b"GET / HTTP/1.0\r\n" + HOST + b"\r\n" + TWO, 200, "9112 9.3: not persistent", closes=True),
    Case("connection/http-1.0-keep-alive", b"GET / HTTP/1.0\r\n" + HOST + b"Connection: keep-alive\r\n\r\n", 200, "9112 C.2.2", closes=False),
    Case("connection/pipeline-3", b"GET /1 HTTP/1.1\r\n" + HOST + b"\r\nGET /2 HTTP/1.1\r\n" + HOST + b"\r\nGET /3 HTTP/1.1\r\n" + HOST + b"\r\n", 200, "9112 9.3.2: answered in order", answers=3),
    Case("connection/pipeline-post-get", b"POST /1 HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhelloGET /2 HTTP/1.1\r\n" + HOST + b"\r\n", 200, "9112 9.3.2", answers=2),
    Case("connection/pipeline-crlf-between", b"GET /1 HTTP/1.1\r\n" + HOST + b"\r\n\r\nGET /2 HTTP/1.1\r\n" + HOST + b"\r\n", 200, "9112 2.2: an empty line before a request", answers=2),
    post("body-then-garbage", b"", 200, "the second message is judged alone", b"hello\0\0\0\r\n\r\n", closes=True, answers=2),
    get("forwarded-for-spoof", b"X-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n", 200, "an untrusted peer's values are replaced", present=("x-forwarded-for", "x-real-ip")),
    get("max-forwards", b"Max-Forwards: 0\r\n", 200, "9110 7.6.2: only TRACE and OPTIONS"),
]
