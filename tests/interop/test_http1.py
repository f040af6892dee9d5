"""HTTP/1.1 on both sides (RFC 9110, RFC 9112), over sockets: connections, versions, framing."""

import threading
import time
from email.utils import parsedate_to_datetime

import pytest

from harness import Client, eventually, get, request, say
from harness.client import message

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"


def test_keep_alive_on_both_sides(web):
    proxy, origin = web()
    with Client(proxy.address) as client:
        for n in range(50):
            assert client.ask(message("GET", f"/{n}")).body == b"ok"
    assert [r.target for r in origin.requests] == [f"/{n}" for n in range(50)]
    assert len(origin.connections) <= 2, "one shard serves this client: one upstream connection"


def test_pipelining_answers_in_order(web):
    def handler(connection):
        for r in connection.requests():
            connection.send(say(200, r.target.encode()))

    proxy, _ = web(handler)
    with Client(proxy.address) as client:
        client.send(b"".join(message("GET", f"/{n}") for n in range(100)))
        assert [client.read_response().body for _ in range(100)] == [b"/%d" % n for n in range(100)]


def test_pipelining_with_half_close(web):
    proxy, _ = web()
    with Client(proxy.address) as client:
        client.send(GET * 5)
        client.half_close()
        assert [client.read_response().status for _ in range(5)] == [200] * 5
        assert client.closed()


def test_pipelining_ends_at_a_refused_request(web):
    """What came before is answered, what comes after is not looked at."""
    proxy, origin = web()
    with Client(proxy.address) as client:
        client.send(message("GET", "/1") + message("GET", "/2") + b"GET /bad HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        client.send(message("GET", "/after"))
        answers = [client.read_response() for _ in range(3)]
        assert [a.status for a in answers] == [200, 200, 400]
        assert answers[2].header("connection") == "close"
        assert client.closed()
    assert [r.target for r in origin.requests] == ["/1", "/2"]


def test_pipelining_client_that_never_reads(start):
    """Answers made here wait for their reader too: the proxy stops to read, and then gives up."""
    proxy = start({
        "http": {"send_timeout": "1s", "keepalive_requests": 10_000_000},
        "route": [{"respond": {"status": 200, "body": "x" * 4000}}],
    })
    before = proxy.rss()
    with Client(proxy.address, 0.5, rcvbuf=65536) as client:
        sent = 0
        with pytest.raises(OSError):
            for _ in range(200):
                client.send(GET * 2000)
                sent += 2000
        assert sent < 400_000, "never held back"
        assert proxy.rss() - before < 32 << 20
        proxy.await_metric("ringgate_client_timeouts_total", 1)


def test_keepalive_requests_closes_with_notice(web):
    proxy, _ = web(http={"keepalive_requests": 3})
    with Client(proxy.address) as client:
        answers = [client.ask(GET) for _ in range(3)]
        assert [a.header("connection") == "close" for a in answers] == [False, False, True]
        assert client.closed()


def test_keepalive_timeout(web):
    proxy, _ = web(http={"keepalive_timeout": "300ms"})
    with Client(proxy.address) as client:
        assert client.ask(GET).status == 200
        assert client.closed(3)


def test_a_close_elsewhere_leaves_new_connections_alone(web):
    """The end of one connection must not be sent on the next that gets its descriptor."""
    proxy, _ = web()
    for _ in range(200):
        assert get(proxy.admin, "/healthz").status == 200
        assert get(proxy.address).status == 200


def test_client_header_timeout_is_total(web):
    """A byte now and then does not extend it (slowloris)."""
    proxy, _ = web(http={"client_header_timeout": "500ms"})
    with Client(proxy.address, 5) as client:
        pieces = [bytes([b]) for b in b"GET / HTTP/1.1\r\nHost: a.example\r\nX: " + b"a" * 60]
        sender = threading.Thread(target=client.send_pieces, args=(pieces, 0.05))
        sender.start()
        answer = client.read_response(timeout=3)
        assert answer.status == 408
        sender.join()


def test_silent_client_is_closed_without_an_answer(web):
    proxy, _ = web(http={"client_header_timeout": "300ms", "keepalive_timeout": "300ms"})
    with Client(proxy.address) as client:
        assert client.read_until_eof(5) == b""


def test_client_body_timeout(web):
    proxy, origin = web(http={"client_body_timeout": "300ms"})
    with Client(proxy.address) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 10\r\n\r\nabc")
        assert client.read_response(timeout=5).status == 408
        assert client.closed()
    assert origin.requests == []


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("size, kept", [(65536, True), (65537, False)])
def test_unwanted_body(start, framing, size, kept):
    """A body nobody reads is discarded up to 64 KiB; beyond that the connection ends instead."""
    proxy = start({"route": [{"respond": {"status": 200, "body": "own"}}]})
    raw = message("POST", body=b"z" * size)
    if framing == "chunked":
        raw = message("POST", headers={"Transfer-Encoding": "chunked"})
        raw += b"%x\r\n" % size + b"z" * size + b"\r\n0\r\n\r\n"
    with Client(proxy.address) as client:
        answer = client.ask(raw)
        assert (answer.body, answer.header("connection")) == (b"own", None if kept else "close")
        if kept:
            assert client.ask(GET).body == b"own"
        else:
            assert client.closed()


def test_unwanted_body_that_does_not_come(start):
    proxy = start({
        "http": {"client_body_timeout": "300ms"}, "route": [{"respond": {"status": 200, "body": "own"}}],
    })
    with Client(proxy.address) as client:
        client.send(message("POST", headers={"Content-Length": 100}) + b"some")
        answer = client.read_response(timeout=3)
        assert answer.status in (200, 408) and answer.header("connection") == "close"
        assert client.closed()


@pytest.mark.parametrize("answer, method, body", [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nX-Evil: 1\r\nContent-Length: 0\r\n\r\n", "GET", b"ok"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nunwelcome", "HEAD", b""),
    (b"HTTP/1.1 204 No Content\r\n\r\nunwelcome", "GET", b""),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\nunwelcome", "GET", b""),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nmore", "GET", b"ok"),
], ids=["length", "head", "204", "304", "chunked"])
def test_bytes_behind_a_response_are_nobodys(web, answer, method, body):
    """An origin that says more than it was asked loses its connection, not the next client its answer."""

    def handler(connection):
        connection.read_request()
        connection.send(answer)
        connection.stall(2)

    proxy, origin = web(handler)
    with Client(proxy.address) as client:
        for _ in range(3):
            got = client.ask(message(method), method)
            assert (got.body, got.header("x-evil")) == (body, None)
        assert client.silent()
    assert len(origin.connections) == 3


def test_http10_without_keep_alive(web):
    proxy, origin = web()
    with Client(proxy.address) as client:
        answer = client.ask(b"GET / HTTP/1.0\r\nHost: a.example\r\n\r\n")
        assert (answer.status, answer.body) == (200, b"ok")
        assert client.closed()
    assert origin.request.version == "HTTP/1.1"


def test_http10_keep_alive(web):
    proxy, _ = web()
    with Client(proxy.address) as client:
        raw = b"GET / HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive\r\n\r\n"
        assert client.ask(raw).header("connection").lower() == "keep-alive"
        assert client.ask(raw).status == 200


def test_http10_client_gets_no_chunks(web):
    def handler(connection):
        for _ in connection.requests():
            connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")

    proxy, _ = web(handler)
    with Client(proxy.address) as client:
        answer = client.ask(b"GET / HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive\r\n\r\n")
        assert answer.header("transfer-encoding") is None
        assert answer.until_close and answer.body == b"abc"


def test_http10_client_gets_no_trailer_field(web):
    """What a de-chunked response announces would not come (RFC 9110 section 6.6.2)."""

    def handler(connection):
        for _ in connection.requests():
            connection.send(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
                b"3\r\nabc\r\n0\r\nX-Sum: 3\r\n\r\n"
            )

    proxy, _ = web(handler)
    old = request(proxy.address, version="HTTP/1.0")
    assert (old.header("trailer"), old.body, old.until_close) == (None, b"abc", True)
    new = get(proxy.address)
    assert (new.header("trailer"), new.trailers) == ("X-Sum", [("X-Sum", "3")])


def test_http10_request_with_a_body(web):
    proxy, origin = web()
    assert request(proxy.address, "POST", body=b"hello", version="HTTP/1.0").status == 200
    assert origin.request.body == b"hello"


def test_http10_without_host(web):
    proxy, origin = web()
    assert request(proxy.address, version="HTTP/1.0", host=None).status == 200
    assert origin.request.version == "HTTP/1.1" and len(origin.request.all("host")) == 1


def test_http10_origin(web):
    def handler(connection):
        connection.read_request()
        connection.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nold")

    proxy, origin = web(handler)
    with Client(proxy.address) as client:
        for _ in range(2):
            answer = client.ask(GET)
            assert (answer.version, answer.body) == ("HTTP/1.1", b"old")
    assert len(origin.connections) == 2


def test_close_delimited_response_becomes_chunked(web):
    def handler(connection):
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100000)

    proxy, _ = web(handler)
    with Client(proxy.address) as client:
        answer = client.ask(GET)
        assert answer.header("transfer-encoding") == "chunked" and answer.body == b"x" * 100000
        assert client.ask(GET).status == 200, "the client's connection outlives the origin's"


def test_head(web):
    def handler(connection):
        for r in connection.requests():
            assert r.method == "HEAD"
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nX-A: b\r\n\r\n")

    proxy, _ = web(handler)
    with Client(proxy.address) as client:
        for _ in range(3):
            answer = client.ask(message("HEAD"), "HEAD")
            assert answer.header("content-length") == "1000" and answer.header("x-a") == "b"
        assert client.silent()


@pytest.mark.parametrize("framing", ["Transfer-Encoding: chunked", "X-No: framing"])
def test_head_with_other_framings(web, framing):
    def handler(connection):
        for _ in connection.requests():
            connection.send(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode())

    proxy, _ = web(handler)
    with Client(proxy.address) as client:
        assert [client.ask(message("HEAD"), "HEAD").status for _ in range(2)] == [200, 200]
        assert client.silent()


@pytest.mark.parametrize("status", [204, 304])
def test_responses_without_content(web, status):
    def handler(connection):
        for _ in connection.requests():
            extra = "Content-Length: 50\r\n" if status == 304 else ""
            connection.send(f"HTTP/1.1 {status} X\r\nETag: \"a\"\r\n{extra}\r\n".encode())

    proxy, _ = web(handler)
    with Client(proxy.address) as client:
        for _ in range(2):
            answer = client.ask(GET)
            assert (answer.status, answer.body) == (status, b"")
            assert status == 304 or answer.header("content-length") is None
        assert client.silent()


def test_empty_body_with_zero_length(web):
    def handler(connection):
        for _ in connection.requests():
            connection.send(say(200, b""))

    proxy, _ = web(handler)
    with Client(proxy.address) as client:
        assert [client.ask(GET).body for _ in range(3)] == [b""] * 3


@pytest.mark.parametrize("status", [200, 204, 304, 404, 500])
def test_date_is_added_when_the_origin_has_none(web, status):
    """RFC 9110 section 6.6.1: a recipient with a clock records when it received the response."""

    def handler(connection):
        for r in connection.requests():
            date = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n" if r.target == "/dated" else ""
            length = "" if status in (204, 304) else "Content-Length: 0\r\n"
            connection.send(f"HTTP/1.1 {status} X\r\n{date}{length}\r\n".encode())

    proxy, _ = web(handler)
    added = parsedate_to_datetime(get(proxy.address).header("date"))
    assert abs(added.timestamp() - time.time()) < 5
    assert get(proxy.address, "/dated").header("date") == "Sun, 06 Nov 1994 08:49:37 GMT"


def test_chunked_both_ways_with_trailers(web):
    def handler(connection):
        for r in connection.requests():
            assert r.body == b"hello" and r.framing() == "chunked"
            connection.send(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
                b"3\r\nabc\r\n4\r\ndefg\r\n0\r\nX-Sum: 7\r\n\r\n"
            )

    proxy, origin = web(handler)
    with Client(proxy.address) as client:
        answer = client.ask(
            b"POST / HTTP/1.1\r\nHost: a.example\r\nTE: trailers\r\nConnection: TE\r\n"
            b"Transfer-Encoding: chunked\r\nTrailer: X-In\r\n\r\n5\r\nhello\r\n0\r\nX-In: 1\r\n\r\n"
        )
        assert answer.body == b"abcdefg"
        assert answer.trailers == [("X-Sum", "7")]
        assert [(k.lower(), v) for k, v in origin.request.trailers] == [("x-in", "1")]
        assert client.ask(message("POST", "/", [("Transfer-Encoding", "chunked")]) + b"5\r\nhello\r\n0\r\n\r\n").status == 200


def test_half_close_after_the_request(web):
    proxy, _ = web()
    with Client(proxy.address) as client:
        client.send(GET)
        client.half_close()
        assert client.read_response().body == b"ok"
        assert client.closed()


def test_half_close_within_a_request_is_no_request(web):
    proxy, origin = web()
    with Client(proxy.address) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 10\r\n\r\nabc")
        client.half_close()
        rest = client.read_until_eof()
        assert rest == b"" or rest.startswith(b"HTTP/1.1 400"), rest
    assert get(proxy.address, "/after").status == 200
    assert [r.target for r in origin.requests] == ["/after"]


def test_client_gone_aborts_the_upstream_request(web):
    gone = threading.Event()

    def handler(connection):
        connection.read_request()
        connection.stall(10)
        if connection.closed_by_peer:
            gone.set()

    proxy, origin = web(handler)
    client = Client(proxy.address)
    client.send(GET)
    eventually(lambda: origin.heads)
    client.reset()
    assert gone.wait(8), "the upstream connection outlived the client's"
