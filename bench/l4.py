#!/usr/bin/python3
"""What the layer-4 director costs: beside the kernel's IP forwarding and nftables' (the same network namespaces, the
same packets, rounds interleaved), and what it adds to a round trip.

    bench/l4.py [--rounds N] [--seconds S] [--rate PPS] [--flows N ...] [--flows-max N] [--ringgate FILE] [--generator FILE]
                [--part PART ...] [--json FILE] [--markdown FILE]

As root, alone on the machine; about ten minutes, of which the part `flows` takes six. Parts:

- verdict: nanoseconds a verdict without sockets (`ringgate-bench verdict`), and memory a flow.
- forward: a generator, a forwarder and a server are namespaces on veth pairs; the server drops what it gets before its
  stack (nftables, netdev ingress), and its interface counts. For each contender packets/s that arrive when the
  generator sends as fast as it can; and at a fixed rate and at that one CPU time for a packet that arrives, less that
  of the same packets dropped on arrival in the forwarder's namespace: what forwarding adds. It is the scheduler's time,
  in nanoseconds, of the threads in which packets are forwarded: the generator's, which takes its packets through the kernel to
  the other end of the line before its system call returns, the director's, and the kernel's own (ksoftirqd).
- flows: the same cost with 1,000, 100,000 and a million flows that the director knows, and packets that are each of another of them in an
  order without a pattern, by packet sockets and by XDP; with and without what dropping the same packets costs, and by its
  ratio to the cost with 1,000 in the same round. Also what a flow takes of memory.
- latency: round trips of a UDP packet over a bridge: straight to the server, through the director, routed by the kernel.
- upgrade: the longest time without a packet at the server when `ringgate ctl upgrade` replaces the process under 10,000
  packets/s, beside the longest of a second without one; and how many were lost, or came twice.
- syn: SYNs of new connections as fast as they come, with an empty table and with a million flows in it; at most a million
  more come, for which there is room.

Medians over the rounds, and the ratio to the kernel's IP forwarding within each round.
"""

import argparse
import contextlib
import json
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import l4_report

ROOT = Path(__file__).resolve().parent.parent
NAME = f"rgb{os.getpid()}"
GENERATOR, FORWARDER, SERVER, SWITCH = (f"{NAME}{part}" for part in "gfsw")
VIP, PORT = "10.78.0.100", 9000
ROUTED, TO_SERVER = "10.78.0.101", "10.78.0.3"
MILLION = 1 << 20
XDP = {"datapath": "auto", "scheduler": "mh"}
# A packet of each flow, at a rate at which a release build loses none.
LEARNED_PER_SECOND = 100_000
# The director counts the flows that only the program knows every 5 s and up to half a second.
ACCOUNT_SECONDS = 5.6
DIRECTORS = []
KERNEL = [entry.parent.name for entry in Path("/proc").glob("[0-9]*/comm") if entry.read_text().startswith("ksoftirqd/")]

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


def director(options, interface="in0", server="10.78.1.1", protocol="udp", datapath="packet", scheduler="rr", room=2 * MILLION):
    virtual = f'[[virtual_server]]\naddress = "{VIP}:{PORT}"\nprotocol = "{protocol}"\nscheduler = "{scheduler}"\n'
    settings = f'flows_max = {room}\nnew_flows_per_second = 0\nseed = "0123456789abcdef0123"\n'
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
        ready = ["neighbour found", "serving", *([] if 'datapath = "packet"' in config else ["datapath=xdp-"])]
        argv = ["ip", "netns", "exec", FORWARDER, options.ringgate, "run", file]
        process = subprocess.Popen([str(a) for a in argv], stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(500):
                text = Path(log.name).read_text()
                if all(words in text for words in ready):
                    break
                if process.poll() is not None:
                    raise SystemExit(text)
                time.sleep(0.02)
            else:
                raise SystemExit(f"ringgate is not ready:\n{text}")
            DIRECTORS.append(process.pid)
            yield f"{directory}/admin.sock"
        finally:
            DIRECTORS.clear()
            process.send_signal(signal.SIGTERM)
            process.wait(20)
            log.close()


CONTENDERS = {
    "ringgate": director,
    "ringgate, XDP": lambda options: director(options, **XDP),
    "kernel IP forwarding": routed,
    "nftables fwd": nftables,
}


def arrived():
    return int(inside(SERVER, "cat", "/sys/class/net/eth0/statistics/rx_packets"))


def thread_seconds(process, only=None):
    """CPU seconds of the threads of a process, or of those with a name, from the scheduler."""
    total = 0
    for thread in Path(f"/proc/{process}/task").glob("*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if only in (None, (thread / "comm").read_text().strip()):
                total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def account_seconds():
    """Those of the director's thread that forwards nothing: neighbours, checks, and what there is of flows."""
    return sum(thread_seconds(process, "l4") for process in DIRECTORS)


def busy():
    """CPU seconds of all that has a part in it: children that ended (the generator), directors, ksoftirqd."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime + sum(map(thread_seconds, [*DIRECTORS, *KERNEL]))


def blast(options, *args, seconds=None):
    """Packets sent, arrived, seconds of sending, and CPU seconds."""
    before, account, cpu = arrived(), account_seconds(), busy()
    argv = [options.generator, "blast", f"{VIP}:{PORT}", "--threads", 1, "--json",
            "--duration", f"{int((seconds or options.seconds) * 1000)}ms", *args]  # fmt: skip
    sent = json.loads(inside(GENERATOR, *argv))
    cpu, account = busy() - cpu, account_seconds() - account
    time.sleep(0.1)
    return {"sent": sent["sent"], "arrived": arrived() - before, "seconds": sent["seconds"], "cpu": cpu, "account": account}


def forward(options):
    """The figures of each contender in each round."""
    rounds = []
    with line():
        for number in range(options.rounds):
            one = {}
            with dropped(options):
                blast(options, "--rate", options.rate, seconds=0.3)
                paced, flood = blast(options, "--rate", options.rate), blast(options)
                floor, least = (one_["cpu"] / one_["sent"] * 1e9 for one_ in (paced, flood))
            order = list(CONTENDERS.items())
            for name, contender in order if number % 2 else reversed(order):
                with contender(options):
                    blast(options, "--rate", options.rate, seconds=0.3)  # warm
                    paced, flood = blast(options, "--rate", options.rate), blast(options)
                one[name] = {
                    "ns_per_packet": paced["cpu"] / max(paced["arrived"], 1) * 1e9 - floor,
                    "ns_flooded": flood["cpu"] / max(flood["arrived"], 1) * 1e9 - least,
                    "arrived_of_sent": paced["arrived"] / max(paced["sent"], 1),
                    "packets_per_second": flood["arrived"] / flood["seconds"],
                    "sent_per_second": flood["sent"] / flood["seconds"],
                }
            one["dropped"] = {"ns_per_packet": floor, "ns_flooded": least}
            rounds.append({name: one[name] for name in (*CONTENDERS, "dropped")})
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    return rounds


def made(count):
    """Options of `blast` for so many flows, from more addresses where the ports of one do not suffice."""
    sources = -(-count // 16_000)
    return ["--raw", "--flows", -(-count // sources), "--sources", sources]


def held(options, admin):
    """Flows that the director knows."""
    services = json.loads(sh(options.ringgate, "ctl", "--socket", admin, "--json", "l4"))["virtual_servers"]
    return sum(server["active_conns"] + server["inactive_conns"] for one in services for server in one["servers"])


def by_program(admin):
    """Frames that the XDP program forwarded, and those that it passed up, as the director counts twice a second."""
    text = sh("curl", "-s", "--unix-socket", admin, "http://localhost/metrics")
    found = {m[1]: int(m[2]) for m in re.finditer(r'^ringgate_director_xdp_frames_total\{outcome="(\w+)"\} (\d+)$', text, re.M)}
    forwarded = found.pop("forwarded", 0)
    return forwarded, sum(found.values())


def learn(options, admin, count):
    """Has the director know so many flows, and says how many it knows."""
    for slower in (1, 2, 4):
        blast(options, *made(count), "--rate", LEARNED_PER_SECOND // slower, "--packets", count, seconds=60)
        end = time.monotonic() + ACCOUNT_SECONDS
        while (known := held(options, admin)) < count and time.monotonic() < end:
            time.sleep(0.1)
        # What is pushed out of a table with little room stays away, however often it comes.
        if known >= 0.99 * count:
            return known
    raise SystemExit(f"of {count:,} flows the director knows {known:,}")


def memory():
    """Bytes that the director takes: its own, and those of the kernel's large maps."""
    status = Path(f"/proc/{DIRECTORS[0]}/status").read_text()
    own = int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.M)[1]) << 10
    maps = 0
    for info in Path(f"/proc/{DIRECTORS[0]}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            text = info.read_text()
            if "map_type:" in text and (size := int(re.search(r"^memlock:\s+(\d+)", text, re.M)[1])) > 1 << 20:
                maps += size
    return own, maps


def figures(paced, flood, of="arrived"):
    """What a packet took, paced and as fast as can be sent."""
    return {
        "ns_per_packet": paced["cpu"] / max(paced[of], 1) * 1e9, "ns_flooded": flood["cpu"] / max(flood[of], 1) * 1e9,
        "arrived_of_sent": paced["arrived"] / max(paced["sent"], 1), "packets_per_second": flood[of] / flood["seconds"],
    }  # fmt: skip


def flows(options):
    """What a packet costs by the number of flows, and what a flow takes, in each round."""
    datapaths = {"packet sockets": XDP | {"datapath": "packet"}, "XDP": XDP}
    cases = [(name, count) for count in options.flows for name in ("dropped", *datapaths)]
    rounds = []
    with line():
        for number in range(options.rounds):
            one = {name: {} for name in ("dropped", *datapaths)}
            for name, count in cases if number % 2 else reversed(cases):
                if name == "dropped":
                    with dropped(options):
                        paced, flood = at_random(options, count)
                    one[name][str(count)] = figures(paced, flood, "sent")
                else:
                    with director(options, room=options.flows_max, **datapaths[name]) as admin:
                        one[name][str(count)] = with_flows(options, admin, count)
            rounds.append(one)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    return rounds


def at_random(options, count):
    """Packets paced, and as fast as can be sent, of so many flows in an order without a pattern."""
    order = [*made(count), "--random"]
    blast(options, *order, "--rate", options.rate, seconds=0.3)  # warm
    return blast(options, *order, "--rate", options.rate), blast(options, *order)


def with_flows(options, admin, count):
    before, _ = memory()
    known = learn(options, admin, count)
    began, account, seen = time.monotonic(), account_seconds(), by_program(admin)
    paced, flood = at_random(options, count)
    # The account of flows is no packet's cost: it comes once in so long, however many there are.
    for one in (paced, flood):
        one["cpu"] -= one["account"]
    result = figures(paced, flood)
    time.sleep(max(0, began + ACCOUNT_SECONDS - time.monotonic()))
    forwarded, passed = (now - then for now, then in zip(by_program(admin), seen))
    after, maps = memory()
    return result | {"known": known, "by_program": forwarded, "passed_up": passed, "account_ms": (account_seconds() - account) * 1e3,
                     "own_bytes": after - before, "map_bytes": maps / options.flows_max}  # fmt: skip


def latency(options):
    """Round trips in microseconds, by way: medians over the runs of the median and the 99th percentile, and what each has more than the
    way straight to the server in the same run."""
    runs, python = {}, sys.executable
    with bridged():
        argv = ["ip", "netns", "exec", SERVER, python, "-c", ECHO]
        echo = subprocess.Popen(argv, stdout=subprocess.PIPE)
        try:
            echo.stdout.readline()
            for number in range(2 * options.rounds):
                name, how = (("ringgate", {}), ("ringgate, XDP", XDP))[(number + number // 2) % 2]
                ways = {"straight": TO_SERVER, name: VIP, "kernel IP forwarding": ROUTED}
                with director(options, "eth0", TO_SERVER, **how):
                    times = json.loads(inside(GENERATOR, python, "-c", PING, 10, *ways.values()))
                for way, address in ways.items():
                    values = sorted(times[address])
                    runs.setdefault(way, []).append({key: values[int(q * len(values))] / 1000 for key, q in (("p50", 0.5), ("p99", 0.99))})
                    runs[way][-1] |= {f"added_{key}": runs[way][-1][key] - runs["straight"][-1][key] for key in ("p50", "p99")}
        finally:
            echo.kill()
            echo.wait()
    return {way: {key: statistics.median(run[key] for run in those) for key in those[0]} for way, those in runs.items()}


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
    """SYNs a second that arrive, of connections that are new, and what each takes."""
    many, rounds = ["--syn", "--flows", 16_384, "--sources", 64], []

    def rate(flood):
        found = {key: flood[of] / flood["seconds"] for key, of in (("per_second", "arrived"), ("sent_per_second", "sent"))}
        return found | {"ns": (flood["cpu"] - flood["account"]) / max(flood["arrived"], 1) * 1e9}

    with line():
        for _ in range(options.rounds):
            one = {}
            for name, how in (("packet sockets", {}), ("XDP", XDP)):
                how = {"protocol": "tcp", "room": options.flows_max, **how}
                with director(options, **how):
                    one[f"{name}, empty table"] = rate(blast(options, *many, seconds=1))
                with director(options, **how):
                    blast(options, *many, "--first-port", 18_000, "--rate", LEARNED_PER_SECOND, "--packets", MILLION, seconds=60)
                    one[f"{name}, a million flows"] = rate(blast(options, *many, "--first-port", 35_000, seconds=1))
            rounds.append(one)
    return rounds


def verdict(options):
    return json.loads(sh(options.generator, "verdict", "--json"))


PARTS = {"verdict": verdict, "forward": forward, "flows": flows, "latency": latency, "upgrade": upgrade, "syn": syn}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--rate", type=int, default=100_000)
    parser.add_argument("--flows", type=int, nargs="+", default=[1_000, 100_000, 1_000_000], help="numbers of flows for the part `flows`")
    parser.add_argument("--flows-max", type=int, default=4 * MILLION, help="room for flows in the parts `flows` and `syn`")
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
    text = "\n".join(l4_report.markdown(result))
    print(text)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
