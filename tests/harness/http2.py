"""HTTP/2 by raw frames: a client (or server side) that does exactly what a test says, right or wrong."""

import socket
import struct

from hpack import Decoder, Encoder

from .tools import Deadline

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 1, 1, 4, 8, 32
NO_ERROR, PROTOCOL, INTERNAL, FLOW, _, CLOSED, SIZE, REFUSED, CANCEL, COMPRESSION, _, CALM = range(12)


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def settings(*pairs):
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", key, value) for key, value in pairs))


def get_fields(path="/", authority="a.example", method="GET", scheme="http"):
    return [(":method", method), (":scheme", scheme), (":path", path), (":authority", authority)]


class Reply:
    """What came on one stream."""

    def __init__(self):
        self.heads, self.body, self.trailers, self.ended, self.reset = [], bytearray(), None, False, None

    @property
    def status(self):
        return int(dict(self.heads[-1])[":status"])

    def header(self, name):
        return dict(self.heads[-1]).get(name)

    def __repr__(self):
        return f"<{self.heads} {bytes(self.body[:60])!r} {self.trailers} ended={self.ended} reset={self.reset}>"


class H2:
    """One end of a connection; everything received is sorted into `streams` by `read`."""

    def __init__(self, address=None, begin=True, timeout=10.0, rcvbuf=None, sock=None, config=()):
        self.timeout = timeout
        if sock is None:
            sock = socket.socket()
            if rcvbuf:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
            sock.settimeout(timeout)
            sock.connect(address)
        self.sock = sock
        sock.settimeout(timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.encoder, self.decoder, self.buffer = Encoder(), Decoder(), b""
        self.decoder.max_allowed_table_size = 4096
        self.streams, self.goaway, self.closed, self.pongs, self.frames = {}, None, False, 0, []
        self.settings, self.acked, self.block = {}, 0, None
        if begin:
            self.send(PREFACE + settings(*config))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data)

    def try_send(self, data):
        """Sends as long as the other side listens."""
        try:
            self.sock.sendall(data)
            return True
        except OSError:
            return False

    def headers(self, stream, fields, end=True, flags=0):
        block = self.encoder.encode(fields)
        return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0) | flags, stream, block)

    def get(self, stream, path="/", end=True, more=(), **fields):
        self.send(self.headers(stream, [*get_fields(path, **fields), *more], end))

    def data(self, stream, payload=b"", end=False):
        self.send(frame(DATA, END_STREAM if end else 0, stream, payload))

    def window(self, stream, by):
        self.send(frame(WINDOW, 0, stream, struct.pack(">I", by)))

    def reset(self, stream, code=CANCEL):
        self.send(frame(RST, 0, stream, struct.pack(">I", code)))

    def stream(self, number):
        return self.streams.setdefault(number, Reply())

    def read_frame(self, timeout=None):
        """The next frame; None at the end of the connection."""
        deadline = Deadline(self.timeout if timeout is None else timeout)
        while True:
            if len(self.buffer) >= 9:
                length = int.from_bytes(self.buffer[:3], "big")
                if len(self.buffer) >= 9 + length:
                    kind, flags = self.buffer[3], self.buffer[4]
                    stream = int.from_bytes(self.buffer[5:9], "big") & 0x7FFFFFFF
                    payload = self.buffer[9 : 9 + length]
                    self.buffer = self.buffer[9 + length :]
                    return kind, flags, stream, payload
            self.sock.settimeout(max(deadline.left(), 0.001))
            try:
                data = self.sock.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                self.closed = True
                return None
            self.buffer += data

    def read(self, timeout=None):
        """Takes one frame into account; False at the end of the connection."""
        got = self.read_frame(timeout)
        if got is None:
            return False
        kind, flags, stream, payload = got
        self.frames.append((kind, flags, stream, len(payload)))
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                key, value = struct.unpack_from(">HI", payload, at)
                self.settings[key] = value
            self.try_send(frame(SETTINGS, ACK))
        elif kind == SETTINGS:
            self.acked += 1
        elif kind == PING and flags & ACK:
            self.pongs += 1
        elif kind == PING:
            self.try_send(frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            last, code = struct.unpack_from(">II", payload)
            self.goaway = (last & 0x7FFFFFFF, code)
        elif kind == HEADERS:
            self.block = (stream, flags, payload)
        elif kind == CONTINUATION:
            self.block = (stream, self.block[1] | flags & END_HEADERS, self.block[2] + payload)
        elif kind == RST:
            self.stream(stream).reset = struct.unpack(">I", payload)[0]
        elif kind == DATA:
            self.stream(stream).body += payload
            self.stream(stream).ended |= bool(flags & END_STREAM)
        if kind in (HEADERS, CONTINUATION) and self.block[1] & END_HEADERS:
            self.head(*self.block)
        return True

    def head(self, stream, flags, block):
        fields = [(str(k), str(v)) for k, v in self.decoder.decode(block)]
        reply = self.stream(stream)
        if reply.heads and flags & END_STREAM and not fields[0][0].startswith(":"):
            reply.trailers = fields
        else:
            reply.heads.append(fields)
        reply.ended |= bool(flags & END_STREAM)

    def until(self, condition, what, timeout=None):
        deadline = Deadline(self.timeout if timeout is None else timeout)
        while not condition():
            assert self.read(deadline.left()), f"closed while waiting for {what}: {self}"

    def reply(self, stream, timeout=None):
        """The whole answer on a stream."""
        one = self.stream(stream)
        self.until(lambda: one.ended or one.reset is not None, f"the end of stream {stream}", timeout)
        return one

    def ping(self):
        """Waits until everything sent so far was looked at."""
        pongs = self.pongs
        self.send(frame(PING, 0, 0, b"12345678"))
        self.until(lambda: self.pongs > pongs, "a pong")

    def until_closed(self, timeout=None):
        deadline = Deadline(self.timeout if timeout is None else timeout)
        while self.read(deadline.left()):
            pass

    def __repr__(self):
        return f"<H2 {self.streams} goaway={self.goaway} closed={self.closed}>"
