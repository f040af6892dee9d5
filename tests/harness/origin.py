"""A scriptable origin on raw sockets: sends any bytes in any timing, records what it received."""

import re
import select
import socket
import struct
import threading
import traceback

from .message import HEAD_MAX, Closed, Malformed, Message, Stream, deadline_of
from .message import parse_fields, read_chunked
from .tools import free_port


_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) (HTTP/1\.[01])")
_ANY_LINE = re.compile(rb"(\S+) (.*) (\S+)", re.DOTALL)


def loose_fields(block):
    """Field lines of a peer whose output is only to be counted, not judged."""
    pairs = [line.partition(b":") for line in block.split(b"\r\n") if line]
    return [(k.decode("latin-1").strip(), v.decode("latin-1").strip()) for k, _, v in pairs]


def _backlog(listener):
    """Connections that wait to be accepted: `tcpi_unacked` of a listening socket."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return struct.unpack_from("I", info, 24)[0]


class Request(Message):
    """One request as the origin received it; `raw` is every byte of it."""

    def __init__(self, method, target, version, fields):
        self.method, self.target, self.version, self.fields = method, target, version, fields
        self.body, self.trailers, self.chunks, self.raw = b"", [], None, b""
        self.connection = None

    def __repr__(self):
        return f"<{self.method} {self.target} {self.fields} {self.body[:80]!r}>"


def say(status=200, body=b"ok", headers=(), reason="X", version="HTTP/1.1"):
    """A response with Content-Length as bytes."""
    lines = [f"{version} {status} {reason}", f"Content-Length: {len(body)}"]
    lines += [f"{k}: {v}" for k, v in (headers.items() if isinstance(headers, dict) else headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def respond(status=200, body=b"ok", headers=()):
    """A handler that answers every request of a connection alike."""

    def handler(connection):
        for _ in connection.requests():
            connection.send(say(status, body, headers))

    return handler


class Connection:
    """The origin's end of one connection."""

    def __init__(self, origin, sock, peer, number):
        self.origin, self.sock, self.peer, self.number = origin, sock, peer, number
        self.stream = Stream(sock, origin.timeout)
        self.done = threading.Event()
        self.closed_by_peer = False
        self.at_boundary = True

    @property
    def received(self):
        """Every byte that came (bounded by the stream's record limit)."""
        return bytes(self.stream.received)

    def read_head(self, timeout=None):
        """A request head; the body stays unread. Counted in `origin.heads`."""
        deadline = deadline_of(timeout, self.stream)
        head = self.stream.until(b"\r\n\r\n", HEAD_MAX, deadline, "in a request head")
        line, _, block = head.partition(b"\r\n")
        match = (_ANY_LINE if self.origin.lenient else _LINE).fullmatch(line)
        if not match:
            raise Malformed(f"the origin got the request line {line!r}")
        fields = loose_fields(block) if self.origin.lenient else parse_fields(block[:-2])
        request = Request(*(part.decode("latin-1") for part in match.groups()), fields)
        request.connection, request.raw = self, head
        self.origin.note_head(request)
        return request

    def read_body(self, request, timeout=None):
        deadline = deadline_of(timeout, self.stream)
        framing = request.framing()
        if framing == "chunked":
            request.body, request.trailers, request.chunks = read_chunked(self.stream, deadline)
        elif framing:
            request.body = self.stream.exactly(framing, deadline, "in a request body")

    def read_request(self, timeout=None):
        """A whole request, recorded in `origin.requests`."""
        before = self.stream.total - len(self.stream.buffer)
        request = self.read_head(timeout)
        self.at_boundary = False
        self.read_body(request, timeout)
        after = self.stream.total - len(self.stream.buffer)
        if after <= len(self.stream.received):
            request.raw = bytes(self.stream.received[before:after])
        self.origin.note(request)
        self.at_boundary = True
        return request

    def requests(self):
        """Requests until the peer closes between two of them."""
        while True:
            try:
                yield self.read_request()
            except Closed as closed:
                self.closed_by_peer = True
                if closed.got:
                    self.origin.note_partial(closed.got)
                return
            except TimeoutError:
                if self.stream.buffer:
                    self.origin.note_partial(bytes(self.stream.buffer))
                return

    def send(self, data):
        self.sock.settimeout(self.origin.timeout)
        self.sock.sendall(data)

    def between_requests(self):
        """True when nothing of a request has come that was not read to its end."""
        if self.done.is_set():
            return True
        if not self.at_boundary or self.stream.buffer:
            return False
        try:
            # Readable is also an end of stream that the handler has not seen yet.
            waiting = select.poll()  # select(2) knows no descriptor above 1023
            waiting.register(self.sock, select.POLLIN)
            return not waiting.poll(0)
        except (OSError, ValueError):
            return self.done.is_set()

    def half_close(self):
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self):
        """Closes with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self):
        """Closes now (a close() alone would wait for a recv in another thread)."""
        self.sock.close()

    def stall(self, timeout=30.0):
        """Does nothing until the origin stops or the peer closes."""
        self.sock.settimeout(0.05)
        for _ in range(int(timeout / 0.05)):
            if self.origin.stopping.is_set():
                return
            try:
                if not self.stream.fill(deadline_of(0.05, self.stream)):
                    self.closed_by_peer = True
                    return
            except TimeoutError:
                continue
            except OSError:
                self.closed_by_peer = True
                return


class Origin:
    """Listens on a loopback port; `handler(connection)` runs in a thread for each connection."""

    def __init__(self, handler=None, name="origin", host="127.0.0.1", port=None, timeout=15.0,
                 lenient=False):
        self.lenient = lenient
        self.handler = handler or respond()
        self.name, self.host, self.port, self.timeout = name, host, port or free_port(), timeout
        self.requests, self.heads, self.partial, self.errors = [], [], [], []
        self.malformed = []
        self.connections, self.stopping = [], threading.Event()
        self._lock, self._listener, self._acceptor = threading.Lock(), None, None
        self._threads = []

    @property
    def address(self):
        return (self.host, self.port)

    @property
    def text(self):
        """host:port, as the configuration wants it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __enter__(self):
        self.listen()
        return self

    def __exit__(self, kind, *_):
        self.stop()
        if kind is None:
            self.check()

    def check(self):
        """Fails when a handler failed or a request was not strict HTTP/1.1."""
        found = self.errors + self.malformed
        assert not found, f"origin {self.name}:\n" + "\n".join(found)

    def listen(self):
        """Opens the listener; again after `refuse` on the same port."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(self.address)
        listener.listen(512)
        self._listener = listener
        self._acceptor = threading.Thread(target=self._accept, args=(listener,), daemon=True)
        self._acceptor.start()

    def refuse(self):
        """Closes the listener: connects are refused; open connections stay."""
        if self._listener:
            listener, self._listener = self._listener, None
            listener.shutdown(socket.SHUT_RDWR)
            self._acceptor.join(5)
            listener.close()

    def drop_connections(self):
        """Ends every open connection from outside its handler."""
        with self._lock:
            open_now = [c for c in self.connections if not c.done.is_set()]
        for connection in open_now:
            try:
                connection.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def stop(self):
        self.stopping.set()
        self.refuse()
        self.drop_connections()
        for thread in list(self._threads):
            thread.join(5)

    def open_connections(self):
        with self._lock:
            return sum(not c.done.is_set() for c in self.connections)

    def quiet(self):
        """True when everything that was sent has been read: nothing waits to be accepted, and each
        open connection is between two requests."""
        with self._lock:
            listener, open_now = self._listener, [c for c in self.connections if not c.done.is_set()]
        return _backlog(listener) == 0 and all(c.between_requests() for c in open_now)

    def clear(self):
        """Forgets what was recorded."""
        with self._lock:
            self.requests, self.heads, self.partial, self.malformed = [], [], [], []

    def note(self, request):
        with self._lock:
            self.requests.append(request)

    def note_head(self, request):
        with self._lock:
            self.heads.append(request)

    def note_partial(self, data):
        with self._lock:
            self.partial.append(data)

    @property
    def request(self):
        """The only request so far."""
        assert len(self.requests) == 1, f"{len(self.requests)} requests: {self.requests}"
        return self.requests[0]

    def _accept(self, listener):
        while True:
            try:
                sock, peer = listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                connection = Connection(self, sock, peer, len(self.connections))
                self.connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads = [t for t in self._threads if t.is_alive()] + [thread]
            thread.start()

    def _serve(self, connection):
        try:
            self.handler(connection)
        except (OSError, TimeoutError):
            pass
        except Malformed as error:
            self.malformed.append(str(error))
        except BaseException:
            self.errors.append(traceback.format_exc())
        finally:
            # In this order: who finds it done may rely on the peer being told.
            connection.sock.close()
            connection.done.set()
