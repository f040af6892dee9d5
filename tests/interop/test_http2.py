"""HTTP/2 from clients: one truth with HTTP/1.1, streams side by side, back-pressure, both ends of life."""

import base64
import hashlib
import json
import re
import signal
import threading
import time

import h2.config
import h2.connection
import h2.events
import pytest

from harness import Client, Deadline, curl, eventually, get, respond, say, tool
from harness.client import run, url
from harness.http2 import (
    CANCEL, DATA, END_STREAM, GOAWAY, H2, INTERNAL, NO_ERROR, REFUSED, RST, frame, get_fields, settings,
)
from harness.proxy import one, upstream

LISTENER = [{"http2": True}]
MIB = 1 << 20


@pytest.fixture
def web2(start, serve):
    """`web2(handler, **upstream_keys)` gives (proxy, origin); the listener takes HTTP/2."""

    def begin(handler=None, http=None, config=None, **keys):
        back = serve(handler)
        more = config or {}
        return start({**one(back, http=http, **keys), "listener": LISTENER, **more}), back

    return begin


def curl2(proxy, path="/", *more):
    return curl("--http2-prior-knowledge", "-i", *more, url(proxy.address, path)).stdout


def test_curl(web2):
    proxy, origin = web2(respond(headers={"X-A": "b"}))
    out = curl2(proxy, "/p?q=1", "-H", "X-Test: Yes", "-b", "a=1; b=2")
    assert out.startswith("HTTP/2 200") and "x-a: b" in out and out.endswith("ok")
    r = origin.requests[0]
    assert (r.method, r.target, r.version) == ("GET", "/p?q=1", "HTTP/1.1")
    assert r.header("x-test") == "Yes" and r.header("cookie") == "a=1; b=2"
    assert r.header("x-forwarded-for") == "127.0.0.1" and r.header("x-forwarded-proto") == "http"
    assert len(r.header("x-request-id")) == 32
    for name in ("connection", "transfer-encoding", "te", "upgrade", "http2-settings"):
        assert r.header(name) is None
    proxy.await_equal("ringgate_http2_connections_total", 1)
    proxy.await_equal("ringgate_http2_streams_total", 1)


def test_both_versions_on_one_port(web2):
    proxy, _ = web2()
    assert get(proxy.address).body == b"ok"
    with Client(proxy.address) as client:
        client.send(b"P")
        client.send(b"ATCH / HTTP/1.1\r\nHost: a.example\r\n\r\n")
        assert client.read_response().status == 200
    with H2(proxy.address) as h2:
        h2.get(1)
        assert h2.reply(1).body == b"ok"


def test_off_by_default(web):
    proxy, _ = web()
    with Client(proxy.address) as client:
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert client.read_response().status in (400, 505)


@pytest.mark.parametrize("size", [0, 1, 16384, 100_000, 3 * MIB])
def test_bodies_both_ways(web2, size):
    body = bytes(i % 251 for i in range(size))

    def echo(connection):
        for r in connection.requests():
            connection.send(say(body=r.body))

    proxy, origin = web2(echo, http={"client_max_body_size": 0})
    connection, sock = peer(proxy)
    with sock:
        assert exchange(connection, sock, body) == body
    assert origin.requests[0].body == body


def peer(proxy):
    """Python's h2 as the client."""
    client = Client(proxy.address)
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    return connection, client.sock


def exchange(connection, sock, body):
    """POSTs a body by the rules of flow control; the answer's body."""
    stream = connection.get_next_available_stream_id()
    connection.send_headers(stream, get_fields(method="POST"), end_stream=not body)
    sent, answer, ended = 0, b"", False
    while not ended:
        while sent < len(body) and connection.local_flow_control_window(stream) > 0:
            n = min(connection.local_flow_control_window(stream), 16384, len(body) - sent)
            connection.send_data(stream, body[sent : sent + n], end_stream=sent + n == len(body))
            sent += n
        sock.sendall(connection.data_to_send())
        data = sock.recv(1 << 16)
        assert data, "closed"
        for event in connection.receive_data(data):
            assert not isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)), event
            if isinstance(event, h2.events.DataReceived):
                answer += event.data
                connection.acknowledge_received_data(event.flow_controlled_length, stream)
            ended |= isinstance(event, h2.events.StreamEnded)
    return answer


@pytest.mark.parametrize("answer,status,length", [
    (b"HTTP/1.1 204 No Content\r\n\r\n", 204, None),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", 304, "7"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "0"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 200, None),
])
def test_answers_without_body(web2, answer, status, length):
    proxy, _ = web2(lambda c: [c.send(answer) for _ in c.requests()])
    with H2(proxy.address) as h2:
        h2.get(1)
        reply = h2.reply(1)
        assert (reply.status, reply.body, reply.header("content-length")) == (status, b"", length)
        assert reply.reset is None


def test_head(web2):
    proxy, _ = web2(lambda c: [c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n") for _ in c.requests()])
    with H2(proxy.address) as h2:
        h2.get(1, method="HEAD")
        reply = h2.reply(1)
        assert (reply.status, reply.body, reply.header("content-length")) == (200, b"", "5")


def test_own_answers(start):
    routes = [
        {"path": "/fixed", "respond": {"status": 200, "body": "text"}},
        {"path": "/away", "redirect": {"status": 302, "to": "http://b.example$request_uri"}},
    ]
    proxy = start({"route": routes, "listener": LISTENER})
    with H2(proxy.address) as h2:
        for stream, path in ((1, "/fixed"), (3, "/away/x"), (5, "/none")):
            h2.get(stream, path)
        assert (h2.reply(1).status, h2.reply(1).body) == (200, b"text")
        assert h2.reply(3).header("location") == "http://b.example/away/x"
        assert h2.reply(5).status == 404


def test_streams_are_served_side_by_side(web2):
    gate, waiting = threading.Event(), []

    def handler(connection):
        for r in connection.requests():
            waiting.append(r)
            if r.target != "/fast":
                assert gate.wait(20)
            connection.send(say(body=r.target.encode()))

    proxy, _ = web2(handler)
    with H2(proxy.address) as h2:
        for i in range(100):
            h2.get(1 + 2 * i, f"/{i}")
        eventually(lambda: len(waiting) == 100, 10, "100 requests at the origin")
        h2.get(201, "/fast")
        assert h2.reply(201).body == b"/fast", "the last overtakes"
        gate.set()
        for i in range(100):
            assert h2.reply(1 + 2 * i).body == f"/{i}".encode()


def test_a_stalled_stream_holds_nobody_up_and_pauses_its_server(web2):
    sent = []

    def handler(connection):
        for r in connection.requests():
            if r.target == "/big":
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * MIB))
                for _ in range(64 * 16):
                    connection.send(bytes(MIB // 16))
                    sent.append(MIB // 16)
            else:
                connection.send(say(body=b"small"))

    proxy, origin = web2(handler)
    origin.timeout = 60
    before = proxy.rss()
    with H2(proxy.address) as h2:
        h2.window(0, 100 * MIB)
        h2.get(1, "/big")
        h2.until(lambda: len(h2.stream(1).body) == 65535, "the stream's window")
        steady = Steady(lambda: sum(sent))
        eventually(steady, 20, "the server is paused")
        assert sum(sent) < 16 * MIB, "back-pressure reaches the server"
        assert proxy.rss() - before < 16 * MIB
        for stream in range(3, 43, 2):
            h2.get(stream)
            assert h2.reply(stream).body == b"small"
        assert len(h2.stream(1).body) == 65535
        h2.window(1, 100 * MIB)
        assert len(h2.reply(1, 60).body) == 64 * MIB


class Steady:
    """True once a figure has not moved for a second."""

    def __init__(self, figure):
        self.figure, self.last, self.since = figure, None, time.monotonic()

    def __call__(self):
        now = self.figure()
        if now != self.last:
            self.last, self.since = now, time.monotonic()
        return time.monotonic() - self.since > 1.0


def test_an_upload_that_the_server_does_not_read_is_paused(web2):
    resume = threading.Event()

    def handler(connection):
        r = connection.read_head()
        assert resume.wait(30)
        connection.read_body(r)
        connection.send(say(body=b"%d" % len(r.body)))

    proxy, _ = web2(handler, http={"client_max_body_size": 0})
    with H2(proxy.address) as h2:
        h2.send(h2.headers(1, get_fields(method="POST"), end=False))
        h2.until(lambda: h2.settings, "SETTINGS")
        h2.ping()
        window = {"sent": 0, "stream": h2.settings[4], "connection": MIB}
        total = 32 * MIB

        def pump(limit):
            granted()
            while window["sent"] < limit and min(window["stream"], window["connection"]) >= 16384:
                h2.data(1, bytes(16384))
                window["sent"] += 16384
                window["stream"] -= 16384
                window["connection"] -= 16384

        seen = {"at": 0}
        real = h2.read_frame

        def read_frame(timeout=None):
            got = real(timeout)
            if got and got[0] == 8:
                key = "stream" if got[2] else "connection"
                window[key] += int.from_bytes(got[3], "big")
            return got

        h2.read_frame = read_frame

        def granted():
            h2.ping()

        steady = Steady(lambda: window["sent"])
        eventually(lambda: (pump(total), steady())[1], 30, "no more window")
        assert window["sent"] < 16 * MIB, "back-pressure reaches the client"
        resume.set()
        eventually(lambda: (pump(total), window["sent"] == total)[1], 60, "the rest")
        h2.data(1, end=True)
        assert h2.reply(1).body == b"%d" % total


def test_trailers_both_ways(web2):
    def handler(connection):
        for r in connection.requests():
            assert r.trailers == [("x-sum", "1")], r.trailers
            connection.send(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n"
                b"5\r\nhello\r\n0\r\nX-End: yes\r\nContent-Length: 5\r\n\r\n"
            )

    proxy, _ = web2(handler)
    with H2(proxy.address) as h2:
        h2.send(h2.headers(1, get_fields(method="POST"), end=False))
        h2.data(1, b"abc")
        h2.send(h2.headers(1, [("x-sum", "1"), ("authorization", "no")]))
        reply = h2.reply(1)
        assert reply.body == b"hello" and reply.trailers == [("x-end", "yes")]


def test_interim_responses(web2):
    def handler(connection):
        for _ in connection.requests():
            connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + say(body=b"done"))

    proxy, _ = web2(handler)
    with H2(proxy.address) as h2:
        h2.get(1)
        reply = h2.reply(1)
        assert [dict(head)[":status"] for head in reply.heads] == ["103", "200"]
        assert dict(reply.heads[0])["link"] == "</a>" and reply.body == b"done"


def test_expect_continue(web2):
    def handler(connection):
        r = connection.read_head()
        assert r.header("expect") == "100-continue"
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.read_body(r)
        connection.send(say(body=r.body))

    proxy, _ = web2(handler)
    with H2(proxy.address) as h2:
        more = [*get_fields(method="POST"), ("expect", "100-continue"), ("content-length", "3")]
        h2.send(h2.headers(1, more, end=False))
        h2.until(lambda: h2.stream(1).heads, "100")
        assert h2.stream(1).status == 100
        h2.data(1, b"abc", end=True)
        assert h2.reply(1).body == b"abc"


def test_an_early_answer_ends_the_upload(web2):
    def handler(connection):
        connection.read_head()
        connection.send(say(413, b"too much"))

    proxy, _ = web2(handler)
    with H2(proxy.address) as h2:
        h2.send(h2.headers(1, get_fields(method="POST"), end=False))
        h2.data(1, bytes(1000))
        h2.until(lambda: h2.stream(1).reset is not None, "RST_STREAM behind the answer")
        reply = h2.stream(1)
        assert (reply.status, reply.body, reply.ended, reply.reset) == (413, b"too much", True, NO_ERROR)
        h2.data(1, bytes(1000))
        h2.get(3)
        assert h2.reply(3).status in (200, 413), "what was under way harms nothing"


def test_a_body_that_is_too_large(web2):
    proxy, _ = web2(http={"client_max_body_size": 1000})
    with H2(proxy.address) as h2:
        h2.send(h2.headers(1, [*get_fields(method="POST"), ("content-length", "1001")], end=False))
        h2.until(lambda: h2.stream(1).reset is not None, "an end")
        assert h2.stream(1).status == 413
        h2.send(h2.headers(3, get_fields(method="POST"), end=False))
        h2.data(3, bytes(1001))
        h2.until(lambda: h2.stream(3).reset is not None, "an end")
        assert h2.stream(3).status == 413


def test_cookie_crumbs_are_joined(web2):
    proxy, origin = web2()
    with H2(proxy.address) as h2:
        h2.get(1, more=[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")])
        assert h2.reply(1).status == 200
    assert [v for k, v in origin.requests[0].fields if k.lower() == "cookie"] == ["a=1; b=2; c=3"]


def test_a_reset_cancels_the_request_upstream(web2):
    gone = threading.Event()

    def handler(connection):
        connection.read_request()
        connection.stall(20)
        gone.set()

    proxy, origin = web2(handler, config={"log": {"access": "json"}})
    with H2(proxy.address) as h2:
        h2.get(1)
        eventually(lambda: len(origin.requests) == 1, 5, "the request")
        h2.reset(1)
        assert gone.wait(5), "the server's connection is closed"
        h2.ping()
    proxy.await_metric("ringgate_http2_resets_received_total", 1)
    proxy.await_equal("ringgate_client_aborts_total", 1)
    eventually(lambda: '"status":499' in proxy.log(), 5, "a line with 499")


def test_a_client_that_goes_cancels_everything(web2):
    open_now = []

    def handler(connection):
        connection.read_request()
        open_now.append(connection)
        connection.stall(20)
        open_now.remove(connection)

    proxy, _ = web2(handler)
    with H2(proxy.address) as h2:
        for stream in range(1, 41, 2):
            h2.get(stream)
        eventually(lambda: len(open_now) == 20, 5, "20 requests")
    eventually(lambda: not open_now, 5, "all cancelled")


def test_an_answer_cut_short_is_a_reset(web2):
    def handler(connection):
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        connection.close()

    proxy, _ = web2(handler)
    with H2(proxy.address) as h2:
        h2.get(1)
        reply = h2.reply(1)
        assert reply.body == b"half" and not reply.ended and reply.reset == INTERNAL
        assert h2.goaway is None
    proxy.await_equal("ringgate_responses_cut_total", 1)


def test_drain_finishes_what_is_in_flight(web2):
    gate = threading.Event()

    def handler(connection):
        for r in connection.requests():
            assert gate.wait(20)
            connection.send(say(body=bytes(300_000)))

    proxy, origin = web2(handler)
    with H2(proxy.address) as h2:
        h2.get(1)
        h2.get(3)
        eventually(lambda: len(origin.heads) == 2, 5, "two requests")
        proxy.signal(signal.SIGTERM)
        h2.until(lambda: h2.goaway is not None, "GOAWAY")
        assert h2.goaway == ((1 << 31) - 1, NO_ERROR), "a warning first"
        h2.until(lambda: h2.goaway == (3, NO_ERROR), "the last stream")
        h2.get(5)
        gate.set()
        h2.window(0, MIB)
        for stream in (1, 3):
            h2.window(stream, MIB)
        for stream in (1, 3):
            assert len(h2.reply(stream).body) == 300_000
        h2.until_closed(5)
        assert 5 not in h2.streams or not h2.stream(5).heads
    assert proxy.wait() == 0


def test_drain_sends_all_that_is_queued(web2):
    # The stream's last bytes wait in the proxy while the client reads slowly.
    size = 8 * MIB
    proxy, _ = web2(respond(200, bytes(size)))
    with H2(proxy.address, rcvbuf=4096, config=[(4, (1 << 31) - 1)]) as h2:
        h2.window(0, 1 << 30)
        h2.get(1)
        h2.until(lambda: h2.stream(1).body, "the first bytes")
        proxy.signal(signal.SIGTERM)
        assert len(h2.reply(1, 20).body) == size and h2.stream(1).ended
        h2.until_closed(5)
        assert h2.goaway == (1, NO_ERROR)
    assert proxy.wait() == 0


def test_drain_resets_nobody_who_was_just_served(web2):
    # What the client sends meanwhile must not turn the end into a reset, which takes the answer along.
    gate = threading.Event()

    def handler(connection):
        for r in connection.requests():
            assert gate.wait(20)
            connection.send(say(body=b"answer"))

    proxy, origin = web2(handler)
    with H2(proxy.address) as h2:
        h2.get(1)
        eventually(lambda: len(origin.heads) == 1, 5, "the request")
        proxy.signal(signal.SIGTERM)
        h2.until(lambda: h2.goaway == (1, NO_ERROR), "the last stream")
        gate.set()
        assert h2.reply(1).body == b"answer"
        h2.until_closed(5)
        for _ in range(20):
            h2.window(0, 1000)
            threading.Event().wait(0.005)
    assert proxy.wait() == 0


def test_keepalive_requests_end_a_connection_in_order(web2):
    proxy, _ = web2(http={"keepalive_requests": 3})
    with H2(proxy.address) as h2:
        for stream in (1, 3, 5):
            h2.get(stream)
            assert h2.reply(stream).status == 200
        h2.until_closed(5)
        assert h2.goaway == (5, NO_ERROR)


@pytest.mark.parametrize("begin", [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[:10]])
def test_a_preface_has_a_deadline(web2, begin):
    proxy, _ = web2(http={"client_header_timeout": "300ms"})
    with H2(proxy.address, begin=False) as h2:
        h2.send(begin)
        h2.until_closed(5)


def test_a_field_block_has_a_deadline(web2):
    proxy, _ = web2(http={"client_header_timeout": "300ms"})
    with H2(proxy.address) as h2:
        h2.try_send = lambda data: True  # an ACK would stand inside the block
        h2.send(frame(1, 0, 1, b"\x82"))
        h2.until_closed(5)
        assert h2.goaway == (0, NO_ERROR)
    proxy.await_equal("ringgate_client_timeouts_total", 1)


def test_an_idle_connection_is_closed(web2):
    proxy, _ = web2(http={"keepalive_timeout": "300ms"})
    with H2(proxy.address) as h2:
        h2.get(1)
        assert h2.reply(1).status == 200
        h2.until_closed(5)
        assert h2.goaway == (1, NO_ERROR)


def test_the_access_log(web2):
    proxy, _ = web2(config={"log": {"access": "json"}})
    with H2(proxy.address) as h2:
        h2.get(1, "/logged", more=[("user-agent", "me")])
        assert h2.reply(1).status == 200
    eventually(lambda: '"/logged"' in proxy.log(), 5, "a line")
    line = next(line for line in proxy.log().splitlines() if '"/logged"' in line)
    entry = json.loads(line)
    assert entry["protocol"] == "HTTP/2.0" and entry["status"] == 200 and entry["user_agent"] == "me"
    assert entry["host"] == "a.example" and entry["method"] == "GET"


def websocket_fields(path="/chat"):
    return [
        (":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"),
        (":path", path), (":authority", "a.example"), ("sec-websocket-version", "13"),
    ]


def test_websocket_over_a_stream(web2):
    # RFC 8441
    def handler(connection):
        r = connection.read_request()
        assert r.method == "GET" and r.header("upgrade") == "websocket"
        assert r.header("connection").lower() == "upgrade" and r.header("sec-websocket-version") == "13"
        key = r.header("sec-websocket-key")
        assert len(base64.b64decode(key)) == 16
        digest = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\nwelcome"
        )
        while connection.stream.fill(Deadline(10)):
            connection.send(connection.stream.take(len(connection.stream.buffer)))
        connection.send(b"bye")

    proxy, _ = web2(handler)
    with H2(proxy.address) as h2:
        h2.send(h2.headers(1, websocket_fields(), end=False))
        h2.until(lambda: h2.stream(1).body == b"welcome", "the tunnel")
        assert h2.stream(1).status == 200
        assert h2.stream(1).header("sec-websocket-accept") is None
        assert h2.stream(1).header("upgrade") is None
        for piece in (b"one", bytes(10_000), b"two"):
            h2.data(1, piece)
            have = len(h2.stream(1).body)
            h2.until(lambda: len(h2.stream(1).body) == have + len(piece), "the echo")
        h2.data(1, end=True)
        assert h2.reply(1).body.endswith(b"twobye") and h2.stream(1).ended


def test_websocket_refused_by_the_server(web2):
    proxy, _ = web2(respond(403, b"no"))
    with H2(proxy.address) as h2:
        h2.send(h2.headers(1, websocket_fields(), end=False))
        h2.until(lambda: h2.stream(1).ended, "the answer")
        assert (h2.stream(1).status, h2.stream(1).body) == (403, b"no")


def test_a_plain_answer_opens_no_websocket(start, serve):
    # Any 2xx would (RFC 8441 section 4): the client would take a page for frames.
    origin = serve(respond(200, b"page"))
    server = {"address": origin, "max_fails": 1, "fail_timeout": "60s"}
    proxy = start({**one(server), "listener": LISTENER})
    with H2(proxy.address) as h2:
        for stream in (1, 3, 5):
            h2.send(h2.headers(stream, websocket_fields(), end=False))
            h2.until(lambda: h2.stream(stream).ended, "the answer")
            assert h2.stream(stream).status == 502 and b"page" not in h2.stream(stream).body
        h2.get(7)
        assert h2.reply(7).body == b"page", "the server is not to blame"
    assert len(origin.heads) == 4
    assert proxy.metric("ringgate_server_failures_total") == 0
    assert "server is out" not in proxy.log()


def test_a_fixed_answer_opens_no_websocket(start):
    route = [{"respond": {"status": 200, "body": "page"}}]
    proxy = start({"route": route, "listener": LISTENER})
    with H2(proxy.address) as h2:
        h2.send(h2.headers(1, websocket_fields(), end=False))
        h2.until(lambda: h2.stream(1).ended, "the answer")
        assert h2.stream(1).status == 502 and b"page" not in h2.stream(1).body


def test_retries_work_as_for_http1(start, serve):
    def broken(connection):
        connection.read_request()
        connection.reset()

    bad, good = serve(broken), serve()
    proxy = start({**one(bad, good), "listener": LISTENER})
    with H2(proxy.address) as h2:
        for stream in range(1, 21, 2):
            h2.get(stream)
        for stream in range(1, 21, 2):
            assert h2.reply(stream).status == 200
    assert bad.heads and good.heads


def test_h2load(web2):
    tool("h2load")
    proxy, _ = web2()
    done = run("h2load", "-n", "2000", "-c", "5", "-m", "20", url(proxy.address, "/"), timeout=120)
    assert re.search(r"2000 succeeded, 0 failed, 0 errored", done.stdout), done.stdout


def test_h2load_post(web2, tmp_path):
    proxy, origin = web2()
    body = tmp_path / "body"
    body.write_bytes(bytes(5000))
    done = run("h2load", "-n", "200", "-c", "2", "-m", "10", "-d", body, url(proxy.address, "/"), timeout=120)
    assert re.search(r"200 succeeded, 0 failed, 0 errored", done.stdout), done.stdout
    assert all(len(r.body) == 5000 for r in origin.requests)
