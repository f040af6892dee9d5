#!/usr/bin/env python3
"""Reloads and upgrades under load, Ringgate beside nginx and HAProxy: what clients notice, and what is left behind.

    bench/reload.py [--reloads 200] [--every 0.1] [--only ringgate,nginx,haproxy]
    bench/reload.py --upgrades 20 [--every 1]
    bench/reload.py --big [--seconds 12]

The contender has CPU 0, load and origins CPU 1. Load is open loop over kept connections, and on new ones;
half of the WebSockets and a download are open before the first reload, the others are opened during them. Each
reload changes the file. A failed request is one without a 2xx answer; a cut WebSocket is one that does not echo
at the end. `--big` measures the latency of the same requests with 5,000 routes and 1,000 servers in the file, with
and without reloads beside them. `--upgrades` starts the binary anew instead: Ringgate and nginx by SIGUSR2 (nginx' old
master gets SIGQUIT then; as long as that has connections nginx ignores another one), HAProxy's master by SIGUSR2, which starts it anew with each reload anyway.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
BENCH = os.environ.get("RINGGATE_BENCH_BIN", TARGET / "ringgate-bench")
RINGGATE = os.environ.get("RINGGATE_BIN", TARGET / "ringgate")
PORT, ORIGIN, ECHO = 18480, 18481, 18482
UPGRADE = (
    "GET /ws HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
ROUTES, SERVERS, GROUPS = 5000, 1000, 250


def servers(group):
    """Addresses that are never asked."""
    return [f"127.1.{group // 250}.{group % 250 + 1}:{9000 + n}" for n in range(SERVERS // GROUPS)]


def ringgate(directory, n, big):
    lines = [
        f'[node]\nshards = 1\npin = false\npid_file = "{directory}/pid"',
        f'[admin]\nbind = "off"\nsocket = "{directory}/admin.sock"',
        "[http]\nkeepalive_requests = 1000000\ntunnel_timeout = \"1h\"",
        f'[[listener]]\nbind = "127.0.0.1:{PORT}"\nbacklog = 4096',
        f'[[route]]\npath = "/n"\nrespond = {{ status = 200, body = "{n}" }}',
        '[[route]]\npath = "/ws"\nupstream = "echo"\n[[route]]\npath = "/long"\nupstream = "echo"',
    ]
    if big:
        lines += [f'[[route]]\npath = "/p{r}/"\nupstream = "g{r % GROUPS}"' for r in range(ROUTES)]
    lines += [
        '[[route]]\nupstream = "origin"',
        f'[upstream.origin]\nkeepalive = 1024\nservers = [{{ address = "127.0.0.1:{ORIGIN}", weight = {n % 50 + 1} }}]',
        f'[upstream.echo]\nservers = [{{ address = "127.0.0.1:{ECHO}" }}]',
    ]
    for group in range(GROUPS if big else 0):
        listed = ", ".join(f'{{ address = "{s}" }}' for s in servers(group))
        lines.append(f"[upstream.g{group}]\nservers = [{listed}]")
    return "\n".join(lines) + "\n"


def nginx_head(directory):
    """As far as the server blocks."""
    return f"""daemon off; user root; worker_processes 1; pid {directory}/pid; error_log {directory}/error.log error;
events {{ worker_connections 4096; }}
http {{
access_log off; keepalive_requests 1000000; proxy_http_version 1.1; proxy_set_header Connection "";
client_body_temp_path {directory}/a; proxy_temp_path {directory}/b; fastcgi_temp_path {directory}/c;
uwsgi_temp_path {directory}/d; scgi_temp_path {directory}/e;"""


def haproxy_head(directory):
    """As far as the frontends."""
    return f"""global
    nbthread 1
    maxconn 4096
    stats socket {directory}/stats.sock mode 600 level admin expose-fd listeners
defaults
    mode http
    timeout connect 60s
    timeout client 60s
    timeout server 60s
    timeout tunnel 1h
    timeout http-keep-alive 75s
    http-reuse always"""


def nginx(directory, n, big):
    groups = "".join(
        f"upstream g{g} {{ {' '.join(f'server {s};' for s in servers(g))} }}\n" for g in range(GROUPS if big else 0)
    )
    routes = "".join(f"location /p{r}/ {{ proxy_pass http://g{r % GROUPS}; }}\n" for r in range(ROUTES if big else 0))
    upgrade = (
        f"proxy_pass http://127.0.0.1:{ECHO}; proxy_set_header Upgrade $http_upgrade; "
        'proxy_set_header Connection "upgrade"; proxy_read_timeout 1h;'
    )
    return f"""{nginx_head(directory)}
upstream origin {{ server 127.0.0.1:{ORIGIN} weight={n % 50 + 1}; keepalive 1024; keepalive_requests 1000000; }}
{groups}
server {{
listen 127.0.0.1:{PORT} backlog=4096;
location /n {{ return 200 "{n}"; }}
location /ws {{ {upgrade} }}
location /long {{ proxy_pass http://127.0.0.1:{ECHO}; proxy_buffering off; proxy_read_timeout 1h; }}
{routes}location / {{ proxy_pass http://origin; }}
}}
}}
"""


def haproxy(directory, n, big):
    rules = "".join(f"    use_backend g{r % GROUPS} if {{ path_beg /p{r}/ }}\n" for r in range(ROUTES if big else 0))
    groups = "".join(
        f"backend g{g}\n" + "".join(f"    server s{k} {s}\n" for k, s in enumerate(servers(g)))
        for g in range(GROUPS if big else 0)
    )
    return f"""{haproxy_head(directory)}
frontend web
    bind 127.0.0.1:{PORT} backlog 4096
    http-request return status 200 content-type text/plain string "{n}" if {{ path /n }}
    use_backend echo if {{ path_beg /ws }} || {{ path_beg /long }}
{rules}    default_backend origin
backend origin
    server s 127.0.0.1:{ORIGIN} weight {n % 50 + 1}
backend echo
    server s 127.0.0.1:{ECHO}
{groups}"""


KINDS = {"ringgate": ringgate, "nginx": nginx, "haproxy": haproxy}


def path_of(name):
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin") or sys.exit(f"{name} is not installed")


class Contender:
    """A running proxy whose file changes."""

    def __init__(self, kind, big):
        self.kind, self.big, self.n = kind, big, 0
        self.directory = Path(tempfile.mkdtemp(prefix="ringgate-reload-"))
        self.file = self.directory / "config"
        self.write()
        argv = {
            "ringgate": [RINGGATE, "run", self.file],
            "nginx": [path_of("nginx") if kind == "nginx" else "", "-p", self.directory, "-c", self.file],
            "haproxy": [path_of("haproxy") if kind == "haproxy" else "", "-W", "-db", "-f", self.file],
        }[kind]
        argv = ["taskset", "-c", "0", *map(str, argv)]
        if kind == "nginx":  # it heeds SIGUSR2 only once the parent it was started by has gone
            argv = ["sh", "-c", '"$@" & sleep 0.3', "sh", *argv]
        self.log = open(self.directory / "log", "wb")
        self.process = subprocess.Popen(argv, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 20
        while answer() != b"0":
            if time.monotonic() > deadline or (kind != "nginx" and self.process.poll() is not None):
                sys.exit(f"{kind} does not start:\n{(self.directory / 'log').read_text()}")
            time.sleep(0.05)
        if kind == "nginx":
            self.process.wait(5)
        self.first = self.main()

    def write(self):
        self.file.write_text(KINDS[self.kind](self.directory, self.n, self.big))

    def reload(self):
        """Changes the file and has it read; True once requests are answered by it."""
        self.n += 1
        self.write()
        number = signal.SIGUSR2 if self.kind == "haproxy" else signal.SIGHUP
        os.kill(self.main(), number)
        deadline, again = time.monotonic() + 20, time.monotonic() + 1
        while time.monotonic() < deadline:
            if time.monotonic() > again:  # a signal that comes during a reload may be lost
                os.kill(self.main(), number)
                again += 1
            if answer() == str(self.n).encode():
                return True
            time.sleep(0.005)
        return False

    def main(self):
        """The process that serves now."""
        if self.kind == "haproxy":
            return self.process.pid
        deadline = time.monotonic() + 5
        while True:  # the file comes a moment after the first answer
            with contextlib.suppress(OSError, ValueError):
                return int((self.directory / "pid").read_text())
            if time.monotonic() > deadline:
                sys.exit(f"{self.kind} writes no pid file")
            time.sleep(0.005)

    def upgrade(self):
        """Another process in the place of this one, with a changed file; True once it serves."""
        if self.kind == "haproxy":
            return self.reload()
        self.n += 1
        self.write()
        old, deadline = self.main(), time.monotonic() + 5
        os.kill(old, signal.SIGUSR2)
        while self.main() == old:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        if self.kind == "nginx":
            os.kill(old, signal.SIGQUIT)
        while answer() != str(self.n).encode():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def processes(self):
        """Every process of it, old ones too."""
        found, queue = [], [self.first]
        while queue:
            pid = queue.pop()
            found.append(pid)
            try:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    queue += map(int, (task / "children").read_text().split())
            except OSError:
                pass
        return found

    def memory(self):
        """Proportional set size of all of them, in bytes."""
        total = 0
        for pid in self.processes():
            try:
                total += int(re.search(r"Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text())[1]) << 10
            except (OSError, TypeError):
                pass
        return total

    def stop(self):
        pids = self.processes()
        with contextlib.suppress(OSError):
            os.kill(self.main(), signal.SIGTERM)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in pids):
            self.process.poll()
            time.sleep(0.05)
        for pid in pids:  # successors, and those that wait for WebSockets
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        self.process.wait(5)
        self.log.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def answer():
    """What /n says now, asked on a connection of its own; None for anything but a whole answer."""
    try:
        with socket.create_connection(("127.0.0.1", PORT), 5) as sock:
            sock.settimeout(5)
            sock.sendall(b"GET /n HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
            data = b""
            while piece := sock.recv(4096):
                data += piece
    except OSError:
        return None
    head, _, body = data.partition(b"\r\n\r\n")
    return body if head.startswith(b"HTTP/1.1 200") else None


def echo_origin(port):
    """Echoes WebSockets; `/long` sends numbered lines for as long as somebody reads."""
    listener = socket.create_server(("127.0.0.1", port), backlog=512)

    def serve(sock):
        data = b""
        try:
            while b"\r\n\r\n" not in data:
                piece = sock.recv(4096)
                if not piece:
                    return
                data += piece
            if b"/long" in data.split(b"\r\n")[0]:
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n")
                number = 0
                while True:
                    sock.sendall(b"%d\n" % number)
                    number += 1
                    time.sleep(0.05)
            sock.sendall(SWITCHING)
            while piece := sock.recv(4096):
                sock.sendall(piece)
        except OSError:
            pass
        finally:
            sock.close()

    def accept():
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def websocket():
    sock = socket.create_connection(("127.0.0.1", PORT), 10)
    sock.settimeout(10)
    sock.sendall(UPGRADE.encode())
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(4096)
        assert piece, "no WebSocket"
        data += piece
    assert b" 101 " in data.split(b"\r\n")[0], data
    return sock


def echoes(sock):
    try:
        sock.sendall(b"alive")
        data = b""
        while len(data) < 5:
            piece = sock.recv(5)
            if not piece:
                return False
            data += piece
        return data == b"alive"
    except OSError:
        return False


def load(*options):
    argv = [str(BENCH), "run", f"http://127.0.0.1:{PORT}/", "--no-live", "--threads", "1", "--json", "-", *options]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def failed(result):
    return sum(result["errors"].values()) if isinstance(result["errors"], dict) else result["errors"]


def under_load(kind, args):
    contender = Contender(kind, False)
    try:
        before = contender.memory()
        sockets = [websocket() for _ in range(args.websockets // 2)]
        download = socket.create_connection(("127.0.0.1", PORT), 10)
        download.settimeout(5)
        download.sendall(b"GET /long HTTP/1.1\r\nHost: bench\r\n\r\n")
        steps, step = (args.upgrades, contender.upgrade) if args.upgrades else (args.reloads, contender.reload)
        what = "upgrades" if args.upgrades else "reloads"
        seconds = f"{steps * args.every * 1.6 + (30 if args.upgrades else 8):.0f}s"
        kept = load("--rate", "1000", "-c", "32", "-d", seconds)
        fresh = load("--rate", "100", "-c", "32", "--new-connections", "-d", seconds)
        late, began = 0, time.monotonic()
        for n in range(steps):
            started = time.monotonic()
            late += not step()
            if n % max(1, steps // (args.websockets // 2)) == 0 and len(sockets) < args.websockets:
                sockets.append(websocket())
            time.sleep(max(0, args.every - (time.monotonic() - started)))
        took = time.monotonic() - began
        for process in (kept, fresh):
            process.send_signal(signal.SIGINT)
        results = [json.loads(process.communicate(timeout=120)[0]) for process in (kept, fresh)]
        cut = sum(not echoes(sock) for sock in sockets)
        download.setblocking(False)
        alive = True
        try:
            while download.recv(1 << 20):
                pass
            alive = False
        except BlockingIOError:
            pass
        except OSError:
            alive = False
        print(
            f"{kind:9} {steps} {what} in {took:.0f} s ({late} not in force in time): "
            f"{failed(results[0])} of {results[0]['requests']['responses']} requests failed on kept connections, "
            f"{failed(results[1])} of {results[1]['requests']['responses']} on new ones; {cut} of {len(sockets)} WebSockets cut, "
            f"download {'goes on' if alive else 'cut'}; {len(contender.processes())} processes, "
            f"memory {before >> 10} KiB before, {contender.memory() >> 10} KiB after; "
            f"p99.9 {results[0]['latency_us']['p99_9'] / 1000:.1f} ms",
            flush=True,
        )
    finally:
        contender.stop()


def big(kind, args):
    contender = Contender(kind, True)
    try:
        for reloading in (False, True):
            process = load("--rate", "2000", "-c", "32", "-d", f"{args.seconds}s")
            count, took, end = 0, [], time.monotonic() + args.seconds
            time.sleep(1)
            while reloading and time.monotonic() < end - 1:
                began = time.monotonic()
                assert contender.reload(), "a reload did not come into force"
                took.append(time.monotonic() - began)
                count += 1
                time.sleep(max(0, 1 - took[-1]))
            result = json.loads(process.communicate(timeout=120)[0])
            figures = ", ".join(
                f"{name.replace('_', '.')} {result['latency_us'][name] / 1000:.2f} ms" for name in ("p50", "p99", "p99_9", "max")
            )
            what = f"{count} reloads of {max(took):.2f} s at most" if reloading else "no reload"
            print(f"{kind:9} {what}: {figures}; {failed(result)} of {result['requests']['responses']} failed", flush=True)
    finally:
        contender.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--upgrades", type=int, default=0, help="instead of reloads")
    parser.add_argument("--every", type=float, default=0.1, help="seconds from reload to reload, at least")
    parser.add_argument("--websockets", type=int, default=100)
    parser.add_argument("--big", action="store_true")
    parser.add_argument("--seconds", type=int, default=12)
    parser.add_argument("--only", default="ringgate,nginx,haproxy")
    args = parser.parse_args()
    os.sched_setaffinity(0, {1} if (os.cpu_count() or 1) > 1 else {0})
    origin = subprocess.Popen(
        [str(BENCH), "serve", "--bind", f"127.0.0.1:{ORIGIN}", "--threads", "1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    echo_origin(ECHO)
    try:
        for kind in args.only.split(","):
            (big if args.big else under_load)(kind, args)
    finally:
        origin.terminate()


if __name__ == "__main__":
    main()
