"""Planned hand-over: the peer is active before the address goes, and no request is lost."""

import socket
import time

from harness.lan import Load, in_namespace
from harness.tools import eventually

from .common import VIP, holds


class KeepAlive:
    """A client that keeps its connection, and opens another when it was told of the end of the last one."""

    def __init__(self, host, address):
        self.target, self.answers, self.failures, self.over = (address, 80), [], [], False
        self.thread = in_namespace(host.name, self._work)

    def _work(self):
        client = None
        while not self.over:
            try:
                if client is None:
                    client = socket.create_connection(self.target, 5)
                    client.settimeout(5)
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = client.recv(4096)
                if not answer.startswith(b"HTTP/1.1 200"):
                    raise OSError(f"{answer!r}")
                self.answers.append(answer[-1:].decode())
                if b"onnection: close" in answer:
                    client.close()
                    client = None
            except OSError as error:
                self.failures.append(error)
                client = None
            time.sleep(0.002)

    def stop(self):
        self.over = True
        self.thread.join(6)


def test_release_and_resume_lose_nothing(pair):
    a, b, client = pair()
    keeping = [KeepAlive(client, VIP) for _ in range(3)]
    loads = [Load(client, VIP, patience=5, every=0.01) for _ in range(3)]
    try:
        for load in loads:
            load.__enter__()
        loads[0].await_from("a")
        assert a.ctl("release").stdout.strip() == "0 active here"
        eventually(lambda: (b.instance()["role"], a.instance()["role"]) == ("active", "backup"), 3)
        assert a.instance()["why"] == ["released by the operator"]
        eventually(lambda: holds(b) and not holds(a), 3)
        for load in loads:
            load.await_from("b")
        time.sleep(1.5)  # those whose handshake was ignored try again after a second
        resumed = time.monotonic()
        a.ctl("resume")
        a.await_role("active")
    finally:
        for load in loads:
            load.__exit__()
        for one in keeping:
            one.stop()
    # `resume` is a take-over by the better router, which is no hand-over: only the first half is lossless.
    early = [f for load in loads for f in load.failures if f[1] < resumed]
    assert not early, early
    assert {"a", "b"} <= {answer for one in keeping for answer in one.answers}


def test_release_without_a_peer_serves_on(lan, tmp_path):
    from harness.lan import Ringgate

    from .common import vrrp

    host, client = lan.host(), lan.host()
    with Ringgate(host, tmp_path, "a", vrrp(100)) as a:
        a.await_role("active")
        done = a.ctl("release", check=False)
        assert done.returncode == 1 and "nobody took over" in done.stderr, done
        with Load(client, VIP) as load:
            load.await_from("a")
        assert a.instance()["priority"] == 1
        a.ctl("resume")
        eventually(lambda: a.instance()["priority"] == 100, 5)


def test_prefer_takes_over_from_a_better_router(pair):
    a, b, client = pair(more="preempt = false")
    b.ctl("prefer")
    b.await_role("active")
    a.await_role("backup")
    eventually(lambda: holds(b) and not holds(a), 5)
    assert b.instance()["priority"] == 254
    b.ctl("release")
    a.await_role("active")
    done = b.ctl("prefer", "VI_9", check=False)
    assert done.returncode == 1 and "there are: VI_1" in done.stderr
