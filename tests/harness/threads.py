"""One thread of a process that stands still while the others run."""

import contextlib
import ctypes
import os
from pathlib import Path

SEIZE, INTERRUPT, DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
LIBC.ptrace.restype = ctypes.c_long


def ptrace(request, thread):
    if LIBC.ptrace(request, thread, None, None) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of thread {thread}")


@contextlib.contextmanager
def stopped(pid, name):
    """The thread of this name, and its helper, do not run, and the others do (ptrace(2))."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    threads = [int(t.name) for t in tasks if (t / "comm").read_text().strip() == name]
    seized = []
    try:
        for thread in threads:
            ptrace(SEIZE, thread)
            seized.append(thread)
            ptrace(INTERRUPT, thread)
            assert os.waitpid(thread, WALL)[0] == thread
        assert seized
        yield
    finally:
        for thread in seized:
            ptrace(DETACH, thread)
