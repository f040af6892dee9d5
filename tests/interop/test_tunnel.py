"""`Upgrade: websocket`: two connections joined after 101, and only then."""

import base64
import hashlib
import threading
import time

import pytest

from harness import Client, Deadline, eventually, get
from harness.client import message

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
MIB = 1 << 20


WEBSOCKET = (
    b"GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def echo_tunnel(connection):
    r = connection.read_request()
    assert r.header("upgrade").lower() == "websocket" and "upgrade" in r.header("connection").lower()
    key = r.header("sec-websocket-key").encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key).digest())
    connection.send(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\nwelcome"
    )
    while connection.stream.fill(Deadline(10)):
        connection.send(connection.stream.take(len(connection.stream.buffer)))
    connection.send(b"bye")


def test_websocket_tunnel(web):
    proxy, _ = web(echo_tunnel)
    with Client(proxy.address) as client:
        answer = client.ask(WEBSOCKET)
        assert answer.status == 101 and answer.header("upgrade") == "websocket"
        assert answer.header("sec-websocket-accept") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        deadline = Deadline(10)
        assert client.stream.exactly(7, deadline, "greeting") == b"welcome"
        for size in (1, 125, 70000, MIB):
            data = bytes(i % 251 for i in range(size))
            sender = threading.Thread(target=client.send, args=(data,))
            sender.start()
            assert client.stream.exactly(size, deadline, "echo") == data
            sender.join()
        client.half_close()
        assert client.read_until_eof() == b"bye", "half-close passes through the tunnel"


def test_tunnel_timeout(web):
    proxy, _ = web(echo_tunnel, http={"tunnel_timeout": "400ms"})
    with Client(proxy.address) as client:
        assert client.ask(WEBSOCKET).status == 101
        assert client.read_until_eof(5).startswith(b"welcome")


def test_websocket_refused_by_the_origin(web):
    proxy, origin = web()
    with Client(proxy.address) as client:
        assert client.ask(WEBSOCKET).status == 200
        assert client.ask(GET).status == 200
    assert len(origin.requests) == 2


def test_uninvited_101_is_a_bad_response(web):
    def handler(connection):
        connection.read_request()
        connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
        connection.stall(5)

    proxy, _ = web(handler, retry={"tries": 1})
    assert get(proxy.address).status == 502


def test_early_client_bytes_wait_for_the_101(web):
    """Bytes right behind the handshake are nobody's before the origin has agreed (CVE-2026-2833)."""
    answered = threading.Event()
    early = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"

    def handler(connection):
        connection.read_request()
        connection.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.sock.recv(1)
        answered.set()
        connection.send(SWITCH)
        assert connection.stream.exactly(len(early), Deadline(5), "early bytes") == early

    proxy, _ = web(handler)
    with Client(proxy.address) as client:
        answer = client.ask(WEBSOCKET + early)
        assert answer.status == 101 and answered.is_set()
        assert client.read_until_eof() == b""


def test_early_client_bytes_after_a_refusal_are_a_request(web):
    proxy, origin = web()
    with Client(proxy.address) as client:
        client.send(WEBSOCKET + message("GET", "/next"))
        assert [client.read_response().status for _ in range(2)] == [200, 200]
    assert [r.target for r in origin.requests] == ["/chat", "/next"]


def test_half_close_by_the_origin(web):
    """The origin has said everything; what the client still sends reaches it."""
    heard = []

    def handler(connection):
        connection.read_request()
        connection.send(SWITCH + b"all I have")
        connection.half_close()
        heard.append(connection.stream.rest(Deadline(10)))

    proxy, _ = web(handler)
    with Client(proxy.address) as client:
        assert client.ask(WEBSOCKET).status == 101
        assert client.read_until_eof() == b"all I have"
        for _ in range(20):
            client.send(b"x" * 1000)
            time.sleep(0.01)
        client.half_close()
        eventually(lambda: heard, 5)
    assert heard == [b"x" * 20000]


def test_one_way_traffic_keeps_a_tunnel_open(web):
    def handler(connection):
        connection.read_request()
        connection.send(SWITCH)
        for _ in range(12):
            time.sleep(0.25)
            connection.send(b"tick")

    proxy, _ = web(handler, http={"tunnel_timeout": "2s"})
    with Client(proxy.address) as client:
        assert client.ask(WEBSOCKET).status == 101
        assert client.read_until_eof() == b"tick" * 12


def test_tunnel_holds_back_for_a_slow_reader(web):
    taken = {"bytes": 0}

    def handler(connection):
        connection.read_request()
        connection.send(SWITCH)
        connection.sock.settimeout(1)
        try:
            while taken["bytes"] < 256 * MIB:
                taken["bytes"] += connection.sock.send(b"x" * MIB)
        except TimeoutError:
            pass

    proxy, _ = web(handler)
    with Client(proxy.address, rcvbuf=65536) as client:
        assert client.ask(WEBSOCKET).status == 101
        before = proxy.rss()
        eventually(lambda: taken["bytes"], 5)
        time.sleep(1.5)
        assert taken["bytes"] < 32 * MIB and proxy.rss() - before < 8 * MIB


@pytest.mark.parametrize("by", ["client", "origin"])
def test_reset_ends_both_sides(web, by):
    ended = threading.Event()

    def handler(connection):
        connection.read_request()
        connection.send(SWITCH)
        if by == "origin":
            connection.stream.exactly(2, Deadline(5), "go")
            return connection.reset()
        connection.stall(5)
        if connection.closed_by_peer:
            ended.set()

    proxy, _ = web(handler)
    with Client(proxy.address) as client:
        assert client.ask(WEBSOCKET).status == 101
        if by == "client":
            client.reset()
            assert ended.wait(5)
        else:
            client.send(b"go")
            assert client.read_until_eof(5) == b""


@pytest.mark.parametrize("token", ["h2c", "websocket, h2c", "TLS/1.0"])
def test_other_upgrades_are_not_offered(web, token):
    proxy, origin = web()
    fields = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", token), ("HTTP2-Settings", "AAMAAABk")]
    assert get(proxy.address, headers=fields).status == 200
    for name in ("upgrade", "http2-settings", "connection"):
        assert origin.request.header(name) is None, name


def test_no_tunnel_for_http10(web):
    proxy, origin = web()
    with Client(proxy.address) as client:
        assert client.ask(WEBSOCKET.replace(b"HTTP/1.1", b"HTTP/1.0")).status == 200
    assert origin.request.header("upgrade") is None
