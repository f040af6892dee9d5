"""A strict, small HTTP/1.1 reader for both directions; it raises on anything it finds odd."""

import re
import socket

from .tools import Deadline

HEAD_MAX = 1 << 20
BODY_MAX = 1 << 26


class Malformed(AssertionError):
    """The peer sent something that is not strict HTTP/1.1."""


class Closed(ConnectionError):
    """The peer closed where more bytes were due; `.got` has what came."""

    def __init__(self, got, where):
        super().__init__(f"closed {where} after {bytes(got[-200:])!r}")
        self.got = bytes(got)


class Stream:
    """Buffered reads from a socket; everything received is kept in `received` (up to a bound)."""

    def __init__(self, sock, timeout=10.0, record_max=1 << 24):
        self.sock = sock
        self.timeout = timeout
        self.buffer = bytearray()
        self.received = bytearray()
        self.record_max = record_max
        self.total = 0

    def fill(self, deadline, size=65536):
        """Reads once; False at end of stream."""
        self.sock.settimeout(deadline.left())
        try:
            data = self.sock.recv(size)
        except socket.timeout:
            raise TimeoutError(
                f"nothing came for {deadline.seconds} s; buffered: {bytes(self.buffer[-300:])!r}"
            ) from None
        self.total += len(data)
        if len(self.received) < self.record_max:
            self.received += data
        self.buffer += data
        return bool(data)

    def take(self, count):
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    def until(self, mark, limit, deadline, where):
        start = 0
        while (at := self.buffer.find(mark, max(0, start - len(mark)))) < 0:
            start = len(self.buffer)
            if start > limit:
                raise Malformed(f"{where} longer than {limit}")
            if not self.fill(deadline):
                raise Closed(self.buffer, where)
        return self.take(at + len(mark))

    def exactly(self, count, deadline, where):
        while len(self.buffer) < count:
            if not self.fill(deadline):
                raise Closed(self.buffer, where)
        return self.take(count)

    def rest(self, deadline, limit=BODY_MAX):
        while self.fill(deadline):
            if len(self.buffer) > limit:
                raise Malformed(f"more than {limit} bytes")
        return self.take(len(self.buffer))


_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*\Z")


def parse_fields(block):
    """Header or trailer lines (each ending in CRLF) as a list of (name, value)."""
    fields = []
    for line in block.split(b"\r\n")[:-1]:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.match(name) or not _VALUE.match(value):
            raise Malformed(f"field line {line!r}")
        fields.append((name.decode("latin-1"), value.strip(b" \t").decode("latin-1")))
    return fields


class Message:
    """Fields common to requests and responses."""

    fields: list
    body: bytes = b""
    trailers: list = ()
    raw: bytes = b""

    def all(self, name):
        """Every value of a field, in order."""
        return [v for k, v in self.fields if k.lower() == name.lower()]

    def header(self, name):
        """The value of a field that comes at most once; None when absent."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} comes {len(values)} times: {values}"
        return values[0] if values else None

    def framing(self):
        """'chunked', an int, or None; Malformed when ambiguous."""
        codings, lengths = self.all("transfer-encoding"), self.all("content-length")
        if codings and lengths:
            raise Malformed(f"both framings: {self.fields}")
        if codings:
            if codings != ["chunked"]:
                raise Malformed(f"Transfer-Encoding {codings}")
            return "chunked"
        if lengths:
            if len(lengths) != 1 or not re.fullmatch(r"[0-9]+", lengths[0]):
                raise Malformed(f"Content-Length {lengths}")
            return int(lengths[0])
        return None


def read_chunked(stream, deadline):
    """A chunked body: (body, trailers, sizes); extensions are Malformed, a proxy strips them."""
    body, sizes = bytearray(), []
    while True:
        line = stream.until(b"\r\n", 64, deadline, "chunk size")
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,16}\r\n", line):
            raise Malformed(f"chunk size line {line!r}")
        size = int(line, 16)
        if size == 0:
            break
        if len(body) + size > BODY_MAX:
            raise Malformed("chunked body too large for the reader")
        body += stream.exactly(size, deadline, "in a chunk")
        sizes.append(size)
        if (end := stream.exactly(2, deadline, "after a chunk")) != b"\r\n":
            raise Malformed(f"chunk ends in {end!r}")
    while len(stream.buffer) < 2:
        if not stream.fill(deadline):
            raise Closed(stream.buffer, "after the last chunk")
    if stream.buffer[:2] == b"\r\n":
        stream.take(2)
        return bytes(body), [], sizes
    block = stream.until(b"\r\n\r\n", HEAD_MAX, deadline, "in trailers")
    return bytes(body), parse_fields(block[:-2]), sizes


def deadline_of(timeout, stream):
    return timeout if isinstance(timeout, Deadline) else Deadline(timeout or stream.timeout)
