"""The machine: CPUs, limits, what it is, and that nobody else measures on it."""

import fcntl
import os
import platform
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from . import BenchError

ROOT = Path(__file__).resolve().parents[2]
LOCK = Path("/tmp/ringgate-bench.lock")


def cpu_list(text):
    """CPU numbers from `0-3,6`."""
    cpus = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    if not cpus or len(cpus) != len(set(cpus)):
        raise ValueError(text)
    return cpus


def check_cpus(contender, load, origin):
    """Fails unless the contender has its CPUs for itself; load and origin may share theirs."""
    usable = os.sched_getaffinity(0)
    if set(contender) & (set(load) | set(origin)):
        raise BenchError("the contender must not share CPUs with the load or the origin")
    if not set(contender) | set(load) | set(origin) <= usable:
        raise BenchError(f"only the CPUs {sorted(usable)} may be used")


# Debian's, where they are called differently.
PACKAGES = {"nginx": "nginx-light", "taskset": "util-linux", "unshare": "util-linux", "ip": "iproute2"}


def need_tools(*tools):
    """Fails when a program that the measurement needs is missing."""
    missing = [tool for tool in tools if find(tool) is None]
    if missing:
        packages = " ".join(PACKAGES.get(tool, tool) for tool in missing)
        raise BenchError(f"missing: {', '.join(missing)}; apt-get install {packages}")


def find(tool):
    """The path of a program, also where daemons are; None when there is none."""
    return shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/usr/local/sbin:/sbin")


def raise_file_limit(wanted):
    """Raises the file limit, which the contenders inherit, to at least `wanted`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limits in ((max(wanted, hard), max(wanted, hard)), (hard, hard)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            break
        except (ValueError, OSError):
            continue
    reached = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if reached < wanted:
        raise BenchError(f"file limit {reached} is below the {wanted} needed: raise it with ulimit -n, as root")


def free_ports(count=1):
    """So many free ports in a row, outside the ephemeral range so that no connection takes them before a bind."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(200):
        first = random.randrange(10000, max(low - count, 10001))
        if all(is_free(port) for port in range(first, first + count)):
            return list(range(first, first + count))
    raise BenchError("no free port")


def is_free(port):
    """Whether the port can be bound."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
            return True
        except OSError:
            return False


def orderly_exit():
    """SIGTERM and SIGHUP end the program with its clean-up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))


def lock():
    """Keeps other measurements off this box until the returned file is closed.

    Read only, for it may be another user's: root's of an earlier run, as often as not.
    """
    if not LOCK.exists():
        LOCK.touch(0o644)
    held = open(LOCK, encoding="ascii")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise BenchError("another benchmark is running on this box") from error
    return held


def describe():
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")), "unknown")
    return {
        "cpu": model, "cpus": os.cpu_count(), "kernel": platform.release(),
        "virtual": any(line.startswith("flags") and " hypervisor" in line for line in cpuinfo),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "congestion_control": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        "load_average": os.getloadavg()[0], "commit": git("describe", "--always", "--dirty"),
    }


def git(*args, directory=ROOT):
    """What git says, without the line end; empty when it fails."""
    done = subprocess.run(["git", "-C", str(directory), *args], capture_output=True, text=True, check=False)
    return done.stdout.strip()
