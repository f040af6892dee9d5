#!/usr/bin/env python3
"""Failover measured from a client: how long no request succeeds. Ringgate beside keepalived and nginx, in turns.

    bench/ha.py [--repeat 50] [--only kill,stop,cable,partition,reload,release,prefer] [--intervals 100,10]
    bench/ha.py --repeat 0 --false-takeovers 8,16 [--seconds 60]

Each pair of nodes is on a switch of its own (network namespaces); a client starts a request every 4 ms, each on a new
connection. The gap is the longest time between two successes around the fault. A partition is measured twice: when it
comes, and when it heals. One pair at a time is touched and measured; the others only wait meanwhile, for a lease to end or
for the first node to be active again. A repetition is disturbed, said and repeated when something of the bench did not work
(`ip` did not return, the first node was not active in 20 s), or when a CPU was away meanwhile for longer than a backup waits
for an advertisement that is late, as seen by a witness of the highest real-time priority on each: nobody can be on time then.
`--false-takeovers` counts take-overs that nothing caused while so many busy loops use the CPUs.
What comes out are tables; how it goes is said on standard error. Needs root, keepalived and nginx.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from ha_nodes import VIP, KeepalivedNode, RinggateNode  # noqa: E402
from ha_overload import Witnesses, false_takeovers, head, slack  # noqa: E402
from harness.lan import Lan, Load  # noqa: E402
from harness.tools import PATIENCE, eventually  # noqa: E402

# Seconds after a repair in which the client has to reach the first node again.
HEALED_IN = 5
FAULTS = ("kill", "stop", "cable", "partition", "reload", "release", "prefer")
# Clients' attempts are waited for in hand-overs: a handshake that is ignored is tried again after 1 and 3 s.
PLANNED = ("reload", "release", "prefer")
KINDS = {"ringgate": RinggateNode, "keepalived+nginx": KeepalivedNode}
# What a machine that stands still makes of the bench's own work.
TROUBLE = (AssertionError, OSError, RuntimeError, ValueError, subprocess.SubprocessError)
IN_A_ROW = 10
NAMES = {
    "kill": "kill -9",
    "stop": "SIGSTOP",
    "cable": "cable pulled",
    "partition": "partition",
    "heal": "the partition heals",
    "reload": "reload",
    "release": "`release` (keepalived: SIGTERM)",
    "prefer": "`prefer` on the backup (keepalived: a higher priority and a reload)",
}


class Pair:
    """Two nodes of a kind and a client."""

    def __init__(self, kind, interval_ms, directory, node=""):
        self.kind, self.interval_ms, self.stack = kind, interval_ms, contextlib.ExitStack()
        self.measured = None
        lan = self.stack.enter_context(Lan())
        directory = Path(directory)
        self.a = kind(lan.host(), directory / "a", "a", 200, interval_ms, node)
        self.b = kind(lan.host(), directory / "b", "b", 100, interval_ms, node)
        self.client = lan.host()
        for one in (self.a, self.b):
            self.stack.callback(one.stop)
            one.start()

    def close(self):
        self.stack.close()

    def settled(self):
        """The first holds the address and nobody else does."""
        holders = [one for one in (self.a, self.b) if VIP in one.host.addresses("eth0")]
        return holders == [self.a]

    def await_settled(self):
        eventually(self.settled, 20 / PATIENCE, "the first node holds the address", every=0.1)

    def once(self, fault, alone):
        """One fault, and the end of a partition: what -> (gap in seconds, attempts that failed)."""
        load, spans = Load(self.client, VIP, patience=5.0 if fault in PLANNED else 1.0), {}
        try:
            with alone:
                load.__enter__()
                load.await_from("a", HEALED_IN / PATIENCE)
                spans[fault] = self._measured(load, fault, self._break, "b")
                if fault == "partition":
                    time.sleep(0.1)
                    spans["heal"] = self._measured(load, fault, self._mend, "a")
                load.over.set()
        finally:
            # Attempts that are under way end, or fail.
            load.__exit__()
        self.measured = min(at for _, at, _ in spans.values()), max(end for *_, end in spans.values())
        results = {}
        for name, (gap, at, end) in spans.items():
            lost = len([f for f in load.failures if at <= f[0] <= end])
            results[name] = gap, lost
            if gap > 10 * self.interval_ms / 1000 + 0.5:
                self.explain(name, gap)
        if results.get("heal", (0, 0))[0] == float("inf"):
            self.client.ip("neigh", "flush", "dev", "eth0")  # or it would go on asking the wrong node
        return results

    def recover(self, fault):
        """After a repetition that did not end: as it was before, if the machine lets us."""
        for _ in range(5):
            try:
                if fault == "kill" and self.a.is_running():
                    return
                self._mend(fault)
                return
            except TROUBLE as error:
                print(f"{fault}: not put right yet: {error}", file=sys.stderr)
                time.sleep(1)

    def _measured(self, load, fault, act, answers):
        """The gap around what `act` does until this node answers, and between what times that was."""
        time.sleep(0.1 + random.uniform(0, self.interval_ms / 1000))
        at = time.monotonic()
        act(fault)
        if fault == "reload":
            time.sleep(0.3 + 5 * self.interval_ms / 1000)  # nobody is to take over meanwhile
        else:
            try:
                load.await_from(answers, HEALED_IN / PATIENCE)
            except AssertionError:
                return float("inf"), at, time.monotonic()
        time.sleep(0.05)
        end = time.monotonic()
        return load.gap(at, end), at, end

    def explain(self, fault, gap):
        """What the nodes and the client's kernel say about an unusually long gap."""
        print(f"{fault}: {gap:.3f} s; client: {self.client.ip('neigh', 'show', VIP).strip()}", file=sys.stderr)
        for one in (self.a, self.b):
            mac = one.host.ip("link", "show", "eth0").split("ether ")[1][:17]
            print(f"{one.name} {mac}\n{one.said()[-1200:]}", file=sys.stderr)

    def _break(self, fault):
        match fault:
            case "kill":
                self.a.kill()
            case "stop":
                self.a.signal(signal.SIGSTOP)
            case "cable":
                self.a.host.plug("eth0", False)
            case "partition":
                self.a.host.isolate("eth0", True)
            case "reload":
                self.a.reload()
            case "release":
                self.a.release()
            case "prefer":
                self.b.prefer()

    def _mend(self, fault):
        match fault:
            case "kill":
                self.a.start()
            case "stop":
                self.a.signal(signal.SIGCONT)
            case "cable":
                self.a.host.plug("eth0", True)
            case "partition":
                self.a.host.isolate("eth0", False)
            case "release":
                self.a.unrelease()
            case "prefer":
                self.b.unprefer()

    def round(self, fault, alone):
        """Once, with the rest of the bench at rest while it counts."""
        self.await_settled()
        results = self.once(fault, alone)
        if fault == "kill":
            eventually(self.a.cleaned, 10, "the address of the dead gone", every=0.1)
        if fault != "partition":
            with alone:
                self._mend(fault)
        return results


class Turns:
    """`with turns:` for one at a time, in the order of asking."""

    def __init__(self):
        self.condition, self.next, self.served = threading.Condition(), 0, 0

    def __enter__(self):
        with self.condition:
            mine, self.next = self.next, self.next + 1
            self.condition.wait_for(lambda: self.served == mine)

    def __exit__(self, *_):
        with self.condition:
            self.served += 1
            self.condition.notify_all()


class Rounds:
    """Repetitions of one fault for one contender: those that count, and why others do not."""

    def __init__(self, name, pair, fault):
        self.name, self.pair, self.fault = name, pair, fault
        self.found, self.disturbed = {}, []

    def run(self, wanted, alone, witnesses):
        """Until so many count; as many disturbed ones are put up with, and IN_A_ROW of them at a time."""
        valid, row = 0, 0
        while valid < wanted and len(self.disturbed) <= wanted and row < IN_A_ROW:
            begin, row = time.monotonic(), row + 1
            try:
                found = self.pair.round(self.fault, alone)
            except TROUBLE as error:
                self._repeat(f"{type(error).__name__}: {error}")
                self.pair.recover(self.fault)
                continue
            away = witnesses.longest(*self.pair.measured) if self.pair.measured else 0.0
            if away > slack(self.pair.interval_ms):
                self._repeat(f"a CPU was away for {away * 1000:.0f} ms")
                continue
            valid, row = valid + 1, 0
            for what, value in found.items():
                self.found.setdefault(what, []).append(value)
            print(f"{self.fault} {self.name} {valid}: {found} {time.monotonic() - begin:.1f} s", file=sys.stderr)

    def _repeat(self, why):
        self.disturbed.append(why)
        print(f"{self.fault} {self.name}: disturbed, repeated: {why[:300]}", file=sys.stderr, flush=True)


def faults(options, directory):
    """Gaps of every fault: (fault, contender) -> [(gap, attempts that failed)], and the repetitions that do not count."""
    contenders = {
        f"{name} {ms} ms": Pair(kind, ms, Path(directory) / f"{name}{ms}")
        for ms in options.intervals
        for name, kind in KINDS.items()
    }
    results, disturbed, alone = {}, {}, Turns()
    print(f"| fault | {' | '.join(contenders)} |\n|{'---|' * (len(contenders) + 1)}", flush=True)
    try:
        with Witnesses() as witnesses:
            for fault in options.only:
                began = time.monotonic()
                rounds = [Rounds(name, pair, fault) for name, pair in contenders.items()]
                threads = [threading.Thread(target=r.run, args=(options.repeat, alone, witnesses)) for r in rounds]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                for what in (fault, "heal") if fault == "partition" else (fault,):
                    for one in rounds:
                        results[what, one.name] = one.found.get(what, [])
                        disturbed[what, one.name] = one.disturbed
                    cells = [cell(what, one, options.repeat) for one in rounds]
                    print(f"| {NAMES[what]} | {' | '.join(cells)} |", flush=True)
                print(f"{fault}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    finally:
        for pair in contenders.values():
            with contextlib.suppress(*TROUBLE):
                pair.close()
    total = {one: sum(len(found) for (_, name), found in disturbed.items() if name == one) for one in contenders}
    said = ", ".join(f"{name} {count}" for name, count in total.items())
    print(f"\nMilliseconds, median [least to most] of {options.repeat}. Disturbed repetitions, which were repeated: {said}.")
    return results, disturbed


def cell(fault, rounds, wanted):
    """What stands in the table of one contender."""
    values = rounds.found.get(fault, [])
    gaps = sorted(gap * 1000 for gap, _ in values if gap != float("inf"))
    text = f"{statistics.median(gaps):.0f} [{gaps[0]:.0f}\u2013{gaps[-1]:.0f}]" if gaps else "never healed"
    if len(values) != wanted:
        text = f"{text} ({len(values)} of {wanted})"
    if len(values) > len(gaps):
        text += f", {len(values) - len(gaps)} not healed in {HEALED_IN} s"
    if fault in PLANNED:
        text += f", {sum(count for _, count in values) or 'none'} lost"
    return text


def numbers(text):
    return [int(number) for number in text.split(",") if number]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(FAULTS))
    parser.add_argument("--intervals", type=numbers, default=[100, 10], help="between advertisements, ms")
    parser.add_argument("--false-takeovers", type=numbers, default=[], metavar="LOOPS")
    parser.add_argument("--seconds", type=int, default=60, help="for --false-takeovers")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    print(f"{os.cpu_count()} CPUs, Linux {os.uname().release}, loadavg {os.getloadavg()[0]:.1f}\n", flush=True)
    results = {}
    with tempfile.TemporaryDirectory(prefix="ringgate-ha-") as directory:
        if options.repeat:
            gaps, disturbed = faults(options, directory)
            results["disturbed"] = {f"{fault} {name}": why for (fault, name), why in disturbed.items()}
            results["gaps_s"] = {f"{fault} {name}": [gap for gap, _ in v] for (fault, name), v in gaps.items()}
            results["failed"] = {f"{fault} {name}": sum(n for _, n in v) for (fault, name), v in gaps.items()}
        if options.false_takeovers:
            print(f"\n{head()}", flush=True)
        for loops in options.false_takeovers:
            found = false_takeovers(Pair, loops, options.intervals, options.seconds, Path(directory))
            results[f"false take-overs with {loops} loops"] = found
    print(f"\n{time.monotonic() - began:.0f} s in all", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
