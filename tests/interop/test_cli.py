"""The command line: help a person can use, the version, and the demo as an unprivileged user."""

import os
import re
import shutil
import socket
import subprocess
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


# seccomp(2): io_uring_setup, number 425 on every architecture, answers EPERM; everything else goes on.
FORBID_IO_URING = r"""
import ctypes, os, struct, sys
LD_NR, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
ERRNO_EPERM, ALLOW = 0x00050001, 0x7FFF0000
steps = [(LD_NR, 0, 0, 0), (JUMP_EQUAL, 0, 1, 425), (RETURN, 0, 0, ERRNO_EPERM), (RETURN, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(PR_SET_SECCOMP, FILTER, program) == 0, ctypes.get_errno()
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_forbidden_io_uring_is_explained():
    """Where a container's seccomp profile forbids io_uring, the start says so and how to allow it."""
    command = ["/usr/bin/python3", "-c", FORBID_IO_URING, str(binary()), "run", "--demo"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert result.returncode == 1, result
    assert "seccomp" in result.stderr and "io_uring_setup" in result.stderr, result.stderr
    assert "panicked" not in result.stderr
