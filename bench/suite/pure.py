"""Instructions of the parts that need no socket, counted by callgrind: exact, whatever else the machine does."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from . import BenchError, machine

SOURCE = machine.ROOT / "bench/pure.rs"
# The difference of a long and a short run leaves out start and end.
SHORT, LONG = 200, 1200


def available():
    """Whether callgrind is there."""
    return shutil.which("valgrind") is not None


def plant(tree):
    """Puts today's harness into an older tree, so that both revisions are counted by the same one."""
    place = tree / "bench/pure.rs"
    if not place.exists():
        place = tree / "examples/pure.rs"
        place.parent.mkdir(exist_ok=True)
    shutil.copy2(SOURCE, place)


def cases(binary):
    """The names of what can be counted."""
    return subprocess.run([binary], capture_output=True, text=True, timeout=20, check=True).stdout.split()


def instructions(binary, case, times):
    """Instructions of a whole run."""
    with tempfile.TemporaryDirectory(prefix="ringgate-bench-") as directory:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={Path(directory) / 'out'}", str(binary), case,
                   str(times)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or not found:
        raise BenchError(f"valgrind {case}: {done.stderr[-500:]}")
    return int(found[1])


def count(binary):
    """Instructions of each case, once."""
    return {case: round((instructions(binary, case, LONG) - instructions(binary, case, SHORT)) / (LONG - SHORT))
            for case in cases(binary)}


def compare(base, ours):
    """The counts of both and their ratios; why not, when there are none."""
    if not available():
        return {"left_out": "valgrind is not installed"}
    if not base.exists() or base.read_bytes()[:1] == b"#":
        return {"left_out": "bench/pure.rs does not build in the base revision"}
    if not ours.exists():
        return {"left_out": f"no {ours}: cargo build --release --example pure"}
    both = {"base": count(base), "ours": count(ours)}
    return both | {"ratios": {case: both["ours"][case] / both["base"][case]
                              for case in both["ours"] if both["base"].get(case)}}
