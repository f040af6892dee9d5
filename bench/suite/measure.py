"""A whole run: scenarios, rounds, contenders in turn, one at a time.

Every slice has a freshly started contender, alone on its CPUs, so that no process keeps a lucky memory layout, and
contenders take turns within a round, so that drift of the machine hits them alike and ratios are taken within a
round. What is left of the noise shows in the spread.
"""

import math
import sys
import time
from contextlib import contextmanager

from . import BenchError, memory, probe, stats
from .contenders import Origin, check_answer, check_same_work, start, start_echo
from .load import slice_of

LEVELS = (30, 70, 100)
FIGURES = ("requests_per_second", "cpu_us_per_request", "busy_us_per_request", "p50_us", "p99_us", "p99_9_us", "switches_per_request",
           "segments_per_request", "link_bytes_per_request", "rss")
IDLE_FIGURES = ("rss_per_connection", "slab_per_connection", "rss_before", "rss")
RATIOS = ("cpu_us_per_request", "requests_per_second", "p99_us")
# Large bodies in flight leave the pools of connections unsettled for longer.
WARMUP_MAX_SECONDS = 1.5
# What starting and stopping a contender and the load takes, and a slice of 10,000 idle connections; for the estimate.
START_SECONDS, IDLE_SECONDS = 0.25, 7.0


class Progress:
    """Lines on standard error."""

    def __init__(self, total):
        self.total, self.done, self.began = total, 0, time.monotonic()

    def note(self, scenario, what, text):
        """One more slice."""
        self.done += 1
        elapsed = time.monotonic() - self.began
        left = elapsed / self.done * max(self.total - self.done, 0)
        print(f"{elapsed:5.0f}s, {left:4.0f}s left  {scenario.name:<20} {what:<24} {text}", file=sys.stderr)


def turns(contenders, number):
    """The contenders in the order of a round."""
    shift = number % len(contenders)
    return contenders[shift:] + contenders[:shift]


@contextmanager
def started(who, bed, origin, scenario):
    """A freshly started contender that answers as it should."""
    server = start(who, bed, origin, scenario)
    try:
        check_answer(server, scenario)
        yield server
    finally:
        server.stop()


def rounds_of(scenario, settings):
    """How often a scenario is measured."""
    return max(1, math.ceil(settings.rounds * scenario.rounds))


def warmup_of(scenario, settings):
    """Seconds of load before a slice."""
    return max(scenario.warmup, min(settings.warmup * scenario.seconds, WARMUP_MAX_SECONDS))


def plan_size(scenarios, contenders, settings):
    """Slices in all."""
    total = 0
    for scenario in scenarios:
        count = sum(who.kind in scenario.contenders for who in contenders)
        levels = settings.latency_rounds * len(LEVELS) if scenario.latency else 0
        probes = is_probed(scenario, settings)
        total += count * (rounds_of(scenario, settings) + levels + probes)
    return total


def is_probed(scenario, settings):
    """Whether system calls are counted."""
    return settings.syscalls and scenario.syscalls and not scenario.idle


def plan_seconds(scenarios, contenders, settings):
    """About how long it takes on a machine that is left alone."""
    total = 0.0
    for scenario in scenarios:
        count = sum(who.kind in scenario.contenders for who in contenders)
        warmup = warmup_of(scenario, settings)
        slice_seconds = IDLE_SECONDS if scenario.idle else warmup + settings.seconds * scenario.seconds
        seconds = rounds_of(scenario, settings) * (slice_seconds + START_SECONDS)
        if scenario.latency:
            seconds += settings.latency_rounds * len(LEVELS) * (settings.warmup + settings.latency_seconds + START_SECONDS)
        if is_probed(scenario, settings):
            seconds += probe.WARMUP_SECONDS + probe.SECONDS + 2 * START_SECONDS
        total += count * seconds
    return total


def check(contenders, scenarios, bed):
    """Fails unless all contenders do the same work."""
    echo = start_echo(bed)
    try:
        for scenario in {(one.balance, one.tls, one.http2): one for one in scenarios if not one.idle}.values():
            origin = Origin(bed, scenario.body, scenario.servers)
            try:
                for who in contenders:
                    if who.kind in scenario.contenders:
                        check_same_work(who, bed, origin, scenario, echo)
            finally:
                origin.stop()
    finally:
        echo.stop()


def run_all(contenders, scenarios, bed, settings):
    """Everything; a dictionary for each scenario."""
    check(contenders, scenarios, bed)
    progress = Progress(plan_size(scenarios, contenders, settings))
    results = []
    for scenario in scenarios:
        entered = [who for who in contenders if who.kind in scenario.contenders and (not scenario.reload or who.can_reload())]
        if not entered:
            continue
        try:
            results.append(run_scenario(entered, scenario, bed, settings, progress))
        except BenchError as error:
            # The others are worth having; this one fails the run at its end.
            print(f"{scenario.name}: {error}", file=sys.stderr)
            results.append(summarise([], scenario, [], [], {}) | {"failures": [str(error)]})
        except KeyboardInterrupt:
            results.append(summarise([], scenario, [], [], {}) | {"failures": ["interrupted: later ones are missing"]})
            break
    return results


def run_scenario(contenders, scenario, bed, settings, progress):
    """All rounds of a scenario, its latency levels and its system calls."""
    origin = Origin(bed, scenario.body, scenario.servers)
    try:
        slices = closed_loop(contenders, scenario, origin, bed, settings, progress)
        levels, calls = [], {}
        if scenario.latency and settings.latency_rounds:
            levels = open_loop(contenders, scenario, origin, bed, settings, slices, progress)
        if is_probed(scenario, settings):
            for who in contenders:
                with started(who, bed, origin, scenario) as server:
                    calls[who.label] = probe.measure(server, scenario, bed)
                per_request = calls[who.label]["syscalls_per_request"]
                progress.note(scenario, who.label, calls[who.label]["how"] if per_request is None
                              else f"{per_request:.2f} system calls a request")
    finally:
        origin.stop()
    return summarise(contenders, scenario, slices, levels, calls)


def attempt(measure_one):
    """Once more when it fails: a machine that is not left alone may hold a contender up for as long as a slice."""
    try:
        return measure_one()
    except BenchError as error:
        print(f"once more: {error}", file=sys.stderr)
        return measure_one()


def undisturbed(measure_one):
    """Once more when others used the contender's CPUs meanwhile; the first stays if that was no better."""
    first = attempt(measure_one)
    if not first.get("disturbed"):
        return first
    second = attempt(measure_one)
    return (first if second["disturbed"] else second) | {"repeated": True}


def closed_slice(who, scenario, origin, bed, settings):
    """One slice of one contender as fast as it goes, or of its memory."""
    with started(who, bed, origin, scenario) as server:
        if scenario.idle:
            return memory.measure(server, scenario, bed.network, min(settings.idle, scenario.connections))
        warmup = warmup_of(scenario, settings)
        return slice_of(server, scenario, bed, warmup, settings.seconds * scenario.seconds)


def open_slice(who, scenario, origin, bed, settings, rate):
    """One slice at a rate."""
    with started(who, bed, origin, scenario) as server:
        return slice_of(server, scenario, bed, settings.warmup, settings.latency_seconds, rate)


def closed_loop(contenders, scenario, origin, bed, settings, progress):
    """As fast as each goes."""
    slices = []
    for number in range(rounds_of(scenario, settings)):
        for who in turns(contenders, number):
            one = undisturbed(lambda who=who: closed_slice(who, scenario, origin, bed, settings))
            progress.note(scenario, who.label, f"{one['rss_per_connection']:.0f} bytes a connection" if scenario.idle
                          else told(one, scenario))
            slices.append({"round": number} | one)
    return slices


def open_loop(contenders, scenario, origin, bed, settings, slices, progress):
    """At shares of each contender's own maximum."""
    levels = []
    top = {who.label: stats.spread([one["requests_per_second"] for one in slices if one["contender"] == who.label])
           for who in contenders}
    for number in range(settings.latency_rounds):
        for percent in LEVELS:
            for who in turns(contenders, number):
                rate = max(1, round(top[who.label]["median"] * percent / 100))
                one = undisturbed(lambda who=who, rate=rate: open_slice(who, scenario, origin, bed, settings, rate))
                levels.append({"round": number, "percent": percent} | one)
                progress.note(scenario, f"{who.label} {percent} %", told(one, scenario))
    return levels


def told(one, scenario):
    """A slice in a line."""
    idle = one["idle"]
    marks = [mark for mark, on in (
        (f"NOT SATURATED ({one['bottleneck']})", not scenario.paced and not one["rate"] and one["bottleneck"] != "contender"),
        ("DISTURBED", one["disturbed"]), ("ERRORS", bool(one["errors"]))) if on]
    return (f"{one['requests_per_second']:>8.0f}/s {one['cpu_us_per_request']:>7.2f} us  p99 {one['p99_us'] / 1e3:.2f} ms"
            f"  idle {idle['contender']:.0%}/{idle['load']:.0%} {' '.join(marks)}")


def summarise(contenders, scenario, slices, levels, calls):
    """Spread of each figure, ratios to each peer, and what the reader must know."""
    rows = []
    figures = IDLE_FIGURES if scenario.idle else FIGURES
    for who in contenders:
        own = [one for one in slices if one["contender"] == who.label]
        row = {"contender": who.label, "kind": who.kind, "rounds": len(own)}
        row |= {figure: stats.spread([one[figure] for one in own]) for figure in figures}
        row["syscalls_per_request"] = calls.get(who.label, {}).get("syscalls_per_request")
        row["bottlenecks"] = sorted({one["bottleneck"] for one in own if "bottleneck" in one})
        row["invalid"] = sum(not one.get("valid", True) for one in own)
        row["disturbed"] = sum(one.get("disturbed", False) for one in own)
        if not scenario.idle:
            row["idle"] = {key: stats.spread([one["idle"][key] for one in own])["median"]
                           for key in ("contender", "load", "origin")}
        row["ratios"] = {
            peer.label: {figure: stats.ratio(slices, who.label, peer.label, figure)
                         for figure in (IDLE_FIGURES[:1] if scenario.idle else RATIOS)}
            for peer in contenders if peer.label != who.label}
        row["levels"] = [level_of(levels, who.label, percent) for percent in LEVELS if levels]
        rows.append(row)
    idle = scenario.idle and slices
    title = f"{slices[0]['connections']:,} idle connections" if idle else scenario.title
    return {"name": scenario.name, "title": title, "group": scenario.group, "body": scenario.body, "tls": scenario.tls,
            "streams": scenario.streams if scenario.http2 else 0, "reload": scenario.reload,
            "connections": scenario.connections, "paced": scenario.paced, "idle": scenario.idle, "rows": rows,
            "slices": slices, "level_slices": levels, "syscalls": calls,
            "failures": [f"round {one['round'] + 1}, {one['contender']}: {one['errors']}"
                         for one in slices + levels if one["errors"] and not scenario.reload]}


def level_of(levels, label, percent):
    """Latency at one share of a contender's maximum."""
    own = [one for one in levels if one["contender"] == label and one["percent"] == percent]
    figures = ("requests_per_second", "p50_us", "p99_us", "p99_9_us", "behind_mean_us")
    return {"percent": percent, "rate": own[0]["rate"], "unsent": sum(one["unsent"] for one in own),
            "load_idle": stats.spread([one["idle"]["load"] for one in own])["median"]} | {
                figure: stats.spread([one[figure] for one in own]) for figure in figures}
