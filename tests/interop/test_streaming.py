"""Large bodies both ways: passed on as they come, held back by a slow reader, through real tools."""

import socket
import threading
import time

import pytest

from harness import Client, Nginx, curl, eventually, names, say
from harness.client import run, url
from harness.proxy import one

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
MIB = 1 << 20


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


def test_ten_gigabytes_keep_memory_flat(start, tmp_path):
    """10 GiB out of a sparse file of nginx's, with a mark at every GiB: a reader that is slow at first."""
    gib, size = 1 << 30, 10 << 30
    marks = {i * gib + 12345: b"gigabyte %d" % i for i in range(10)}
    nginx = Nginx.origin(tmp_path / "nginx")
    nginx.http = "sendfile on;"
    with nginx:
        with open(tmp_path / "nginx/www/large", "wb") as file:
            file.truncate(size)
            for at, mark in marks.items():
                file.seek(at)
                file.write(mark)
        proxy = start(one(nginx))
        with Client(proxy.address, 60, rcvbuf=65536) as client:
            client.send(GET.replace(b"/ ", b"/files/large ", 1))
            assert client.read_head().header("content-length") == str(size)
            reader = Skipping(client, proxy)
            base = steady_rss(proxy)
            for at, mark in marks.items():
                reader.skip_to(at)
                assert reader.take(10) == mark
            reader.skip_to(size)
        assert reader.peak - base < 32 * MIB, "grew while it streamed"
        # The last bytes are counted when the connection has gone.
        proxy.await_metric(names.BYTES_SENT, size)


class Skipping:
    """Reads some bytes, and has the kernel throw the others away; slow at first."""

    def __init__(self, client, proxy):
        self.sock, self.proxy, self.peak, self.steps = client.sock, proxy, 0, 0
        self.begun = client.stream.take(len(client.stream.buffer))
        self.offset, self.view = 0, memoryview(bytearray(8 * MIB))

    def read(self, count, flags=0):
        if self.begun:
            data, self.begun = self.begun[:count], self.begun[count:]
            self.view[: len(data)] = data
            got = len(data)
        else:
            self.steps += 1
            if self.steps == 100:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * MIB)
            got = self.sock.recv_into(self.view, min(count, 65536 if self.steps < 100 else 8 * MIB), flags)
            if self.steps % 256 == 0:
                self.peak = max(self.peak, self.proxy.rss())
        assert got, f"closed after {self.offset} bytes"
        self.offset += got
        return got

    def skip_to(self, offset):
        while self.offset < offset:
            self.read(offset - self.offset, socket.MSG_TRUNC)
        self.peak = max(self.peak, self.proxy.rss())

    def take(self, count):
        data = b""
        while len(data) < count:
            got = self.read(count - len(data))
            data += bytes(self.view[:got])
        return data


def test_stalled_reader_stops_the_origin(web):
    """Nobody reads: what leaves the origin is bounded by socket buffers and the proxy's own bound."""
    sent = {"bytes": 0}

    def handler(connection):
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1024 * MIB))
        connection.sock.settimeout(1)
        try:
            while True:
                sent["bytes"] += connection.sock.send(Pattern.block)
        except OSError:
            pass

    proxy, _ = web(handler)
    with Client(proxy.address, 30, rcvbuf=65536) as client:
        before = proxy.rss()
        client.send(GET)
        client.read_head()
        last = -1
        while sent["bytes"] != last:
            last = sent["bytes"]
            time.sleep(0.8)
        assert sent["bytes"] < 32 * MIB, "the proxy reads on although nobody takes it"
        assert proxy.rss() - before < 8 * MIB


def test_send_timeout(web):
    """A client that takes nothing is let go, and the origin with it; one that takes a little is not."""
    gone = threading.Event()

    def handler(connection):
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (512 * MIB))
        try:
            Pattern(512 * MIB).write(connection.send)
        except OSError:
            gone.set()

    proxy, _ = web(handler, http={"send_timeout": "2s"})
    with Client(proxy.address, rcvbuf=65536) as stalled, Client(proxy.address) as slow:
        stalled.send(GET)
        stalled.read_head()
        slow.send(GET)
        slow.read_head()
        begin = time.monotonic()
        while time.monotonic() - begin < 4:
            assert slow.sock.recv(MIB), "progress within send_timeout keeps it"
            time.sleep(0.05)
        assert gone.wait(20)
        proxy.await_equal("ringgate_client_timeouts_total", 1)
        with pytest.raises(ConnectionResetError):
            while stalled.sock.recv(MIB):
                pass


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
