"""Layer-7 proxy benchmark: ringgate next to nginx and HAProxy, or one ringgate binary next to another.

The contender runs alone on one CPU; wrk and the origin server (`ringgate-bench serve`, 128 bytes) share another. Every
contender is configured to do the same work (bench/peers/), which is checked before anything is measured. All
contenders are started afresh each round and take turns within it, so that drift of the machine hits them alike and
ratios are taken within a round.

CPU time per request is the main figure: it holds whoever the bottleneck is. Requests/s and latency describe the
contender only in slices where its CPU was saturated, by itself; others are marked and left out of the ratios. wrk is a
closed loop, so its latency at saturation is little more than connections divided by requests/s.

Sources of noise, and what is done about them:
- Other work on the contender's CPU (a shared box, interrupts, kernel threads) adds cache misses and preemption. It
  is measured (busy time of the CPU less the contender's own) and such slices are counted as disturbed; they give no
  throughput. Other work on the load's CPU shows as a contender that is not saturated.
- Steal and frequency changes of a virtual machine are not visible in full: only ratios within a round are to be
  compared, never absolute figures of two runs.
- Over loopback the receiver's half of TCP runs in the sender's context: the contender pays for the receive path of
  what it sends and not for that of what it gets. It is the same for all contenders, but unlike a network card.
- The number of requests a busy loop finds ready at each wake-up depends on the load, so CPU per request of a
  contender that is not saturated is dearer, if anything, than when it is.
- A process keeps the memory layout it was started with: hence the restarts each round.
- Congestion control (see `machine` in the JSON) and netfilter are the machine's and cost all contenders alike.
"""

import argparse
import fcntl
import json
import os
import signal
import statistics
import sys
import time
from pathlib import Path

import contender as c
from load import measure

FIGURES = ("requests_per_second", "cpu_us_per_request", "p50_us", "p99_us", "switches_per_1000")


def run_rounds(contenders, settings):
    """All slices: in each round every contender is started afresh and measured in rotated order."""
    slices = []
    backend = c.Backend(settings.load_cpu)
    try:
        for number in range(settings.rounds):
            shift = number % len(contenders)
            slices += run_round(contenders[shift:] + contenders[:shift], number, backend, settings)
    finally:
        backend.stop()
    return slices


def run_round(contenders, number, backend, settings):
    """One round: one slice of every contender at every number of connections."""
    slices, servers = [], []
    try:
        for who in contenders:
            servers.append(c.start(who, settings.contender_cpu, backend))
            c.check_features(servers[-1])
        for connections in settings.connections:
            for server in servers:
                slices.append({"round": number} | measure(server, connections, settings))
                progress(slices[-1], settings)
    finally:
        for server in servers:
            server.stop()
    return slices


def progress(one, settings):
    """Says on standard error how a slice went."""
    marks = [mark for mark, on in (("NOT SATURATED", not one["saturated"]), ("DISTURBED", one["disturbed"]),
                                   ("ERRORS", any(one["errors"].values()))) if on]
    print(f"round {one['round'] + 1}/{settings.rounds} c={one['connections']:<4} {one['contender']:<10} "
          f"{one['requests_per_second']:>8.0f}/s {one['cpu_us_per_request']:>6.2f} us "
          f"idle {one['contender_cpu_idle']:>4.0%}/{one['load_cpu_idle']:.0%} {' '.join(marks)}", file=sys.stderr)


def spread(values):
    """Median with quartiles and extremes."""
    values = sorted(values)
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"n": len(values), "median": statistics.median(values), "q1": quartiles[0], "q3": quartiles[2],
            "min": values[0], "max": values[-1]}


def median_interval(values):
    """Distribution-free interval of at least 95 % for the median, from order statistics; extremes if too few."""
    values, n = sorted(values), len(values)
    tail, term, rank = 0.0, 0.5 ** n, 0
    while rank < n // 2 and tail + term <= 0.025:
        tail += term
        term *= (n - rank) / (rank + 1)
        rank += 1
    return values[max(rank - 1, 0)], values[n - max(rank, 1)]


def paired_ratios(slices, label, peer, figure, valid_only):
    """Ratios of a figure to a peer's, round by round; `valid_only` leaves out slices with no valid throughput."""
    ratios = []
    peers = {one["round"]: one for one in slices if one["contender"] == peer}
    for one in (one for one in slices if one["contender"] == label and one["round"] in peers):
        other = peers[one["round"]]
        if not valid_only or (one["throughput_valid"] and other["throughput_valid"]):
            ratios.append(one[figure] / other[figure])
    return ratios


def summarise(slices, contenders, peers):
    """Per number of connections and contender: the spread of each figure and of the ratios to each peer."""
    rows = []
    for connections in sorted({one["connections"] for one in slices}):
        level = [one for one in slices if one["connections"] == connections]
        for who in contenders:
            own = [one for one in level if one["contender"] == who.label]
            row = {"connections": connections, "contender": who.label,
                   "unsaturated": sum(not one["saturated"] for one in own),
                   "disturbed": sum(one["disturbed"] for one in own),
                   "throughput_invalid": sum(not one["throughput_valid"] for one in own)}
            row |= {figure: spread([one[figure] for one in own]) for figure in FIGURES}
            for peer in peers:
                for figure, strict in (("cpu_us_per_request", False), ("requests_per_second", True)):
                    ratios = paired_ratios(level, who.label, peer, figure, strict)
                    row[f"{figure}_to_{peer}"] = spread(ratios) | {"ci95": median_interval(ratios)} if ratios else None
            rows.append(row)
    return rows


def cell(value, digits, scale=1.0):
    """Median and extremes, or a dash."""
    if value is None:
        return "–"
    low, median, high = (f"{value[key] * scale:.{digits}f}" for key in ("min", "median", "max"))
    return f"{median} [{low}–{high}]"


def table(head, rows):
    """A Markdown table."""
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)] + ["| " + " | ".join(row) + " |" for row in rows]


def report(rows, peers, settings):
    """The Markdown report of the default mode."""
    lines = [f"Median [min–max] of {settings.rounds} rounds of {settings.seconds:g} s a slice, 128-byte bodies, "
             "keep-alive, one CPU for the contender.", ""]
    lines += table(
        ["conns", "contender", "CPU µs/request", "requests/s", "p50 ms", "p99 ms", "switches/1000 req"],
        [[str(row["connections"]), row["contender"], cell(row["cpu_us_per_request"], 2),
          cell(row["requests_per_second"], 0) + ("*" if row["throughput_invalid"] else ""),
          cell(row["p50_us"], 2, 1e-3), cell(row["p99_us"], 2, 1e-3), cell(row["switches_per_1000"], 1)]
         for row in rows])
    if peers:
        lines += ["", "Ratios paired round by round (CPU: below 1 is better; requests/s: above 1 is better)", ""]
        lines += table(
            ["conns", "contender"] + [f"{what} / {peer}" for peer in peers for what in ("CPU", "requests/s")],
            [[str(row["connections"]), row["contender"]]
             + [cell(row[f"{figure}_to_{peer}"], 3) for peer in peers
                for figure in ("cpu_us_per_request", "requests_per_second")] for row in rows])
    return lines + notes(rows, settings)


def pair_report(rows, contenders, settings):
    """The Markdown report of `--pair`: the second contender relative to the first."""
    base, changed = contenders
    lines = [f"A = {base.binary}, B = {changed.binary}; {settings.rounds} pairs of {settings.seconds:g} s slices.", ""]
    body = []
    for row in (row for row in rows if row["contender"] == changed.label):
        first = next(r for r in rows if r["contender"] == base.label and r["connections"] == row["connections"])
        ratio = row[f"cpu_us_per_request_to_{base.label}"]
        low, high = ratio["ci95"]
        verdict = "B cheaper" if high < 1 else "B dearer" if low > 1 else "no difference shown"
        body.append([str(row["connections"]), f"{first['cpu_us_per_request']['median']:.2f}",
                     f"{row['cpu_us_per_request']['median']:.2f}",
                     f"{ratio['median']:.4f} [{ratio['q1']:.4f}–{ratio['q3']:.4f}]", f"{low:.4f}–{high:.4f}",
                     cell(row[f"requests_per_second_to_{base.label}"], 3), verdict])
    lines += table(["conns", "A CPU µs/request", "B CPU µs/request", "B/A CPU, median [interquartile range]",
                    "95 % interval of the median", "B/A requests/s [min–max]", "verdict"], body)
    return lines + notes(rows, settings)


def notes(rows, settings):
    """What the reader must know about the slices."""
    total = settings.rounds * len(rows)
    lines = []
    for key, what in (
            ("unsaturated", f"CPU {settings.contender_cpu} was idle, so wrk and the origin server were the bottleneck"),
            ("disturbed", f"other processes used CPU {settings.contender_cpu}, or the hypervisor stole time")):
        which = ", ".join(f"{row['contender']} c={row['connections']}: {row[key]}" for row in rows if row[key])
        if which:
            lines += ["", f"{sum(row[key] for row in rows)} of {total} slices {key}: {what} ({which})."]
    if lines:
        lines += ["", "\\* Requests/s and latency of those slices are invalid; ratios of requests/s leave them out "
                  "(– where none is left). CPU µs/request, the main figure, is still valid"
                  + (", though dearer and less even where disturbed." if "disturbed" in lines[-1] else ".")]
    return lines


def failures(slices):
    """One line for every slice in which wrk counted an error."""
    return [f"round {one['round'] + 1}, {one['connections']} connections, {one['contender']}: {one['errors']}"
            for one in slices if any(one["errors"].values())]


def parse_arguments():
    parser = argparse.ArgumentParser(prog="bench/l7.sh", description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default=",".join(c.NAMES), help="contenders, comma separated (default: %(default)s)")
    parser.add_argument("--pair", nargs=2, metavar=("A", "B"),
                        help="compare two ringgate binaries (paths; nginx and haproxy are taken too)")
    parser.add_argument("--idle", type=int, metavar="N", help="memory of N idle connections, as bench/memory.sh")
    parser.add_argument("--rounds", type=int, help="default: 5; 20 with --pair; 3 with --idle")
    parser.add_argument("--seconds", type=float, help="length of a slice (default: 4; 1.5 with --pair)")
    parser.add_argument("--warmup", type=float, default=0.5, help="seconds of load before a slice (%(default)s)")
    parser.add_argument("--connections", default="64,256", help="default: %(default)s")
    parser.add_argument("--ringgate", default=c.RINGGATE, type=Path, help="default: target/release/ringgate")
    parser.add_argument("--contender-cpu", type=int, default=0)
    parser.add_argument("--load-cpu", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file (default: in bench/results/)")
    settings = parser.parse_args()
    settings.connections = [int(number) for number in settings.connections.split(",")]
    if settings.idle:
        return settings
    settings.rounds = settings.rounds or (20 if settings.pair else 5)
    settings.seconds = settings.seconds or (1.5 if settings.pair else 4.0)
    if not (1 <= settings.rounds <= 200 and 0.3 <= settings.seconds <= 60 and 0.3 <= settings.warmup <= 10
            and all(1 <= number <= 1024 for number in settings.connections)):
        parser.error("out of bounds: rounds 1-200, seconds 0.3-60, warmup 0.3-10, connections 1-1024")
    return settings


def prepare(settings, files):
    """Checks the machine, turns SIGTERM into an orderly exit and keeps other measurements of this box out."""
    c.need_tools("nginx", "wrk", "taskset")
    if settings.contender_cpu == settings.load_cpu or not {settings.contender_cpu, settings.load_cpu} <= set(
            os.sched_getaffinity(0)):
        raise c.BenchError("the contender and the load need a CPU each")
    c.raise_file_limit(files)
    os.sched_setaffinity(0, {settings.load_cpu, settings.contender_cpu})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    lock = open("/tmp/ringgate-bench.lock", "w", encoding="ascii")  # released when the process ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise c.BenchError("another benchmark is running on this box") from error
    return lock


def choose_contenders(settings):
    """The contenders, and the labels that ratios are taken to."""
    if settings.pair:
        pair = [c.contender(spec, label, settings.ringgate) for spec, label in zip(settings.pair, "AB")]
        return pair, ["A"]
    chosen = c.choose(settings.only, settings.ringgate)
    return chosen, [who.label for who in chosen if who.kind != "ringgate"]


def write_json(path, kind, settings, contenders, **results):
    """Writes the results with the machine and the settings they were measured at."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"kind": kind, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": c.machine(),
                "settings": {key: value for key, value in vars(settings).items()},
                "contenders": {who.label: {"binary": who.binary, "version": c.version(who)} for who in contenders}}
    path.write_text(json.dumps(document | results, indent=1, default=str) + "\n")
    print(f"\nJSON: {path}", file=sys.stderr)


def main():
    settings = parse_arguments()
    if settings.idle:
        arguments = [str(c.BENCH / "memory.py"), "--idle", str(settings.idle), "--only", settings.only,
                     "--ringgate", str(settings.ringgate), "--contender-cpu", str(settings.contender_cpu),
                     "--load-cpu", str(settings.load_cpu)]
        arguments += ["--rounds", str(settings.rounds)] if settings.rounds else []
        arguments += ["--out", str(settings.out)] if settings.out else []
        os.execv(sys.executable, [sys.executable, *arguments])
    contenders, peers = choose_contenders(settings)
    lock = prepare(settings, 8192)
    with lock:
        slices = run_rounds(contenders, settings)
    rows = summarise(slices, contenders, peers)
    print("\n".join(pair_report(rows, contenders, settings) if settings.pair else report(rows, peers, settings)))
    kind = "pair" if settings.pair else "l7"
    path = settings.out or c.BENCH / "results" / ("latest-pair.json" if settings.pair else "latest.json")
    failed = failures(slices)
    write_json(path, kind, settings, contenders, summary=rows, slices=slices, failures=failed)
    if failed:
        raise c.BenchError("wrk counted errors:\n" + "\n".join(failed))


if __name__ == "__main__":
    c.run(main)
