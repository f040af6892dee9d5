"""Take-overs that nothing caused, on CPUs that are too busy. Beside the contenders runs a witness, a thread of the highest
real-time priority on each CPU, which sees when the machine's own host took a CPU away: then nobody can be on time."""

import contextlib
import ctypes
import os
import subprocess
import sys
import time

from ha_nodes import KeepalivedNode, RinggateNode
from harness.tools import PATIENCE, eventually

KINDS = {
    "ringgate": (RinggateNode, ""),
    "ringgate, ordinary priority": (RinggateNode, "vrrp_rt_priority = 0"),
    "keepalived": (KeepalivedNode, ""),
    "keepalived, vrrp_rt_priority 50": (KeepalivedNode, " vrrp_rt_priority 50\n"),
}
# Take-overs are counted for so long at a time, so that one absence of a CPU does not mark a whole minute.
SLICE = 5.0
# A take-over follows what caused it within this.
CONSEQUENCE = 1.0
# The witness reports from here on, seconds.
NOTED = 0.004


def slack(interval_ms):
    """How much later than its time an advertisement may come before a backup of priority 100 claims, in seconds."""
    return (2 + 156 / 256) * interval_ms / 1000


def witness(cpu, seconds):
    """Prints from when to when this CPU was away (CLOCK_MONOTONIC)."""
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
    ctypes.CDLL(None, use_errno=True).mlockall(3)
    last = time.monotonic()
    end = last + seconds
    while last < end:
        time.sleep(0.001)
        now = time.monotonic()
        if now - last > NOTED:
            print(last, now, flush=True)
        last = now


@contextlib.contextmanager
def witnessed(seconds):
    """Has a witness on each CPU; yields a list that has (from, to) of every absence once this is over."""
    absences = []
    argv = [sys.executable, __file__]
    watching = [
        subprocess.Popen([*argv, str(cpu), str(seconds)], stdout=subprocess.PIPE, text=True)
        for cpu in sorted(os.sched_getaffinity(0))
    ]
    try:
        yield absences
    finally:
        for one in watching:
            one.terminate()
            said, _ = one.communicate(timeout=30)
            absences += [tuple(map(float, line.split())) for line in said.splitlines() if line.count(" ") == 1]


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
        absences = stack.enter_context(witnessed(seconds + 30))
        with busy(loops):
            slices = count(pairs, seconds)
        stack.pop_all().close()
    return {name: show(loops, name, pair.interval_ms, slices, absences) for name, pair in pairs.items()}


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


def show(loops, name, interval_ms, slices, absences):
    """Prints and returns what became of one contender."""
    away = [(a, b) for a, b in absences if b - a > slack(interval_ms)]
    touched = lambda begin, end: any(a < end and b + CONSEQUENCE > begin for a, b in away)
    quiet = [s for s in slices if not touched(s[0], s[1])]
    marked = [s for s in slices if touched(s[0], s[1])]
    seconds = lambda some: sum(end - begin for begin, end, _ in some)
    takeovers = lambda some: sum(counts[name] for *_, counts in some)
    longest = max((b - a for a, b in absences), default=0.0)
    print(
        f"{loops:2} busy loops: {name:38} false take-overs {takeovers(quiet):3} in {seconds(quiet):3.0f} s; "
        f"{takeovers(marked):3} in {seconds(marked):3.0f} s around CPUs away for more than "
        f"{slack(interval_ms) * 1000:.0f} ms (longest {longest * 1000:.0f})",
        flush=True,
    )
    return {
        "seconds": seconds(quiet), "takeovers": takeovers(quiet), "longest_absence_s": longest,
        "marked_seconds": seconds(marked), "marked_takeovers": takeovers(marked),
    }  # fmt: skip


if __name__ == "__main__":
    witness(int(sys.argv[1]), float(sys.argv[2]))
