"""The command line of `bench/run`."""

import argparse
import json
import os
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

from . import BenchError, compare, contenders, crypto, machine, measure, report, scenarios, usage
from .bed import LOOPBACK, Bed, namespaces

RESULTS = machine.ROOT / "bench/results"
DESCRIPTION = """\
Measures Ringgate next to nginx, HAProxy and a byte relay without HTTP: requests/s, CPU time per request, latency,
memory, system calls. Writes bench/results/DATE.json and a report with charts beside it. With --base, measures the
working tree next to an older revision instead, in many short interleaved runs.

A contender has its CPUs to itself, and is started afresh for every slice; load (ringgate-bench run) and origin
(ringgate-bench serve) have other CPUs and, as root, another network namespace. Who was the bottleneck is measured too: requests/s of a slice in which the
contender had idle time are marked, as they are not its maximum.
"""
EXAMPLES = """\
examples:
  cargo build --release && bench/run                 everything, about 15 minutes
  bench/run --quick --scenario 'keepalive-*'         a look at some
  bench/run --base main                              has the working tree become slower than main?
  bench/run --base HEAD~3 --scenario body-16k --pairs 60
  bench/run --base target/old/ringgate --ringgate target/release/ringgate      two binaries
  bench/run --report bench/results/2026-11-24.json   the report again from the figures
  bench/run --network loopback --scenario keepalive-256
  bench/run --contender-cpus 0-7 --load-cpus 8-11 --origin-cpus 12-15
"""


def parse(argv):
    """The settings, checked."""
    parser = argparse.ArgumentParser(prog="bench/run", description=DESCRIPTION, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--scenario", action="append", default=[], metavar="NAME",
        help="only this one; shell wildcards; may be repeated (see --list)")
    add("--list", action="store_true", help="list the scenarios and exit")
    add("--only", default=",".join(contenders.NAMES), help="contenders, comma separated (default: %(default)s)")
    add("--quick", action="store_true", help="few and short slices: a look, no result")
    add("--rounds", type=int, help="rounds of each scenario (default: 5)")
    add("--seconds", type=float, help="length of a slice (default: 0.8; 0.2 with --base)")
    add("--warmup", type=float, default=0.25, help="seconds of load before each slice (default: %(default)s)")
    add("--latency-rounds", type=int, help="rounds at each share of the maximum; 0 for none (default: 2)")
    add("--idle", type=int, default=10_000, metavar="N", help="idle connections (default: %(default)s)")
    add("--no-syscalls", dest="syscalls", action="store_false", help="do not count system calls")
    add("--base", metavar="REV", help="compare with this revision, or with a ringgate binary at this path")
    add("--pairs", type=int, help="with --base: pairs of slices for each scenario (default: 80)")
    add("--no-pure", dest="pure", action="store_false", help="with --base: no instruction counts")
    add("--ringgate", type=Path, help="the binary to measure (default: target/release/ringgate)")
    add("--contender-cpus", "--contender-cpu", default="0", metavar="LIST", help="default: %(default)s")
    add("--load-cpus", "--load-cpu", default="1", metavar="LIST", help="default: %(default)s")
    add("--origin-cpus", "--origin-cpu", metavar="LIST", help="default: those of the load")
    add("--network", choices=("namespaces", "loopback"),
        help="between the contender and the others (default: namespaces as root, loopback otherwise and with --base)")
    add("--out", type=Path, help="the JSON file; the report goes beside it (default: bench/results/DATE.json)")
    add("--report", type=Path, metavar="JSON", help="only write the report of these results again")
    settings = parser.parse_args(argv)
    fill_in(settings)
    bounds = {"rounds": (1, 200), "seconds": (0.2, 60), "warmup": (0.1, 10), "latency_rounds": (0, 50),
              "idle": (1, 500_000), "pairs": (3, 1000)}
    if settings.base and settings.network != "loopback":
        parser.error("--base compares over loopback, where the CPU time of short slices is exact")
    for name, (least, most) in bounds.items():
        if not least <= getattr(settings, name) <= most:
            parser.error(f"--{name.replace('_', '-')} is {least} to {most}")
    return settings


def fill_in(settings):
    """Defaults that depend on other settings."""
    quick = settings.quick
    default = lambda value, usual, short: value if value is not None else short if quick else usual
    settings.network = settings.network or ("loopback" if settings.base or os.geteuid() != 0 else "namespaces")
    settings.rounds = default(settings.rounds, 5, 2)
    settings.latency_rounds = default(settings.latency_rounds, 2, 1)
    settings.seconds = default(settings.seconds, 0.2 if settings.base else 0.8, 0.2 if settings.base else 0.5)
    settings.latency_seconds = settings.seconds if quick else max(settings.seconds, 1.5)
    settings.pairs = default(settings.pairs, 80, 15)
    if quick:
        settings.idle = min(settings.idle, 2000)


@contextmanager
def make_bed(settings):
    """The CPUs of everybody, and the network between them; afterwards this process is where it was."""
    cpus = [tuple(machine.cpu_list(text)) for text in
            (settings.contender_cpus, settings.load_cpus, settings.origin_cpus or settings.load_cpus)]
    machine.check_cpus(*cpus)
    # The harness itself stays off the contender's CPUs.
    os.sched_setaffinity(0, {*cpus[1], *cpus[2]})
    between = nullcontext(LOOPBACK) if settings.network == "loopback" else namespaces(cpus[0], {*cpus[1], *cpus[2]})
    with between as network:
        yield Bed(*cpus, irq_time=usage.irq_time() is True, network=network)


def choose_scenarios(settings):
    """Those asked for; of a comparison, those that tell most."""
    patterns = settings.scenario or (list(compare.SCENARIOS) if settings.base else [])
    chosen = scenarios.choose(patterns)
    if not chosen:
        raise BenchError("no such scenario; bench/run --list names them")
    return chosen


def choose_contenders(settings):
    """The contenders of a whole run."""
    kinds = settings.only.split(",")
    if not set(kinds) <= set(contenders.NAMES) or len(kinds) != len(set(kinds)):
        raise BenchError(f"--only takes {', '.join(contenders.NAMES)}, each once")
    return [contenders.named(kind, settings.ringgate if kind == "ringgate" else None,
                             contenders.LABELS.get(kind)) for kind in kinds]


def document(kind, settings, bed, entered, began, **results):
    """The JSON: what was measured, on what, and how."""
    plain = {key: value if isinstance(value, (int, float, bool, list, type(None))) else str(value)
             for key, value in vars(settings).items()}
    return {"kind": kind, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
            "seconds": round(time.time() - began), "machine": machine.describe() | {"irq_time": bed.irq_time},
            "settings": plain, "cpus": {"contender": bed.contender_cpus, "load": bed.load_cpus,
                                        "origin": bed.origin_cpus}, "network": bed.network.name,
            "contenders": {who.label: {"kind": who.kind, "binary": who.binary, "version": who.version()}
                           for who in entered}} | results


def write(path, result):
    """Writes the JSON and the report beside it; returns the report's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return report.write(result, path)


def run(settings):
    """Measures; returns lines for the terminal and whether there were failures."""
    chosen, began = choose_scenarios(settings), time.time()
    peers = set() if settings.base else {"haproxy"} & set(settings.only.split(","))
    # nginx, whether it is measured or not: it says what each contender has sent it.
    tools = ("ip", "unshare") if settings.network == "namespaces" else ()
    machine.need_tools("nginx", "openssl", "taskset", *tools, *peers)
    machine.raise_file_limit(contenders.FILES)
    machine.orderly_exit()
    date = time.strftime("%Y-%m-%d", time.gmtime(began))
    with machine.lock(), make_bed(settings) as bed:
        result = compared(settings, bed, chosen, began) if settings.base else measured(settings, bed, chosen, began)
    kind = "-compare" if settings.base else "-quick" if settings.quick else ""
    path = settings.out or RESULTS / f"{date}{kind}.json"
    page = write(path, result)
    failures = [f"{one['name']}: {failure}" for one in result["scenarios"] for failure in one["failures"]]
    return report.terminal(result) + ["", f"{path}", f"{page}"], failures


def compared(settings, bed, chosen, began):
    """Two revisions."""
    pair, pure = compare.prepare(settings)
    results = compare.run(pair, chosen, bed, settings)
    return document("compare", settings, bed, pair, began, scenarios=results, pure=pure)


def measured(settings, bed, chosen, began):
    """Everybody."""
    entered = choose_contenders(settings)
    minutes = measure.plan_seconds(chosen, entered, settings) / 60
    print(f"about {minutes:.0f} minutes when the machine is left alone, {report.NETWORKS[bed.network.name]}"
          f"{'' if os.geteuid() == 0 else ': namespaces need root'}", file=sys.stderr)
    results = measure.run_all(entered, chosen, bed, settings)
    speed = crypto.measure(bed.contender_cpus) if any(one.tls for one in chosen) else None
    left_out = {} if all(who.can_reload() for who in entered if who.kind == "ringgate") else scenarios.LEFT_OUT
    return document("run", settings, bed, entered, began, scenarios=results, crypto=speed, left_out=left_out)


def main(argv=None):
    """The program: a failed measurement is one line and exit code 1."""
    settings = parse(argv)
    try:
        if settings.list:
            print("\n".join(f"{one.name:<22} {one.group}: {one.title}" for one in scenarios.ALL))
        elif settings.report:
            print(report.write(json.loads(settings.report.read_text()), settings.report))
        else:
            lines, failures = run(settings)
            print("\n".join(lines))
            if failures:
                raise BenchError("requests failed:\n" + "\n".join(failures))
    except BenchError as error:
        sys.exit(f"bench/run: {error}")
    except (OSError, ValueError) as error:
        sys.exit(f"bench/run: {type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
