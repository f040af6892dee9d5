"""Attacks on HTTP/2: each runs into its limit, is counted, and leaves other clients served.

What is asserted of memory and processor time is a bound that the unlimited attack would break by far:
the attacker's connection ends after a bounded number of frames, so that neither can grow with effort.
"""

import base64
import hashlib
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from harness import eventually, say
from harness.http2 import (
    CALM, CONTINUATION, DATA, END_HEADERS, END_STREAM, H2, HEADERS, PING, PRIORITY, PROTOCOL, REFUSED,
    RST, SETTINGS, WINDOW, frame, get_fields, settings,
)
from harness.proxy import one

MIB = 1 << 20
ROUNDS = 20_000


@pytest.fixture
def site(start, serve):
    """`site(handler, **http)` gives (proxy, origin)."""

    def begin(handler=None, node=None, **http):
        back = serve(handler)
        back.timeout = 60
        config = {**one(back, http=http), "listener": [{"http2": True}], "node": node or {}}
        return start(config), back

    return begin


class Others:
    """A well-behaved client beside the attack: asks over HTTP/2 all the time and is always answered."""

    def __init__(self, proxy):
        self.proxy, self.over, self.served, self.slowest = proxy, threading.Event(), 0, 0.0
        self.failure = None
        self.thread = threading.Thread(target=self.run)

    def run(self):
        try:
            with H2(self.proxy.address) as h2:
                stream = 1
                while not self.over.is_set():
                    begin = time.monotonic()
                    h2.get(stream, "/other")
                    assert h2.reply(stream).status == 200
                    self.slowest = max(self.slowest, time.monotonic() - begin)
                    h2.streams.clear()
                    self.served += 1
                    stream += 2
                    self.over.wait(0.005)
        except BaseException as failure:
            self.failure = failure

    def __enter__(self):
        self.memory, self.cpu = self.proxy.rss(), self.proxy.cpu()
        self.thread.start()
        eventually(lambda: self.served > 0 or self.failure, 10, "the first answer")
        return self

    def __exit__(self, kind, *_):
        served = self.served
        if kind is None:
            eventually(lambda: self.served > served or self.failure, 10, "an answer after the attack")
        self.over.set()
        self.thread.join(15)
        if kind is None:
            assert self.failure is None, self.failure
            assert self.slowest < 5, "others are served all the while"
            assert self.proxy.rss() - self.memory < 48 * MIB
            assert self.proxy.cpu() - self.cpu < 20


def attack(proxy, pieces, begin=True):
    """Sends pieces until the proxy has had enough; how many were sent, and the connection."""
    h2 = H2(proxy.address, begin=begin)
    done = threading.Event()
    sent = 0

    def drain():
        try:
            h2.until_closed(60)
        except (TimeoutError, AssertionError, OSError):
            pass
        done.set()

    reader = threading.Thread(target=drain)
    h2.try_send = lambda data: True
    reader.start()
    for piece in pieces(h2):
        try:
            h2.sock.sendall(piece)
        except OSError:
            break
        sent += 1
        if sent % 200 == 0:
            # What is sent counts, so the proxy has to have read it: sockets hold megabytes.
            eventually(lambda: done.is_set() or unread(h2.sock) == 0, 10, "the proxy reads", every=0.001)
        if done.is_set():
            break
    reader.join(30)
    h2.sock.close()
    assert done.is_set() and h2.closed, "the connection was not ended"
    return sent, h2


def unread(sock):
    """Bytes that wait at the other end of a connection over loopback."""
    ours, theirs = ("%08X:%04X" % (struct.unpack("=I", socket.inet_aton(host))[0], port)
                    for host, port in (sock.getsockname(), sock.getpeername()))
    for line in Path("/proc/net/tcp").read_text().splitlines():
        words = line.split()
        if words[1:3] == [theirs, ours]:
            return int(words[4].split(":")[1], 16)
    return 0


def ends_calmly(proxy, pieces, reason, below=ROUNDS):
    with Others(proxy):
        sent, h2 = attack(proxy, pieces)
    assert h2.goaway is None or h2.goaway[1] == CALM, h2.goaway
    reasons = (reason,) if isinstance(reason, str) else reason
    counted = lambda: [proxy.metric("ringgate_http2_connection_errors_total", reason=r) for r in reasons]
    eventually(lambda: sum(counted()) == 1, 5, lambda: f"one of {reasons}: {counted()}")
    assert sent < below, "it took too long"
    return h2


def test_rapid_reset(site):
    # CVE-2023-44487
    proxy, origin = site(lambda c: [c.send(say()) for r in c.requests()])

    def pieces(h2):
        for i in range(ROUNDS):
            stream = 1 + 2 * i
            yield h2.headers(stream, get_fields()) + frame(RST, 0, stream, struct.pack(">I", 8))

    # Resets of streams that were refused, since so many came at once, are counted otherwise.
    ends_calmly(proxy, pieces, ("reset_flood", "glitch_flood", "error_flood"))
    assert len([r for r in origin.heads if r.target == "/"]) <= 300, "bounded work for the server"


def test_made_you_reset(site):
    # CVE-2025-8671: the client makes us reset streams whose requests are still being served
    proxy, origin = site(lambda c: [c.send(say()) for r in c.requests()])

    def pieces(h2):
        for i in range(ROUNDS):
            stream = 1 + 2 * i
            yield h2.headers(stream, get_fields()) + frame(WINDOW, 0, stream, bytes(4))

    ends_calmly(proxy, pieces, "error_flood")


def test_made_you_reset_by_data_behind_the_end(site):
    proxy, _ = site(lambda c: [c.send(say()) for r in c.requests()])

    def pieces(h2):
        for i in range(ROUNDS):
            stream = 1 + 2 * i
            yield h2.headers(stream, get_fields()) + frame(DATA, 0, stream, b"x")

    ends_calmly(proxy, pieces, "error_flood")


def test_streams_that_are_reset_count_until_their_work_has_ended(site):
    gate = threading.Event()

    def handler(connection):
        for r in connection.requests():
            if r.target != "/other":
                connection.stall(20)
                return
            connection.send(say())

    proxy, origin = site(handler, http2_max_concurrent_streams=10)
    with Others(proxy), H2(proxy.address) as h2:
        for i in range(50):
            h2.get(1 + 2 * i, "/slow")
            h2.reset(1 + 2 * i)
        h2.ping()
    assert origin.open_connections() <= 60
    gate.set()


def test_continuation_flood(site):
    # CVE-2024-27316
    proxy, _ = site()

    def pieces(h2):
        yield frame(HEADERS, END_STREAM, 1, h2.encoder.encode(get_fields()))
        for i in range(ROUNDS):
            yield frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b" * 10)

    ends_calmly(proxy, pieces, "continuation_flood")


def test_continuation_flood_in_large_frames(site):
    proxy, _ = site()

    def pieces(h2):
        yield frame(HEADERS, END_STREAM, 1, h2.encoder.encode(get_fields()))
        for i in range(ROUNDS):
            yield frame(CONTINUATION, 0, 1, b"\x00\x01a\x7f\x80\x7f" + bytes(16000))

    ends_calmly(proxy, pieces, "continuation_flood", below=2000)


def test_empty_continuation_flood(site):
    proxy, _ = site()

    def pieces(h2):
        yield frame(HEADERS, END_STREAM, 1, h2.encoder.encode(get_fields()))
        for i in range(ROUNDS):
            yield frame(CONTINUATION, 0, 1, b"")

    ends_calmly(proxy, pieces, "continuation_flood")


def test_ping_flood(site):
    # CVE-2019-9512
    proxy, _ = site()
    ends_calmly(proxy, lambda h2: (frame(PING, 0, 0, bytes(8)) * 10 for _ in range(ROUNDS)), "ping_flood")


def test_settings_flood(site):
    # CVE-2019-9515
    proxy, _ = site()
    ends_calmly(proxy, lambda h2: (settings() * 10 for _ in range(ROUNDS)), "settings_flood")


def test_empty_data_flood(site):
    # CVE-2019-9518
    proxy, _ = site(lambda c: c.stall(30) if c.read_head().target != "/other" else c.send(say()))

    def pieces(h2):
        yield h2.headers(1, get_fields(method="POST"), end=False)
        for _ in range(ROUNDS):
            yield frame(DATA, 0, 1, b"") * 10

    ends_calmly(proxy, pieces, "empty_flood")


def test_small_window_updates(site):
    proxy, _ = site()
    update = frame(WINDOW, 0, 0, struct.pack(">I", 1))
    ends_calmly(proxy, lambda h2: (update * 10 for _ in range(ROUNDS)), "window_flood")


def test_priority_flood(site):
    # CVE-2019-9513
    proxy, _ = site()

    def pieces(h2):
        for i in range(ROUNDS):
            yield frame(PRIORITY, 0, 1 + 2 * (i % 1000), bytes(4) + b"\x10") * 10

    ends_calmly(proxy, pieces, "glitch_flood")


def test_unknown_frame_flood(site):
    proxy, _ = site()
    ends_calmly(proxy, lambda h2: (frame(0x55, 0, 0, b"x") * 10 for _ in range(ROUNDS)), "glitch_flood")


def test_header_bomb(site):
    # CVE-2026-49975: a large field once in the table, then a byte each time; decoded size counts
    proxy, origin = site()
    with Others(proxy), H2(proxy.address) as h2:
        block = h2.encoder.encode(get_fields())
        # In the table: one field of nearly 4 KiB.
        bomb = b"\x40\x01x\x7f\x81\x1e" + b"y" * (127 + 0xF01)
        h2.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block + bomb))
        assert h2.reply(1).status == 200, "once is no bomb"
        for stream in range(3, 103, 2):
            block = h2.encoder.encode(get_fields())
            # Nothing of ours was inserted behind it, so that it is the newest entry.
            h2.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, block + b"\xbe" * 16_000))
        for stream in range(3, 103, 2):
            assert h2.reply(stream).status == 431
        assert h2.goaway is None
    proxy.await_equal("ringgate_http2_heads_too_large_total", 50)
    assert all(r.target == "/other" or len(r.raw) < 33_000 for r in origin.requests)


def test_cookie_bomb(site):
    proxy, origin = site()
    with Others(proxy), H2(proxy.address) as h2:
        for stream in range(1, 101, 2):
            h2.send(frame(HEADERS, END_HEADERS | END_STREAM, stream,
                          h2.encoder.encode([*get_fields(), ("cookie", "a=b")]) + b"\xbe" * 16_000))
        for stream in range(1, 101, 2):
            assert h2.reply(stream).status == 431
    proxy.await_equal("ringgate_http2_heads_too_large_total", 50)
    assert all(r.target == "/other" for r in origin.requests)


def test_too_many_small_fields(site):
    proxy, _ = site()
    with H2(proxy.address) as h2:
        h2.get(1, more=[(f"x{i}", "") for i in range(97)])
        assert h2.reply(1).status == 431
        h2.get(3, more=[(f"x{i}", "") for i in range(96)])
        assert h2.reply(3).status == 200


def big(connection):
    for r in connection.requests():
        if r.target == "/other":
            connection.send(say())
            continue
        try:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + bytes(10_000_000))
        except OSError:
            return


def test_windows_that_never_open(site):
    # CVE-2019-9511, CVE-2019-9517: ask for a lot and take nothing
    proxy, origin = site(big, send_timeout="1s", node={"buffer_memory": "16m"})
    with Others(proxy), H2(proxy.address, config=[(4, 0)]) as h2:
        for stream in range(1, 201, 2):
            h2.get(stream, "/big")
        for stream in range(1, 201, 2):
            h2.until(lambda: h2.stream(stream).reset is not None, "a reset", 20)
            assert h2.stream(stream).body == b""
        eventually(lambda: origin.open_connections() <= 5, 10, "the servers are let go")
    proxy.await_metric("ringgate_client_timeouts_total", 100)


def test_answers_that_nobody_reads(site):
    # The windows are open, the socket is not read.
    proxy, _ = site(big, send_timeout="1s", node={"buffer_memory": "16m"})
    with Others(proxy), H2(proxy.address, config=[(4, (1 << 31) - 1)], rcvbuf=4096) as h2:
        h2.window(0, (1 << 31) - 1 - 65535)
        for stream in range(1, 201, 2):
            h2.get(stream, "/big")
        eventually(lambda: proxy.metric("ringgate_client_timeouts_total") >= 90, 30, "deadlines", every=0.1)


def test_pings_that_nobody_reads(site):
    # Below the rate, for long: what waits to be sent is bounded because the rate is.
    proxy, _ = site()
    with Others(proxy), H2(proxy.address, rcvbuf=4096) as h2:
        for _ in range(20):
            h2.send(frame(PING, 0, 0, bytes(8)) * 5)
            time.sleep(0.06)  # the rate is what is tested
        h2.get(1)
        assert h2.reply(1).status == 200


def test_connections_with_nothing_on_them(site):
    proxy, _ = site(client_header_timeout="1s")
    with Others(proxy):
        clients = [H2(proxy.address, begin=False) for _ in range(200)]
        for client in clients:
            client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        for client in clients:
            client.until_closed(10)
            client.sock.close()


def test_a_body_in_tiny_frames_holds_little_memory(site):
    release = threading.Event()

    def handler(connection):
        r = connection.read_head()
        if r.target == "/other":
            return connection.send(say())
        release.wait(30)
        connection.read_body(r)
        connection.send(say(body=b"%d" % len(r.body)))

    proxy, _ = site(handler)
    before = proxy.rss()
    with H2(proxy.address) as h2:
        for stream in range(1, 41, 2):
            h2.send(h2.headers(stream, get_fields(method="POST"), end=False))
        for _ in range(500):
            for stream in range(1, 41, 2):
                h2.data(stream, b"z")
        h2.ping()
        assert proxy.rss() - before < 32 * MIB
        release.set()
        for stream in range(1, 41, 2):
            h2.data(stream, end=True)
        for stream in range(1, 41, 2):
            assert h2.reply(stream).body == b"500"


def test_a_tunnel_in_tiny_pieces_that_nobody_reads_holds_little_memory(site):
    tunnels, pieces, sent = 20, 120, threading.Semaphore(0)

    def handler(connection):
        r = connection.read_request()
        key = r.header("sec-websocket-key").encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key).digest())
        connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        for _ in range(pieces):
            connection.send(b"z")
            time.sleep(0.005)  # a piece for itself
        sent.release()
        connection.stall(30)

    proxy, _ = site(handler, node={"shards": 1})
    fields = [
        (":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"),
        (":path", "/chat"), (":authority", "a.example"), ("sec-websocket-version", "13"),
    ]
    with H2(proxy.address, config=[(4, 0)]) as h2:
        h2.ping()
        before = proxy.rss()
        streams = range(1, 2 * tunnels, 2)
        for stream in streams:
            h2.send(h2.headers(stream, fields, end=False))
        for _ in streams:
            assert sent.acquire(timeout=20)
        h2.ping()
        assert proxy.rss() - before < 12 * MIB
        for stream in streams:
            h2.window(stream, 1000)
        for stream in streams:
            h2.until(lambda: len(h2.stream(stream).body) == pieces, "all pieces")
