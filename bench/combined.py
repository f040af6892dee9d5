#!/usr/bin/env python3
"""Everything that changes a running proxy, at once and under load: Ringgate beside nginx and HAProxy.

    bench/combined.py [--reloads 1000] [--upgrades 20] [--every 0.1] [--only ringgate,nginx,haproxy] [--json FILE]

All the time: 1,000 requests/s on 32 kept connections and 100/s on new ones, open loop, half to an upstream whose file
entry changes and half to one whose servers change at run time; 100 WebSockets, each asked to echo in turn, half of them
opened between reloads; a download whose lines are counted. Meanwhile

- reloads, each of which changes a response and a weight, and a route and a listener that come and go;
- binary upgrades among them (`reload.py` says how each contender is told);
- a server is added, drained and removed at run time, over and over (nginx cannot);
- one of the four origins is killed (SIGKILL) and started again, over and over.

A failed request is one without a 2xx answer, a cut WebSocket one that once does not echo. What a contender cannot do
is left out and said. The contender has CPU 0, everything else CPU 1. Exit code 1 if Ringgate failed anything.
"""

import argparse
import contextlib
import ctypes
import faulthandler
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import reload

LOGS = None  # a directory
FIRST, LAST, STEP = 18500, 19500, 10
PR_SET_CHILD_SUBREAPER = 36


class Ports:
    """Where everything listens, from one number on."""

    def __init__(self, base):
        self.proxy, self.extra, self.echo = base, base + 1, base + 2
        self.origins = [base + 3 + n for n in range(4)]

    @classmethod
    def free(cls):
        for base in range(FIRST, LAST, STEP):
            try:
                for port in range(base, base + STEP):
                    socket.create_server(("127.0.0.1", port)).close()
                return cls(base)
            except OSError:
                continue
        sys.exit(f"no free ports from {FIRST} to {LAST}")


def ringgate(directory, n, ports):
    file, server = ports.origins[:3], "{{ address = \"127.0.0.1:{}\", weight = {} }}"
    # The peers know no budget for retries.
    check = 'check = { http = "/", interval = "250ms", timeout = "1s", rise = 1, fall = 2 }\nretry = { budget_percent = 100 }'
    lines = [
        f'[node]\nshards = 1\npin = false\npid_file = "{directory}/pid"',
        f'[admin]\nbind = "off"\nsocket = "{directory}/admin.sock"',
        f'[log]\naccess = "json"\naccess_file = "{LOGS}/ringgate-access.log"' if LOGS else "",
        '[http]\nkeepalive_requests = 1000000\ntunnel_timeout = "1h"',
        f'[[listener]]\nbind = "127.0.0.1:{ports.proxy}"\nbacklog = 4096',
        f'[[listener]]\nbind = "127.0.0.1:{ports.extra}"' if n % 4 == 3 else "",
        f'[[route]]\npath = "/n"\nrespond = {{ status = 200, body = "{n}" }}',
        '[[route]]\npath = "/ws"\nupstream = "echo"\n[[route]]\npath = "/long"\nupstream = "echo"',
        '[[route]]\npath = "/dynamic"\nupstream = "dynamic"',
        '[[route]]\npath = "/more"\nupstream = "static"' if n % 2 else "",
        '[[route]]\nupstream = "static"',
        f"[upstream.static]\n{check}\nservers = [{', '.join(server.format(p, (n + k) % 9 + 1) for k, p in enumerate(file))}]",
        f"[upstream.dynamic]\n{check}\nservers = [{', '.join(server.format(p, 1) for p in file)}]",
        f'[upstream.echo]\nservers = [{{ address = "127.0.0.1:{ports.echo}" }}]',
    ]
    return "\n".join(lines) + "\n"


def nginx(directory, n, ports):
    file = ports.origins[:3]
    upgrade = (
        f"proxy_pass http://127.0.0.1:{ports.echo}; proxy_set_header Upgrade $http_upgrade; "
        'proxy_set_header Connection "upgrade"; proxy_read_timeout 1h;'
    )
    return f"""{reload.nginx_head(directory)}
upstream static {{ {" ".join(f"server 127.0.0.1:{p} weight={(n + k) % 9 + 1};" for k, p in enumerate(file))} keepalive 1024; }}
upstream dynamic {{ {" ".join(f"server 127.0.0.1:{p};" for p in file)} keepalive 1024; }}
server {{
listen 127.0.0.1:{ports.proxy} backlog=4096;
{f"listen 127.0.0.1:{ports.extra};" if n % 4 == 3 else ""}
location /n {{ return 200 "{n}"; }}
location /ws {{ {upgrade} }}
location /long {{ proxy_pass http://127.0.0.1:{ports.echo}; proxy_buffering off; proxy_read_timeout 1h; }}
location /dynamic {{ proxy_pass http://dynamic; }}
{"location /more { proxy_pass http://static; }" if n % 2 else ""}
location / {{ proxy_pass http://static; }}
}}
}}
"""


def haproxy(directory, n, ports):
    file = ports.origins[:3]
    check = "    option httpchk GET /\n    default-server check inter 250ms rise 1 fall 2\n"
    return f"""{reload.haproxy_head(directory)}
    retries 3
    option redispatch 1
    retry-on all-retryable-errors
frontend web
    bind 127.0.0.1:{ports.proxy} backlog 4096
{f"    bind 127.0.0.1:{ports.extra}" if n % 4 == 3 else ""}
    http-request return status 200 content-type text/plain string "{n}" if {{ path /n }}
    use_backend echo if {{ path_beg /ws }} || {{ path_beg /long }}
    use_backend dynamic if {{ path_beg /dynamic }}
{"    use_backend static if { path_beg /more }" if n % 2 else ""}
    default_backend static
backend static
{check}{"".join(f"    server s{k} 127.0.0.1:{p} weight {(n + k) % 9 + 1}" + chr(10) for k, p in enumerate(file))}backend dynamic
{check}{"".join(f"    server s{k} 127.0.0.1:{p}" + chr(10) for k, p in enumerate(file))}backend echo
    server s 127.0.0.1:{ports.echo}
"""


KINDS = {"ringgate": ringgate, "nginx": nginx, "haproxy": haproxy}


class Contender(reload.Contender):
    """With servers that change while it runs."""

    def __init__(self, kind, ports):
        self.ports, self.refused = ports, False
        super().__init__(kind, False)

    def write(self):
        self.file.write_text(KINDS[self.kind](self.directory, self.n, self.ports))

    def upgrade(self):
        if self.kind == "ringgate":
            return self.upgrade_ringgate()
        # An nginx whose parent still drains ignores SIGUSR2: once is enough to see that.
        self.refused = self.refused or not super().upgrade()
        return not self.refused

    def upgrade_ringgate(self):
        """As an operator does: one that is refused, because servers are being changed, is asked for again."""
        self.n += 1
        self.write()
        argv = [reload.RINGGATE, "ctl", "--socket", self.directory / "admin.sock", "upgrade"]
        for _ in range(20):
            done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
            if done.returncode == 0:
                return self.in_force()
            if "try again" not in done.stderr:
                sys.exit(f"upgrade: {done.stderr}")
            time.sleep(0.05)
        return False

    def in_force(self):
        """Connections that wait at the moment of an upgrade may still be the old process's."""
        deadline = time.monotonic() + 5
        while reload.answer() != str(self.n).encode():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def processes(self):
        """Those below the first, and orphans, which come to this process."""
        return [*super().processes(), *(pid for child in children(os.getpid()) if child != self.process.pid
                                        for pid in below(child) if self.mine(pid))]

    def mine(self, pid):
        with contextlib.suppress(OSError):
            told = Path(f"/proc/{pid}/cmdline").read_text()
            return str(self.directory) in told or told.startswith(("nginx", "haproxy"))
        return False

    def server(self, what):
        """Adds, drains or removes the fourth origin; True if that was done."""
        address = f"127.0.0.1:{self.ports.origins[3]}"
        if self.kind == "ringgate":
            argv = [reload.RINGGATE, "ctl", "--socket", self.directory / "admin.sock", "upstream", "dynamic", what, address]
            return subprocess.run(argv, capture_output=True, timeout=30).returncode == 0
        orders = {
            "add": [f"add server dynamic/added {address} check inter 250ms", "enable server dynamic/added", "enable health dynamic/added"],
            "drain": ["set server dynamic/added state drain"],
            "remove": ["set server dynamic/added state maint", "del server dynamic/added"],
        }[what]
        answers = [self.ask_haproxy(order) for order in orders]
        return "New server registered" in answers[0] if what == "add" else "No such" not in answers[0]

    def ask_haproxy(self, order):
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(5)
                sock.connect(str(self.directory / "stats.sock"))
                sock.sendall(order.encode() + b"\n")
                return b"".join(iter(lambda: sock.recv(4096), b"")).decode()
        except OSError as error:
            return f"No such: {error}"


def children(pid):
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def below(pid):
    return [pid, *(further for child in children(pid) for further in below(child))]


class Origins:
    """Four of them; each can be killed and started again."""

    def __init__(self, ports):
        self.ports = ports
        self.running = [self.start(n) for n in range(len(ports))]

    def start(self, n):
        deadline = time.monotonic() + 20
        process = None
        while True:
            # The port of one that was killed may be taken for a moment yet.
            if process is None or process.poll() is not None:
                process = subprocess.Popen(
                    [str(reload.BENCH), "serve", "--bind", f"127.0.0.1:{self.ports[n]}", "--threads", "1"],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
            try:
                socket.create_connection(("127.0.0.1", self.ports[n]), 1).close()
                return process
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def replace(self, n, pause):
        self.running[n].kill()
        self.running[n].wait(5)
        time.sleep(pause)
        self.running[n] = self.start(n)

    def stop(self):
        for process in self.running:
            process.kill()
            process.wait(5)


class Watched:
    """The WebSockets and the download."""

    def __init__(self, port):
        self.port, self.sockets, self.cut, self.echoes, self.refused = port, [], 0, 0, 0
        self.lines, self.download = 0, "goes on"
        self.over = threading.Event()
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self.echo, self.read)]

    def begin(self):
        for thread in self.threads:
            thread.start()

    def open(self):
        try:
            self.sockets.append(reload.websocket())
        except (OSError, AssertionError):
            self.refused += 1

    def echo(self):
        """One after the other, and each once more at the end."""
        while not self.over.is_set():
            for sock in list(self.sockets):
                self.ask(sock)
                time.sleep(0.005)
            time.sleep(0.01)
        for sock in list(self.sockets):
            self.ask(sock)

    def ask(self, sock):
        if reload.echoes(sock):
            self.echoes += 1
        else:
            self.cut += 1
            self.sockets.remove(sock)

    def read(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), 10) as sock:
                sock.settimeout(20)
                sock.sendall(b"GET /long HTTP/1.1\r\nHost: bench\r\nAccept-Encoding: identity\r\n\r\n")
                stream = sock.makefile("rb")
                while stream.readline().strip():
                    pass
                for line in self.whole(stream):
                    if int(line) != self.lines:
                        raise OSError(f"line {line!r} in place of {self.lines}")
                    self.lines += 1
                    if self.over.is_set():
                        return
            raise OSError("it ended")
        except (OSError, ValueError) as error:
            self.download = f"cut ({error})"

    @staticmethod
    def whole(stream):
        """Lines of the body; it may come chunked, a line a chunk or several."""
        for line in stream:
            if not line.endswith(b"\r\n"):
                yield line

    def finish(self):
        self.over.set()
        for thread in self.threads:
            thread.join(60)


class Disturbances:
    """What goes on beside the reloads, each in a thread of its own."""

    def __init__(self, contender, origins, args):
        self.contender, self.origins, self.args = contender, origins, args
        self.over, self.kills, self.changes = threading.Event(), 0, {"add": 0, "drain": 0, "remove": 0}
        work = [self.kill] + ([] if contender.kind == "nginx" else [self.change])
        self.threads = [threading.Thread(target=one, daemon=True) for one in work]

    def begin(self):
        for thread in self.threads:
            thread.start()

    def kill(self):
        """The last one too, which is there at times."""
        while not self.over.wait(self.args.kill_every):
            self.origins.replace(self.kills % len(self.origins.running), 0.3)
            self.kills += 1

    def change(self):
        while True:
            for what in self.changes:
                if self.over.wait(self.args.change_every):
                    return
                self.changes[what] += self.contender.server(what)

    def finish(self):
        self.over.set()
        for thread in self.threads:
            thread.join(60)
        if any(thread.is_alive() for thread in self.threads):
            faulthandler.dump_traceback()
            sys.exit("what was to disturb the contender got stuck")


def load(mix, *options):
    return reload.load("--requests", str(mix), *options)


def run(kind, ports, origins, args):
    contender = Contender(kind, ports)
    watched, disturbances = Watched(ports.proxy), Disturbances(contender, origins, args)
    mix = contender.directory / "mix"
    mix.write_text("1 GET /\n1 GET /dynamic\n")
    try:
        before = contender.memory()
        for _ in range(args.websockets // 2):
            watched.open()
        seconds = f"{args.limit + 120:.0f}s"
        loads = [load(mix, "--rate", str(args.rate), "-c", "32", "-d", seconds),
                 load(mix, "--rate", str(args.rate // 10), "-c", "32", "--new-connections", "-d", seconds)]  # fmt: skip
        watched.begin()
        disturbances.begin()
        began = time.monotonic()
        done, late, upgrades = steps(contender, watched, args)
        took = time.monotonic() - began
        disturbances.finish()
        for process in loads:
            process.send_signal(signal.SIGINT)
        results = [json.loads(process.communicate(timeout=120)[0]) for process in loads]
        watched.finish()
        return {
            "contender": kind, "seconds": round(took, 1), "reloads": done, "late": late, "upgrades": upgrades,
            "kills": disturbances.kills, "server_changes": None if kind == "nginx" else disturbances.changes,
            "kept": figures(results[0]), "new": figures(results[1]),
            "websockets": {"opened": len(watched.sockets) + watched.cut, "refused": watched.refused, "cut": watched.cut, "echoes": watched.echoes},
            "download": {"lines": watched.lines, "state": watched.download},
            "processes": len(alive(contender.processes())), "memory_before": before, "memory_after": contender.memory(),
        }  # fmt: skip
    finally:
        disturbances.over.set()
        watched.over.set()
        if args.logs:
            shutil.copy(contender.directory / "log", Path(args.logs) / f"{kind}.log")
        contender.stop()


def steps(contender, watched, args):
    """Reloads with upgrades spread among them: how many there were and were late, and how many upgrades took place."""
    done, late, upgrades = 0, 0, 0
    began = time.monotonic()
    for n in range(args.reloads):
        started = time.monotonic()
        if started - began > args.limit:
            break
        late += not contender.reload()
        done += 1
        if args.upgrades and (n + 1) % max(1, args.reloads // args.upgrades) == 0 and not contender.refused:
            upgrades += contender.upgrade()
        if n % max(1, args.reloads // (args.websockets // 2)) == 0 and len(watched.sockets) + watched.cut < args.websockets:
            watched.open()
        time.sleep(max(0, args.every - (time.monotonic() - started)))
    return done, late, upgrades


def alive(pids):
    def lives(pid):
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        return False

    return [pid for pid in set(pids) if lives(pid)]


def figures(result):
    return {"requests": result["requests"]["responses"], "failed": reload.failed(result),
            "errors": {name: count for name, count in result["errors"].items() if count},
            **{name: round(result["latency_us"][name] / 1000, 2) for name in ("p50", "p99", "p99_9", "max")}}  # fmt: skip


def words(found):
    changes = found["server_changes"]
    sockets, download = found["websockets"], found["download"]
    return (
        f"{found['contender']:9} {found['reloads']} reloads ({found['late']} not in force in time), {found['upgrades']} upgrades, "
        f"{found['kills']} origins killed, "
        + (f"servers added {changes['add']}, drained {changes['drain']}, removed {changes['remove']} times" if changes else "no servers changed")
        + f", in {found['seconds']:.0f} s\n"
        + "".join(
            f"          {name}: {part['failed']} of {part['requests']} requests failed {part['errors'] or ''}, "
            f"p50 {part['p50']} p99 {part['p99']} p99.9 {part['p99_9']} max {part['max']} ms\n"
            for name, part in (("kept connections", found["kept"]), ("new connections ", found["new"]))
        )
        + f"          {sockets['cut']} of {sockets['opened']} WebSockets cut ({sockets['echoes']} echoes, {sockets['refused']} not opened), "
        f"download {download['state']} ({download['lines']} lines); {found['processes']} processes, "
        f"memory {found['memory_before'] >> 10} KiB before, {found['memory_after'] >> 10} KiB after"
    )


def is_whole(found):
    """Nobody noticed anything."""
    return (
        not (found["kept"]["failed"] or found["new"]["failed"] or found["late"])
        and not (found["websockets"]["cut"] or found["websockets"]["refused"])
        and found["download"]["state"] == "goes on"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reloads", type=int, default=1000)
    parser.add_argument("--upgrades", type=int, default=20)
    parser.add_argument("--every", type=float, default=0.1, help="seconds from reload to reload, at least")
    parser.add_argument("--limit", type=float, default=170, help="seconds of a contender, however many reloads it has had then")
    parser.add_argument("--kill-every", type=float, default=1.0, help="seconds from an origin's start to the next one's end")
    parser.add_argument("--change-every", type=float, default=0.3, help="seconds between changes of servers")
    parser.add_argument("--rate", type=int, default=1000, help="requests a second on kept connections; a tenth of it on new ones")
    parser.add_argument("--websockets", type=int, default=100)
    parser.add_argument("--only", default="ringgate,nginx,haproxy")
    parser.add_argument("--logs", help="a directory for the contenders' logs, and Ringgate's access log")
    parser.add_argument("--json", help="a file for all figures")
    args = parser.parse_args()
    global LOGS
    LOGS = args.logs
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.sched_setaffinity(0, {1} if (os.cpu_count() or 1) > 1 else {0})
    ports = Ports.free()
    reload.PORT = ports.proxy
    reload.echo_origin(ports.echo)
    origins, found = Origins(ports.origins), []
    try:
        for kind in args.only.split(","):
            found.append(run(kind, ports, origins, args))
            print(words(found[-1]), flush=True)
    finally:
        origins.stop()
        if args.json:
            Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    if not all(is_whole(one) for one in found if one["contender"] == "ringgate"):
        sys.exit("Ringgate failed something")


if __name__ == "__main__":
    main()
