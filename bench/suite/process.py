"""Processes under measurement: started on their CPUs, waited for, killed by their own PIDs."""

import ctypes
import http.client
import os
import shutil
import signal
import ssl
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import BenchError
from .bed import enter

HOST = "shop.example"
READY_SECONDS = 10
POLL_SECONDS = 0.01


def die_with_parent():
    """In the child: SIGKILL when the harness is killed without a chance to clean up (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)


def pinned(cpus, command):
    """A command that runs on CPUs."""
    return ["taskset", "-c", ",".join(map(str, cpus)), *map(str, command)]


def spawn(cpus, command, namespace=None, **options):
    """Starts a command pinned to CPUs, in a network namespace if one is given."""
    def before():
        die_with_parent()
        if namespace is not None:
            enter(namespace)

    return subprocess.Popen(pinned(cpus, command), stdin=subprocess.DEVNULL, preexec_fn=before, **options)


def tls_context(protocols=("http/1.1",)):
    """A client that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(list(protocols))
    return context


def connect(server):
    """A connection for requests of HTTP/1.1."""
    if server.tls:
        return http.client.HTTPSConnection(server.address, server.port, timeout=5, context=tls_context())
    return http.client.HTTPConnection(server.address, server.port, timeout=5)


def get(server, path="/", connection=None):
    """One GET; returns status and body. Without `connection`, on a connection of its own."""
    own = connection is None
    connection = connection or connect(server)
    try:
        connection.request("GET", path, headers={"Host": HOST})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        if own:
            connection.close()


@dataclass
class Server:
    """A started server process and its descendants; its directory goes when it is stopped."""

    label: str
    address: str
    port: int
    directory: Path
    process: subprocess.Popen
    pids: list = field(default_factory=list)
    tls: bool = False
    # Has it take over a changed configuration, where a scenario asks for that.
    reload: object = None

    def wait_ready(self, path="/"):
        """Waits until the port answers 200, then notes the process tree."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if get(self, path)[0] == 200:
                    self.pids = process_tree(self.process.pid)
                    return self
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(POLL_SECONDS)
        raise BenchError(f"{self.label} does not answer on {self.address}:{self.port}:\n{self.tail()}")

    def tail(self):
        """The end of what the server wrote."""
        logs = [path.read_text(errors="replace") for path in sorted(self.directory.glob("*.log"))]
        return "\n".join(logs)[-2000:]

    def stop(self):
        """SIGKILL to the process tree: nothing that is measured is left to be finished."""
        tree = {pid: start_time(pid) for pid in set(self.pids) | set(process_tree(self.process.pid))}
        self.process.kill()
        self.process.wait()
        for pid, started in tree.items():
            if started is not None and start_time(pid) == started:
                kill(pid)
        shutil.rmtree(self.directory, ignore_errors=True)


def kill(pid):
    """SIGKILL; the process may have ended by itself."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def start_time(pid):
    """Start time of a process in clock ticks since boot, which tells a reused PID apart; None when it is gone."""
    try:
        return stat_fields(pid)[19]
    except OSError:
        return None


def stat_fields(pid):
    """The fields of /proc/PID/stat after the command name; index 0 is proc(5)'s field 3."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def process_tree(pid):
    """A PID and all its descendants."""
    pids, queue = [], [pid]
    while queue:
        pid = queue.pop()
        pids.append(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                queue += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
    return pids


def rss_bytes(pids):
    """Sum of VmRSS."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) * 1024
    return total
