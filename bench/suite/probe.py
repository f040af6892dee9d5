"""System calls per request, in slices of their own because counting slows the contender."""

import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from . import BenchError
from .load import run

WARMUP_SECONDS = 0.2
SECONDS = 0.7


def measure(server, scenario, bed):
    """System calls per request by perf, else by strace; None with the reason when neither works."""
    reasons = []
    for how, count in (("perf", by_perf), ("strace", by_strace)):
        if shutil.which(how) is None:
            reasons.append(f"{how} is not installed")
            continue
        try:
            result, per_second = run(server, scenario, bed, WARMUP_SECONDS, SECONDS,
                                     during=lambda pids, seconds, count=count: count(pids, seconds, bed))
            return {"syscalls_per_request": per_second / result["requests_per_second"], "how": how}
        except (BenchError, OSError, ValueError, subprocess.SubprocessError) as error:
            reasons.append(f"{how}: {error}")
    return {"syscalls_per_request": None, "how": "; ".join(reasons)}


def by_perf(pids, seconds, bed):
    """System calls a second, from the kernel's tracepoint at their entry."""
    command = ["taskset", "-c", ",".join(map(str, bed.load_cpus)), "perf", "stat", "-x,", "-e",
               "raw_syscalls:sys_enter,duration_time", "-p", ",".join(map(str, pids)), "--", "sleep", f"{seconds:.2f}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False)
    counts = {fields[2]: fields[0] for line in done.stderr.splitlines() if len(fields := line.split(",")) > 2}
    calls, duration_ns = (counts.get(name, "") for name in ("raw_syscalls:sys_enter", "duration_time"))
    if done.returncode != 0 or not calls.isdigit() or not duration_ns.isdigit():
        raise BenchError((done.stderr.strip().splitlines() or ["no answer"])[0])
    return int(calls) * 1e9 / int(duration_ns)


def by_strace(pids, seconds, bed):
    """System calls a second, as strace counts them: it slows the contender by an order of magnitude."""
    with tempfile.NamedTemporaryFile("r", prefix="ringgate-bench-strace-") as output:
        command = ["taskset", "-c", ",".join(map(str, bed.load_cpus)), "strace", "-c", "-f", "-o", output.name]
        tracer = subprocess.Popen(command + [f"-p{pid}" for pid in pids], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(seconds)
        tracer.send_signal(signal.SIGINT)
        complaint = tracer.communicate(timeout=10)[1]
        totals = [line.split() for line in Path(output.name).read_text().splitlines() if line.endswith("total")]
    if not totals:
        raise BenchError((complaint.strip().splitlines() or ["no answer"])[0])
    calls = next(int(word) for word in totals[0][3:] if word.isdigit())
    return calls / seconds
