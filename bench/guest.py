#!/usr/bin/python3
"""Ringgate's director beside IPVS, the kernel's IP forwarding and nftables, on Debian's kernel 6.1, in one guest.

    bench/guest.py [--part instructions|time ...] [--rounds N] [--only NAME ...] [--ringgate FILE] [--generator FILE] [--out bench/results/DATE-guest]

As root; about 4 minutes on a machine that does nothing else, which the part `time` needs. For machines whose own kernel has no ip_vs, and no virtualization: qemu emulates the guest's one CPU
(TCG). Needs qemu-system-x86, ipvsadm, nftables, ethtool; the kernel's package is downloaded and unpacked, not installed.

Two guests run after each other. In the first qemu counts instructions: its clock goes on by a nanosecond with each, so that CPU
time is a number of instructions, the same again and again. In the second time is time; rounds are interleaved and the medians
shown. `bench/in_guest.py` says what is measured.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import l4
import l4_report

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from harness.guest import Guest, Initrd, Kernel  # noqa: E402

PROGRAMS = ("ip", "nft", "ipvsadm", "sysctl", "cat", "ethtool")
MODULES = ("veth", "bridge", "nf_tables", "nft_fwd_netdev", "ip_vs", "ip_vs_rr", "ip_vs_mh")
PARTS = {"instructions": "instructions", "time": "ns"}
BASE, RIVAL = "kernel IP forwarding", "IPVS mh"
FLOOR, DRIVER = FLOORS = "dropped", "dropped in the driver"


def guest(options, kernel, directory, rounds, count):
    """What the contenders took, by round and name."""
    initrd = Initrd()
    for name in PROGRAMS:
        initrd.program(name)
    initrd.program(options.ringgate, "/usr/bin/ringgate")
    initrd.program(options.generator, "/usr/bin/ringgate-bench")
    # As large a connection table as ours; the module's default is 4,096 buckets.
    initrd.file("/job/parameters", "ip_vs conn_tab_bits=18\n")
    initrd.file("/job/main.py", (ROOT / "bench/in_guest.py").read_bytes())
    for name in ("l4.py", "l4_report.py"):
        initrd.file(f"/job/{name}", (ROOT / "bench" / name).read_bytes())
    job = {"rounds": rounds, "seconds": 0.4, "frames": 32_768, "round_trips": count, "only": options.only, "ringgate": "/usr/bin/ringgate", "generator": "/usr/bin/ringgate-bench"}
    initrd.file("/job/options", json.dumps(job))
    machine = Guest(directory, kernel, initrd, MODULES, count_instructions=count)
    results, trips = [{} for _ in range(rounds)], {}
    for line in machine.run(options.timeout).splitlines():
        one = json.loads(line)
        if name := one.pop("trip", None):
            trips[name] = one
        else:
            results[one["round"]][one["name"]] = figures(one)
    return {"rounds": results, "trips": trips}


def figures(one):
    """Nanoseconds (or instructions) of the whole machine a packet that is forwarded, and packets a second."""
    found = {}
    for kind in ("sockets", "frames"):
        result = one[kind]
        count = result["sent"] if one["name"] in FLOORS else result["arrived"]
        found[kind] = {
            "whole": result["cpu"] / max(count, 1) * 1e9,
            "per_second": count / result["seconds"],
            "arrived_of_sent": result["arrived"] / result["sent"],
        }
    return found


def markdown(result):
    yield f"# The director beside IPVS in a guest, {result['date']}\n"
    yield (f"Linux {result['kernel']} (Debian) under qemu's TCG with one CPU, on {result['cpu']}; revision {result['revision']}. Written by "
           "`bench/guest.py`. Packets of 60 bytes, UDP, 64 flows, one real server; IPVS: direct routing, conn_tab_bits 18.\n")  # fmt: skip
    for part, unit in (part for part in PARTS.items() if part[0] in result):
        for kind, heading in (("frames", "frames as a network card's driver has them"), ("sockets", "packets from sockets")):
            yield f"## By {part}: {heading}\n"
            yield from table(result[part]["rounds"], kind, unit)
    if "instructions" not in result:
        return
    yield "## Round trip of a datagram between Python programs over a switch, in instructions\n"
    rows = ([name, *(f"{trip[way]:,.0f}" for way in trip), f"{trip['forwarded'] - trip['straight']:,.0f}"]
            for name, trip in result["instructions"]["trips"].items())  # fmt: skip
    yield from l4_report.table(["", "straight to the server", "through it", "by the kernel's IP forwarding", "added"], rows)


def table(rounds, kind, unit):
    floor = DRIVER if kind == "frames" else FLOOR
    above = lambda one, name: one[name][kind]["whole"] - one[floor][kind]["whole"]
    most = lambda one, name: one[name][kind]["per_second"]
    middle = lambda values: statistics.median(list(values))
    rows = []
    for name in (name for name in rounds[0] if name not in FLOORS):
        ratios = [middle(above(one, name) / above(one, rival) for one in rounds) for rival in (RIVAL, BASE)]
        faster = [middle(most(one, name) / most(one, rival) for one in rounds) for rival in (RIVAL, BASE)]
        rows.append([
            name, f"{middle(one[name][kind]['whole'] for one in rounds):,.0f}", f"{middle(above(one, name) for one in rounds):,.0f}",
            *(f"{ratio:.2f}" for ratio in ratios), f"{middle(most(one, name) for one in rounds):,.0f}",
            *(f"{ratio:.2f}" for ratio in faster), f"{middle(one[name][kind]['arrived_of_sent'] for one in rounds):.1%}",
        ])  # fmt: skip
    rows.sort(key=lambda row: float(row[2].replace(",", "")))
    head = ["", f"{unit} a packet, all", "above dropping it", "of IPVS mh", "of forwarding", "packets/s", "of IPVS mh", "of forwarding", "arrived"]
    yield from l4_report.table(head, rows)
    floors = [middle(one[name][kind]["whole"] for one in rounds) for name in (floor, DRIVER if floor == FLOOR else FLOOR)]
    where = ("in the driver (XDP)", "on arrival (nftables)")[:: 1 if floor == DRIVER else -1]
    yield (f"Dropped {where[0]}, which is taken off: {floors[0]:,.0f} {unit} a packet; {where[1]}: {floors[1]:,.0f}. Medians of "
           f"{len(rounds)} interleaved round{'s' * (len(rounds) > 1)}.\n")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these contenders (IPVS mh, kernel IP forwarding and others that the result names)")
    parser.add_argument("--timeout", type=float, default=300)
    parser.add_argument("--ringgate", type=Path, default=ROOT / "target/release/ringgate")
    parser.add_argument("--generator", type=Path, default=ROOT / "target/release/ringgate-bench")
    parser.add_argument("--kernel", type=Path, default=ROOT / "target/guest", help="directory that keeps the kernel")
    parser.add_argument("--out", type=Path, default=ROOT / f"bench/results/{time.strftime('%Y-%m-%d')}-guest")
    options = parser.parse_args()
    kernel = Kernel(options.kernel)
    names = (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    result = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "cpu": next(names, "unknown CPU"), "kernel": kernel.release,
              "revision": l4.sh("git", "-C", ROOT, "rev-parse", "--short", "HEAD").strip()}  # fmt: skip
    kept = options.out.with_name(f"{options.out.name}.json")
    if kept.exists():
        # Parts can be measured one at a time.
        result = {**json.loads(kept.read_text()), **result}
    for part in options.part:
        with tempfile.TemporaryDirectory() as directory:
            count = part == "instructions"
            result[part] = guest(options, kernel, directory, 1 if count else options.rounds, count)
        kept.write_text(json.dumps(result, indent=1) + "\n")
    text = "\n".join(markdown(result))
    print(text)
    options.out.with_name(f"{options.out.name}.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
