"""What the kernel counts: CPU time of processes, idle time of CPUs, TCP segments and bytes.

CPU time is `sum_exec_runtime` of /proc/PID/task/TID/schedstat, in nanoseconds; the kernel brings it up to date at
every tick (4 ms at 250 Hz) and every switch. Where time in soft interrupts goes: without CONFIG_IRQ_TIME_ACCOUNTING
(Debian's and most virtual machines' kernels of the time of writing; `irq_time` says what was found) it counts for the
thread that was interrupted or that sent. Over loopback the receiver's half of TCP runs inside the sender's
send: a proxy pays for its own two sends with both halves, and for neither half of what it is sent. It is
the same for every contender.

In namespaces of their own (see `bed`) each side receives on its own CPUs, as with network cards, also while its threads
sleep; so what counts there is all the time in which the contender's CPUs were neither idle nor lent to others.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from . import BenchError
from .process import process_tree, rss_bytes

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Moment:
    """Counters at one moment; `since` gives rates."""

    at: float
    thread_ns: dict
    switches: dict
    cpus: dict
    tcp_out: int
    link_bytes: int
    rss: int

    @staticmethod
    def of(pids, bed):
        """The counters of a process tree, the CPUs, and the network, now."""
        thread_ns, switches = {}, {}
        for pid in pids:
            for task in Path(f"/proc/{pid}/task").iterdir():
                try:
                    thread_ns[task.name] = int((task / "schedstat").read_text().split()[0])
                    lines = (task / "status").read_text().splitlines()
                    switches[task.name] = sum(int(line.split()[1]) for line in lines if "_ctxt_switches" in line)
                except OSError:
                    continue
        at = time.monotonic()
        sent = sum(tcp_out(pid) for pid in ("self", *(pids[:1] if bed.apart else [])))
        return Moment(at, thread_ns, switches, cpu_ticks(bed.cpus), sent, link_bytes(bed.network.interface), rss_bytes(pids))

    def since(self, before):
        """Rates and shares of the time since `before`. Threads that ended meanwhile are left out; proxies have none."""
        span = self.at - before.at
        grown = lambda now, then: sum(value - then.get(name, 0) for name, value in now.items())
        spent = {cpu: {key: (self.cpus[cpu][key] - before.cpus[cpu][key]) / TICKS / span for key in self.cpus[cpu]}
                 for cpu in self.cpus}
        return {
            "seconds": span,
            "cpu": grown(self.thread_ns, before.thread_ns) / 1e9 / span,
            "switches_per_second": grown(self.switches, before.switches) / span,
            "segments_per_second": (self.tcp_out - before.tcp_out) / span,
            "link_bytes_per_second": (self.link_bytes - before.link_bytes) / span,
            "cpus": spent,
            "rss": self.rss,
        }


def cpu_ticks(cpus):
    """Idle, stolen, soft interrupt and all busy ticks of CPUs from /proc/stat."""
    wanted = {f"cpu{cpu}": cpu for cpu in cpus}
    found = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *numbers = line.split()
        if name in wanted:
            user, nice, system, idle, iowait, irq, softirq, steal = map(int, numbers[:8])
            busy = user + nice + system + irq + softirq
            found[wanted[name]] = {"idle": idle + iowait, "steal": steal, "softirq": irq + softirq, "busy": busy}
    if len(found) < len(wanted):
        raise BenchError(f"/proc/stat lacks one of {sorted(wanted)}")
    return found


def tcp_out(pid):
    """TCP segments sent from a process' network namespace, each part of a large one counted."""
    lines = [line.split() for line in Path(f"/proc/{pid}/net/snmp").read_text().splitlines() if line.startswith("Tcp:")]
    return int(dict(zip(lines[0], lines[1]))["OutSegs"])


def link_bytes(interface):
    """Bytes over the interface between the contender and the others, both ways, headers included."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.strip() == interface:
            received, sent = int(rest.split()[0]), int(rest.split()[8])
            return sent if interface == "lo" else received + sent
    raise BenchError(f"/proc/net/dev has no {interface}")


class Foreign:
    """Time that others' tasks take of some CPUs. Looking takes milliseconds, so it is done around the load."""

    def __init__(self, cpus, pid):
        self.cpus, self.pid = set(cpus), pid
        self.at, self.before = time.monotonic(), foreign_tasks(pid)

    def cpus_taken(self):
        """How many CPUs' time it was since this was made."""
        nothing = (0, None)
        ran = sum(ns - self.before.get(task, nothing)[0] for task, (ns, cpu) in foreign_tasks(self.pid).items()
                  if cpu in self.cpus)
        return ran / 1e9 / (time.monotonic() - self.at)


def foreign_tasks(pid):
    """Nanoseconds that each task has run and the CPU that it was on last, but for the tasks of a process tree.

    The kernel's threads that finish soft interrupts there work for the contender, too.
    """
    own, found = set(process_tree(pid)), {}
    for task in Path("/proc").glob("[0-9]*/task/[0-9]*"):
        try:
            name, _, fields = (task / "stat").read_text().rpartition(")")
            if int(task.parts[2]) not in own and "(ksoftirqd/" not in name:
                found[task.name] = int((task / "schedstat").read_text().split()[0]), int(fields.split()[36])
        except OSError:
            continue
    return found


def irq_time():
    """Whether the kernel keeps time in interrupts apart from the threads'; None when it does not say."""
    import gzip
    try:
        config = gzip.decompress(Path("/proc/config.gz").read_bytes()).decode()
    except OSError:
        try:
            config = Path(f"/boot/config-{os.uname().release}").read_text()
        except OSError:
            return None
    return "CONFIG_IRQ_TIME_ACCOUNTING=y" in config
