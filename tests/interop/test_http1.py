"""HTTP/1.1 on both sides (RFC 9110, RFC 9112), over sockets."""

import base64
import hashlib
import socket
import threading

import pytest

from harness import Client, Deadline, Nginx, curl, eventually, get, request, say
from harness.client import message, run, url
from harness.message import Closed
from harness.proxy import one

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
MIB = 1 << 20


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


def test_interim_responses_pass(web):
    def handler(connection):
        for _ in connection.requests():
            connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n")
            connection.send(b"HTTP/1.1 102 Processing\r\n\r\n")
            connection.send(say())

    proxy, _ = web(handler)
    with Client(proxy.address) as client:
        for _ in range(2):
            answer = client.ask(GET)
            assert answer.status == 200 and [i.status for i in answer.interim] == [103, 102]
            assert answer.interim[0].header("link") == "</a.css>; rel=preload"


def test_interim_responses_do_not_reach_http10(web):
    def handler(connection):
        for _ in connection.requests():
            connection.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" + say())

    proxy, _ = web(handler)
    answer = request(proxy.address, version="HTTP/1.0")
    assert answer.status == 200 and answer.interim == []


def test_too_many_interim_responses_are_bounded(web):
    def handler(connection):
        connection.read_request()
        for _ in range(200000):
            connection.send(b"HTTP/1.1 102 Processing\r\n\r\n")

    proxy, _ = web(handler, retry={"tries": 1}, read_timeout="2s")
    with Client(proxy.address, 20) as client:
        client.send(GET)
        try:
            assert client.read_response(timeout=20).status in (502, 504)
        except (Closed, ConnectionResetError):
            pass


EXPECT = b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"


def test_expect_continue_honoured(web):
    """The body is sent only after the 100; the 100 comes from the proxy or the origin, once."""

    def handler(connection):
        while True:
            r = connection.read_head()
            if "100-continue" in r.all("expect"):
                connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            connection.read_body(r)
            connection.origin.note(r)
            connection.send(say(200, r.body))

    proxy, _ = web(handler)
    with Client(proxy.address) as client:
        for _ in range(2):
            client.send(EXPECT)
            assert client.read_head().status == 100
            client.send(b"hello")
            answer = client.read_response()
            assert (answer.status, answer.body, answer.interim) == (200, b"hello", [])


def test_expect_continue_early_final_response(web):
    """A final status instead of 100: it is passed on, and no body is taken for a request after it."""

    def handler(connection):
        connection.read_head()
        connection.send(say(401, b"no", {"Connection": "close"}))
        connection.stall(5)

    proxy, _ = web(handler)
    with Client(proxy.address) as client:
        client.send(EXPECT)
        answer = client.read_response()
        if answer.interim:
            client.send(b"hello")
        assert answer.status == 401 and answer.body == b"no"


def test_expect_continue_body_comes_at_once(web):
    proxy, origin = web()
    with Client(proxy.address) as client:
        assert client.ask(EXPECT + b"hello").status == 200
        assert client.ask(GET).status == 200
    assert origin.requests[0].body == b"hello"


def test_expect_continue_with_curl(web, tmp_path):
    proxy, origin = web(http={"client_max_body_size": "8m"})
    (tmp_path / "body").write_bytes(b"z" * 3 * MIB)
    curl("-H", "Expect: 100-continue", "--data-binary", f"@{tmp_path}/body", url(proxy.address))
    assert origin.request.body == b"z" * 3 * MIB


def test_early_response_while_the_body_is_sent(web):
    """The answer reaches the client before the request is complete."""

    def handler(connection):
        connection.read_head()
        connection.send(say(403, b"enough", {"Connection": "close"}))
        connection.stall(10)

    proxy, _ = web(handler, http={"client_max_body_size": 0})
    with Client(proxy.address) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 100000000\r\n\r\nabc")
        answer = client.read_response()
        assert (answer.status, answer.body) == (403, b"enough")


def test_early_response_to_a_sending_client(web):
    """The client never stops to listen: the answer is still there when it looks."""

    def handler(connection):
        connection.read_head()
        connection.send(say(413, b"too much", {"Connection": "close"}))
        connection.stall(10)

    proxy, _ = web(handler, http={"client_max_body_size": 0})
    with Client(proxy.address, 10) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4000000\r\n\r\n")

        def push():
            try:
                for _ in range(60):
                    client.send(b"x" * 65536)
            except OSError:
                pass

        pusher = threading.Thread(target=push)
        pusher.start()
        assert client.read_response().status == 413
        pusher.join(15)


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


WEBSOCKET = (
    b"GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


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


class Pattern:
    """A body of `size` bytes in which every offset is recognisable."""

    block = bytes((i * 7 + (i >> 8)) % 256 for i in range(MIB))

    def __init__(self, size):
        assert size % MIB == 0
        self.blocks = size // MIB

    def write(self, send):
        for _ in range(self.blocks):
            send(self.block)


def large_download(chunked, size):
    def handler(connection):
        for _ in connection.requests():
            if chunked:
                connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                Pattern(size).write(lambda b: connection.send(b"%x\r\n" % len(b) + b + b"\r\n"))
                connection.send(b"0\r\n\r\n")
            else:
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
                Pattern(size).write(connection.send)

    return handler


def drain(client, size, offset=0):
    """Reads `size` bytes and checks that they are the pattern."""
    view, left = memoryview(bytearray(MIB)), size
    pattern = memoryview(Pattern.block * 2)
    while left:
        client.sock.settimeout(15)
        got = client.sock.recv_into(view[: min(MIB, left)])
        assert got, f"closed with {left} bytes to come"
        at = offset % MIB
        assert view[:got] == pattern[at : at + got], f"wrong bytes near offset {offset}"
        offset, left = offset + got, left - got


def test_slow_reader_keeps_memory_flat(web):
    """1 GiB: the reader stops at first, reads slowly, then as fast as it can."""
    size = 1024 * MIB
    proxy, origin = web(large_download(False, size))
    with Client(proxy.address, 30, rcvbuf=65536) as client:
        client.send(GET)
        head = client.read_head()
        assert head.header("content-length") == str(size)
        have = client.stream.take(len(client.stream.buffer))
        assert have == Pattern.block[: len(have)]
        base = steady_rss(proxy)
        offset = len(have)
        for _ in range(64):
            drain(client, 65536, offset)
            offset += 65536
        assert proxy.rss() - base < 32 * MIB, "grows while the reader is slow"
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MIB)
        drain(client, size - offset, offset)
        assert proxy.rss() - base < 64 * MIB, "grew while it streamed"


def steady_rss(proxy):
    """RSS once two readings 100 ms apart agree within 1 MiB."""
    last = {"rss": 0}

    def steady():
        before, last["rss"] = last["rss"], proxy.rss()
        return abs(last["rss"] - before) < MIB

    eventually(steady, 10, "steady RSS", every=0.1)
    return last["rss"]


def test_large_chunked_download(web):
    size = 64 * MIB
    proxy, _ = web(large_download(True, size))
    with Client(proxy.address, 30) as client:
        client.stream.record_max = 0
        answer = client.ask(GET, timeout=60)
        assert len(answer.body) == size and answer.body == Pattern.block * 64


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_large_upload_with_back_pressure(web, framing):
    """256 MiB into an origin that takes a while to begin reading."""
    size = 256 * MIB
    reading, seen = threading.Event(), {"bytes": 0, "good": True}

    def handler(connection):
        connection.read_head()
        reading.wait(20)
        seen["bytes"] = len(connection.stream.take(len(connection.stream.buffer)))
        connection.sock.settimeout(15)
        view = bytearray(MIB)
        while seen["bytes"] < size:
            got = connection.sock.recv_into(view)
            if not got:
                return
            seen["bytes"] += got
        connection.send(say(200, b"got it", {"Connection": "close"}))

    proxy, _ = web(handler, http={"client_max_body_size": 0})
    with Client(proxy.address, 30) as client:
        chunked = framing == "chunked"
        field = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
        client.send(f"POST / HTTP/1.1\r\nHost: a.example\r\n{field}\r\n\r\n".encode())
        base = steady_rss(proxy)

        def push():
            for _ in range(size // MIB):
                head, tail = (b"%x\r\n" % MIB, b"\r\n") if chunked else (b"", b"")
                client.send(head + Pattern.block + tail)
            client.send(b"0\r\n\r\n" if chunked else b"")

        pusher = threading.Thread(target=push, daemon=True)
        pusher.start()
        peak = steady_rss(proxy)
        reading.set()
        assert client.read_response(timeout=60).body == b"got it"
        pusher.join(30)
        assert max(peak, proxy.rss()) - base < 64 * MIB, "an upload is buffered without bound"
    assert seen["bytes"] >= size


def test_nginx_origin_with_curl_wrk_and_h2load(start, tmp_path):
    """The three usual clients through Ringgate to real nginx; no error may be counted."""
    with Nginx.origin(tmp_path / "nginx") as nginx:
        (tmp_path / "nginx/www/big").write_bytes(Pattern.block * 8)
        proxy = start(one(nginx))
        assert curl(url(proxy.address)).stdout == "nginx\n"
        assert curl("-I", url(proxy.address, "/files/big")).stdout.startswith("HTTP/1.1 200")
        curl("-o", tmp_path / "out", url(proxy.address, "/files/big"))
        assert (tmp_path / "out").read_bytes() == Pattern.block * 8
        part = curl("-r", "1000-1999", "-o", tmp_path / "part", "-w", "%{http_code}", url(proxy.address, "/files/big"))
        assert part.stdout == "206" and (tmp_path / "part").read_bytes() == Pattern.block[1000:2000]
        report = run("wrk", "-t1", "-c32", "-d2s", url(proxy.address)).stdout
        assert "Socket errors" not in report and "Non-2xx" not in report, report
        report = run("h2load", "--h1", "-n2000", "-c16", "-t1", url(proxy.address)).stdout
        assert "2000 succeeded, 0 failed, 0 errored, 0 timeout" in report, report


def test_pipelining_with_h2load(start, tmp_path):
    with Nginx.origin(tmp_path / "nginx") as nginx:
        proxy = start(one(nginx))
        report = run("h2load", "--h1", "-n5000", "-c8", "-m16", "-t1", url(proxy.address)).stdout
        assert "5000 succeeded, 0 failed, 0 errored, 0 timeout" in report, report
