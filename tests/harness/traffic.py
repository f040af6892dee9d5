"""Open-loop traffic of every kind at once, with its own origin: what a user would notice of a change is a request
that fails, a WebSocket that is cut, or a download that is not whole.

`with Traffic(address, h2=address) as traffic: ...` and then `traffic.failures` is empty or tells.
"""

import asyncio
import hashlib
import itertools
import threading
import time

import h2.config
import h2.connection
import h2.events

from .tools import free_port

_SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
_UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
PIECE = 16384


def piece(number):
    """Part of the long download; no two are alike."""
    return hashlib.sha256(b"%d" % number).digest() * (PIECE // 32)


class Backend:
    """`/ws` echoes lines, `/long/N` sends N pieces slowly, anything else answers at once."""

    def __init__(self):
        self.port = free_port()
        self.text = f"127.0.0.1:{self.port}"

    async def listen(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", self.port, backlog=1024)

    async def serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                target = head.split(b" ", 2)[1]
                if target == b"/ws":
                    writer.write(_SWITCH)
                    while line := await reader.readline():
                        writer.write(line)
                    return
                if target.startswith(b"/long/"):
                    await self.send_long(writer, int(target[6:]))
                    continue
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def send_long(self, writer, count):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (count * PIECE))
        for number in range(count):
            writer.write(piece(number))
            await writer.drain()
            await asyncio.sleep(0.02)


class Traffic:
    """Runs in a thread of its own from `with` to its end; `address` is set once the proxy runs."""

    def __init__(self, keepalive=8, websockets=10, pieces=100, every=0.01, h2=True):
        self.backend = Backend()
        self.keepalive, self.websockets, self.pieces = keepalive, websockets, pieces
        self.every, self.with_h2 = every, h2
        self.address = None
        self.failures, self.counts = [], {}
        self.latencies = []
        self._over, self._listening = threading.Event(), threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self.thread.start()
        assert self._listening.wait(10)
        return self

    def __exit__(self, *_):
        self._over.set()
        self.thread.join(60)
        assert not self.thread.is_alive(), "the traffic did not end"

    def begin(self, address):
        """Starts the clients, once there is something to talk to."""
        self.address = address

    def finish(self):
        self.__exit__()
        return self

    def _count(self, what, number=1):
        self.counts[what] = self.counts.get(what, 0) + number

    def _fail(self, what, error):
        if len(self.failures) < 100:
            self.failures.append(f"{time.monotonic():.3f} {what}: {error!r}")

    async def _main(self):
        await self.backend.listen()
        self._listening.set()
        while self.address is None and not self._over.is_set():
            await asyncio.sleep(0.01)
        if self.address is None:
            return
        work = [self._keepalive(n) for n in range(self.keepalive)]
        work += [self._websocket(n) for n in range(self.websockets)]
        work += [self._fresh(), self._long()]
        work += [self._http2()] if self.with_h2 else []
        await asyncio.gather(*(self._guarded(one) for one in work))
        self.backend.server.close()

    async def _guarded(self, work):
        name = work.__name__
        try:
            await work
        except Exception as error:
            self._fail(name, error)

    async def _ticks(self, every):
        """The next request is due whatever became of the last."""
        following = time.monotonic()
        while not self._over.is_set():
            following = max(following + every, time.monotonic() - 1)
            yield following
            await asyncio.sleep(max(0, following - time.monotonic()))

    async def _connect(self):
        return await asyncio.wait_for(asyncio.open_connection(*self.address), 10)

    async def _ask(self, reader, writer, close=False):
        extra = b"Connection: close\r\n" if close else b""
        begin = time.monotonic()
        writer.write(b"GET /x HTTP/1.1\r\nHost: x\r\n" + extra + b"\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        if not head.startswith(b"HTTP/1.1 200 "):
            raise OSError(f"answer {head[:60]!r}")
        body = await asyncio.wait_for(reader.readexactly(2), 10)
        if body != b"ok":
            raise OSError(f"body {body!r}")
        self.latencies.append(time.monotonic() - begin)
        return b"\r\nconnection: close\r\n" not in head.lower()

    async def _keepalive(self, number):
        pair = None
        async for _ in self._ticks(self.every * self.keepalive):
            try:
                pair = pair or await self._connect()
                if not await self._ask(*pair):
                    pair[1].close()
                    pair = None
                    self._count("told to close")
                self._count("keep-alive")
            except Exception as error:
                self._fail(f"keep-alive {number}", error)
                pair = None

    async def _fresh(self):
        async for _ in self._ticks(self.every):
            try:
                reader, writer = await self._connect()
                await self._ask(reader, writer, close=True)
                if await asyncio.wait_for(reader.read(1), 10):
                    raise OSError("bytes behind the answer")
                writer.close()
                self._count("new connections")
            except Exception as error:
                self._fail("new connection", error)

    async def _websocket(self, number):
        reader, writer = await self._connect()
        writer.write(_UPGRADE)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        if b" 101 " not in head:
            raise OSError(f"answer {head[:60]!r}")
        sequence = itertools.count()
        async for _ in self._ticks(0.1):
            line = b"%d %d\n" % (number, next(sequence))
            writer.write(line)
            if await asyncio.wait_for(reader.readline(), 10) != line:
                raise OSError("the WebSocket was cut or mangled")
            self._count("echoes")
        writer.close()
        self._count("whole WebSockets")

    async def _long(self):
        while not self._over.is_set():
            reader, writer = await self._connect()
            writer.write(b"GET /long/%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % self.pieces)
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            for number in range(self.pieces):
                got = await asyncio.wait_for(reader.readexactly(PIECE), 20)
                if got != piece(number):
                    raise OSError(f"piece {number} of the download")
            writer.close()
            self._count("whole downloads")

    async def _http2(self):
        session = None
        async for _ in self._ticks(self.every):
            try:
                if session is None or session.leaving:
                    session = await Http2.open(*await self._connect())
                await session.get()
                self._count("HTTP/2 requests")
            except Exception as error:
                self._fail("HTTP/2", error)
                session = None


class Http2:
    """One HTTP/2 connection in the clear; `leaving` once the other end said GOAWAY."""

    @classmethod
    async def open(cls, reader, writer):
        self = cls()
        self.reader, self.writer, self.leaving = reader, writer, False
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self.connection.initiate_connection()
        writer.write(self.connection.data_to_send())
        return self

    async def get(self):
        """One request; the connection is left when it goes away, once its streams are done."""
        stream = self.connection.get_next_available_stream_id()
        fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"x"), (b":path", b"/x")]
        self.connection.send_headers(stream, fields, end_stream=True)
        self.writer.write(self.connection.data_to_send())
        status = None
        while True:
            data = await asyncio.wait_for(self.reader.read(65536), 10)
            if not data:
                raise OSError("the connection ended inside a request")
            ended = False
            for event in self._feed(data):
                if isinstance(event, h2.events.ResponseReceived):
                    status = dict(event.headers)[b":status"]
                if isinstance(event, h2.events.StreamReset):
                    raise OSError(f"reset {event.error_code}")
                ended |= isinstance(event, h2.events.StreamEnded)
            self.writer.write(self.connection.data_to_send())
            if ended:
                if status != b"200":
                    raise OSError(f"status {status}")
                return

    def _feed(self, data):
        # h2 ends a connection at the first GOAWAY; streams it names may go on (RFC 9113 section 6.8).
        rest, kept = data, b""
        self.pending = getattr(self, "pending", b"") + rest
        while len(self.pending) >= 9:
            length = int.from_bytes(self.pending[:3], "big") + 9
            if len(self.pending) < length:
                break
            frame, self.pending = self.pending[:length], self.pending[length:]
            if frame[3] == 7:
                self.leaving = True
                continue
            kept += frame
        return self.connection.receive_data(kept) if kept else []
