"""Peers that mean harm: floods and stalls of clients and servers. The proxy refuses or bears them with
bounded memory and CPU, and serves everybody else meanwhile."""

import contextlib
import threading
import time

import pytest

from harness import Client, eventually, get, say
from harness.client import message
from harness.names import REQUESTS
from harness.proxy import one

MIB = 1 << 20
GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n"
QUICK = 5.0  # seconds for anybody else's request, on a machine with two busy CPUs


@pytest.fixture
def web(start, serve):
    """As everywhere, but failures do not take the only server out."""

    def begin(handler=None, http=None):
        back = serve(handler)
        return start(one({"address": back, "max_fails": 0}, http=http)), back

    return begin


@contextlib.contextmanager
def bounded(proxy, memory=48 * MIB):
    """Asserts that the proxy grows by no more than `memory` inside."""
    for _ in range(8):
        get(proxy.address, "/warm")
    before, most, over = proxy.rss(), [0], threading.Event()

    def watch():
        while not over.wait(0.02):
            most[0] = max(most[0], proxy.rss())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    assert most[0] - before < memory, f"grew by {(most[0] - before) / MIB:.1f} MiB"


def others_are_served(proxy, times=10):
    """On fresh connections, so that every shard gets some."""
    for _ in range(times):
        begin = time.monotonic()
        assert get(proxy.address, "/other", timeout=10).status == 200
        assert time.monotonic() - begin < QUICK


def flood(client, piece, total):
    """Sends `piece` over and over until the proxy has had enough; bytes that went out."""
    sent = 0
    while sent < total:
        try:
            client.send(piece)
        except (BrokenPipeError, ConnectionResetError):
            break
        sent += len(piece)
    return sent


def refused(client, *statuses):
    """The proxy answers one of these and closes; the answer survives the flood's tail."""
    response = client.read_response(timeout=10)
    assert response.status in statuses, response
    assert client.closed(10)


def test_thousands_of_tiny_chunks(web):
    proxy, origin = web()
    with bounded(proxy), Client(proxy.address, 30) as client:
        client.send(POST + b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n")
        assert client.read_response().status == 200
    body = [r for r in origin.requests if r.method == "POST"][0].body
    assert body == b"x" * 50_000


def test_tiny_chunks_one_by_one(web):
    proxy, origin = web()
    with bounded(proxy), Client(proxy.address, 30) as client:
        client.send_pieces([POST, *([b"1\r\nx\r\n"] * 3000), b"0\r\n\r\n"], pause=0)
        assert client.read_response().status == 200
        others_are_served(proxy)
    assert [r for r in origin.requests if r.method == "POST"][0].body == b"x" * 3000


@pytest.mark.parametrize("kind", ["proxied", "own"])
def test_ten_thousand_pipelined_requests(start, serve, kind):
    """All answered, in order, although the client reads only when all is sent."""

    def handler(connection):
        for request in connection.requests():
            connection.send(say(200, request.target.encode()))

    back, count = serve(handler), 10_000
    respond = {"path": "/n", "respond": {"status": 200, "body": "own"}}
    proxy = start({
        "route": [*([respond] if kind == "own" else []), {"upstream": "up"}],
        "upstream": {"up": {"servers": [{"address": back.text}]}},
        "http": {"keepalive_requests": 1_000_000},
    })
    requests = b"".join(
        b"GET /n%d HTTP/1.1\r\nHost: a.example\r\n\r\n" % number for number in range(count)
    )
    with bounded(proxy), Client(proxy.address, 100) as client:
        sender = threading.Thread(target=client.sock.sendall, args=(requests,), daemon=True)
        client.sock.settimeout(100)
        sender.start()
        others_are_served(proxy)
        for number in range(count):
            response = client.read_response()
            assert response.status == 200
            assert response.body == (b"/n%d" % number if kind == "proxied" else b"own")
        sender.join(10)
    if kind == "proxied":
        asked = [r.target for r in back.requests if r.target.startswith("/n")]
        assert asked == [f"/n{number}" for number in range(count)]


def test_a_pipelining_client_that_never_reads(start):
    """Answers made here wait in bounded memory; then the client is not read any more."""
    proxy = start({
        "route": [{"respond": {"status": 200, "body": "x" * 60_000}}],
        "http": {"send_timeout": "2s", "keepalive_requests": 1_000_000},
    })
    with bounded(proxy), Client(proxy.address, 1, rcvbuf=4096) as client:
        sent = 0
        with contextlib.suppress(TimeoutError):
            sent = flood(client, GET * 1000, 64 * MIB)
        assert sent < 32 * MIB
        others_are_served(proxy)


def test_slowloris(web):
    """500 clients that each send a byte now and then are cut off after the whole head's time."""
    proxy, _ = web(http={"client_header_timeout": "4s"})
    with contextlib.ExitStack() as stack, bounded(proxy):
        slow = [stack.enter_context(Client(proxy.address, 15)) for _ in range(500)]
        begin = time.monotonic()
        cpu = proxy.cpu()
        for client in slow:
            client.send(b"GET / HTTP/1.1\r\nHost: a.example\r\nX-A: ")
        while time.monotonic() - begin < 2:
            for client in slow:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # on a machine that stands still, it is cut off
                    client.send(b"a")
            others_are_served(proxy, 5)
        assert proxy.cpu() - cpu < 2.5
        for client in slow:
            refused(client, 408)
        assert 2.9 < time.monotonic() - begin < 60


def test_slow_bodies(web):
    """The same with bodies that stop coming."""
    proxy, origin = web(http={"client_body_timeout": "1s"})
    with contextlib.ExitStack() as stack, bounded(proxy):
        slow = [stack.enter_context(Client(proxy.address, 15)) for _ in range(200)]
        for client in slow:
            client.send(message("POST", headers={"Content-Length": "1000"}) + b"beginning")
        others_are_served(proxy)
        for client in slow:
            refused(client, 408)
        eventually(lambda: origin.quiet(), 5, "the server's connections given up")


@pytest.mark.parametrize(
    "beginning, piece, status",
    [
        (b"GET /", b"a" * 65536, 414),
        (b"G", b"G" * 65536, 414),
        (b"GET / HTTP/1.1\r\nHost: a.example\r\nX-A: ", b"a" * 65536, 431),
        (b"GET / HTTP/1.1\r\nHost: a.example\r\n", b"X" * 65536, 431),
        (b"GET / HTTP/1.1\r\nHost: a.example\r\n", b"X-A: b\r\n" * 8192, 431),
        (b"GET / HTTP/1.1\r\nHost: a.example\r\n", b"a:\r\n" * 16384, 431),
        (b"", b"\r\n" * 32768, 400),
        (POST + b"5;", b"a" * 65536, 413),
        (POST, b"1;" + b"e" * 200 + b"\r\nx\r\n", 413),
        (POST, b"0" * 65536, 413),
        (POST + b"1\r\nx\r\n0\r\nX-T: ", b"t" * 65536, 431),
        (POST + b"1\r\nx\r\n0\r\n", b"X-T: b\r\n" * 8192, 431),
        (POST, b"10000\r\n" + b"b" * 65536 + b"\r\n", 413),
    ],
    ids=["target", "method", "value", "name", "fields", "empty-fields", "empty-lines", "extension",
         "extensions", "chunk-size", "trailer", "trailers", "body"],
)
def test_endless_requests(web, beginning, piece, status):
    """Refused early, and the refusal arrives although the client goes on sending."""
    proxy, origin = web()
    with bounded(proxy), Client(proxy.address, 10) as client:
        client.send(beginning)
        sent = flood(client, piece, 8 * MIB)
        others_are_served(proxy, 3)
        # The proxy reads on for a while after the answer; a client that sends far more is reset.
        if sent < MIB or client.stream.buffer:
            refused(client, status)
        eventually(lambda: proxy.metric(REQUESTS, **{"class": "4xx"}) >= 1, 5)
    assert not [r for r in origin.requests if r.method == "POST"]


def test_the_refusal_survives_what_is_still_sent(web):
    """Half a megabyte behind a refused head does not reset the answer away."""
    proxy, _ = web()
    with Client(proxy.address, 10) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a.example\r\nX-A: " + b"a" * (MIB // 2))
        client.half_close()
        refused(client, 431)


def test_many_floods_at_once(web):
    proxy, _ = web()
    with contextlib.ExitStack() as stack, bounded(proxy, 96 * MIB):
        clients = [stack.enter_context(Client(proxy.address, 20)) for _ in range(100)]
        head = b"GET / HTTP/1.1\r\nHost: a.example\r\nX-A: " + b"a" * 32_000
        for client in clients:
            client.send(head)  # as much as is held for a head, and then silence
        others_are_served(proxy)


# Servers


def hostile(*pieces, endless=None, total=64 * MIB):
    """A handler that answers the first request of a connection with raw pieces, then perhaps a
    flood; `/warm` and `/other` are served in order."""

    def handler(connection):
        for request in connection.requests():
            if request.target in ("/warm", "/other"):
                connection.send(say(200))
                continue
            sent = 0
            for piece in pieces:
                connection.send(piece)
            while endless and sent < total and not connection.origin.stopping.is_set():
                connection.send(endless)
                sent += len(endless)

    return handler


@pytest.mark.parametrize(
    "start_of_answer, endless",
    [
        (b"HTTP/1.1 200 OK\r\nX-A: ", b"a" * 65536),
        (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n" * 8192),
        (b"HTTP/1.1 200 ", b"a" * 65536),
        (b"", b"a" * 65536),
        (b"", b"\r\n" * 32768),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 1000),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    ],
    ids=["value", "fields", "reason", "line", "empty-lines", "early-hints", "continue"],
)
def test_endless_response_heads(web, start_of_answer, endless):
    proxy, origin = web(hostile(start_of_answer, endless=endless))
    with bounded(proxy):
        response = get(proxy.address, "/bad")
        assert response.status == 502
        assert len(response.interim) <= 16
        eventually(lambda: origin.open_connections() <= 2, 10, "the flood cut off")
        others_are_served(proxy)


@pytest.mark.parametrize(
    "chunk",
    [b"ffffffffffffffff\r\nabc", b"fffffffffffffffff\r\nabc", b"10000000000000001\r\nabc",
     b"-1\r\nabc", b"0x3\r\nabc", b"3;" + b"e" * 70_000, b"3\r\nabcX"],
    ids=["largest", "too-long", "wraps", "negative", "0x", "extension", "too-much-data"],
)
def test_bad_chunks_of_a_response(web, chunk):
    """Whatever was passed on, the client cannot take it for a whole response."""
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk

    def handler(connection):
        for request in connection.requests():
            if request.target != "/bad":
                connection.send(say(200))
                continue
            connection.send(answer)
            connection.half_close()

    proxy, _ = web(handler)
    with bounded(proxy), Client(proxy.address, 10) as client:
        client.send(b"GET /bad HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
        seen = client.read_until_eof(10)
        assert not seen.endswith(b"0\r\n\r\n") or seen.startswith(b"HTTP/1.1 502")
        others_are_served(proxy, 5)


def test_an_endless_body_of_a_client_that_does_not_read(web):
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    proxy, origin = web(hostile(head, endless=b"b" * 65536), http={"send_timeout": "2s"})
    with bounded(proxy), Client(proxy.address, 20, rcvbuf=4096) as client:
        client.send(b"GET /bad HTTP/1.1\r\nHost: a.example\r\n\r\n")
        others_are_served(proxy)
        eventually(lambda: origin.open_connections() <= 2, 10, "given up after send_timeout")


@pytest.mark.parametrize(
    "answer",
    [
        say(200, b"ok") + b"x",
        say(200, b"ok") + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
        say(204, b"", ()).replace(b"Content-Length: 0\r\n", b"") + b"poison",
        b"HTTP/1.1 304 Not Modified\r\n\r\npoison",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\npoison",
    ],
    ids=["a-byte", "a-response", "204", "304", "chunked"],
)
def test_garbage_behind_a_response_ends_the_connection(web, answer):
    """A response nobody asked for must not answer the next request (response splitting)."""
    numbers = []

    def handler(connection):
        for request in connection.requests():
            numbers.append(connection.number)
            connection.send(answer if request.target == "/bad" else say(200))

    proxy, _ = web(handler)
    with Client(proxy.address, 10) as client:
        for _ in range(20):
            first = client.ask(b"GET /bad HTTP/1.1\r\nHost: a.example\r\n\r\n")
            assert first.status in (200, 204, 304)
            assert b"poison" not in first.body
            bad = numbers[-1]
            second = client.ask(GET)
            assert (second.status, second.body) == (200, b"ok")
            assert numbers[-1] != bad
        assert not client.leftover


def test_garbage_that_comes_late_ends_the_idle_connection(web):
    """What a server says between two requests is not the answer to the next one."""

    def handler(connection):
        for request in connection.requests():
            connection.send(say(200, b"%d" % connection.number))
            if request.target == "/bad":
                connection.origin.stopping.wait(0.2)
                connection.send(say(200, b"poison"))

    proxy, origin = web(handler)
    with Client(proxy.address, 10) as client:
        bad = client.ask(b"GET /bad HTTP/1.1\r\nHost: a.example\r\n\r\n").body
        eventually(lambda: origin.connections[int(bad)].done.is_set(), 10, "the connection closed")
        assert client.ask(GET).body not in (bad, b"poison")
