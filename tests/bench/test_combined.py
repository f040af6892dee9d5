"""`bench/combined.py`, a small helping: reloads, upgrades, servers that come, go and die, all at once and unnoticed."""

import json
import os
import subprocess
import sys

from harness.proxy import ROOT, binary

from .generator import bench

SMALL = ["--reloads", 30, "--upgrades", 3, "--websockets", 12, "--rate", 100, "--kill-every", 1.5, "--change-every", 0.2]


# A median above this says that the machine stood still, and what waited for ten seconds says no more.
STARVED_MS = 1000


def test_nobody_notices_anything(tmp_path):
    found = measured(tmp_path / "1")
    for again in ("2", "3"):
        if found["kept"]["p50"] < STARVED_MS:
            break
        found = measured(tmp_path / again)
    # A request that is sent too late says that the machine is busy, not that the proxy has failed it.
    errors = {**found["kept"]["errors"], **found["new"]["errors"], "overdue": 0}
    assert not any(errors.values()), found["said"]
    assert not found["websockets"]["cut"] and found["download"]["state"] == "goes on", found["said"]
    assert (found["reloads"], found["upgrades"]) == (30, 3), found["said"]
    assert found["kills"] >= 1 and all(found["server_changes"].values()), found["said"]
    assert found["kept"]["requests"] > 50 and found["new"]["requests"] > 5, found["said"]
    assert found["websockets"]["opened"] == 12 and found["download"]["lines"] > 10, found["said"]


def measured(directory):
    directory.mkdir()
    argv = [sys.executable, ROOT / "bench" / "combined.py", "--only", "ringgate", *SMALL,
            "--json", directory / "found.json", "--logs", directory]  # fmt: skip
    environment = {**os.environ, "RINGGATE_BIN": str(binary()), "RINGGATE_BENCH_BIN": str(bench())}
    done = subprocess.run([*map(str, argv)], env=environment, capture_output=True, text=True, timeout=240)
    said = f"{done.stdout}\n{done.stderr}\n{failures(directory)}"
    found = json.loads((directory / "found.json").read_text()) if (directory / "found.json").exists() else []
    assert len(found) == 1, said
    return {**found[0], "said": said}


def failures(directory):
    """What was not answered, and what the proxy said."""
    access = directory / "ringgate-access.log"
    lines = access.read_text().splitlines() if access.exists() else []
    bad = [line for line in lines if '"status":5' in line]
    log = directory / "ringgate.log"
    return "\n".join(bad[:20]) + "\n" + (log.read_text()[-4000:] if log.exists() else "")
