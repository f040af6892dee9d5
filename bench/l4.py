#!/usr/bin/python3
"""What a packet costs: Ringgate's director beside the kernel's IP forwarding and nftables' (the same network
namespaces, the same packets, rounds interleaved).

    bench/l4.py [--rounds N] [--seconds S] [--rate PPS] [--ringgate FILE] [--generator FILE]

As root, alone on the machine. A generator, a forwarder and a server are namespaces on veth pairs; the server drops what
it gets before its stack (nftables, netdev ingress), and its interface counts. For each contender two figures:

- packets/s that arrive when the generator sends as fast as it can;
- CPU time of the whole machine for a packet at a fixed rate, less that of the same packets dropped on arrival in the
  forwarder's namespace: what forwarding adds, wherever the kernel does it.

Medians over the rounds, and the ratio to the kernel's IP forwarding within each round. Writes JSON with --json.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = f"rgb{os.getpid()}"
GENERATOR, FORWARDER, SERVER = (f"{NAME}{part}" for part in "gfs")
VIP, PORT = "10.78.0.100", 9000


def sh(*args, check=True):
    return subprocess.run([str(a) for a in args], capture_output=True, text=True, check=check).stdout


def inside(name, *args, check=True):
    return sh("ip", "netns", "exec", name, *args, check=check)


def nft(name, text):
    subprocess.run(["ip", "netns", "exec", name, "nft", "-f", "-"], input=text, text=True, check=True)


@contextlib.contextmanager
def network():
    """Generator 10.78.0.1 - 10.78.0.2 forwarder 10.78.1.2 - 10.78.1.1 server."""
    try:
        for name in (GENERATOR, FORWARDER, SERVER):
            sh("ip", "netns", "add", name)
            inside(name, "ip", "link", "set", "lo", "up")
        for left, device, right in ((GENERATOR, "in0", FORWARDER), (FORWARDER, "out0", SERVER)):
            sh("ip", "-n", left, "link", "add", device if left == FORWARDER else "eth0", "type", "veth",
               "peer", "name", device if right == FORWARDER else "eth0", "netns", right)  # fmt: skip
        for name, device, address in (
            (GENERATOR, "eth0", "10.78.0.1/24"), (FORWARDER, "in0", "10.78.0.2/24"),
            (FORWARDER, "out0", "10.78.1.2/24"), (SERVER, "eth0", "10.78.1.1/24"),
        ):  # fmt: skip
            inside(name, "ip", "addr", "add", address, "dev", device)
            inside(name, "ip", "link", "set", device, "up")
        inside(GENERATOR, "ip", "neigh", "replace", VIP, "lladdr", mac(FORWARDER, "in0"), "dev", "eth0", "nud", "permanent")
        nft(SERVER, "table netdev t { chain c { type filter hook ingress device eth0 priority 0; "
            f"ip daddr {VIP} drop; }}; }}")  # fmt: skip
        inside(FORWARDER, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.all.send_redirects=0")
        yield
    finally:
        for name in (GENERATOR, FORWARDER, SERVER):
            sh("ip", "netns", "del", name, check=False)


def mac(name, device):
    return json.loads(inside(name, "ip", "-json", "link", "show", device))[0]["address"]


@contextlib.contextmanager
def dropped(_):
    nft(FORWARDER, "table netdev t { chain c { type filter hook ingress device in0 priority 0; "
        f"ip daddr {VIP} drop; }}; }}")  # fmt: skip
    yield
    inside(FORWARDER, "nft", "flush", "ruleset")


@contextlib.contextmanager
def routed(_):
    inside(FORWARDER, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    inside(FORWARDER, "ip", "route", "add", f"{VIP}/32", "via", "10.78.1.1")
    inside(FORWARDER, "ping", "-c1", "-W1", "10.78.1.1", check=False)
    yield
    inside(FORWARDER, "ip", "route", "del", f"{VIP}/32")
    inside(FORWARDER, "sysctl", "-qw", "net.ipv4.ip_forward=0")


@contextlib.contextmanager
def nftables(_):
    """The MAC address rewritten and the packet sent on, in the ingress hook: no director could do less."""
    nft(FORWARDER, "table netdev t { chain c { type filter hook ingress device in0 priority 0; "
        f"ip daddr {VIP} udp dport {PORT} ether daddr set {mac(SERVER, 'eth0')} "
        f"ether saddr set {mac(FORWARDER, 'out0')} fwd to out0; }}; }}")  # fmt: skip
    yield
    inside(FORWARDER, "nft", "flush", "ruleset")


@contextlib.contextmanager
def ringgate(options):
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "ringgate.toml"
        file.write_text(
            f'[admin]\nsocket = "{directory}/admin.sock"\n[node]\nshards = 1\npin = false\n'
            '[[listener]]\nbind = "127.0.0.1:8000"\n[[route]]\npath = "/"\nrespond = { body = "x" }\n'
            f'[director]\ninterfaces = ["in0"]\n[[virtual_server]]\naddress = "{VIP}:{PORT}"\nprotocol = "udp"\n'
            'scheduler = "rr"\nservers = [{ address = "10.78.1.1" }]\n'
        )
        log = open(Path(directory) / "log", "w+b")
        argv = ["ip", "netns", "exec", FORWARDER, options.ringgate, "run", file]
        process = subprocess.Popen([str(a) for a in argv], stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(500):
                text = Path(log.name).read_text()
                if "neighbour found" in text and "serving" in text:
                    break
                if process.poll() is not None:
                    raise SystemExit(text)
                time.sleep(0.02)
            else:
                raise SystemExit(f"ringgate is not ready:\n{text}")
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
            log.close()


CONTENDERS = {"ringgate": ringgate, "kernel IP forwarding": routed, "nftables fwd": nftables}


def arrived():
    return int(inside(SERVER, "cat", "/sys/class/net/eth0/statistics/rx_packets"))


def busy():
    """CPU seconds of the machine that were not idle or stolen."""
    fields = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4] - fields[7]) / os.sysconf("SC_CLK_TCK")


def slice_of(options, rate=None):
    """Packets sent, arrived, seconds, and CPU seconds of the machine."""
    before, cpu, began = arrived(), busy(), time.monotonic()
    argv = [options.generator, "blast", f"{VIP}:{PORT}", "--flows", 64, "--threads", 1, "--json",
            "--duration", f"{int(options.seconds * 1000)}ms", *(["--rate", rate] if rate else [])]  # fmt: skip
    sent = json.loads(inside(GENERATOR, *argv))
    seconds, cpu = time.monotonic() - began, busy() - cpu
    time.sleep(0.1)
    return sent["packets"], arrived() - before, seconds, cpu


def measure(options):
    rounds = []
    for number in range(options.rounds):
        one = {}
        with dropped(options):
            slice_of(options, options.rate)
            packets, _, _, cpu = slice_of(options, options.rate)
            floor = cpu / packets * 1e9
        order = list(CONTENDERS.items())
        for name, contender in order if number % 2 else reversed(order):
            with contender(options):
                slice_of(options, options.rate)  # warm
                sent, came, _, cpu = slice_of(options, options.rate)
                _, flood, seconds, _ = slice_of(options)
            one[name] = {
                "ns_per_packet": cpu / max(came, 1) * 1e9 - floor,
                "arrived_of_sent": came / max(sent, 1),
                "packets_per_second": flood / seconds,
            }
        one["dropped"] = {"ns_per_packet": floor}
        rounds.append(one)
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    return rounds


def report(rounds):
    base = "kernel IP forwarding"
    print(f"{'':24}{'ns a packet':>12}{'ratio':>8}{'packets/s':>14}{'arrived':>9}")
    for name in CONTENDERS:
        median = lambda key: statistics.median(one[name][key] for one in rounds)
        ratio = statistics.median(one[name]["ns_per_packet"] / one[base]["ns_per_packet"] for one in rounds)
        print(f"{name:24}{median('ns_per_packet'):12,.0f}{ratio:8.2f}{median('packets_per_second'):14,.0f}"
              f"{median('arrived_of_sent'):9.1%}")  # fmt: skip
    floor = statistics.median(one["dropped"]["ns_per_packet"] for one in rounds)
    print(f"dropped on arrival costs {floor:,.0f} ns a packet, which is taken off; medians of {len(rounds)} rounds")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--rate", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--ringgate", type=Path, default=ROOT / "target/release/ringgate")
    parser.add_argument("--generator", type=Path, default=ROOT / "target/release/ringgate-bench")
    options = parser.parse_args()
    with network():
        rounds = measure(options)
    report(rounds)
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1))


if __name__ == "__main__":
    main()
