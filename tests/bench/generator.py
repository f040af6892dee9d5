"""ringgate-bench as a process: runs to their end with the JSON read, servers and agents in the background."""

import json
import os
import re
import subprocess
from contextlib import contextmanager
from pathlib import Path

from harness import eventually
from harness.process import Process
from harness.proxy import ROOT


def bench():
    """The program under test: the release build, or RINGGATE_BENCH_BIN."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    path = Path(os.environ.get("RINGGATE_BENCH_BIN", ROOT / target / "release" / "ringgate-bench"))
    assert path.is_file(), f"{path} does not exist: run tests/run, or cargo build --release"
    return path


def run(*args, timeout=60):
    """`ringgate-bench run ARGS`; the finished process."""
    return subprocess.run(
        [str(bench()), "run", *map(str, args)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def load(url, *args, code=0):
    """A run whose exit code is checked; its JSON."""
    done = run(url, "--no-live", "--json", "-", *args)
    assert done.returncode == code, f"exit code {done.returncode}: {done.stderr}"
    return json.loads(done.stdout)


def url(server, path="/"):
    """Of anything with an address."""
    host, port = server.address
    return f"http://{host}:{port}{path}"


class Background:
    """`serve` or `agent` on a port of its own choice, which it prints."""

    def __init__(self, directory, *args):
        log = directory / f"{'-'.join(map(str, args[:1]))}-{len(list(directory.iterdir()))}.log"
        argv = [bench(), args[0], "--bind", "127.0.0.1:0", "--threads", 1, *args[1:]]
        self.process = Process(argv, log)
        found = eventually(lambda: re.search(r"127\.0\.0\.1:(\d+)", self.process.log()), 20)
        self.address = ("127.0.0.1", int(found[1]))
        self.text = f"127.0.0.1:{found[1]}"


@contextmanager
def background(directory, *args):
    directory.mkdir(exist_ok=True)
    one = Background(directory, *args)
    try:
        yield one
    finally:
        one.process.kill()


def failures(result):
    """Kinds of errors that were seen, with their counts."""
    return {kind: count for kind, count in result["errors"].items() if count}
