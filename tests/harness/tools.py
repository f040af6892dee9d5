"""Deadlines, ports, /proc figures and TOML output."""

import fcntl
import json
import os
import socket
import time
from pathlib import Path


class Deadline:
    """A point in time that every wait of one operation shares."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.at = time.monotonic() + seconds

    def left(self):
        """Seconds left; raises TimeoutError when there are none."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"deadline of {self.seconds} s passed")
        return left


# A timeout says when a wait is hopeless on a machine of one's own; beside other work it takes longer.
PATIENCE = 4


def eventually(condition, timeout=10.0, what=None, every=0.01):
    """Waits until `condition()` is truthy and returns its value; AssertionError after `timeout` times PATIENCE.

    An AssertionError or OSError inside the condition counts as "not yet".
    """
    timeout *= PATIENCE
    end = time.monotonic() + timeout
    last = None
    while True:
        try:
            last = condition()
            if last:
                return last
        except (AssertionError, OSError) as error:
            last = error
        if time.monotonic() > end:
            name = (what() if callable(what) else what) or getattr(condition, "__name__", "condition")
            raise AssertionError(f"not within {timeout} s: {name} (last: {last!r})")
        time.sleep(every)


_LOCKS = Path("/tmp/ringgate-test-ports")
_held = {}
_given = 0


def free_port():
    """A TCP port on loopback that nobody uses and that no other caller gets until `release_ports`.

    The port lies below the ephemeral range, so outgoing connections cannot take it, and a lock file
    keeps concurrent test processes apart. It comes round again last: what an earlier test left behind
    may still call the ports of its own time.
    """
    global _given
    _LOCKS.mkdir(mode=0o1777, exist_ok=True)
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    first, last = (12000, low - 1) if low > 13000 else (61001, 65535)
    start = os.getpid() * 7919
    for _ in range(last - first):
        _given += 1
        port = first + (start + _given) % (last - first)
        if port in _held or not _lock(port):
            continue
        if _bindable(port):
            return port
        os.close(_held.pop(port))
    raise RuntimeError("no free port")


def held_ports():
    """Those whose lock files are open now, each with a descriptor of this process."""
    return set(_held)


def release_ports(ports):
    """Lets others have them: the test that they were for is over."""
    for port in ports:
        os.close(_held.pop(port))


def _lock(port):
    descriptor = os.open(_LOCKS / str(port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    _held[port] = descriptor
    return True


def _bindable(port):
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((address, port))
        except OSError as error:
            if family == socket.AF_INET6 and error.errno in (97, 99):
                continue
            return False
    return True


def rss_bytes(pid):
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no VmRSS")


def cpu_seconds(pid):
    """User and system time a process has used, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def toml(config):
    """A nested dict as TOML text: tables, arrays of tables, inline values."""
    lines = []
    _table(config, (), lines)
    return "\n".join(lines) + "\n"


def _table(table, path, lines):
    tables = {k: v for k, v in table.items() if isinstance(v, dict) and not isinstance(v, Inline)}
    arrays = {k: v for k, v in table.items() if _is_array_of_tables(k, v)}
    for key, value in table.items():
        if key not in tables and key not in arrays:
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, value in tables.items():
        if len(path) == 0 and key == "upstream":
            for name, upstream in value.items():
                _section("[{}]", (key, name), upstream, lines)
        else:
            _section("[{}]", (*path, key), value, lines)
    for key, value in arrays.items():
        for item in value:
            _section("[[{}]]", (*path, key), item, lines)


def _section(form, path, table, lines):
    lines.append("")
    lines.append(form.format(".".join(_key(p) for p in path)))
    inline = {"path", "retry", "respond", "redirect", "rewrite", "headers"}
    if path[0] in ("route", "upstream"):
        table = {k: Inline(v) if k in inline and isinstance(v, dict) else v for k, v in table.items()}
    _table(table, path, lines)


class Inline(dict):
    """A dict to be written as an inline table."""


def _is_array_of_tables(key, value):
    return key in ("listener", "route") and isinstance(value, list)


def _key(key):
    return key if key and all(c.isascii() and (c.isalnum() or c in "_-") for c in key) else _string(key)


def _string(text):
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    raise TypeError(f"no TOML form for {value!r}")
