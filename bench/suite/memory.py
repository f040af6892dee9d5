"""Memory that an idle keep-alive client connection costs each contender.

Client connections are opened one after the other; each is served one request and stays open. Reported is the growth
of the contender's resident memory (VmRSS of all its processes) divided by their number, and the growth of the
kernel's slab, which holds both ends' sockets and whatever the contender keeps in the kernel (epoll items, io_uring
requests). A contender may preallocate: that part is in the RSS before. One request at a time is in flight, so buffers
that are only held during a request do not count, as they would after a burst.
"""

import select
import socket
import struct
import time
from pathlib import Path

from . import BenchError
from .process import HOST, process_tree, rss_bytes

REQUEST = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
# Connections one client address may hold, well inside the ephemeral port range.
PER_ADDRESS = 20000
SETTLE_SECONDS = 0.7


def measure(server, scenario, network, connections):
    """Growth per idle connection of a freshly started contender."""
    clients = []
    try:
        time.sleep(SETTLE_SECONDS)
        before, slab = rss_bytes(process_tree(server.process.pid)), slab_bytes()
        for index in range(connections):
            clients.append(open_served(server, f"{network.clients}{2 + index // PER_ADDRESS}", scenario.body))
        time.sleep(SETTLE_SECONDS)
        still_open(clients)
        after, slab_after = rss_bytes(process_tree(server.process.pid)), slab_bytes()
        for client in (clients[0], clients[-1]):
            serve(client, scenario.body)
    except (OSError, BenchError) as error:
        raise BenchError(f"{server.label}: {error} after {len(clients)} connections\n{server.tail()}") from error
    finally:
        for client in clients:
            client.close()
    return {"contender": server.label, "connections": connections, "rss_before": before, "rss": after, "errors": {},
            "rss_per_connection": (after - before) / connections,
            "slab_per_connection": (slab_after - slab) / connections}


def slab_bytes():
    """The kernel's slab memory."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Slab:"):
            return int(line.split()[1]) * 1024
    raise BenchError("/proc/meminfo has no Slab")


def open_served(server, address, body):
    """A keep-alive connection that has been served one request. Closing it resets it, which leaves no TIME_WAIT."""
    client = socket.socket()
    client.settimeout(5)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.bind((address, 0))
    client.connect((server.address, server.port))
    serve(client, body)
    return client


def serve(client, body):
    """Sends one request and reads the whole response."""
    client.sendall(REQUEST)
    answer = b""
    while b"\r\n\r\n" not in answer or len(answer) - answer.find(b"\r\n\r\n") < body + 4:
        piece = client.recv(4096)
        if not piece:
            raise BenchError(f"connection closed after {answer!r}")
        answer += piece
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise BenchError(f"not served: {answer[:80]!r}")


def still_open(clients):
    """Fails when the contender closed any of them: what it let go of must not count as thrift."""
    poll = select.poll()
    for client in clients:
        poll.register(client, select.POLLIN | select.POLLRDHUP)
    closed = len(poll.poll(0))
    if closed:
        raise BenchError(f"the contender closed {closed} of {len(clients)} idle connections")
