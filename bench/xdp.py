#!/usr/bin/python3
"""What the XDP program costs a frame, over numbers of flows and servers, and how many it sends without socket buffers.

    bench/xdp.py [--generator FILE] [--out bench/results/DATE-xdp]

As root, alone on the machine. Runs `ringgate-bench xdp` (BPF_PROG_TEST_RUN beside an empty program; live frames over a veth
pair in a namespace of its own) and writes OUT.json and OUT.md.
"""

import argparse
import json
import math
import os
import platform
import re
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVERS = (3, 100, 1000)
FLOWS = (1_000, 10_000, 100_000, 1_000_000)
# As many as where the published figures come from, and as many as the issue asks for.
FEW, MANY = 1_024, 1 << 20
# Million packets/s a core: Hoiland-Jorgensen et al., The eXpress Data Path, CoNEXT 2018, table "Load balancer": frames of 64
# bytes, UDP, 1,000 source addresses, 100 servers, a 100 Gb/s mlx5.
PUBLISHED = {"Katran (published)": 5.2, "IPVS (published)": 1.2}
# The smallest frame with its preamble and the gap behind it (IEEE 802.3).
FRAME_BYTES, BUSY = 64 + 8 + 12, 0.7


def numbers(generator, *args, prefix=()):
    """Every `words: number` of the tool's output."""
    argv = [*prefix, generator, "xdp", *map(str, args)]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return {m[1].strip(): float(m[2]) for m in re.finditer(r"^(.*): (-?[\d.]+)", text, re.M)}, text


def live(generator):
    name = f"rgx{os.getpid()}"
    inside = ["ip", "netns", "exec", name]
    run = lambda *args: subprocess.run(args, check=True)
    run("ip", "netns", "add", name)
    try:
        run(*inside, "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        for device in ("v0", "v1"):
            run(*inside, "ip", "link", "set", device, "up")
        rates, said = {}, []
        for flows, kind in ((FEW, "few"), (MANY, "random")):
            found, text = numbers(generator, "--live", "v0", "--sink", "v1", "--flows", flows, "--repeat", 400_000, prefix=inside)
            said.append(text.strip())
            rates |= {"million_per_second": found["live frames"], "empty": found["live frames, sent back at once"]}
            for key, rate in found.items():
                if key.startswith("live frames,") and "random" in key:
                    rates[f"{kind}_empty" if key.endswith("at once") else kind] = rate
        return rates | {"said": said}
    finally:
        run("ip", "netns", "del", name)


def measure(generator):
    rows = []
    for servers in SERVERS:
        for flows in FLOWS:
            found, _ = numbers(generator, "--servers", servers, "--flows", flows, "--repeat", 500_000)
            row = {"servers": servers, "flows": flows, "empty": found["empty program"]}
            row["warm"] = found["one flow, warm"]
            row["elsewhere"] = found["another address"]
            row["new"] = next(v for k, v in found.items() if k.endswith("each new"))
            row["known"] = next(v for k, v in found.items() if k.endswith("all known"))
            row["random"] = next(v for k, v in found.items() if k.endswith("at random"))
            rows.append(row)
    return rows


def table(rows, sent):
    lines = [
        "| servers | flows | empty program | one flow, warm | another address | all known, in turn | all known, at random | all new |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shown = [f"{row[key]:.0f}" for key in ("empty", "warm", "elsewhere", "known", "random", "new")]
        lines.append(f"| {row['servers']:,} | {row['flows']:,} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + (
        "\n\nLive frames, sent without socket buffers, by the CPU time of the one thread in which all of it happens, the other end's dropping "
        f"included: {sent['million_per_second']:.2f} million/s of one flow; of {FEW:,} flows at random {sent['few']:.2f}, of {MANY:,} "
        f"{sent['random']:.2f}. A program that sends everything back at once: {sent['empty']:.2f}, and {sent['random_empty']:.2f} when it also "
        "makes up the flows.\n"
    )


def sizing(sent):
    """What ports need, from the live rates measured here and what others have published."""
    kinds = [
        ("this program, one flow (measured)", sent["million_per_second"]),
        (f"this program, {FEW:,} flows at random (measured)", sent["few"]),
        (f"this program, {MANY:,} flows at random (measured)", sent["random"]),
        *PUBLISHED.items(),
    ]
    frames = {gbit: gbit * 1e9 / 8 / FRAME_BYTES for gbit in (10, 25, 100)}
    cores = lambda gbit, rate: math.ceil(frames[gbit] / (rate * 1e6 * BUSY))
    ipvs = PUBLISHED["IPVS (published)"]
    page = [
        "\n## Sizing: 10, 25 and 100 Gb/s of the smallest frames\n",
        f"A frame of 64 bytes takes {FRAME_BYTES} on the wire: " + ", ".join(f"{n / 1e6:.2f} million/s at {g} Gb/s" for g, n in frames.items()) +
        f". Cores {BUSY:.0%} busy: frames ÷ (rate × {BUSY}), rounded up.\n",
        "| | rate a core | " + " | ".join(f"{gbit} Gb/s" for gbit in frames) + " |",
        "|---" * (2 + len(frames)) + "|",
        *(f"| {name} | {rate:.2f} M/s | " + " | ".join(f"{cores(gbit, rate):,}" for gbit in frames) + " |" for name, rate in kinds),
        f"\n**Beside IPVS without socket buffers**, calculated. IPVS has no such path; its equivalent is the rate published for one core with a real "
        f"card, {ipvs} million/s with 1,000 source addresses. {sent['few']:.2f} ÷ {ipvs} = **{sent['few'] / ipvs:.1f} times** with {FEW:,} flows; "
        f"{sent['random']:.2f} ÷ {ipvs} = **{sent['random'] / ipvs:.1f} times** when each frame meets another of {MANY:,} flows in an order that "
        "no cache foresees, with which nobody has published IPVS's rate. Ours is without a card's driver, theirs with one.",
    ]  # fmt: skip
    guests = sorted((ROOT / "bench/results").glob("*-guest.json"))
    return "\n".join([*page, *(beside(guests[-1]) if guests else [])]) + "\n"


def beside(file):
    """By instructions, both in one guest: from bench/guest.py."""
    rounds = json.loads(file.read_text())
    found = re.search(r"^\| ringgate, XDP native \| [\d,]+ \| ([\d,]+)", file.with_suffix(".md").read_text(), re.M)
    ipvs = re.search(r"^\| IPVS mh \| [\d,]+ \| ([\d,]+)", file.with_suffix(".md").read_text(), re.M)
    if not (rounds and found and ipvs):
        return []
    ours, theirs = (int(match[1].replace(",", "")) for match in (found, ipvs))
    return [
        f"\nBy instructions, both measured in one guest on the same frames from a driver (`{file.with_suffix('.md').name}`; 64 flows, warm): IPVS {theirs:,} a "
        f"packet above dropping it, this program {ours:,}: **{theirs / ours:.1f} times** less. Instructions are no time: cache misses do not show in them.",
        "\nExtrapolated: that cores add up, and that a card's driver costs no more than veth's. Published: The eXpress Data Path (CoNEXT 2018), table "
        "\"Load balancer\": 64-byte UDP, 1,000 source addresses, 100 servers, a 100 Gb/s mlx5.",
    ]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default=ROOT / "target/release/ringgate-bench")
    parser.add_argument("--out", default=ROOT / f"bench/results/{time.strftime('%Y-%m-%d')}-xdp")
    options = parser.parse_args()
    rows, sent = measure(str(options.generator)), live(str(options.generator))
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "model": cpu[1] if cpu else ""}
    found = {"machine": machine, "rows": rows, "live": sent}
    Path(f"{options.out}.json").write_text(json.dumps(found, indent=1) + "\n")
    intro = (
        "# The XDP program, by the frame\n\n"
        f"`bench/xdp.py`; Linux {machine['kernel']}, {machine['cpus']} CPUs ({machine['model']}), alone on the machine. "
        "Nanoseconds a frame of 60 bytes, IPv4 and UDP, scheduler `mh`. The first three: CPU time, medians of 15 times 500,000 runs. In turn, and "
        "new: one run for each of the flows, above the empty program run in the same way. At random: run after run, each of another of so many flows "
        "(the next power of two), CPU time above the empty program's.\n\n"
    )
    Path(f"{options.out}.md").write_text(intro + table(rows, sent) + sizing(sent))
    print(table(rows, sent) + sizing(sent))


if __name__ == "__main__":
    main()
