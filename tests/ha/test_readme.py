"""The commands of README.md's "A VIP pair in minutes", as printed there."""

import os
import re
import subprocess

from harness.proxy import ROOT, binary, run_once


def test_the_pair_on_one_machine(tmp_path):
    text = (ROOT / "README.md").read_text().split("To see it on one machine", 1)[1].split("\n## ", 1)[0]
    script = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    # A reader's machine is idle; a second more on this one.
    script = re.sub(r"sleep (\d)", lambda found: f"sleep {int(found[1]) + 1}", script, count=3)
    (tmp_path / "ringgate").symlink_to(binary())
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}:/usr/sbin:/sbin"},
    )  # fmt: skip
    answers = [line for line in done.stdout.splitlines() if line.startswith("node ")]
    assert answers == ["node 1", "node 2"], done
    assert "10.9.0.1/24" in done.stdout and "10.9.0.100" not in done.stdout, "the lease has ended"


def test_the_sample_is_valid():
    done = run_once("check", ROOT / "deploy" / "vip-pair.toml")
    assert (done.returncode, done.stderr) == (0, ""), done
