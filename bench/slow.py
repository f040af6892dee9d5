#!/usr/bin/env python3
"""Slow attacks beside ordinary clients: Ringgate, nginx and HAProxy with their defaults, the same attack on each.

    bench/slow.py [--connections 2000] [--seconds 20] [--only ringgate,limits,nginx,haproxy]
                  [--attacks slowloris,body,read] [--body 65536]

`limits` is Ringgate with `[limits]` for each address, `small` Ringgate with 16 MiB of receive buffers. Others' requests come on new
connections, open loop, 100 a second, first without the attack and then beside it. slowhttptest attacks from 127.0.0.1, the others come from
127.0.0.2. The contender is pinned to CPU 0; clients, origin and attacker share CPU 1, where the attacker is SCHED_IDLE: at normal
priority, and at nice 19 as well, whoever is woken beside it may wait for the next tick, 4 to 6 ms, whatever the contender. A quarter as
many requests go straight to the origin meanwhile: what those wait is the machine's, the origin's and the clients' doing. Other work on
CPU 0 has the same effect on the contender, and no column shows it: the machine has to be idle. CPU is the share of one that the contender took,
"held" how many connections the attacker still had at the end. An attack begins when the kernel has given back the memory of the one before, or
after a minute.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import reload

PORT, ORIGIN = 18490, 18491
ATTACKS = {
    "slowloris": ["-H", "-i", "2"],
    "body": ["-B", "-i", "2", "-s", "65536"],
    "read": ["-X", "-w", "512", "-y", "1024", "-n", "1", "-z", "32", "-k", "3"],
}


def ringgate(directory, more=""):
    return (
        f'[node]\nshards = 1\npin = false\n[admin]\nbind = "off"\nsocket = "off"\n{more}'
        f'[[listener]]\nbind = "127.0.0.1:{PORT}"\n[[route]]\nupstream = "o"\n'
        f'[upstream.o]\nservers = [{{ address = "127.0.0.1:{ORIGIN}" }}]\n'
    )


def limits(directory):
    return ringgate(directory, '[limits]\nconnections = 100\nmin_upload_rate = "1k"\nmin_download_rate = "1k"\nrate_grace = "5s"\n')


def small(directory):
    return ringgate(directory).replace("pin = false", 'pin = false\nreceive_buffers = 64\nbuffer_memory = "16m"')


def nginx(directory):
    temporary = " ".join(f"{kind}_temp_path {directory}/{kind};" for kind in
                         ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return (
        f"daemon off; user root; worker_processes 1; pid {directory}/pid; error_log {directory}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off; {temporary}\n"
        f"server {{ listen 127.0.0.1:{PORT}; location / {{ proxy_pass http://127.0.0.1:{ORIGIN}; }} }} }}\n"
    )


def haproxy(directory):
    return (
        "global\n    nbthread 1\ndefaults\n    mode http\n    timeout connect 5s\n    timeout client 50s\n    timeout server 50s\n"
        f"frontend f\n    bind 127.0.0.1:{PORT}\n    default_backend b\nbackend b\n    server s 127.0.0.1:{ORIGIN}\n"
    )


KINDS = {"ringgate": ringgate, "limits": limits, "small": small, "nginx": nginx, "haproxy": haproxy}


def ask(times, failures, least, port=PORT):
    """One request of an ordinary client, on a connection of its own; the answer has a body of this size at least."""
    began = time.monotonic()
    try:
        with socket.create_connection(("127.0.0.1", port), 5, ("127.0.0.2", 0)) as sock:
            sock.settimeout(5)
            sock.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
            data = bytearray()
            while piece := sock.recv(65536):
                data += piece
        assert data.startswith(b"HTTP/1.1 200") and len(data) > least
        times.append(time.monotonic() - began)
    except (OSError, AssertionError) as error:
        failures.append(repr(error))


def others(seconds, least, rate=100):
    """Times and failures of ordinary clients that come at this rate, whether they are answered or not; and of those
    that ask the origin."""
    times, failures, threads, began = [], [], [], time.monotonic()
    direct = ([], [])
    for n in range(int(seconds * rate)):
        time.sleep(max(0, began + n / rate - time.monotonic()))
        if threading.active_count() > 1000:
            failures.append("too many wait")
            continue
        threads.append(threading.Thread(target=ask, args=(times, failures, least), daemon=True))
        if n % 4 == 2:
            threads.append(threading.Thread(target=ask, args=(*direct, least, ORIGIN), daemon=True))
        for thread in threads[-2:]:
            if thread.ident is None:
                thread.start()
    for thread in threads:
        thread.join(12)
    return (times, failures), direct


def cpu_seconds(pid):
    """What the process and its children have used, nginx' worker included."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    stats = [Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split() for one in (pid, *children)]
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")


def attack_connections():
    """Connections from 127.0.0.1 to the contender that are established."""
    rows = (row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:])
    attacked = f"0100007F:{PORT:04X}"
    return sum(row[1].startswith("0100007F:") and row[2] == attacked and row[3] == "01" for row in rows)


def await_quiet_tcp():
    """Until sockets that nobody has any more hold no memory (sockets of an earlier attack, with what their clients never took)."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        words = Path("/proc/net/sockstat").read_text().split("TCP:")[1].split("\n")[0].split()
        tcp = {name: int(value) for name, value in zip(words[::2], words[1::2])}
        if tcp["orphan"] < 50 and tcp["mem"] < 5000:
            return
        time.sleep(0.2)
    print("TCP has not come to rest", file=sys.stderr)


def figures(times, failures):
    if not times:
        return f"all {len(failures)} failed"
    cuts = statistics.quantiles(times, n=1000) if len(times) > 1 else times * 999
    p50, p99, p999 = (cuts[at] * 1000 for at in (499, 989, 998))
    return f"p50 {p50:.1f} p99 {p99:.1f} p99.9 {p999:.1f} ms, {len(failures)} of {len(times) + len(failures)} failed"


def run(kind, args):
    directory = Path(tempfile.mkdtemp(prefix="ringgate-slow-"))
    file = directory / "config"
    file.write_text(KINDS[kind](directory))
    argv = {"nginx": ["nginx", "-p", directory, "-c", file], "haproxy": ["haproxy", "-db", "-f", file]}.get(
        kind, [reload.RINGGATE, "run", file])
    argv[0] = argv[0] if kind not in ("nginx", "haproxy") else reload.path_of(kind)
    log = open(directory / "log", "wb")
    process = subprocess.Popen(["taskset", "-c", "0", *map(str, argv)], stdout=log, stderr=log)
    try:
        deadline, times = time.monotonic() + 20, []
        while not times:
            ask(times, [], args.body)
            if time.monotonic() > deadline or process.poll() is not None:
                sys.exit(f"{kind} does not start:\n{(directory / 'log').read_text()}")
            time.sleep(0.05)
        calm, _ = others(args.seconds / 2, args.body)
        for attack in args.attacks.split(","):
            await_quiet_tcp()
            attacker = subprocess.Popen(
                ["chrt", "--idle", "0", reload.path_of("slowhttptest"), *ATTACKS[attack], "-c", str(args.connections), "-r", "1000",
                 "-l", str(args.seconds + 5), "-p", "3", "-u", f"http://127.0.0.1:{PORT}/"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            used = cpu_seconds(process.pid)
            beside, direct = others(args.seconds, args.body)
            used = (cpu_seconds(process.pid) - used) / args.seconds
            held = attack_connections()
            attacker.terminate()
            attacker.wait(20)
            print(f"{kind:9} {attack:9} alone {figures(*calm)}; attacked {figures(*beside)}, CPU {used:.2f}, "
                  f"{held} held; to the origin {figures(*direct)}", flush=True)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
        log.close()
        shutil.rmtree(directory, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--only", default="ringgate,limits,nginx,haproxy")
    parser.add_argument("--attacks", default="slowloris,body,read")
    parser.add_argument("--body", type=int, default=65536, help="bytes of the origin's answer")
    args = parser.parse_args()
    os.sched_setaffinity(0, {1} if (os.cpu_count() or 1) > 1 else {0})
    origin = subprocess.Popen(
        [str(reload.BENCH), "serve", "--bind", f"127.0.0.1:{ORIGIN}", "--threads", "1", "--body", str(args.body)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for kind in args.only.split(","):
            run(kind, args)
    finally:
        origin.terminate()
        origin.wait(10)


if __name__ == "__main__":
    main()
