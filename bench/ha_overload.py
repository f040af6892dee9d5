"""Take-overs that nothing caused, on CPUs that are too busy. Beside the contenders runs a witness, a thread of the highest
real-time priority on each CPU, which sees when the machine's own host took a CPU away: then nobody who was on it can be on time."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from ha_nodes import KeepalivedNode, RinggateNode
from harness.tools import PATIENCE, eventually

KINDS = {
    "ringgate": (RinggateNode, ""),
    "ringgate, ordinary priority": (RinggateNode, "vrrp_rt_priority = 0"),
    "keepalived": (KeepalivedNode, ""),
    "keepalived, vrrp_rt_priority 50": (KeepalivedNode, " vrrp_rt_priority 50\n"),
}
# Take-overs are counted for so long at a time, so that one absence of a CPU marks little of a minute.
SLICE = 1.0
# A take-over follows what caused it within this.
CONSEQUENCE = 1.0
# Seconds for which a witness whose bench has gone goes on.
LONGEST = 3600
WITNESS = Path(__file__).with_name("ha_witness.py")


def slack(interval_ms):
    """How much later than its time an advertisement may come before a backup of priority 100 claims, in seconds."""
    return (2 + 156 / 256) * interval_ms / 1000


class Witnesses:
    """One on each CPU from `with` to its end; `absences` has (from, to) of each time that a CPU was away."""

    def __enter__(self):
        self.absences, self.watching = [], []
        for cpu in sorted(os.sched_getaffinity(0)):
            argv = [sys.executable, WITNESS, str(cpu), str(LONGEST)]
            one = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
            self.watching.append((one, threading.Thread(target=self._listen, args=(one,), daemon=True)))
            assert one.stdout.readline() == "watching\n", "no witness: it needs real-time priority"
        for _, listening in self.watching:
            listening.start()
        return self

    def _listen(self, one):
        for line in one.stdout:
            self.absences.append(tuple(map(float, line.split())))

    def __exit__(self, kind, *_):
        gone = [one for one, _ in self.watching if one.poll() is not None]
        for one, listening in self.watching:
            one.terminate()
            one.wait(30)
            listening.join(30)
        assert kind or not gone, "a witness has gone"

    def longest(self, begin, end):
        """The longest absence that had to do with this time, in seconds."""
        return max((b - a for a, b in list(self.absences) if a < end and b > begin), default=0.0)


@contextlib.contextmanager
def busy(loops):
    """So many processes that use up the CPUs, at the ordinary priority."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        for hog in hogs:
            os.setpriority(os.PRIO_PROCESS, hog.pid, 0)
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def false_takeovers(make_pair, loops, intervals, seconds, directory):
    """All contenders at once, for so many seconds: name -> counts in quiet time and while a CPU was away."""
    with contextlib.ExitStack() as stack:
        pairs = {}
        for name, (kind, node) in KINDS.items():
            for ms in intervals:
                place = directory / f"{loops}-{len(pairs)}"
                pairs[f"{name} {ms} ms"] = pair = make_pair(kind, ms, place, node)
                stack.callback(pair.close)
        for pair in pairs.values():
            eventually(pair.settled, 20 / PATIENCE, "settled")
        # We count, and must not be late either.
        os.setpriority(os.PRIO_PROCESS, 0, -15)
        stack.callback(os.setpriority, os.PRIO_PROCESS, 0, 0)
        with Witnesses() as witnesses, busy(loops):
            stolen, slices = stolen_s(), count(pairs, seconds)
            stolen = stolen_s() - stolen
        absences = witnesses.absences
    found = {name: judge(name, pair.interval_ms, slices, absences) for name, pair in pairs.items()}
    longest = max((b - a for a, b in absences), default=0.0)
    for ms in intervals:
        cells = [cell(found[f"{name} {ms} ms"]) for name in KINDS]
        print(f"| {loops} loops, {ms} ms; CPUs away for up to {longest * 1000:.0f} ms | {' | '.join(cells)} |", flush=True)
    print(f"{loops} loops: the kernel says that {stolen:.2f} s of CPU time were stolen", file=sys.stderr)
    return found


def stolen_s():
    """CPU time that the host took, as far as it tells (proc_stat(5), `steal`)."""
    return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8]) / os.sysconf("SC_CLK_TCK")


def head():
    return f"| | {' | '.join(KINDS)} |\n|{'---|' * (len(KINDS) + 1)}"


def cell(found):
    """What nothing but the load can have caused, and what came around absences of CPUs."""
    if not found["marked_seconds"]:
        return f"{found['takeovers']}"
    return f"{found['takeovers']} (and {found['marked_takeovers']} around absences, in {found['marked_seconds']:.0f} s)"


def count(pairs, seconds):
    """[(from, to, {name: take-overs})]"""
    now = lambda: {name: pair.a.takeovers() + pair.b.takeovers() for name, pair in pairs.items()}
    slices, before, begin = [], now(), time.monotonic()
    end = begin + seconds
    while begin < end:
        time.sleep(min(SLICE, end - begin))
        after, until = now(), time.monotonic()
        slices.append((begin, until, {name: after[name] - before[name] for name in pairs}))
        before, begin = after, until
    return slices


def judge(name, interval_ms, slices, absences):
    """Take-overs in slices that no absence of a CPU touched, and in others: only where one that was away for longer than a
    backup waits for a late advertisement may have been that of a node."""
    away = [(a, b) for a, b in absences if b - a > slack(interval_ms)]
    touched = lambda begin, end: any(a < end and b + CONSEQUENCE > begin for a, b in away)
    quiet = [s for s in slices if not touched(s[0], s[1])]
    marked = [s for s in slices if touched(s[0], s[1])]
    seconds = lambda some: sum(end - begin for begin, end, _ in some)
    takeovers = lambda some: sum(counts[name] for *_, counts in some)
    return {
        "seconds": seconds(quiet), "takeovers": takeovers(quiet),
        "marked_seconds": seconds(marked), "marked_takeovers": takeovers(marked),
    }  # fmt: skip
