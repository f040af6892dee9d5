#!/usr/bin/python3
"""What the layer-4 director costs: beside the kernel's IP forwarding and nftables' (the same network namespaces, the
same packets, rounds interleaved), and what it adds to a round trip.

    bench/l4.py [--rounds N] [--seconds S] [--rate PPS] [--ringgate FILE] [--generator FILE] [--part PART ...]
                [--json FILE] [--markdown FILE]

As root, alone on the machine; 2 to 3 minutes. Parts:

- verdict: nanoseconds a verdict without sockets (`ringgate-bench verdict`), and memory a flow.
- forward: a generator, a forwarder and a server are namespaces on veth pairs; the server drops what it gets before its
  stack (nftables, netdev ingress), and its interface counts. For each contender packets/s that arrive when the
  generator sends as fast as it can; and CPU time of the whole machine for a packet at a fixed rate, less that
  of the same packets dropped on arrival in the forwarder's namespace: what forwarding adds, wherever the kernel does it.
- latency: round trips of a UDP packet over a bridge: straight to the server, through the director, routed by the kernel.
- upgrade: the longest time without a packet at the server when `ringgate ctl upgrade` replaces the process under 10,000
  packets/s, beside the longest of a second without one; and how many were lost, or came twice.
- syn: SYNs of new connections as fast as they come, with an empty table and with a million flows in it; at most half a
  million more come, for which there is room.

Medians over the rounds, and the ratio to the kernel's IP forwarding within each round.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = f"rgb{os.getpid()}"
GENERATOR, FORWARDER, SERVER, SWITCH = (f"{NAME}{part}" for part in "gfsw")
VIP, PORT = "10.78.0.100", 9000
ROUTED, TO_SERVER = "10.78.0.101", "10.78.0.3"
MILLION = 1 << 20

ECHO = """
import socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("0.0.0.0", 9000))
print("ready", flush=True)
while True:
    data, peer = udp.recvfrom(64)
    udp.sendto(data, peer)
"""
# Numbers of the packets that arrive, and when, until its input ends.
WATCH = r"""
import json, select, socket, struct, sys
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
raw.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE; SO_TIMESTAMPNS
raw.setsockopt(socket.SOL_SOCKET, 35, 1)
raw.bind(("eth0", 0))
print("ready", flush=True)
seen = []
while True:
    if sys.stdin in select.select([raw, sys.stdin], [], [])[0]:
        break
    for _ in range(256):
        try:
            data, extra, _, _ = raw.recvmsg(64, 64, socket.MSG_DONTWAIT)
        except BlockingIOError:
            break
        if data[12:14] == b"\x08\x00" and data[23] == 17 and data[36:38] == (9000).to_bytes(2, "big"):
            seconds, rest = struct.unpack("qq", extra[0][2])
            seen.append((int.from_bytes(data[42:50], "big"), seconds * 10**9 + rest))
print(json.dumps(seen))
"""
PING = """
import json, socket, sys, time
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("0.0.0.0", 0))
udp.settimeout(1)
times = {address: [] for address in sys.argv[2:]}
for block in range(int(sys.argv[1])):
    for address in times:
        for number in range(220):
            began = time.perf_counter_ns()
            udp.sendto(b"x" * 18, (address, 9000))
            udp.recv(64)
            if number >= 20:
                times[address].append(time.perf_counter_ns() - began)
print(json.dumps(times))
"""


def sh(*args, check=True):
    return subprocess.run([str(a) for a in args], capture_output=True, text=True, check=check).stdout


def inside(name, *args, check=True):
    return sh("ip", "netns", "exec", name, *args, check=check)


def nft(name, text):
    subprocess.run(["ip", "netns", "exec", name, "nft", "-f", "-"], input=text, text=True, check=True)


def mac(name, device):
    return json.loads(inside(name, "ip", "-json", "link", "show", device))[0]["address"]


@contextlib.contextmanager
def namespaces(*names):
    try:
        for name in names:
            sh("ip", "netns", "add", name)
            inside(name, "ip", "link", "set", "lo", "up")
        yield
    finally:
        for name in names:
            sh("ip", "netns", "del", name, check=False)


def up(name, device, address):
    inside(name, "ip", "addr", "add", address, "dev", device)
    inside(name, "ip", "link", "set", device, "up")


@contextlib.contextmanager
def line():
    """Generator 10.78.0.1 - 10.78.0.2 forwarder 10.78.1.2 - 10.78.1.1 server."""
    with namespaces(GENERATOR, FORWARDER, SERVER):
        sh("ip", "-n", FORWARDER, "link", "add", "in0", "type", "veth", "peer", "name", "eth0", "netns", GENERATOR)
        sh("ip", "-n", FORWARDER, "link", "add", "out0", "type", "veth", "peer", "name", "eth0", "netns", SERVER)
        up(GENERATOR, "eth0", "10.78.0.1/16")
        up(FORWARDER, "in0", "10.78.0.2/24")
        up(FORWARDER, "out0", "10.78.1.2/24")
        up(SERVER, "eth0", "10.78.1.1/24")
        inside(GENERATOR, "ip", "neigh", "replace", VIP, "lladdr", mac(FORWARDER, "in0"), "dev", "eth0", "nud", "permanent")
        nft(SERVER, "table netdev t { chain c { type filter hook ingress device eth0 priority 0; "
            f"ip daddr {VIP} drop; }}; }}")  # fmt: skip
        inside(FORWARDER, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.all.send_redirects=0")
        inside(FORWARDER, "sysctl", "-qw", "net.ipv4.conf.in0.rp_filter=0", "net.ipv4.conf.out0.rp_filter=0")
        yield


@contextlib.contextmanager
def bridged():
    """Client 10.78.0.1, forwarder 10.78.0.2 and server 10.78.0.3 on a switch; the virtual addresses are on the server."""
    with namespaces(GENERATOR, FORWARDER, SERVER, SWITCH):
        sh("ip", "-n", SWITCH, "link", "add", "br0", "type", "bridge")
        inside(SWITCH, "ip", "link", "set", "br0", "up")
        for number, name in enumerate((GENERATOR, FORWARDER, SERVER), 1):
            sh("ip", "-n", SWITCH, "link", "add", f"p{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            inside(SWITCH, "ip", "link", "set", f"p{number}", "master", "br0", "up")
            up(name, "eth0", f"10.78.0.{number}/24")
        inside(SERVER, "sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.rp_filter=0")
        inside(FORWARDER, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0")
        inside(FORWARDER, "sysctl", "-qw", "net.ipv4.conf.eth0.send_redirects=0")
        for address in (VIP, ROUTED):
            inside(SERVER, "ip", "addr", "add", f"{address}/32", "dev", "lo")
            to = mac(FORWARDER, "eth0")
            inside(GENERATOR, "ip", "neigh", "replace", address, "lladdr", to, "dev", "eth0", "nud", "permanent")
        inside(FORWARDER, "ip", "route", "add", f"{ROUTED}/32", "via", TO_SERVER)
        yield


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


def director(options, interface="in0", server="10.78.1.1", protocol="udp", datapath="packet", scheduler="rr"):
    virtual = f'[[virtual_server]]\naddress = "{VIP}:{PORT}"\nprotocol = "{protocol}"\nscheduler = "{scheduler}"\n'
    settings = f'flows_max = {2 * MILLION}\nnew_flows_per_second = 0\nseed = "0123456789abcdef0123"\n'
    return running(
        options,
        f'[director]\ninterfaces = {json.dumps(interface.split())}\ndatapath = "{datapath}"\n{settings}'
        f'{virtual}servers = [{{ address = "{server}" }}]\n',
    )


@contextlib.contextmanager
def running(options, config):
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "ringgate.toml"
        file.write_text(
            f'[admin]\nsocket = "{directory}/admin.sock"\n[node]\nshards = 1\npin = false\n'
            '[[listener]]\nbind = "127.0.0.1:8000"\n[[route]]\npath = "/"\nrespond = { body = "x" }\n' + config
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
            yield f"{directory}/admin.sock"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
            log.close()


CONTENDERS = {
    "ringgate": director,
    "ringgate, XDP": lambda options: director(options, datapath="auto"),
    "kernel IP forwarding": routed,
    "nftables fwd": nftables,
}


def arrived():
    return int(inside(SERVER, "cat", "/sys/class/net/eth0/statistics/rx_packets"))


def busy():
    """CPU seconds of the machine that were neither idle nor stolen; idle time is exact, the others are sampled."""
    fields = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return os.cpu_count() * time.monotonic() - (fields[3] + fields[4] + fields[7]) / os.sysconf("SC_CLK_TCK")


def blast(options, *args, seconds=None):
    """Packets sent, arrived, seconds of sending, and CPU seconds of the machine."""
    before, cpu = arrived(), busy()
    argv = [options.generator, "blast", f"{VIP}:{PORT}", "--threads", 1, "--json",
            "--duration", f"{int((seconds or options.seconds) * 1000)}ms", *args]  # fmt: skip
    sent = json.loads(inside(GENERATOR, *argv))
    cpu = busy() - cpu
    time.sleep(0.1)
    return {"sent": sent["sent"], "arrived": arrived() - before, "seconds": sent["seconds"], "cpu": cpu}


def forward(options):
    """The figures of each contender in each round."""
    rounds = []
    with line():
        for number in range(options.rounds):
            one = {}
            with dropped(options):
                blast(options, "--rate", options.rate, seconds=0.3)
                slice_ = blast(options, "--rate", options.rate)
                floor = slice_["cpu"] / slice_["sent"] * 1e9
            order = list(CONTENDERS.items())
            for name, contender in order if number % 2 else reversed(order):
                with contender(options):
                    blast(options, "--rate", options.rate, seconds=0.3)  # warm
                    paced, flood = blast(options, "--rate", options.rate), blast(options)
                one[name] = {
                    "ns_per_packet": paced["cpu"] / max(paced["arrived"], 1) * 1e9 - floor,
                    "arrived_of_sent": paced["arrived"] / max(paced["sent"], 1),
                    "packets_per_second": flood["arrived"] / flood["seconds"],
                    "sent_per_second": flood["sent"] / flood["seconds"],
                }
            one["dropped"] = {"ns_per_packet": floor}
            rounds.append(one)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    return rounds


def latency(options):
    """Round trips in microseconds, by way: the median and the 99th percentile."""
    ways = {"straight": TO_SERVER, "ringgate": VIP, "kernel IP forwarding": ROUTED}
    python = sys.executable
    with bridged(), director(options, "eth0", TO_SERVER):
        argv = ["ip", "netns", "exec", SERVER, python, "-c", ECHO]
        echo = subprocess.Popen(argv, stdout=subprocess.PIPE)
        try:
            echo.stdout.readline()
            times = json.loads(inside(GENERATOR, python, "-c", PING, 10 * options.rounds, *ways.values()))
        finally:
            echo.kill()
            echo.wait()
    quantile = lambda values, q: sorted(values)[int(q * len(values))] / 1000
    return {name: {"p50": quantile(times[address], 0.5), "p99": quantile(times[address], 0.99)} for name, address in ways.items()}


def upgrade(options):
    """The longest gaps in milliseconds of each upgrade and of as long a time before it, and what became of the packets."""
    rate, rounds = 10_000, []
    with line():
        for _ in range(options.rounds):
            with director(options) as admin:
                rounds.append(replaced(options, admin, rate))
    return {"rate": rate, "rounds": rounds}


def replaced(options, admin, rate):
    started = lambda space, *argv: subprocess.Popen(
        ["ip", "netns", "exec", space, *map(str, argv)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    watch = started(SERVER, sys.executable, "-c", WATCH)
    watch.stdout.readline()
    generator = started(GENERATOR, options.generator, "blast", f"{VIP}:{PORT}", "--threads", 1, "--json", "--rate", rate, "--duration", "4s")
    time.sleep(1.2)
    began = time.time_ns()
    done = sh(options.ringgate, "ctl", "--socket", admin, "upgrade")
    heir = int(re.search(r"process (\d+)", done)[1])
    sent = json.loads(generator.communicate()[0])["sent"]
    os.kill(heir, signal.SIGTERM)
    while os.path.exists(f"/proc/{heir}"):
        time.sleep(0.02)
    seen = json.loads(watch.communicate("\n")[0])
    second, numbers = 10**9, [number for number, _ in seen]
    gaps = lambda begin: [b - a for (_, a), (_, b) in zip(seen, seen[1:]) if begin <= b < begin + second]
    return {"before_ms": max(gaps(began - second)) / 1e6, "upgrade_ms": max(gaps(began)) / 1e6, "sent": sent,
            "lost": sent - len(set(numbers)), "twice": len(numbers) - len(set(numbers)),
            "overtaken": sum(a > b for a, b in zip(numbers, numbers[1:]))}  # fmt: skip


def syn(options):
    """SYNs a second that arrive, of connections that are new."""
    many, rounds = ["--syn", "--flows", 16_384, "--sources", 64], []
    rate = lambda flood: {key: flood[of] / flood["seconds"] for key, of in (("per_second", "arrived"), ("sent_per_second", "sent"))}
    with line():
        for _ in range(options.rounds):
            one = {}
            with director(options, protocol="tcp"):
                one["empty table"] = rate(blast(options, *many, seconds=1))
            with director(options, protocol="tcp"):
                # 1,048,576 flows, at a rate that loses none.
                blast(options, *many, "--first-port", 18_000, "--rate", 200_000, seconds=MILLION / 200_000 + 0.2)
                one["a million flows"] = rate(blast(options, *many, "--first-port", 35_000, seconds=1))
            rounds.append(one)
    return rounds


def verdict(options):
    return json.loads(sh(options.generator, "verdict", "--json"))


def middle(rounds, name, key):
    return statistics.median(one[name][key] for one in rounds)


def spread(rounds, name):
    values = [one[name]["ns_per_packet"] for one in rounds]
    return f"{min(values):,.0f} – {max(values):,.0f}"


def table(head, rows):
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def markdown(result):
    yield f"# The layer-4 director, {result['date']}\n"
    yield f"{result['cpu']}, {os.cpu_count()} CPUs, Linux {platform.release()}, revision {result['revision']}. Written by `bench/l4.py`.\n"
    if rounds := result.get("forward"):
        base = "kernel IP forwarding"
        ratio = lambda name, key: statistics.median(one[name][key] / one[base][key] for one in rounds)
        yield "## Forwarding: 60-byte UDP packets, 64 flows\n"
        yield from table(
            ["", "ns a packet", "least and most", "ratio", "packets/s", "ratio", "sent/s meanwhile", "arrived at the fixed rate"],
            ([name, f"{middle(rounds, name, 'ns_per_packet'):,.0f}", spread(rounds, name), f"{ratio(name, 'ns_per_packet'):.2f}",
              f"{middle(rounds, name, 'packets_per_second'):,.0f}", f"{ratio(name, 'packets_per_second'):.2f}",
              f"{middle(rounds, name, 'sent_per_second'):,.0f}", f"{middle(rounds, name, 'arrived_of_sent'):.2%}"]
             for name in CONTENDERS),
        )  # fmt: skip
        floor = statistics.median(one["dropped"]["ns_per_packet"] for one in rounds)
        yield (f"CPU time of the whole machine at {result['rate']:,} packets/s; dropping them on arrival costs {floor:,.0f} ns a packet, "
               f"which is taken off. Where as many arrive as are sent, the generator was the bottleneck. Medians of {len(rounds)} "
               "interleaved rounds.\n")  # fmt: skip
    if ways := result.get("latency"):
        yield "## Round trip of one UDP packet, µs\n"
        straight = ways["straight"]["p50"]
        yield from table(["", "p50", "p99", "added, p50"],
                         ([name, f"{way['p50']:.1f}", f"{way['p99']:.1f}", f"{way['p50'] - straight:.1f}"] for name, way in ways.items()))  # fmt: skip
    if changes := result.get("upgrade"):
        rounds, rate = changes["rounds"], changes["rate"]
        yield f"## An upgrade under {rate:,} packets/s: the longest time without a packet, ms\n"
        values = lambda key: sorted(one[key] for one in rounds)
        yield from table(["", "median", "least and most"],
                         ([name, f"{statistics.median(values(key)):.2f}", f"{values(key)[0]:.2f} – {values(key)[-1]:.2f}"]
                          for name, key in (("a second without one", "before_ms"), ("the second of the upgrade", "upgrade_ms"))))  # fmt: skip
        total = lambda key: sum(values(key))
        yield (f"Of {total('sent'):,} packets {total('lost')} were lost, {total('twice')} came twice, {total('overtaken')} overtook one before "
               f"them. {len(rounds)} upgrades; the generator sends what is due every 100 µs.\n")  # fmt: skip
    if rounds := result.get("syn"):
        yield "## SYNs of new connections\n"
        yield from table(["", "SYNs/s", "sent/s meanwhile"],
                         ([name, *(f"{middle(rounds, name, key):,.0f}" for key in ("per_second", "sent_per_second"))]
                          for name in rounds[0]))  # fmt: skip
    if pure := result.get("verdict"):
        yield "## The verdict alone, without sockets\n"
        yield from table(["flows", "real servers", "ns in batches of 64", "ns one by one"],
                         ([f"{case['flows']:,}", f"{case['servers']:,}", f"{case['ns_batched']:.0f}", f"{case['ns_single']:.0f}"]
                          for case in pure["cases"]))  # fmt: skip
        yield (f"A new flow: {pure['ns_new_flow']:.0f} ns; in a full table, where another has to go: {pure['ns_new_flow_full_table']:.0f} ns. "
               f"Resident memory of a flow: {pure['bytes_per_flow']:.1f} bytes. Medians of {pure['rounds']} rounds.\n")  # fmt: skip


PARTS = {"verdict": verdict, "forward": forward, "latency": latency, "upgrade": upgrade, "syn": syn}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--rate", type=int, default=100_000)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--ringgate", type=Path, default=ROOT / "target/release/ringgate")
    parser.add_argument("--generator", type=Path, default=ROOT / "target/release/ringgate-bench")
    options = parser.parse_args()
    names = (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    result = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "cpu": next(names, "unknown CPU"), "rate": options.rate,
              "revision": sh("git", "-C", ROOT, "rev-parse", "--short", "HEAD").strip()}  # fmt: skip
    if options.json and options.json.exists():
        # Parts can be measured one at a time.
        result = {**json.loads(options.json.read_text()), **result}
    for part in options.part:
        result[part] = PARTS[part](options)
    text = "\n".join(markdown(result))
    print(text)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
