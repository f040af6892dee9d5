"""How far the contender's CPU is from the load's: what a cache line takes from the one to the other.

Every frame crosses so. A hypervisor moves its virtual CPUs about: while they share a cache a line takes some 30 ns, while they do
not five times as long, and that is in what everybody's requests cost. So it is measured before and after each slice:
one during which the CPUs moved is disturbed, and ratios are taken of slices at like distances.
"""

import json
import subprocess

from . import BenchError
from .contenders import BENCH
from .process import pinned
from .stats import alike

READY_SECONDS = 10


class Distance:
    """That of a bed's CPUs, from before a slice to after it."""

    def __init__(self, bed):
        self.bed, self.before = bed, one_way_ns(bed)

    def seen(self):
        """The longer of both, and whether the CPUs moved meanwhile."""
        after = one_way_ns(self.bed)
        return {"cpus_apart_ns": max(self.before, after), "moved": not alike(self.before, after)}


def one_way_ns(bed):
    """Nanoseconds that a cache line takes between the first CPU of the contender and that of the load."""
    cpus = (bed.contender_cpus[0], bed.load_cpus[0])
    try:
        done = subprocess.run(pinned(cpus, [BENCH, "cores", ",".join(map(str, cpus))]), stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=READY_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"ringgate-bench cores takes over {READY_SECONDS} s") from error
    if done.returncode != 0:
        raise BenchError(f"ringgate-bench cores: {done.stderr.strip()}")
    return json.loads(done.stdout)["one_way_ns"]
