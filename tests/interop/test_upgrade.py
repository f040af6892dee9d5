"""`ringgate ctl upgrade` and SIGUSR2: the binary is replaced, and nobody who uses it notices."""

import contextlib
import os
import queue
import signal
import socket
import stat
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest

from harness import Client, binary, eventually, get
from harness.proxy import Proxy, check_log, one
from harness.traffic import Traffic


class Line(Proxy):
    """A proxy and the processes that succeed it. Only processes of this line are signalled, by number."""

    def __init__(self, config, directory, **more):
        self.socket = Path(directory) / "admin.sock"
        config = {**config}
        bind = Proxy({}, directory).config["admin"]["bind"]
        config["admin"] = {"bind": bind, "socket": str(self.socket), **config.get("admin", {})}
        config["node"] = {"upgrade_drain_timeout": "30s", **config.get("node", {})}
        super().__init__(config, directory, **more)
        self.pids = []

    def start(self):
        super().start()
        self.pids = [self.pid]
        return self

    @property
    def newest(self):
        return self.pids[-1]

    def note(self):
        """The process that answers on the admin endpoint."""
        pid = self.status()["pid"]
        if pid not in self.pids:
            self.pids.append(pid)
        return pid

    def ctl(self, *args, check=True):
        done = subprocess.run(
            [str(binary()), "ctl", "--socket", str(self.socket), *map(str, args)],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{done.stderr}\n{self.log()[-3000:]}"
        return done

    def upgrade(self, *args):
        before = self.newest
        done = self.ctl("upgrade", *args)
        eventually(lambda: self.note() != before, 5, "the new process answers")
        return done

    def write(self, change):
        """Rewrites the file: `change` gets its text."""
        self.file.write_text(change(self.file.read_text()))

    def stop(self, expect=0):
        """SIGTERM to the newest; the older ones end within their drain timeout by themselves."""
        if not self.process:
            return
        process, self.process = self.process, None
        for pid in reversed(self.pids[1:]):
            if is_alive(pid):
                os.kill(pid, signal.SIGTERM)
        if process.alive():
            process.send_signal(signal.SIGTERM)
        for pid in self.pids[1:]:
            eventually(lambda p=pid: not is_alive(p), self.drain, f"process {pid} ends")
        assert process.wait(self.drain) == expect, process.log()[-4000:]
        process.kill()
        check_log(process.log())
        assert not self.socket.exists(), "the unix socket's path is removed by the last one"

    def kill(self):
        for pid in self.pids[1:]:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        super().kill()

    def __exit__(self, kind, *_):
        if kind is None:
            self.stop()
        else:
            self.kill()


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def line(tmp_path):
    lines = []

    def make(config, **more):
        lines.append(Line(config, tmp_path / f"line{len(lines)}", **more))
        return lines[-1].start()

    yield make
    for one_line in lines:
        one_line.kill()


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_nobody_notices_upgrades(line):
    with Traffic(websockets=20) as traffic:
        proxy = line({**one(traffic.backend), "listener": [{"http2": True}]})
        traffic.begin(proxy.address)
        eventually(lambda: traffic.counts.get("echoes", 0) > 20, 10)
        for turn in range(4):
            if turn % 2:
                proxy.signal(signal.SIGUSR2) if turn == 0 else os.kill(proxy.newest, signal.SIGUSR2)
                before = proxy.newest
                eventually(lambda: proxy.note() != before, 20, "SIGUSR2 upgrades")
            else:
                proxy.upgrade()
            answered = Counter(traffic.counts)
            for kind in ("keep-alive", "new connections", "HTTP/2 requests", "echoes"):
                eventually(
                    lambda k=kind: traffic.counts.get(k, 0) > answered[k] + 20, 20, f"{kind} go on"
                )
        eventually(lambda: traffic.counts.get("whole downloads", 0) > 0, 20, "a whole download")
        assert proxy.status()["upgrade"]["draining_processes"], "WebSockets live in older processes"
        traffic.finish()
    assert not traffic.failures, "\n".join(traffic.failures) + "\n" + proxy.log()[-3000:]
    assert traffic.counts["whole WebSockets"] == 20
    assert traffic.counts["told to close"] >= 4, "keep-alive connections moved over"
    # Without connections the older ones end by themselves.
    for pid in proxy.pids[:-1]:
        eventually(lambda p=pid: not is_alive(p), 20, f"process {pid} ends")
    eventually(lambda: not proxy.status()["upgrade"]["draining_processes"], 5)
    proxy.stop()


def test_a_successor_that_fails_changes_nothing(line, origin, tmp_path):
    proxy = line({**one(origin), "node": {"upgrade_timeout": "2s"}})
    good = proxy.file.read_text()
    cases = [
        (["--binary", "/nonexistent/ringgate"], good, "No such file"),
        (["--binary", script(tmp_path / "crash", "exit 3")], good, "exit code 3"),
        (["--binary", script(tmp_path / "killed", "kill -9 $$")], good, "signal 9"),
        (["--binary", script(tmp_path / "hangs", "exec sleep 60")], good, "not ready within 2s"),
        ([], good.replace("[[listener]]", "[[listner]]", 1), "listner"),
        ([], good.replace(f'"{proxy.config["listener"][0]["bind"]}"', '"192.0.2.1:80"'), "192.0.2.1:80"),
    ]
    with Client(proxy.address) as client:
        for count, (args, text, says) in enumerate(cases, 1):
            proxy.file.write_text(text)
            done = proxy.ctl("upgrade", *args, check=False)
            assert done.returncode == 1 and says in done.stderr, (says, done.stderr)
            assert proxy.status()["pid"] == proxy.pid
            failed = lambda: proxy.status()["upgrade"]
            eventually(lambda n=count: failed()["failures"] == n and says in failed()["last_failure"]["reason"], 5)
            proxy.await_equal("ringgate_upgrade_failures_total", count)
            proxy.await_log(says)
            assert get(proxy.address).status == 200
            assert client.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").header("connection") is None
    children = lambda: subprocess.run(["pgrep", "-P", str(proxy.pid)], capture_output=True, text=True).stdout.split()
    eventually(lambda: not children(), 5, "what failed is gone")
    proxy.file.write_text(good)
    proxy.upgrade()
    proxy.stop()


def test_other_shards_and_listeners(line, origin):
    """Accept queues belong to sockets: no shard count loses one, and new addresses are opened."""
    with Traffic(keepalive=2, websockets=0, every=0.004) as traffic:
        proxy = line({**one(traffic.backend), "listener": [{"http2": True}], "node": {"shards": 3}})
        traffic.begin(proxy.address)
        eventually(lambda: traffic.counts.get("new connections", 0) > 50, 10)
        for shards in (1, 4, 2):
            proxy.write(lambda text, s=shards: "\n".join(
                f"shards = {s}" if row.startswith("shards") else row for row in text.splitlines()))
            proxy.upgrade()
            assert len(proxy.status()["shards"]) == shards
            before = traffic.counts["new connections"]
            eventually(lambda: traffic.counts["new connections"] > before + 100, 20)
        traffic.finish()
    assert not traffic.failures, "\n".join(traffic.failures)
    extra = Proxy({}, proxy.directory).config["listener"][0]["bind"]
    proxy.write(lambda text: text + f'\n[[listener]]\nname = "more"\nbind = "{extra}"\n')
    proxy.upgrade()
    host, port = extra.split(":")
    assert get((host, int(port)), timeout=5).status in (200, 502)
    proxy.stop()


def test_only_one_at_a_time_and_not_while_draining(line, origin, tmp_path):
    proxy = line({**one(origin), "node": {"upgrade_timeout": "2s", "drain_timeout": "30s"}})
    slow = script(tmp_path / "slow", "exec sleep 60")
    first = subprocess.Popen(
        [str(binary()), "ctl", "--socket", str(proxy.socket), "upgrade", "--binary", str(slow)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    eventually(lambda: proxy.status()["upgrade"]["under_way"], 5)
    done = proxy.ctl("upgrade", check=False)
    assert done.returncode == 1 and "under way already" in done.stderr
    assert "not ready" in first.communicate(timeout=20)[1]
    with Client(proxy.address) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
        eventually(lambda: origin.heads, 5)
        proxy.signal(signal.SIGTERM)
        eventually(lambda: proxy.status()["phase"] == "draining", 5)
        done = proxy.ctl("upgrade", check=False)
        assert done.returncode == 1 and "draining" in done.stderr
        client.send(b"x")
        assert client.read_response().status == 200
    proxy.stop()


def test_an_end_reaches_older_processes(line, origin, tmp_path):
    """What drains after an upgrade ends within `drain_timeout` once its successor has ended."""
    from harness.traffic import _UPGRADE

    with Traffic(keepalive=0, websockets=0, h2=False) as traffic:
        proxy = line({**one(traffic.backend), "node": {"drain_timeout": "1s"}})
        with Client(proxy.address) as client:
            client.send(_UPGRADE)
            assert client.read_head().status == 101
            proxy.upgrade()
            client.send(b"still here\n")
            assert client.sock.recv(100) == b"still here\n"
            os.kill(proxy.newest, signal.SIGTERM)
            eventually(lambda: not is_alive(proxy.newest), 10, "the successor ends")
            eventually(lambda: not proxy.process.alive(), 10, "and the old one after it")
            proxy.stop()


def test_sessions_resume_and_the_pid_file_follows(line, origin, tmp_path):
    from harness.tls import Authority

    authority = Authority(tmp_path / "ca")
    pair = authority.issue("a", "a.example")
    pid_file = tmp_path / "ringgate.pid"
    proxy = line({
        **one(origin),
        "listener": [{"certificates": [pair]}],
        "node": {"pid_file": str(pid_file)},
    })
    assert int(pid_file.read_text()) == proxy.pid
    session = tmp_path / "session"
    where = "%s:%d" % proxy.address

    def connect(*more):
        return subprocess.run(
            ["openssl", "s_client", "-connect", where, "-servername", "a.example", "-tls1_2", *more],
            input="GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n",
            capture_output=True, text=True, timeout=20,
        ).stdout  # fmt: skip

    assert "New, TLSv1.2" in connect("-sess_out", str(session))
    for _ in range(2):
        proxy.upgrade()
        assert "Reused, TLSv1.2" in connect("-sess_in", str(session))
        eventually(lambda: int(pid_file.read_text()) == proxy.newest, 5)
    proxy.stop()
    assert not pid_file.exists()


def test_the_service_manager_is_told(line, origin, tmp_path):
    for name in (str(tmp_path / "notify"), f"@ringgate-test-{os.getpid()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(name.replace("@", "\0", 1))
            manager.settimeout(0.2)
            env = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "600000"}
            proxy = line(one(origin), env=env)

            # Read all the time, as systemd does: a queue of ten is soon full.
            lines, over = queue.Queue(), threading.Event()

            def read():
                while not over.is_set():
                    with contextlib.suppress(TimeoutError):
                        lines.put(manager.recv(4096).decode().splitlines())

            reader = threading.Thread(target=read, daemon=True)
            reader.start()

            def await_line(wanted):
                while wanted not in lines.get(timeout=30):
                    pass

            await_line("READY=1")
            await_line("WATCHDOG=1")
            await_line("WATCHDOG=1")
            proxy.ctl("upgrade", "--binary", "/nonexistent", check=False)
            await_line("RELOADING=1")
            await_line("READY=1")
            proxy.upgrade()
            await_line("RELOADING=1")
            await_line(f"MAINPID={proxy.newest}")
            await_line("READY=1")
            await_line("WATCHDOG=1")
            proxy.stop()
            await_line("STOPPING=1")
            over.set()
            reader.join(5)
