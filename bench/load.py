"""One slice: wrk against one contender for a few seconds, with what the contender and the CPUs did meanwhile."""

import json
import math
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from contender import BENCH, HOST, BenchError, process_tree, spawn, stat_fields

TICKS = os.sysconf("SC_CLK_TCK")
# Idle share of the contender's CPU above which its throughput and latency were set by somebody else.
IDLE_MAX = 0.05
# Share of the contender's CPU used by others, or of either CPU stolen, above which a slice counts as disturbed.
FOREIGN_MAX = 0.05


@dataclass
class Usage:
    """Counters of a process tree at one moment."""

    thread_ns: dict
    ticks: int
    switches: int

    @staticmethod
    def of(pids):
        thread_ns, ticks, switches = {}, 0, 0
        for pid in pids:
            fields = stat_fields(pid)
            ticks += int(fields[11]) + int(fields[12])
            for task in Path(f"/proc/{pid}/task").iterdir():
                try:
                    thread_ns[task.name] = int((task / "schedstat").read_text().split()[0])
                    switches += sum(int(line.split()[1]) for line in (task / "status").read_text().splitlines()
                                    if "_ctxt_switches" in line)
                except OSError:
                    continue
        return Usage(thread_ns, ticks, switches)

    def cpu_seconds_since(self, before):
        """CPU time since `before`. The scheduler's nanoseconds when no thread ended meanwhile, else utime + stime.

        Both are the same clock in the kernel; /proc/PID/stat only rounds it to 10 ms, 0.7 % of a short slice.
        """
        ticks = (self.ticks - before.ticks) / TICKS
        precise = (sum(self.thread_ns.values()) - sum(before.thread_ns.values())) / 1e9
        complete = before.thread_ns.keys() <= self.thread_ns.keys()
        return precise if complete and abs(precise - ticks) < 0.05 + 0.02 * ticks else ticks


def cpu_ticks(cpu):
    """Idle, stolen and busy ticks of one CPU from /proc/stat."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith(f"cpu{cpu} "):
            user, nice, system, idle, iowait, irq, softirq, steal = map(int, line.split()[1:9])
            return {"idle": idle + iowait, "steal": steal, "busy": user + nice + system + irq + softirq}
    raise BenchError(f"/proc/stat has no cpu{cpu}")


def run_wrk(port, connections, seconds, cpu):
    """Loads a port; returns wrk's counters. wrk takes whole seconds only, so SIGINT ends it, as at a terminal."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{math.ceil(seconds) + 5}s", "--timeout", "5s", "--latency",
               "-H", f"Host: {HOST}", "-s", str(BENCH / "wrk.lua"), f"http://127.0.0.1:{port}/"]
    process = spawn(cpu, command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=15)[0]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    results = [line[7:] for line in output.splitlines() if line.startswith("RESULT ")]
    if process.returncode != 0 or not results:
        raise BenchError(f"wrk failed with {process.returncode}:\n{output}")
    result = json.loads(results[0])
    if result["requests"] == 0:
        raise BenchError(f"wrk got no response:\n{output}")
    return result


def measure(server, connections, settings):
    """Warms the contender up at this number of connections, then measures one slice of it."""
    warm = run_wrk(server.port, connections, settings.warmup, settings.load_cpu)
    pids = process_tree(server.process.pid)
    cpus = settings.contender_cpu, settings.load_cpu
    ticks_before, used_before, began = [cpu_ticks(cpu) for cpu in cpus], Usage.of(pids), time.monotonic()
    wrk = run_wrk(server.port, connections, settings.seconds, settings.load_cpu)
    if process_tree(server.process.pid) != pids:
        raise BenchError(f"{server.label}: a process ended or was started during a slice:\n{server.tail()}")
    used, ticks, wall = Usage.of(pids), [cpu_ticks(cpu) for cpu in cpus], time.monotonic() - began
    cpu_seconds = used.cpu_seconds_since(used_before)
    spent = [{key: (after[key] - before[key]) / TICKS for key in after} for before, after in zip(ticks_before, ticks)]
    loaded = wrk["duration_us"] / 1e6
    # wrk's start and exit leave the contender idle; that is no sign of a bottleneck elsewhere.
    idle = [max(0.0, cpu["idle"] - (wall - loaded)) / loaded for cpu in spent]
    foreign = max(0.0, spent[0]["busy"] - cpu_seconds) / wall
    steal = max(cpu["steal"] for cpu in spent) / wall
    saturated, disturbed = idle[0] <= IDLE_MAX, foreign > FOREIGN_MAX or steal > FOREIGN_MAX
    return {
        "contender": server.label,
        "connections": connections,
        "requests": wrk["requests"],
        "requests_per_second": wrk["requests"] / loaded,
        "cpu_us_per_request": cpu_seconds * 1e6 / wrk["requests"],
        "p50_us": wrk["p50_us"],
        "p99_us": wrk["p99_us"],
        "switches_per_1000": (used.switches - used_before.switches) * 1000 / wrk["requests"],
        "contender_cpu_idle": idle[0],
        "load_cpu_idle": idle[1],
        "foreign": foreign,
        "steal": steal,
        "saturated": saturated,
        "disturbed": disturbed,
        "throughput_valid": saturated and not disturbed,
        "errors": {key: warm["errors"][key] + wrk["errors"][key] for key in wrk["errors"]},
    }
