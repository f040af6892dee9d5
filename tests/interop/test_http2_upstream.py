"""HTTP/2 to servers: shared connections, what a server may refuse, and gRPC through the proxy."""

import queue
import struct
import threading
from concurrent import futures

import grpc
import pytest

from harness import eventually, free_port, get, request
from harness.http2 import (
    ACK, CANCEL, DATA, END_STREAM, GOAWAY, H2, HEADERS, INTERNAL, REFUSED, RST, SETTINGS, frame,
    get_fields, settings,
)
from harness.proxy import one, upstream

LISTENER = [{"http2": True}]
MIB = 1 << 20


class Server:
    """A server of HTTP/2 by raw frames: `handle(connection, stream, fields)` for each request head."""

    def __init__(self, handle, config=(), delay=0):
        import socket

        self.handle, self.config, self.delay = handle, config, delay
        self.connections, self.requests, self.bodies, self.resets = [], [], {}, []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.text = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.failure = None
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock):
        connection = H2(sock=sock, begin=False, timeout=60)
        self.connections.append(connection)
        number = len(self.connections)
        try:
            preface = b""
            while len(preface) < 24:
                data = sock.recv(24 - len(preface))
                if not data:
                    return
                preface += data
            assert preface == b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            threading.Event().wait(self.delay)
            connection.send(settings(*self.config))
            while connection.read():
                kind, flags, stream, _ = connection.frames[-1]
                if kind == HEADERS and connection.stream(stream).trailers is None:
                    fields = connection.stream(stream).heads[-1]
                    self.requests.append((number, stream, fields))
                    self.handle(connection, stream, dict(fields))
                if kind == RST:
                    self.resets.append((number, stream, connection.stream(stream).reset))
        except (OSError, TimeoutError):
            pass
        except BaseException as failure:
            self.failure = failure
        finally:
            sock.close()

    def stop(self):
        self.listener.close()
        for connection in self.connections:
            connection.sock.close()
        assert self.failure is None, self.failure


@pytest.fixture
def peer():
    started = []

    def begin(handle, **options):
        started.append(Server(handle, **options))
        return started[-1]

    yield begin
    for server in started:
        server.stop()


SENDING = threading.Lock()  # what is encoded first has to be sent first


def ok(connection, stream, fields, body=b"ok"):
    with SENDING:
        head = connection.headers(stream, [(":status", "200"), ("x-path", fields[":path"])], end=False)
        connection.send(head + frame(DATA, END_STREAM, stream, body))


def h2_site(*servers, http=None, **keys):
    return {**one(*servers, http=http, http2=True, **keys), "listener": LISTENER}


def test_requests_share_a_connection(start, peer):
    held = []

    def handle(connection, stream, fields):
        held.append((connection, stream, fields))
        if len(held) == 50:
            for item in held:
                ok(*item)

    server = peer(handle)
    proxy = start({**h2_site(server), "node": {"shards": 1}})
    with H2(proxy.address) as h2:
        for i in range(50):
            h2.get(1 + 2 * i, f"/{i}")
        for i in range(50):
            assert h2.reply(1 + 2 * i).header("x-path") == f"/{i}"
    assert {number for number, _, _ in server.requests} == {1}, "one connection"
    assert proxy.metric("ringgate_upstream_connects_total") == 1 or len(server.connections) == 1


def test_what_a_server_gets(start, peer):
    server = peer(ok)
    proxy = start(h2_site(server))
    r = request(proxy.address, "GET", "/a?b=c", [("X-Test", "Yes"), ("Connection", "x-drop"), ("X-Drop", "1"), ("TE", "trailers")])
    assert r.status == 200 and r.body == b"ok" and r.header("x-path") == "/a?b=c"
    fields = server.requests[0][2]
    assert [name for name, _ in fields[:4]] == [":method", ":scheme", ":path", ":authority"]
    given = dict(fields)
    assert given[":authority"] == "a.example" and given[":scheme"] == "http" and given["te"] == "trailers"
    assert given["x-test"] == "Yes" and given["x-forwarded-for"] == "127.0.0.1"
    for name in ("host", "connection", "x-drop", "transfer-encoding", "keep-alive"):
        assert name not in given
    assert all(name == name.lower() for name, _ in fields)


@pytest.mark.parametrize("size", [1, 70_000, 2 * MIB])
def test_bodies_both_ways(start, peer, size):
    def handle(connection, stream, fields):
        def answer():
            reply = connection.stream(stream)
            eventually(lambda: reply.ended, 20, "the request body")
            connection.send(connection.headers(stream, [(":status", "200")], end=False))
            body, at = bytes(reply.body), 0
            while at < len(body):
                n = min(16384, len(body) - at)
                connection.send(frame(DATA, 0, stream, body[at : at + n]))
                at += n
            connection.send(frame(DATA, END_STREAM, stream))

        connection.window(0, 8 * MIB)
        connection.window(stream, 8 * MIB)
        connection.out = (65535, 65535)
        threading.Thread(target=answer, daemon=True).start()

    if size > 60_000:
        pytest.importorskip("h2")
        return both_ways_by_the_rules(start, size)
    server = peer(handle)
    proxy = start(h2_site(server))
    body = bytes(i % 251 for i in range(size))
    r = request(proxy.address, "POST", "/", body=body)
    assert r.status == 200 and r.body == body


def both_ways_by_the_rules(start, size):
    """A server that keeps to flow control: Ringgate itself in front of an HTTP/1.1 echo."""
    from harness import Origin, say

    def echo(connection):
        for r in connection.requests():
            connection.send(say(body=r.body))

    with Origin(echo) as origin:
        back = start({**one(origin, http={"client_max_body_size": 0}), "listener": LISTENER})
        front = start(h2_site("127.0.0.1:%d" % back.address[1], http={"client_max_body_size": 0}))
        body = bytes(i % 251 for i in range(size))
        r = request(front.address, "POST", "/", body=body, timeout=30)
        assert r.status == 200 and r.body == body
        back.await_equal("ringgate_http2_streams_total", 1)


def test_answers_without_body_and_head(start, peer):
    def handle(connection, stream, fields):
        status = fields[":path"][1:]
        connection.send(connection.headers(stream, [(":status", status), ("x-a", "b")]))

    server = peer(handle)
    proxy = start(h2_site(server))
    for status in (200, 204, 304, 404):
        r = get(proxy.address, f"/{status}")
        assert r.status == status and r.body == b"" and r.header("x-a") == "b"
    head = request(proxy.address, "HEAD", "/200")
    assert head.status == 200 and head.header("content-length") is None


def test_interim_and_trailers(start, peer):
    def handle(connection, stream, fields):
        connection.send(
            connection.headers(stream, [(":status", "103"), ("link", "x")], end=False)
            + connection.headers(stream, [(":status", "200")], end=False)
            + frame(DATA, 0, stream, b"body")
            + connection.headers(stream, [("x-end", "1")])
        )

    server = peer(handle)
    proxy = start(h2_site(server))
    with H2(proxy.address) as h2:
        h2.get(1)
        reply = h2.reply(1)
        assert [dict(head)[":status"] for head in reply.heads] == ["103", "200"]
        assert reply.body == b"body" and reply.trailers == [("x-end", "1")]


def test_a_refused_stream_is_asked_again_elsewhere(start, peer):
    def refuse(connection, stream, fields):
        connection.reset(stream, REFUSED)

    bad, good = peer(refuse), peer(ok)
    proxy = start(h2_site(bad, good, retry={"budget_percent": 1000}))
    for _ in range(10):
        # A POST too: the server says that it has not looked at it.
        assert request(proxy.address, "POST", "/", body=b"").status == 200
    assert bad.requests and len(good.requests) == 10


def test_other_resets_of_posts_are_not_repeated(start, peer):
    def cancel(connection, stream, fields):
        connection.reset(stream, CANCEL)

    server = peer(cancel)
    proxy = start(h2_site(server))
    assert request(proxy.address, "POST", "/", body=b"").status == 502
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [INTERNAL, CANCEL])
def test_streams_that_are_reset_are_not_repeated_without_end(start, peer, code):
    def handle(connection, stream, fields):
        if stream == 1:
            return ok(connection, stream, fields)
        connection.reset(stream, code)

    server = peer(handle)
    proxy = start({**h2_site(server, retry={"tries": 2, "budget_percent": 1000}), "node": {"shards": 1}})
    assert get(proxy.address).status == 200
    assert get(proxy.address, "/again").status == 502
    assert len(server.requests) <= 3, "the first one and two tries"
    assert proxy.metric("ringgate_upstream_stale_total") == 0


def test_a_server_that_takes_no_streams(start, peer):
    server = peer(ok, config=[(3, 0)])
    proxy = start({**h2_site(server, retry={"tries": 1}), "node": {"shards": 1}})
    assert get(proxy.address).status == 502
    assert len(server.connections) == 1
    eventually(lambda: server.connections[0].closed, 5, "the end of a connection that is of no use")


def test_without_keepalive_a_server_has_time_to_begin(start, peer):
    server = peer(ok, delay=0.3)
    proxy = start({**h2_site(server, keepalive=0), "node": {"shards": 1}})
    assert get(proxy.address).status == 200
    eventually(lambda: all(c.closed for c in server.connections), 5, "the end")


def test_goaway_last_stream(start, peer):
    """Streams above the last are asked again on a new connection, those below are answered."""
    first = []

    def handle(connection, stream, fields):
        if connection is server.connections[0]:
            first.append((connection, stream, fields))
            if len(first) == 4:
                last = first[1][1]
                connection.send(frame(GOAWAY, 0, 0, struct.pack(">II", last, 0)))
                ok(*first[0], body=b"old")
                ok(*first[1], body=b"old")
        else:
            ok(connection, stream, fields, body=b"new")

    server = peer(handle)
    proxy = start({**h2_site(server, retry={"budget_percent": 1000}), "node": {"shards": 1}})
    with H2(proxy.address) as h2:
        for stream in (1, 3, 5, 7):
            h2.get(stream)
        bodies = [bytes(h2.reply(stream).body) for stream in (1, 3, 5, 7)]
    assert bodies == [b"old", b"old", b"new", b"new"]
    assert len(server.connections) == 2
    assert get(proxy.address).body == b"new", "the old connection is used no more"


def test_a_client_that_resets_cancels_the_stream(start, peer):
    server = peer(lambda *_: None)
    proxy = start({**h2_site(server), "node": {"shards": 1}})
    with H2(proxy.address) as h2:
        h2.get(1)
        eventually(lambda: len(server.requests) == 1, 5, "the request")
        h2.reset(1)
        eventually(lambda: server.resets, 5, "RST_STREAM")
        assert server.resets[0][2] == CANCEL
        h2.ping()
    assert len(server.connections) == 1 and not server.connections[0].closed


@pytest.mark.parametrize("answer", [
    lambda c, s: c.headers(s, [("x", "y")]),
    lambda c, s: c.headers(s, [(":status", "200"), ("connection", "close")]),
    lambda c, s: c.headers(s, [(":status", "101")]),
    lambda c, s: frame(DATA, END_STREAM, s, b"x"),
    lambda c, s: c.headers(s, [(":status", "200"), ("content-length", "5")]),
    lambda c, s: frame(HEADERS, 5, s, b"\xff\xff\xff\xff\xff"),
    lambda c, s: b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
])
def test_malformed_answers(start, peer, answer):
    server = peer(lambda connection, stream, fields: connection.send(answer(connection, stream)))
    proxy = start(h2_site(server, retry={"tries": 1}))
    assert get(proxy.address).status == 502


def test_a_server_that_speaks_http1_only(start, serve):
    origin = serve(lambda connection: connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    proxy = start(h2_site(origin, retry={"tries": 1}))
    assert get(proxy.address).status == 502


def test_the_servers_limit_of_streams(start, peer):
    active, most = set(), []
    lock = threading.Lock()

    def handle(connection, stream, fields):
        with lock:
            active.add((id(connection), stream))
            most.append(sum(1 for c, _ in active if c == id(connection)))

        def later():
            threading.Event().wait(0.3)  # so long that all have come
            with lock:
                active.discard((id(connection), stream))
            ok(connection, stream, fields)

        threading.Thread(target=later, daemon=True).start()

    server = peer(handle, config=[(3, 5)])
    proxy = start({**h2_site(server), "node": {"shards": 1}})
    with H2(proxy.address) as h2:
        for stream in range(1, 41, 2):
            h2.get(stream)
        for stream in range(1, 41, 2):
            assert h2.reply(stream).status == 200
    assert max(most) <= 5 and len(server.connections) >= 4


def test_a_slow_reader_does_not_stop_the_others(start, serve):
    """Two clients share the connection to the server; one takes nothing."""
    from harness import say

    def handler(connection):
        for r in connection.requests():
            size = 10 * MIB if r.target == "/big" else 1000
            try:
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
            except OSError:
                return

    back = start({**one(serve(handler)), "listener": LISTENER, "node": {"shards": 1}})
    front = start({**h2_site("127.0.0.1:%d" % back.address[1]), "node": {"shards": 1}})
    with H2(front.address, config=[(4, 0)]) as slow, H2(front.address) as quick:
        for stream in range(1, 61, 2):
            slow.get(stream, "/big")
        slow.ping()
        for stream in range(1, 101, 2):
            quick.get(stream)
            assert len(quick.reply(stream).body) == 1000


def test_idle_connections_end(start, peer):
    server = peer(ok)
    proxy = start(h2_site(server, keepalive_timeout="300ms"))
    assert get(proxy.address).status == 200
    eventually(lambda: server.connections[0].closed, 5, "the end")
    assert server.connections[0].goaway is not None


class Echo(grpc.GenericRpcHandler):
    """Methods of every kind, without generated code."""

    def service(self, details):
        return {
            "/t.T/Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "/t.T/Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "/t.T/Down": grpc.unary_stream_rpc_method_handler(self.down),
            "/t.T/Up": grpc.stream_unary_rpc_method_handler(self.up),
            "/t.T/Both": grpc.stream_stream_rpc_method_handler(self.both),
            "/t.T/Wait": grpc.unary_unary_rpc_method_handler(self.wait),
        }.get(details.method)

    cancelled = threading.Event()

    def unary(self, message, context):
        context.send_initial_metadata((("x-first", "1"),))
        context.set_trailing_metadata((("x-last", dict(context.invocation_metadata()).get("x-ask", "")),))
        return b"u:" + message

    def fail(self, message, context):
        context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")

    def down(self, message, context):
        for i in range(200):
            yield b"%d:" % i + bytes(20_000)

    def up(self, messages, context):
        return b"%d" % sum(map(len, messages))

    def both(self, messages, context):
        for message in messages:
            yield b"e:" + message

    def wait(self, message, context):
        context.add_callback(self.cancelled.set)
        self.cancelled.wait(20)
        return b""


@pytest.fixture
def rpc(start):
    server = grpc.server(futures.ThreadPoolExecutor(32))
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    proxy = start(h2_site(f"127.0.0.1:{port}", http={"client_max_body_size": 0}))
    with grpc.insecure_channel("%s:%d" % proxy.address) as channel:
        yield channel, proxy
    server.stop(None)


def test_grpc_unary(rpc):
    channel, proxy = rpc
    answer, call = channel.unary_unary("/t.T/Unary").with_call(b"hi", timeout=10, metadata=[("x-ask", "me")])
    assert answer == b"u:hi" and ("x-last", "me") in [tuple(m) for m in call.trailing_metadata()]
    assert ("x-first", "1") in [tuple(m) for m in call.initial_metadata()]
    calls = [channel.unary_unary("/t.T/Unary").future(b"%d" % i, timeout=30) for i in range(500)]
    assert [c.result() for c in calls] == [b"u:%d" % i for i in range(500)]
    large = bytes(MIB)
    assert channel.unary_unary("/t.T/Unary")(large, timeout=30) == b"u:" + large


def test_grpc_errors(rpc):
    channel, _ = rpc
    for method, code in (("Fail", grpc.StatusCode.NOT_FOUND), ("None", grpc.StatusCode.UNIMPLEMENTED)):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/t.T/{method}")(b"x", timeout=10)
        assert caught.value.code() == code


def test_grpc_streams(rpc):
    channel, _ = rpc
    down = list(channel.unary_stream("/t.T/Down")(b"x", timeout=30))
    assert [m.split(b":")[0] for m in down] == [b"%d" % i for i in range(200)]
    assert channel.stream_unary("/t.T/Up")(iter([bytes(20_000)] * 300), timeout=30) == b"6000000"
    ask = queue.Queue()
    answers = channel.stream_stream("/t.T/Both")(iter(ask.get, None), timeout=30)
    for i in range(20):
        ask.put(b"%d" % i)
        assert next(answers) == b"e:%d" % i, "each answer comes before the next question"
    ask.put(None)
    assert list(answers) == []


def test_grpc_cancel_and_deadline(rpc):
    channel, _ = rpc
    Echo.cancelled.clear()
    call = channel.unary_unary("/t.T/Wait").future(b"", timeout=1.5)
    with pytest.raises(grpc.RpcError) as caught:
        call.result()
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert Echo.cancelled.wait(15), "the server learns of it"
