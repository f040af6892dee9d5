"""What boot tuning is worth: each figure with and without, interleaved, in a network namespace that is removed.

    bench/tune.sh queue      connections that a burst loses to a full accept queue (net.core.somaxconn)
    bench/tune.sh ports      connections to one server while ports last (port range, tcp_tw_reuse)
    bench/tune.sh steering   which shard gets a connection, and what that costs (node.steering)

Options: --rounds N (default 3), --json FILE, --seconds N (ports, steering: a round's length, default 10).
RINGGATE and RINGGATE_BENCH name the binaries (default: target/release).
"""

import argparse
import json
import os
import re
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from harness import NetNs, eventually  # noqa: E402

RINGGATE = os.environ.get("RINGGATE", str(ROOT / "target/release/ringgate"))
LOADER = os.environ.get("RINGGATE_BENCH", str(ROOT / "target/release/ringgate-bench"))
BURST = 8000

SITE = """
[node]
shards = {shards}
pin = {pin}
steering = "{steering}"
[admin]
bind = "{address}:9090"
[log]
level = "warn"
[[listener]]
bind = "{address}:8080"
backlog = 65535
[[route]]
respond = {{ body = "hello\\n" }}
"""


class Server:
    """ringgate with one fixed response."""

    def __init__(self, directory, prefix=(), address="127.83.19.1", shards='"auto"', pin="true", steering="hash"):
        file = Path(directory, "site.toml")
        file.write_text(SITE.format(**{k: v for k, v in locals().items() if k in ("address", "shards", "pin", "steering")}))
        self.address = address
        self.child = subprocess.Popen([*prefix, RINGGATE, "run", str(file)])

    def __enter__(self):
        eventually(lambda: socket.create_connection((self.address, 8080), 1), 20, "the server")
        return self

    def __exit__(self, *_):
        self.child.send_signal(signal.SIGCONT)
        # Killed outright, its rings would hold the port for a moment more.
        self.child.terminate()
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()

    def metric(self, name):
        with socket.create_connection((self.address, 9090), 5) as s:
            s.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            text = b"".join(iter(lambda: s.recv(65536), b"")).decode()
        return [float(v) for v in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M)]

    def cpu_seconds(self):
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tune(space, state, value):
    """Applies one key of the checklist in the namespace, or none."""
    if value:
        file = Path(state, "tune.toml")
        file.write_text(f'[tuning]\nset = {{ {value} }}\n[[listener]]\nbind = "127.0.0.1:1"\n[[route]]\nrespond = {{}}\n')
        space.run(RINGGATE, "tune", "apply", str(file), "--state-dir", state)


def queue_once(tuned):
    """The server stands still for the burst, as one that is out of CPU does."""
    with NetNs() as space, tempfile.TemporaryDirectory() as state:
        tune(space, state, '"net.core.somaxconn" = 65535, "net.ipv4.tcp_max_syn_backlog" = 65536' if tuned else "")
        with Server(state, space.argv(), space.inside, shards=1, pin="false") as server:
            server.child.send_signal(signal.SIGSTOP)
            waiting, begin = select.epoll(), time.monotonic()
            sockets = {}
            for _ in range(BURST):
                s = socket.socket()
                s.setblocking(False)
                s.connect_ex((space.inside, 8080))
                sockets[s.fileno()] = s
                waiting.register(s.fileno(), select.EPOLLOUT | select.EPOLLONESHOT)
            connected = 0
            # A SYN that was dropped is repeated after a second.
            while (left := begin + 0.9 - time.monotonic()) > 0 and connected < BURST:
                connected += len(waiting.poll(left))
            table = space.run("cat", "/proc/net/netstat").stdout.splitlines()
            names, values = table[0].split(), table[1].split()
            overflows = int(values[names.index("ListenOverflows")])
            for s in sockets.values():
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                s.close()
    return {"connected": connected, "lost": BURST - connected, "overflows": overflows}


# Long before the last port is taken, connect(2) searches longer for each: what counts is how many a time gives.
PORTS = """
import errno, socket, sys, time
address, end = (sys.argv[1], int(sys.argv[2])), time.monotonic() + float(sys.argv[3])
made = refused = slow = 0
while (begin := time.monotonic()) < end:
    s = socket.socket()
    try:
        s.connect(address)
        made += 1
    except OSError as error:
        assert error.errno == errno.EADDRNOTAVAIL, error
        refused += 1
    s.close()
    slow += time.monotonic() - begin > 0.001
print(made, refused, slow)
"""


def accept_all(listener):
    """Takes connections until the client has closed them, so that TIME_WAIT is on the client's side."""
    while True:
        s, _ = listener.accept()
        try:
            s.recv(1)
        except ConnectionError:
            pass
        s.close()


def ports_once(setting, seconds):
    with NetNs() as space, tempfile.TemporaryDirectory() as state:
        tune(space, state, setting)
        listener = socket.create_server((space.outside, 0), backlog=1000)
        child = os.fork()
        if child == 0:
            accept_all(listener)
            os._exit(0)
        try:
            port = listener.getsockname()[1]
            argv = space.argv(sys.executable, "-c", PORTS, space.outside, port, seconds)
            done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)
            made, refused, slow = map(int, done.stdout.split())
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            listener.close()
    return {"connections": made, "refused": refused, "over_1ms": slow}


HOLD = """
import os, socket, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
held = [socket.create_connection((sys.argv[2], 8080), 5) for _ in range(200)]
print("ready", flush=True)
sys.stdin.read()
"""


def steering_once(steering, seconds):
    cpus = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as state:
        shards = '"' + ",".join(map(str, cpus)) + '"'
        with Server(state, shards=shards, steering=steering) as server:
            local = 0
            for index, cpu in enumerate(cpus):
                argv = [sys.executable, "-c", HOLD, str(cpu), server.address]
                with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
                    client.stdout.readline()
                    eventually(lambda: sum(server.metric("ringgate_connections")) >= 200, 5)
                    local += server.metric("ringgate_connections")[index]
                eventually(lambda: sum(server.metric("ringgate_connections")) == 0, 10)
            before, requests = server.cpu_seconds(), sum(server.metric("ringgate_requests_total"))
            load = [
                subprocess.Popen(
                    ["taskset", "-c", str(cpu), LOADER, "run", "--no-live", "-c", "32", "-d", f"{seconds}s", "--threads", "1",
                     f"http://{server.address}:8080/"],
                    stdout=subprocess.DEVNULL,
                )
                for cpu in cpus
            ]
            assert [child.wait(seconds + 30) for child in load] == [0, 0]
            requests = sum(server.metric("ringgate_requests_total")) - requests
            cpu = server.cpu_seconds() - before
    return {"local_percent": local / 4, "requests": requests, "cpu_us": cpu / requests * 1e6}


def measure(contenders, rounds):
    found = {name: [] for name, _ in contenders}
    for _ in range(rounds):
        for name, run in contenders:
            found[name].append(run())
    return found


def show(found):
    for name, results in found.items():
        parts = []
        for key in results[0]:
            values = [r[key] for r in results]
            parts.append(f"{key} {statistics.median(values):,.1f} [{min(values):,.1f}..{max(values):,.1f}]")
        print(f"{name:28} " + "  ".join(parts))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["queue", "ports", "steering"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    wide = '"net.ipv4.ip_local_port_range" = "10240 65535"'
    contenders = {
        "queue": [("somaxconn 4096", lambda: queue_once(False)), ("somaxconn 65535", lambda: queue_once(True))],
        "ports": [
            ("default range", lambda: ports_once("", options.seconds)),
            ("10240-65535", lambda: ports_once(wide, options.seconds)),
            ("10240-65535, tw_reuse 1", lambda: ports_once(wide + ', "net.ipv4.tcp_tw_reuse" = 1', options.seconds)),
        ],
        "steering": [
            (f"steering = {way}", lambda way=way: steering_once(way, options.seconds)) for way in ("hash", "cpu")
        ],
    }[options.mode]
    found = measure(contenders, options.rounds)
    show(found)
    if options.mode == "steering":
        pairs = zip(found["steering = cpu"], found["steering = hash"])
        ratios = [cpu["cpu_us"] / hashed["cpu_us"] for cpu, hashed in pairs]
        print(f"CPU time per request, cpu to hash: {statistics.median(ratios):.2f} [{min(ratios):.2f}..{max(ratios):.2f}]")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
