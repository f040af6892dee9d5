#!/usr/bin/env python3
"""Failover measured from a client: how long no request succeeds. Ringgate beside keepalived and nginx, in turns.

    bench/ha.py [--repeat 50] [--only kill,stop,cable,partition,reload,release,prefer] [--intervals 100,10]
    bench/ha.py --repeat 0 --false-takeovers 8,16 [--seconds 60]

Each pair of nodes is on a switch of its own (network namespaces); a client starts a request every 4 ms, each on a new
connection. The gap is the longest time between two successes around the fault. A partition is measured twice: when it
comes, and when it heals. One pair at a time is touched and measured; the others only wait meanwhile, for a lease to end or
for the first node to be active again. `--false-takeovers` counts take-overs that nothing caused while so many busy loops
use the CPUs. Needs root, keepalived and nginx.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from ha_nodes import VIP, KeepalivedNode, RinggateNode  # noqa: E402
from ha_overload import false_takeovers  # noqa: E402
from harness.lan import Lan, Load  # noqa: E402
from harness.tools import PATIENCE, eventually  # noqa: E402

# Seconds after a repair in which the client has to reach the first node again.
HEALED_IN = 5
FAULTS = ("kill", "stop", "cable", "partition", "reload", "release", "prefer")
# Clients' attempts are waited for in hand-overs: a handshake that is ignored is tried again after 1 and 3 s.
PLANNED = ("reload", "release", "prefer")
KINDS = {"ringgate": RinggateNode, "keepalived+nginx": KeepalivedNode}


class Pair:
    """Two nodes of a kind and a client."""

    def __init__(self, kind, interval_ms, directory, node=""):
        self.kind, self.interval_ms, self.stack = kind, interval_ms, contextlib.ExitStack()
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
        results = {}
        for name, (gap, at, end) in spans.items():
            lost = len([f for f in load.failures if at <= f[0] <= end])
            results[name] = gap, lost
            if gap > 10 * self.interval_ms / 1000 + 0.5:
                self.explain(name, gap)
        if results.get("heal", (0, 0))[0] == float("inf"):
            self.client.ip("neigh", "flush", "dev", "eth0")  # or it would go on asking the wrong node
        return results

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


def faults(options, directory):
    """Gaps of every fault: (fault, contender) -> [(gap, attempts that failed)]."""
    contenders = {
        f"{name} {ms} ms": Pair(kind, ms, Path(directory) / f"{name}{ms}")
        for ms in options.intervals
        for name, kind in KINDS.items()
    }
    results, alone = {}, Turns()

    def run(name, pair, fault):
        for _ in range(options.repeat):
            try:
                found = pair.round(fault, alone)
            except (AssertionError, OSError) as error:
                print(f"{fault} {name}: {error}", file=sys.stderr)
                found = {fault: (float("inf"), 0)}
            for what, value in found.items():
                results.setdefault((what, name), []).append(value)

    try:
        for fault in options.only:
            threads = [threading.Thread(target=run, args=(n, p, fault)) for n, p in contenders.items()]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for what in (fault, "heal") if fault == "partition" else (fault,):
                for name in contenders:
                    show(what, name, results[what, name])
    finally:
        for pair in contenders.values():
            pair.close()
    return results


def show(fault, name, values):
    gaps = sorted(gap * 1000 for gap, _ in values if gap != float("inf"))
    lost, never = sum(count for _, count in values), len(values) - len(gaps)
    text = "none healed"
    if gaps:
        text = f"gap ms min {gaps[0]:7.1f} median {statistics.median(gaps):7.1f} max {gaps[-1]:7.1f}"
    failed = f"not healed in {HEALED_IN} s: {never}" if never else ""
    print(f"{fault:10} {name:26} n={len(values):3} {text}   attempts that failed {lost} {failed}", flush=True)


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
    print(f"{os.cpu_count()} CPUs, Linux {os.uname().release}, loadavg {os.getloadavg()[0]:.1f}", flush=True)
    results = {}
    with tempfile.TemporaryDirectory(prefix="ringgate-ha-") as directory:
        if options.repeat:
            gaps = faults(options, directory)
            results["gaps_s"] = {f"{fault} {name}": [gap for gap, _ in v] for (fault, name), v in gaps.items()}
            results["failed"] = {f"{fault} {name}": sum(n for _, n in v) for (fault, name), v in gaps.items()}
        for loops in options.false_takeovers:
            found = false_takeovers(Pair, loops, options.intervals, options.seconds, Path(directory))
            results[f"false take-overs with {loops} loops"] = found
    print(f"{time.monotonic() - began:.0f} s", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
