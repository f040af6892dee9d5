"""Two revisions of Ringgate: many short slices in pairs, and instruction counts of the pure parts.

Each pair is one slice of each, in alternating order; both are started afresh for every few pairs, so that no memory
layout is there to stay. The ratio is taken pair by pair, so that drift cancels, and the interval of its median needs
no assumption about the noise. CPU time per request is what is compared: it holds whoever the bottleneck is.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

from . import BenchError, contenders, machine, pure, stats
from .contenders import Contender, Origin
from .load import whole_run_of
from .measure import Progress, started

# What a comparison measures unless told otherwise.
SCENARIOS = ("keepalive-64", "keepalive-256", "new-connections", "body-16k")
FIGURES = ("cpu_us_per_request", "requests_per_second", "p99_us", "switches_per_request", "rss")
BASE, OURS = "base", "ours"
# Pairs that one start of both is used for.
PAIRS_A_START = 5
# Pairs without disturbance that are enough to leave out the others.
QUIET_PAIRS = 12
# Load before what counts for requests/s.
SETTLE_SECONDS = 0.05
# The build directory of base revisions: kept, so that the next one compiles little.
BASES = Path(os.environ.get("RINGGATE_BENCH_BASES",
                            Path(os.environ.get("CARGO_TARGET_DIR", machine.ROOT / "target")) / "bench-base"))


def cargo(directory, target, *args):
    """Runs cargo (or what $CARGO says, which may have arguments); its output is shown when it fails."""
    command = [*shlex.split(os.environ.get("CARGO", "cargo")), *args]
    print(f"{shlex.join(command)}  in {directory}", file=sys.stderr)
    done = subprocess.run(command, cwd=directory, env=os.environ | {"CARGO_TARGET_DIR": str(target)},
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{shlex.join(args)} failed in {directory}:\n{done.stderr[-3000:]}")


@contextmanager
def worktree(revision):
    """The revision in a directory of its own, which goes away again."""
    directory = Path(tempfile.mkdtemp(prefix="ringgate-bench-base-")) / "tree"
    done = subprocess.run(["git", "-C", str(machine.ROOT), "worktree", "add", "--detach", "--force", str(directory),
                           revision], capture_output=True, text=True, check=False)
    try:
        if done.returncode != 0:
            raise BenchError(f"git worktree add {revision}: {done.stderr.strip()}")
        yield directory
    finally:
        subprocess.run(["git", "-C", str(machine.ROOT), "worktree", "remove", "--force", str(directory)],
                       capture_output=True, check=False)
        shutil.rmtree(directory.parent, ignore_errors=True)


def prepare(settings):
    """Builds what is to be compared; returns both contenders and the instruction counts."""
    given = Path(settings.base)
    if given.is_file() and os.access(given, os.X_OK):
        ours = contenders.named("ringgate", settings.ringgate, OURS)
        return [contenders.named("ringgate", given.resolve(), BASE), ours], {"left_out": "--base is a binary"}
    revision = machine.git("rev-parse", "--verify", "--quiet", f"{settings.base}^{{commit}}")
    if not revision:
        raise BenchError(f"--base {settings.base}: neither a revision nor a program")
    counted = settings.pure and pure.available()
    kept = BASES / revision
    if not (kept / "ringgate").exists() or (counted and not (kept / "pure").exists()):
        build_base(revision, kept, counted)
    if settings.ringgate is None:
        target = contenders.RELEASE.parent
        cargo(machine.ROOT, target, "build", "--quiet", "--locked", "--release", "--bins")
        if counted:
            cargo(machine.ROOT, target, "build", "--quiet", "--locked", "--release", "--example", "pure")
    pair = [Contender(BASE, "ringgate", str(kept / "ringgate")),
            contenders.named("ringgate", settings.ringgate, OURS)]
    if not settings.pure:
        return pair, {"left_out": "--no-pure"}
    return pair, pure.compare(kept / "pure", contenders.RELEASE / "examples/pure")


def build_base(revision, kept, counted):
    """Builds a revision and keeps its programs."""
    with worktree(revision) as tree:
        cargo(tree, BASES / "target", "build", "--quiet", "--locked", "--release", "--bin", "ringgate")
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copy2(BASES / "target/release/ringgate", kept / "ringgate")
        if counted:
            try:
                pure.plant(tree)
                cargo(tree, BASES / "target", "build", "--quiet", "--release", "--example", "pure")
                shutil.copy2(BASES / "target/release/examples/pure", kept / "pure")
            except BenchError as error:
                (kept / "pure").write_text(f"# {error}")
                print(f"no instruction counts of the base: {error}", file=sys.stderr)


def run(pair, scenarios, bed, settings):
    """All pairs of all scenarios."""
    progress = Progress(2 * settings.pairs * len(scenarios))
    results = []
    for scenario in scenarios:
        origin = Origin(bed, scenario.body, scenario.servers)
        slices = []
        try:
            for first in range(0, settings.pairs, PAIRS_A_START):
                numbers = range(first, min(first + PAIRS_A_START, settings.pairs))
                slices += run_block(pair, scenario, origin, bed, settings, numbers, progress)
        finally:
            origin.stop()
        results.append(summarise(scenario, slices))
    return results


def run_block(pair, scenario, origin, bed, settings, numbers, progress):
    """Some pairs of the same two processes, which sleep while it is not their turn."""
    slices = []
    with ExitStack() as stack:
        servers = [stack.enter_context(started(who, bed, origin, scenario)) for who in pair]
        for server in servers:
            whole_run_of(server, scenario, bed, 0.0, settings.warmup)
        for number in numbers:
            for server in servers if number % 2 == 0 else servers[::-1]:
                one = whole_run_of(server, scenario, bed, SETTLE_SECONDS, settings.seconds)
                slices.append({"round": number} | one)
                progress.note(scenario, f"{server.label} {number + 1}/{settings.pairs}",
                              f"{one['requests_per_second']:>8.0f}/s {one['cpu_us_per_request']:>7.2f} us"
                              f"{'  DISTURBED' if one['disturbed'] else ''}{'  ERRORS' if one['errors'] else ''}")
    return slices


def summarise(scenario, slices):
    """Both sides and the ratios between them, from undisturbed pairs if there are enough."""
    disturbed = {one["round"] for one in slices if one["disturbed"]}
    by_round = {(one["round"], one["contender"]): one.get("cpus_apart_ns") for one in slices}
    disturbed |= {number for number, _ in by_round if not stats.alike(by_round.get((number, BASE)), by_round.get((number, OURS)))}
    quiet = [one for one in slices if one["round"] not in disturbed]
    used = quiet if len(quiet) >= 2 * QUIET_PAIRS else slices
    sides = {label: {figure: stats.spread([one[figure] for one in used if one["contender"] == label])
                     for figure in FIGURES} for label in (BASE, OURS)}
    ratios = {figure: stats.ratio(used, OURS, BASE, figure) for figure in FIGURES}
    return {"name": scenario.name, "title": scenario.title, "sides": sides, "ratios": ratios,
            "verdict": verdict(ratios["cpu_us_per_request"]), "slices": slices,
            "pairs": len(used) // 2, "disturbed": len(disturbed),
            "failures": [f"pair {one['round'] + 1}, {one['contender']}: {one['errors']}"
                         for one in slices if one["errors"]]}


def verdict(ratio):
    """What the interval of the median of a ratio of CPU times says."""
    if ratio["low"] > 1:
        return "slower"
    return "faster" if ratio["high"] < 1 else "no difference shown"
