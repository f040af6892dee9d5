"""A child process with a log file, a ready-wait and an exit check."""

import os
import resource
import signal
import socket
import subprocess
from pathlib import Path

from .tools import cpu_seconds, eventually, rss_bytes


class Process:
    """Starts `argv`; output goes to `log_path`. Killed by PID, never by name."""

    def __init__(self, argv, log_path, env=None, nofile=None, cwd=None, affinity=None):
        self.argv, self.log_path = [str(a) for a in argv], Path(log_path)
        self._log = open(self.log_path, "wb")

        def prepare():
            if nofile:
                resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))
            if affinity:
                os.sched_setaffinity(0, affinity)

        self.child = subprocess.Popen(
            self.argv,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            preexec_fn=prepare,
        )
        self.pid = self.child.pid

    def log(self):
        return self.log_path.read_text(errors="replace")

    def alive(self):
        return self.child.poll() is None

    def await_ready(self, probe, timeout=15.0):
        """Waits until `probe()` is truthy; shows the log when the process dies first."""

        def ready():
            if not self.alive():
                raise RuntimeError(
                    f"{self.argv} exited {self.child.returncode} before it was ready:\n{self.log()}"
                )
            return probe()

        try:
            eventually(ready, timeout, f"{self.argv[0]} ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def send_signal(self, number):
        self.child.send_signal(number)

    def wait(self, timeout=15.0):
        """The exit code (negative: the signal that ended it)."""
        return self.child.wait(timeout)

    def kill(self):
        if self.alive():
            self.child.kill()
        self.child.wait(10)
        self._log.close()

    def terminate(self, timeout=15.0, number=signal.SIGTERM, told=False):
        """Asks it to end, unless it was told to, and returns its exit code; SIGKILL and None when it does not."""
        if not told and self.alive():
            self.send_signal(number)
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.kill()

    def rss(self):
        return rss_bytes(self.pid)

    def cpu(self):
        return cpu_seconds(self.pid)

    def open_files(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def accepts(address):
    """True when a connect succeeds."""
    try:
        with socket.create_connection(address, 1):
            return True
    except OSError:
        return False
