#!/usr/bin/python3
"""What the XDP program costs a frame, over numbers of flows and servers, and how many it sends without socket buffers.

    bench/xdp.py [--generator FILE] [--out bench/results/DATE-xdp]

As root, alone on the machine. Runs `ringgate-bench xdp` (BPF_PROG_TEST_RUN beside an empty program; live frames over a veth
pair in a namespace of its own) and writes OUT.json and OUT.md.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVERS = (3, 100, 1000)
FLOWS = (1_000, 10_000, 100_000, 1_000_000)


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
        found, text = numbers(generator, "--live", "v0", "--sink", "v1", prefix=inside)
        return {"million_per_second": found["live frames"], "said": text.strip()}
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
            rows.append(row)
    return rows


def table(rows, sent):
    lines = [
        "| servers | flows | empty program | one flow, warm | another address | all known, in turn | all new |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shown = [f"{row[key]:.0f}" for key in ("empty", "warm", "elsewhere", "known", "new")]
        lines.append(f"| {row['servers']:,} | {row['flows']:,} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + f"\n\nLive frames: {sent['million_per_second']:.2f} million/s on one CPU.\n"


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
        "Nanoseconds a frame of 60 bytes, IPv4 and UDP, scheduler `mh`. The first three: medians of 15 times 500,000 runs. The last two: one "
        "run for each of the flows in turn, above the empty program run in the same way.\n\n"
    )
    Path(f"{options.out}.md").write_text(intro + table(rows, sent))
    print(table(rows, sent))


if __name__ == "__main__":
    main()
