"""Memory that an idle keep-alive client connection costs each contender.

N client connections are opened one after the other; each is served one request and stays open. Reported is the growth
of the contender's resident memory (VmRSS of all its processes) divided by N, and the growth of the kernel's slab,
which holds both ends' sockets and whatever the contender keeps in the kernel (epoll items, io_uring requests).

Sources of noise: a contender may preallocate (that part is in "RSS before"); allocators grow in steps, so use thousands
of connections; slab growth is the whole machine's and other work shows in it. One request at a time is in flight, so
buffers that are only held during a request do not count, as they would after a burst.
"""

import argparse
import select
import socket
import statistics
import struct
import sys
import time
from pathlib import Path

import contender as c
from l7 import cell, prepare, spread, table, write_json

REQUEST = f"GET / HTTP/1.1\r\nHost: {c.HOST}\r\n\r\n".encode()
# Connections one client address may hold, well inside the ephemeral port range.
PER_ADDRESS = 20000
# Files the contender and this process need beyond the idle connections.
SPARE_FILES = 500
SETTLE_SECONDS = 1.0


def slab_bytes():
    """The kernel's slab memory."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Slab:"):
            return int(line.split()[1]) * 1024
    raise c.BenchError("/proc/meminfo has no Slab")


def open_served(port, index):
    """A keep-alive connection that has been served one request. Closing it resets it, which leaves no TIME_WAIT."""
    client = socket.socket()
    client.settimeout(5)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.bind((f"127.0.0.{2 + index // PER_ADDRESS}", 0))
    client.connect(("127.0.0.1", port))
    serve(client)
    return client


def serve(client):
    """Sends one request and reads the whole response."""
    client.sendall(REQUEST)
    answer, whole = b"", len(c.BODY) + 4
    while len(answer) - answer.find(b"\r\n\r\n") < whole or b"\r\n\r\n" not in answer:
        piece = client.recv(4096)
        if not piece:
            raise c.BenchError(f"connection closed after {answer!r}")
        answer += piece
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise c.BenchError(f"not served: {answer[:80]!r}")


def still_open(clients):
    """Fails when the contender closed any of them: what it let go of must not count as thrift."""
    poll = select.poll()
    for client in clients:
        poll.register(client, select.POLLIN | select.POLLRDHUP)
    closed = len(poll.poll(0))
    if closed:
        raise c.BenchError(f"the contender closed {closed} of {len(clients)} idle connections")


def measure(who, backend, settings):
    """Growth per idle connection of one freshly started contender."""
    # nginx closes idle connections once fewer than a sixteenth of worker_connections are free.
    server = c.start(who, settings.contender_cpu, backend, settings.idle + settings.idle // 8 + SPARE_FILES)
    clients = []
    try:
        c.check_features(server)
        time.sleep(SETTLE_SECONDS)
        rss, slab = c.rss_bytes(c.process_tree(server.process.pid)), slab_bytes()
        for index in range(settings.idle):
            clients.append(open_served(server.port, index))
        time.sleep(SETTLE_SECONDS)
        still_open(clients)
        rss_after, slab_after = c.rss_bytes(c.process_tree(server.process.pid)), slab_bytes()
        for client in (clients[0], clients[-1]):
            serve(client)
    except (OSError, c.BenchError) as error:
        raise c.BenchError(f"{who.label}: {error} after {len(clients)} connections\n{server.tail()}") from error
    finally:
        for client in clients:
            client.close()
        server.stop()
    result = {"contender": who.label, "rss_before": rss, "rss_after": rss_after,
              "rss_per_connection": (rss_after - rss) / settings.idle,
              "slab_per_connection": (slab_after - slab) / settings.idle}
    print(f"{who.label:<10} {result['rss_per_connection']:.0f} bytes RSS a connection", file=sys.stderr)
    return result


def report(results, contenders, settings):
    """The Markdown report."""
    rows = []
    own = {who.label: [one for one in results if one["contender"] == who.label] for who in contenders}
    medians = {label: statistics.median(one["rss_per_connection"] for one in runs) for label, runs in own.items()}
    peers = [name for name in ("nginx", "haproxy") if name in own]
    for label, runs in own.items():
        rows.append([label, cell(spread([one["rss_per_connection"] for one in runs]), 0),
                     cell(spread([one["rss_before"] for one in runs]), 1, 2 ** -20),
                     cell(spread([one["rss_after"] for one in runs]), 1, 2 ** -20),
                     cell(spread([one["slab_per_connection"] for one in runs]), 0)]
                    + [f"{medians[label] / medians[peer]:.2f}" for peer in peers])
    head = ["contender", "RSS bytes/connection", "RSS before MiB", "RSS after MiB", "slab bytes/connection"]
    return [f"{settings.idle} idle keep-alive connections, each after one request; median [min–max] of "
            f"{settings.rounds} runs.", ""] + table(head + [f"RSS growth / {peer}" for peer in peers], rows) + [
                "", "Slab: the kernel's memory for both ends of the connection, the client's included."]


def parse_arguments():
    parser = argparse.ArgumentParser(prog="bench/memory.sh", description=__doc__.split("\n\n")[0])
    parser.add_argument("--idle", type=int, default=10000, metavar="N", help="connections (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--only", default=",".join(c.NAMES), help="contenders, comma separated (default: %(default)s)")
    parser.add_argument("--ringgate", default=c.RINGGATE, type=Path, help="default: target/release/ringgate")
    parser.add_argument("--contender-cpu", type=int, default=0)
    parser.add_argument("--load-cpu", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file (default: bench/results/latest-memory.json)")
    settings = parser.parse_args()
    if not (1 <= settings.idle <= 500_000 and 1 <= settings.rounds <= 50):
        parser.error("out of bounds: idle 1-500000, rounds 1-50")
    return settings


def main():
    settings = parse_arguments()
    contenders = c.choose(settings.only, settings.ringgate)
    results = []
    with prepare(settings, settings.idle + SPARE_FILES):
        backend = c.Backend(settings.load_cpu)
        try:
            for number in range(settings.rounds):
                shift = number % len(contenders)
                results += [measure(who, backend, settings) for who in contenders[shift:] + contenders[:shift]]
        finally:
            backend.stop()
    print("\n".join(report(results, contenders, settings)))
    path = settings.out or c.BENCH / "results" / "latest-memory.json"
    write_json(path, "memory", settings, contenders, results=results)


if __name__ == "__main__":
    c.run(main)
