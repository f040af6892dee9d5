"""Raw clients: bytes out in any pieces, strict responses in; and command-line tools with bounds."""

import contextlib
import os
import re
import shutil
import socket
import struct
import subprocess
import time

from .message import Closed, Malformed, Message, Stream, deadline_of, parse_fields, read_chunked
from .message import HEAD_MAX


class Response(Message):
    """One response; `interim` are the 1xx that came before it."""

    def __init__(self, version, status, reason, fields):
        self.version, self.status, self.reason, self.fields = version, status, reason, fields
        self.body, self.trailers, self.chunks, self.interim = b"", [], None, []
        self.until_close = False

    def __repr__(self):
        return f"<{self.version} {self.status} {self.reason!r} {self.fields} {self.body[:80]!r}>"


class Client:
    """A TCP connection to a proxy or server."""

    def __init__(self, address, timeout=10.0, source=None, rcvbuf=None):
        host, port = address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        if rcvbuf:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.settimeout(timeout)
        if source:
            self.sock.bind((source, 0))
        self.sock.connect((host, port))
        self.stream = Stream(self.sock, timeout)
        self.timeout = timeout

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def reset(self):
        """Closes with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def send(self, data):
        """Sends all; the timeout bounds the whole call."""
        self.sock.settimeout(self.timeout)
        self.sock.sendall(data)

    def send_pieces(self, pieces, pause=0.0005):
        """Sends each piece as a segment of its own; the pause lets the peer read it alone.

        Stops quietly when the peer has closed: a refusal may come before the last piece.
        """
        for piece in pieces:
            try:
                self.send(piece)
            except (BrokenPipeError, ConnectionResetError):
                return
            time.sleep(pause)

    def half_close(self):
        self.sock.shutdown(socket.SHUT_WR)

    def read_head(self, timeout=None):
        """Status line and fields of the next response, 1xx included; the body stays unread."""
        deadline = deadline_of(timeout, self.stream)
        head = self.stream.until(b"\r\n\r\n", HEAD_MAX, deadline, "in a response head")
        line, _, block = head.partition(b"\r\n")
        match = re.fullmatch(rb"(HTTP/1\.[01]) ([1-5][0-9][0-9]) ([\t\x20-\x7e\x80-\xff]*)", line)
        if not match:
            raise Malformed(f"status line {line!r}")
        response = Response(
            match[1].decode(), int(match[2]), match[3].decode("latin-1"), parse_fields(block[:-2])
        )
        response.raw = head
        return response

    def read_response(self, method="GET", timeout=None):
        """The next final response with its body; 1xx go to `.interim` (101 is final)."""
        deadline = deadline_of(timeout, self.stream)
        interim = []
        while True:
            response = self.read_head(deadline)
            if response.status >= 200 or response.status == 101:
                break
            interim.append(response)
        response.interim = interim
        self.read_body(response, method, deadline)
        return response

    def read_body(self, response, method="GET", timeout=None):
        deadline = deadline_of(timeout, self.stream)
        framing = response.framing()
        if method == "HEAD" or response.status in (101, 204, 304):
            return
        if framing == "chunked":
            response.body, response.trailers, response.chunks = read_chunked(self.stream, deadline)
        elif framing is None:
            response.until_close = True
            response.body = self.stream.rest(deadline)
        else:
            response.body = self.stream.exactly(framing, deadline, "in a body")

    def ask(self, data, method="GET", timeout=None):
        """Sends a request and reads its response, which may come before all was sent, and refuse the rest."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send(data)
        return self.read_response(method, timeout)

    def read_until_eof(self, timeout=None):
        """Everything up to end of stream; a reset counts as its end."""
        deadline = deadline_of(timeout, self.stream)
        try:
            return self.stream.rest(deadline)
        except ConnectionResetError:
            return self.stream.take(len(self.stream.buffer))

    def closed(self, timeout=None):
        """True when the peer closes (or resets) without sending more; False when data came."""
        deadline = deadline_of(timeout, self.stream)
        if self.stream.buffer:
            return False
        try:
            return not self.stream.fill(deadline)
        except ConnectionResetError:
            return True

    def silent(self, seconds=0.2):
        """True when nothing, not even a close, comes for this long."""
        if self.stream.buffer:
            return False
        self.sock.settimeout(seconds)
        try:
            self.stream.buffer += self.sock.recv(65536)
            return False
        except (socket.timeout, TimeoutError):
            return True

    @property
    def leftover(self):
        return bytes(self.stream.buffer)


def message(method="GET", target="/", headers=(), body=None, version="HTTP/1.1", host="a.example"):
    """A plain request as bytes; Content-Length is added for a body, Host unless `host` is None."""
    fields = list(headers.items() if isinstance(headers, dict) else headers)
    if host is not None:
        fields.insert(0, ("Host", host))
    if body is not None:
        fields.append(("Content-Length", str(len(body))))
    lines = [f"{method} {target} {version}"] + [f"{k}: {v}" for k, v in fields]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def request(address, method="GET", target="/", headers=(), body=None, timeout=10.0, **more):
    """One request on a connection of its own."""
    with Client(address, timeout) as client:
        return client.ask(message(method, target, headers, body, **more), method)


def get(address, target="/", **more):
    return request(address, "GET", target, **more)


def tool(name):
    """The path of a program; a missing one is a failure, never a skip."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    assert path, f"{name} is not installed (tests/run installs it)"
    return path


def run(*args, timeout=60, check=True, **more):
    """Runs a program to its end with captured text output."""
    done = subprocess.run(
        [tool(args[0]), *map(str, args[1:])],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        **more,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{args} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def curl(*args, timeout=30):
    """curl with sane bounds; returns the finished process."""
    return run("curl", "-sS", "--max-time", timeout - 2, "--noproxy", "*", *args, timeout=timeout)


def url(address, path="/"):
    host, port = address
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{path}"


__all__ = ["Client", "Closed", "Malformed", "Response", "curl", "get", "message", "request", "run"]
__all__ += ["tool", "url"]
