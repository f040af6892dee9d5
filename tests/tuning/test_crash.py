"""kill -9 at every system call that writes; trials that revert by themselves."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from harness import eventually
from harness.client import tool
from harness.proxy import binary, run_once

from .root import Root

EDGE = ("--profile", "edge")
KEY = "net.core.somaxconn"


def killed_at(root, call, number, *args):
    """Runs a command under strace, which kills it at its `number`-th `call`; false: it never came to that."""
    argv = [
        *(tool("strace"), "-f", "-o", root.path.parent / "trace", "-e", f"trace={call}"),
        *("-e", f"inject={call}:signal=SIGKILL:when={number}"),
        *(binary(), "tune", *args, "--root", root.path),
    ]
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=30)
    assert done.returncode in (0, -signal.SIGKILL, 128 + signal.SIGKILL), done
    return done.returncode != 0


# Each kind of value once: a kill at every system call of the whole profile would take minutes.
FEW = """
[tuning]
profile = "minimal"
set = { "transparent_hugepage" = "madvise", "cpu.governor" = "performance", "nic.lro" = 0, "nic.rps_cpus" = 3,
  "net.ipv4.tcp_rmem" = "4096 131072 16777216", "net.ipv4.ip_local_port_range" = "10240 65535" }
[[listener]]
bind = "0.0.0.0:40080"
[[route]]
respond = {}
"""


@pytest.fixture
def few(tmp_path):
    file = tmp_path / "few.toml"
    file.write_text(FEW.replace(",\n  ", ", "))
    return file


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_killed_anywhere_in_an_apply(tmp_path, few, call):
    kills = 0
    while True:
        root = Root(tmp_path / f"root{kills}")
        before = root.snapshot()
        if not killed_at(root, call, kills + 1, "apply", few):
            break
        root.tune("rollback", expect=0)
        assert root.snapshot() == before, f"killed at {call} {kills + 1}"
        shutil.rmtree(root.path)
        kills += 1
    # One fsync at least before each of the changes, and a write of the journal's and one of the value.
    assert kills > (8 if call == "fsync" else 16)


def test_killed_anywhere_in_a_rollback(tmp_path, few):
    kills = 0
    while True:
        root = Root(tmp_path / f"root{kills}")
        before = root.snapshot()
        root.tune("apply", few, expect=0)
        if not killed_at(root, "write", kills + 1, "rollback"):
            break
        root.tune("rollback", expect=0)
        assert root.snapshot() == before, f"killed at write {kills + 1}"
        shutil.rmtree(root.path)
        kills += 1
    assert kills > 8


def test_each_original_is_on_disk_before_its_value_is_written(root):
    trace = root.path.parent / "trace"
    argv = [tool("strace"), "-o", trace, "-y", "-e", "trace=write,fsync"]
    argv += [binary(), "tune", "apply", *EDGE, "--root", root.path]
    subprocess.run([str(a) for a in argv], check=True, timeout=30, capture_output=True)
    synced, values = True, 0
    for line in trace.read_text().splitlines():
        if re.match(r"write\(\d+<[^>]*/journal>", line):
            synced = False
        elif re.match(r"fsync\(\d+<[^>]*/journal>\)", line):
            synced = True
        elif re.match(r"write\(\d+<[^>]*/root/(proc|sys|ethtool)/", line):
            assert synced, f"written before the journal was on disk: {line}"
            values += 1
    assert values > 15


def watchers(root):
    """Processes that wait for the end of a trial of this root."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if words[1:3] == ["tune", "watch"] and str(root.path) in words:
                found.append(int(entry.name))
    return found


def test_a_trial_reverts_by_itself(root):
    before = root.snapshot()
    done = root.tune("apply", *EDGE, "--try", "2s", expect=0)
    assert "undone in 2s unless: ringgate tune confirm" in done.stdout
    # Nothing is looked at in between: on a busy machine the trial may be over by then.
    try:
        eventually(lambda: root.snapshot() == before, 20, "the trial's end")
    except AssertionError as error:
        state = {p.name: p.read_text()[:400] for p in root.journal().parent.iterdir()}
        raise AssertionError(f"{error}: {watchers(root)} {state}") from None
    eventually(lambda: not watchers(root), 10, "the watcher's end")
    done = root.tune("apply", *EDGE, "--boot", expect=0)
    assert f"refused {KEY}: it was tried and never confirmed" in done.stdout
    assert root.sysctl(KEY) == "4096\n"
    root.tune("apply", *EDGE, expect=0)
    assert root.sysctl(KEY) == "65535", "by hand it is set"


def test_a_confirmed_trial_stays_and_rolls_back(root):
    before = root.snapshot()
    root.tune("apply", *EDGE, "--try", "60s", expect=0)
    assert root.sysctl(KEY) == "65535"
    assert "a trial is under way" in root.tune("apply", *EDGE, expect=1).stderr
    root.tune("confirm", expect=0)
    eventually(lambda: not watchers(root), 10, "the watcher's end")
    root.tune("verify", *EDGE, expect=0)
    assert "no trial is under way" in root.tune("confirm", expect=1).stderr
    root.tune("rollback", expect=0)
    assert root.snapshot() == before


def test_the_journal_is_where_the_configuration_says(root, tmp_path):
    """rollback and confirm find it by the file, even when the rest of the file is wrong by then."""

    def tune(*args, expect):
        done = run_once("tune", *args)
        assert done.returncode == expect, done
        return done

    before = root.snapshot()
    file = tmp_path / "ringgate.toml"
    place = f'[tuning]\nroot = "{root.path}"\nstate_dir = "/var/lib/elsewhere"\nprofile = "minimal"\n'
    file.write_text(place + '[[listener]]\nbind = "0.0.0.0:40080"\n[[route]]\nrespond = {}\n')
    tune("apply", file, "--try", "60s", expect=0)
    assert "no trial" in tune("confirm", "--root", root.path, expect=1).stderr
    tune("confirm", file, expect=0)
    assert KEY in tune("show", "--config", file, expect=0).stdout
    file.write_text(place + "nonsense = 1\n")
    tune("verify", file, expect=2)
    tune("rollback", file, expect=0)
    assert root.snapshot() == before
    file.write_text("[tuning\n")
    assert f"{file}:1:" in tune("rollback", file, expect=2).stderr


def test_rollback_ends_a_trial(root):
    before = root.snapshot()
    root.tune("apply", "--profile", "minimal", expect=0)
    root.tune("apply", *EDGE, "--try", "60s", expect=0)
    root.tune("rollback", expect=0)
    assert root.snapshot() == before
    eventually(lambda: not watchers(root), 10, "the watcher's end")


def test_a_trial_killed_in_mid_apply_reverts(root):
    before = root.snapshot()
    argv = [tool("strace"), "-o", "/dev/null", "-e", "trace=fsync"]
    argv += ["-e", "inject=fsync:signal=SIGKILL:when=14"]
    argv += [binary(), "tune", "apply", *EDGE, "--try", "2s", "--root", root.path]
    done = subprocess.run([str(a) for a in argv], capture_output=True, timeout=30)
    assert done.returncode != 0
    assert root.snapshot() != before, "killed before it had changed anything"
    eventually(lambda: root.snapshot() == before, 20, "the trial's end")


def test_a_trial_whose_watcher_died_is_reverted_by_the_next_command(root):
    before = root.snapshot()
    root.tune("apply", *EDGE, "--try", "3s", expect=0)
    for pid in eventually(lambda: watchers(root), 5, "a watcher"):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: "never confirmed" in root.tune("show").stdout, 10, "the trial to be overdue")
    assert root.snapshot() != before
    done = root.tune("apply", "--profile", "minimal", "--boot", expect=0)
    assert "a trial was never confirmed" in done.stdout
    root.tune("rollback", expect=0)
    assert root.snapshot() == before


def test_a_trial_ended_by_a_reboot_is_not_made_again_at_boot(root):
    root.tune("apply", *EDGE, "--try", "60s", expect=0)
    for pid in eventually(lambda: watchers(root), 5, "a watcher"):
        os.kill(pid, signal.SIGKILL)
    rebooted = Root(root.path.parent / "rebooted")
    shutil.copytree(root.path / "var", rebooted.path / "var")
    rebooted.write("proc/sys/kernel/random/boot_id", "another\n")
    before = rebooted.snapshot()
    rebooted.tune("apply", *EDGE, "--boot", expect=0)
    assert rebooted.snapshot() == before, "what was never confirmed is left alone"
