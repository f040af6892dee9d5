"""Load: ringgate-bench against one contender, with what the contender and the CPUs did meanwhile."""

import json
import select
import subprocess
import threading
import time

from . import BenchError
from .contenders import BENCH, route_paths
from .distance import Distance
from .process import HOST, process_tree, spawn
from .usage import TICKS, Foreign, Moment

# How long the generator may take to get ready, and to end after the measured time.
READY_SECONDS = 30
# Idle share of the contender's CPUs above which its throughput and latency were set by somebody else.
IDLE_MAX = 0.05
# Share of the contender's CPUs used by others, or stolen by the hypervisor, above which a slice counts as disturbed.
FOREIGN_MAX = 0.05
# Time between two reloads in the scenario that has them.
RELOAD_SECONDS = 0.25
# Ticks that the busy time of a slice may be off: one at each end.
TICKS_ROUNDED = 2


def command(server, scenario, bed, warmup, seconds, rate=None):
    """The generator's command line."""
    scheme = "https" if scenario.tls else "http"
    line = [BENCH, "run", f"{scheme}://{server.address}:{server.port}{scenario.path}", "--json", "-", "--no-live",
            "--connections", scenario.connections, "--warmup", f"{warmup * 1000:.0f}ms",
            "--duration", f"{seconds * 1000:.0f}ms", "--timeout", "10s", "--header", f"Host: {HOST}",
            "--threads", len(bed.load_cpus), *scenario.options]
    line += ["--insecure", "--server-name", HOST] if scenario.tls else []
    line += ["--http2", "--streams", scenario.streams] if scenario.http2 else []
    if scenario.routes and not scenario.reload:
        mix = server.directory / "mix.txt"
        mix.write_text("".join(f"1 GET {path}item\n" for path in route_paths(scenario.routes)))
        line += ["--requests", mix]
    return line + (["--rate", rate] if rate else [])


def run(server, scenario, bed, warmup, seconds, rate=None, during=None):
    """One run; returns the generator's result, and what was counted meanwhile or what `during` returned.

    The generator says when its measured time begins and ends, and the kernel's counters are read then.
    """
    foreign = Foreign(bed.contender_cpus, server.process.pid) if bed.apart else None
    process = spawn(bed.load_cpus, [*command(server, scenario, bed, warmup, seconds, rate), "--marks"],
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    deadline = time.monotonic() + READY_SECONDS + warmup + seconds
    try:
        # Of what reloads, processes come and go.
        pids = [server.process.pid] if scenario.reload else process_tree(server.process.pid)
        begun = await_mark(process, "measuring", deadline)
        reloads = Reloads(server) if scenario.reload and begun else None
        before = Moment.of(pids, bed)
        seen = during(pids, 0.9 * seconds) if during and begun else None
        if begun:
            await_mark(process, "measured", deadline)
        if reloads:
            reloads.stop()
        seen = seen or Moment.of(pids, bed).since(before)
        result = finish(process, server, scenario)
        return result | {"reloads": reloads.count if reloads else 0}, seen | {"foreign": foreign.cpus_taken() if foreign else None}
    finally:
        end(process)


class Reloads:
    """Reloads a contender again and again, until stopped."""

    def __init__(self, server):
        self.server, self.count, self.over = server, 0, threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        """The thread."""
        while not self.over.wait(RELOAD_SECONDS):
            self.server.reload()
            self.count += 1

    def stop(self):
        """Returns when there will be no more."""
        self.over.set()
        self.thread.join()


def await_mark(process, word, deadline):
    """Waits for a line of the generator's standard error; false when it ended instead."""
    ready, _, _ = select.select([process.stderr], [], [], max(0.0, deadline - time.monotonic()))
    if not ready:
        raise BenchError(f"the load generator did not say that it is {word}")
    line = process.stderr.readline().decode(errors="replace").strip()
    if line and line != word:
        raise BenchError(f"the load generator said {line!r} where {word!r} was due")
    return bool(line)


def finish(process, server, scenario):
    """The generator's result, once it has ended."""
    output, complaint = process.communicate(timeout=READY_SECONDS)
    if process.returncode != 0:
        said = complaint.decode(errors="replace")
        raise BenchError(f"{server.label}, {scenario.name}: the load generator failed: {said}\n{server.tail()}")
    return json.loads(output)


def end(process):
    """Ends a generator that was given up."""
    if process.poll() is None:
        process.kill()
        process.wait()


def whole_run_of(server, scenario, bed, warmup, seconds):
    """A short slice of a warm contender: its CPU time from before the load to after it, over all responses.

    The contender is idle at both ends, so that the kernel's account is exact, and no time is lost to margins; the
    price is that opening the connections is in it.
    """
    pids, distance = process_tree(server.process.pid), Distance(bed)
    before = Moment.of(pids, bed)
    process = spawn(bed.load_cpus, command(server, scenario, bed, warmup, seconds), stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE)
    try:
        result = finish(process, server, scenario)
    finally:
        end(process)
    seen = Moment.of(pids, bed).since(before)
    responses, span = result["requests"]["responses"], seen["seconds"]
    own = bed.share(seen, bed.contender_cpus)
    cpu = seen["cpu"] + (own["softirq"] * len(bed.contender_cpus) if bed.irq_time else 0.0)
    foreign = max(0.0, own["busy"] * len(bed.contender_cpus) - cpu)
    apart = distance.seen()
    return apart | {
        "contender": server.label,
        "requests": responses,
        "requests_per_second": result["requests_per_second"],
        "cpu_us_per_request": cpu * span * 1e6 / responses,
        "p50_us": result["latency_us"]["p50"], "p99_us": result["latency_us"]["p99"],
        "switches_per_request": seen["switches_per_second"] * span / responses,
        "rss": seen["rss"], "foreign": foreign, "steal": own["steal"],
        "disturbed": apart["moved"] or is_disturbed(foreign, own["steal"], span, bed),
        "errors": {kind: count for kind, count in result["errors"].items() if count},
    }


def slice_of(server, scenario, bed, warmup, seconds, rate=None):
    """Warms the contender up, then measures one slice."""
    distance = Distance(bed)
    result, seen = run(server, scenario, bed, warmup, seconds, rate)
    apart = distance.seen()
    per_second, measured = result["requests_per_second"], result["requests"]["measured"]
    if measured == 0:
        raise BenchError(f"{server.label}, {scenario.name}: no response in the measured time\n{server.tail()}")
    own = bed.share(seen, bed.contender_cpus)
    cpu, foreign = cpu_taken(seen, own, bed, scenario)
    idle = {"contender": own["idle"], "load": bed.share(seen, bed.load_cpus)["idle"],
            "origin": bed.share(seen, bed.origin_cpus)["idle"]}
    latency = result["latency_us"]
    per_request = lambda a_second: a_second * seen["seconds"] / measured
    disturbed = apart["moved"] or is_disturbed(foreign, own["steal"], seen["seconds"], bed)
    return apart | {
        "contender": server.label,
        "rate": rate,
        "requests": measured,
        "requests_per_second": per_second,
        "cpu_us_per_request": per_request(cpu * 1e6),
        # With the kernel's threads on these CPUs and whatever else ran there.
        "busy_us_per_request": per_request(own["busy"] * len(bed.contender_cpus) * 1e6),
        "p50_us": latency["p50"], "p99_us": latency["p99"], "p99_9_us": latency["p99_9"], "max_us": latency["max"],
        "behind_mean_us": result["behind_us"]["mean"],
        "unsent": result["requests"]["unsent"] + result["errors"]["overdue"],
        "switches_per_request": per_request(seen["switches_per_second"]),
        "segments_per_request": per_request(seen["segments_per_second"]),
        "link_bytes_per_request": per_request(seen["link_bytes_per_second"]),
        "body_bytes_per_second": result["bytes_per_second"],
        "rss": seen["rss"], "reloads": result["reloads"], "connections_opened": result["connections_opened"],
        "idle": idle, "foreign": foreign, "steal": own["steal"],
        "bottleneck": bottleneck(idle, disturbed, bed),
        "disturbed": disturbed,
        "valid": idle["contender"] <= IDLE_MAX and not disturbed,
        "errors": {kind: count for kind, count in result["errors"].items() if count and kind != "overdue"},
    }


def cpu_taken(seen, own, bed, scenario):
    """CPUs' time that the contender took, and that others did of its CPUs."""
    count = len(bed.contender_cpus)
    if bed.apart:
        # Idle time is exact, what was busy is sampled by the tick and misses what interrupts do to a CPU that sleeps.
        return max(0.0, (1.0 - own["idle"] - own["steal"]) * count - seen["foreign"]), seen["foreign"]
    busy = own["busy"] * count
    # Kept apart from the threads' time by some kernels, but spent for them.
    cpu = busy if scenario.reload else seen["cpu"] + (own["softirq"] * count if bed.irq_time else 0.0)
    return cpu, max(0.0, busy - cpu)


def is_disturbed(foreign, steal, seconds, bed):
    """Whether others had more of the contender's CPUs than may be, beyond what the ticks of /proc/stat round."""
    rounding = TICKS_ROUNDED / TICKS / seconds
    return foreign > FOREIGN_MAX * len(bed.contender_cpus) + rounding or steal > FOREIGN_MAX + rounding


def bottleneck(idle, disturbed, bed):
    """Whose CPUs had no time left; nobody's when all waited for each other."""
    if idle["contender"] <= IDLE_MAX:
        return "others on the contender's CPU" if disturbed else "contender"
    if bed.load_cpus == bed.origin_cpus:
        return "load and origin" if idle["load"] <= IDLE_MAX else "nobody"
    tight = [who for who in ("load", "origin") if idle[who] <= IDLE_MAX]
    return " and ".join(tight) or "nobody"
