"""System calls per request, in slices of their own because counting slows the contender."""

import os
import select
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from . import BenchError
from .load import run
from .process import process_tree

WARMUP_SECONDS = 0.2
SECONDS = 0.7
# How long a tracer may take to begin.
READY_SECONDS = 10


def measure(server, scenario, bed):
    """System calls per request by perf, else by strace; None with the reason when neither works."""
    reasons = []
    for how, count in (("perf", by_perf), ("strace", by_strace)):
        if shutil.which(how) is None:
            reasons.append(f"{how} is not installed")
            continue
        try:
            return {"syscalls_per_request": count(server, scenario, bed), "how": how}
        except (BenchError, OSError, ValueError, subprocess.SubprocessError) as error:
            reasons.append(f"{how}: {error}")
    return {"syscalls_per_request": None, "how": "; ".join(reasons)}


def by_perf(server, scenario, bed):
    """From the kernel's tracepoint at their entry, over a whole run; it says when it has begun to count."""
    pids = ",".join(map(str, process_tree(server.process.pid)))
    orders, order = os.pipe()
    answer, answers = os.pipe()
    tracer = subprocess.Popen([*pinned(bed), "perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "--delay=-1",
                               f"--control=fd:{orders},{answers}", "-p", pids], stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, pass_fds=(orders, answers))
    try:
        os.close(answers)
        os.write(order, b"enable\n")
        ready, _, _ = select.select([answer], [], [], READY_SECONDS)
        if not ready or not os.read(answer, 16).startswith(b"ack"):
            tracer.kill()
            raise BenchError((tracer.communicate()[1].strip().splitlines() or ["it does not begin"])[0])
        result, _ = run(server, scenario, bed, WARMUP_SECONDS, SECONDS)
        tracer.send_signal(signal.SIGINT)
        said = tracer.communicate(timeout=10)[1]
    finally:
        tracer.kill()
        tracer.wait()
        for end in (orders, order, answer):
            os.close(end)
    counts = [line.split(",")[0] for line in said.splitlines() if "raw_syscalls:sys_enter" in line]
    if not counts or not counts[0].isdigit():
        raise BenchError((said.strip().splitlines() or ["no answer"])[0])
    return int(counts[0]) / result["requests"]["responses"]


def by_strace(server, scenario, bed):
    """As strace counts them over a whole run, since it slows the contender by an order of magnitude."""
    pids = process_tree(server.process.pid)
    with tempfile.NamedTemporaryFile("r", prefix="ringgate-bench-strace-") as output:
        command = [*pinned(bed), "strace", "-c", "-f", "-o", output.name, *(f"-p{pid}" for pid in pids)]
        tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                  text=True)
        try:
            said = tracer.stderr.readline()
            if "attached" not in said:
                raise BenchError(said.strip() or "no answer")
            result, _ = run(server, scenario, bed, WARMUP_SECONDS, SECONDS)
            tracer.send_signal(signal.SIGINT)
            tracer.communicate(timeout=10)
        finally:
            tracer.kill()
            tracer.wait()
        totals = [line.split() for line in Path(output.name).read_text().splitlines() if line.endswith("total")]
    if not totals:
        raise BenchError("no total")
    calls = next(int(word) for word in totals[0][3:] if word.isdigit())
    return calls / result["requests"]["responses"]


def pinned(bed):
    """Keeps a tracer off the contender's CPUs."""
    return ["taskset", "-c", ",".join(map(str, bed.load_cpus))]
