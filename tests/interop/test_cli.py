"""The command line: help a person can use, the version, and the demo as an unprivileged user."""

import os
import re
import shutil
import socket
import tomllib

import pytest

from harness import curl, eventually, get
from harness.process import Process, accepts
from harness.proxy import ROOT, binary, check_log, run_once


def test_help():
    done = run_once("--help")
    assert done.returncode == 0
    for word in ("run", "check", "--demo", "--version"):
        assert word in done.stdout + run_once("run", "--help").stdout, word
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_version():
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
    done = run_once("--version")
    assert done.returncode == 0 and done.stdout.strip() == f"ringgate {version}"


@pytest.mark.parametrize("args", [[], ["nonsense"], ["run"], ["run", "--nonsense"], ["check"]], ids=str)
def test_wrong_use_exits_2_with_usage(args):
    done = run_once(*args)
    assert done.returncode == 2 and "sage" in done.stderr + done.stdout


def test_demo_unprivileged(tmp_path):
    """As README says: no file, no root; proxy on 8080, admin on 9090, two sample upstreams."""
    assert not accepts(("127.0.0.1", 8080)) and not accepts(("127.0.0.1", 9090)), "ports in use"
    program = tmp_path / "ringgate"
    shutil.copy(binary(), program)
    argv = [program, "run", "--demo"]
    if os.geteuid() == 0:
        for directory in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
            directory.chmod(directory.stat().st_mode | 0o011)
        argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *argv]
    process = Process(argv, tmp_path / "demo.log", cwd="/")
    try:
        process.await_ready(lambda: get(("127.0.0.1", 9090), "/readyz", timeout=1).status == 200)
        answers = {get(("127.0.0.1", 8080)).body for _ in range(10)}
        assert len(answers) == 2, "two sample upstreams take turns"
        assert "ringgate" in get(("127.0.0.1", 9090), "/metrics").body.decode()
        commands = re.findall(r"curl\s+(?:-\S+\s+)*(http://127\.0\.0\.1:\S+)", process.log())
        assert commands, f"prints what to curl: {process.log()}"
        for address in commands:
            assert curl("-o", "/dev/null", "-w", "%{http_code}", address.strip("'\"`")).stdout < "400"
        assert process.terminate(10) == 0
        check_log(process.log())
    finally:
        process.kill()
    eventually(lambda: not accepts(("127.0.0.1", 8080)))


def test_demo_says_which_port_is_taken(tmp_path):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 18081))
        taken.listen()
        done = run_once("run", "--demo", cwd=tmp_path)
    assert done.returncode == 1 and "127.0.0.1:18081" in done.stderr, (done.returncode, done.stderr)
    assert "curl" not in done.stdout, "nothing to try while it does not run"
