#!/usr/bin/python3 -IS
"""The first process of the guest (see guest.py): mounts, loads modules, runs /job/main.py and ends the machine."""

import ctypes
import os
import subprocess
import sys
import traceback

libc = ctypes.CDLL(None, use_errno=True)
FINIT_MODULE = 313
RESTART = 0x01234567


def check(result, what):
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(kind, where):
    os.makedirs(where, exist_ok=True)
    check(libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None), where)


def load(name, parameters):
    with open(f"/modules/{name}", "rb") as file:
        check(libc.syscall(FINIT_MODULE, file.fileno(), parameters.encode(), 0), name)


def pairs(path):
    """`name value` of each line, if there is such a file."""
    if not os.path.exists(path):
        return {}
    return dict(line.rstrip("\n").split(" ", 1) for line in open(path))


def main():
    for kind, where in (("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run"), ("tmpfs", "/tmp"), ("bpf", "/sys/fs/bpf")):
        mount(kind, where)
    if not os.path.exists("/dev/ttyS1"):
        mount("devtmpfs", "/dev")
    mount("cgroup2", "/sys/fs/cgroup")
    os.environ.update(PATH="/usr/sbin:/usr/bin:/sbin:/bin", HOME="/root", LC_ALL="C.UTF-8", PYTHONDONTWRITEBYTECODE="1")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.environ.update(pairs("/job/environment"))
    parameters = pairs("/job/parameters")
    for name in open("/modules/order").read().split():
        load(name, parameters.get(name.removesuffix(".ko"), ""))
    with open("/dev/ttyS1", "w") as out:
        print("the script begins", file=out, flush=True)
        done = subprocess.run([sys.executable, "/job/main.py"], stdin=subprocess.DEVNULL, stdout=out, check=False)
        if done.returncode == 0:
            print("the script ended well", file=out)


try:
    main()
except BaseException:
    traceback.print_exc()
finally:
    os.sync()
    libc.reboot(RESTART)
