"""Planned hand-over: the peer is active before the address goes, and no request is lost."""

import socket
import threading
import time

import pytest

from harness.lan import Load, Ringgate, in_namespace
from harness.threads import stopped
from harness.tools import eventually

from .common import VIP, holds, vrrp


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


class SlowOrigin:
    """A server on a host that answers when it is told to."""

    def __init__(self, host):
        self.host, self.asked, self.go, self.ready = host, threading.Event(), threading.Event(), threading.Event()

    def __enter__(self):
        self.thread = in_namespace(self.host.name, self._work)
        assert self.ready.wait(10)
        return self

    def __exit__(self, *_):
        self.go.set()
        self.listener.close()

    def _work(self):
        with socket.create_server(("0.0.0.0", 8080)) as self.listener:
            self.ready.set()
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with client:
                client.recv(4096)
                self.asked.set()
                self.go.wait(20)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow")


class Slow:
    """A request whose answer comes from a slow server: the connection is there, the answer is not."""

    def __init__(self, host, address):
        self.target, self.answer = (address, 80), None
        self.thread = in_namespace(host.name, self._work)

    def _work(self):
        with socket.create_connection(self.target, 5) as client:
            client.settimeout(10)
            client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = b""
            while chunk := client.recv(4096):
                answer += chunk
        self.answer = answer


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


def test_prefer_asks_the_active_node_which_finishes_first(lan, tmp_path):
    """From the backup, under load: no request is lost, and one that was under way is answered by who had it."""
    origin, client = lan.host(), lan.host()
    with SlowOrigin(origin) as server:
        slow = (
            f'[upstream.slow]\nservers = [{{ address = "{origin.address}:8080" }}]\n'
            '[[route]]\npath = "/slow"\nupstream = "slow"\n'
        )
        a = Ringgate(lan.host(), tmp_path, "a", vrrp(200), more=slow)
        b = Ringgate(lan.host(), tmp_path, "b", vrrp(100), more=slow)
        with a, b:
            a.await_role("active")
            b.await_role("backup")
            eventually(lambda: b.instance()["active"], 5)
            keeping = [KeepAlive(client, VIP) for _ in range(3)]
            with Load(client, VIP, patience=5, every=0.01) as load:
                load.await_from("a")
                under_way = Slow(client, VIP)
                assert server.asked.wait(10)
                preferring = threading.Thread(target=lambda: answers.append(b.ctl("prefer")))
                answers = []
                preferring.start()
                finishing = eventually(
                    lambda: (one := a.instance())["hand_over"] and one, 5, "it finishes what is under way", every=0.02
                )
                assert "finishing what is under way" in finishing["hand_over"] and finishing["role"] == "active"
                server.go.set()
                under_way.thread.join(10)
                assert under_way.answer and under_way.answer.endswith(b"slow"), under_way.answer
                load.await_from("b")
                preferring.join(20)
                eventually(lambda: holds(b) and not holds(a), 5)
                eventually(lambda: counted(a, 'ringgate_vrrp_hand_over_requests_total{instance="VI_1",result="heeded"}') >= 1, 5)
                eventually(lambda: counted(a, 'ringgate_vrrp_transitions_total{instance="VI_1",to="backup"}') >= 1, 5)
            for one in keeping:
                one.stop()
            assert answers[0].stdout.strip() == "1 active here"
            assert not load.failures, load.failures
            assert not [one.failures for one in keeping if one.failures]
            assert {"a", "b"} <= {answer for one in keeping for answer in one.answers}
            eventually(lambda: "handed over to" in a.log(), 5)
            assert "resigned" in b.instance()["last_transition"]["reason"]
            # It takes part as before, and gets the addresses back the same way.
            assert (a.instance()["role"], a.instance()["priority"]) == ("backup", 200)
            eventually(lambda: a.instance()["active"], 5)
            a.ctl("prefer")
            eventually(lambda: holds(a) and not holds(b), 5)
            assert "resigned" in a.instance()["last_transition"]["reason"]


def test_a_shard_that_does_not_run_just_now_is_waited_for(lan, tmp_path):
    """The kernel completes handshakes for it and takes requests in, and no count of connections has those."""
    client = lan.host()
    nodes = [
        Ringgate(lan.host(), tmp_path, name, vrrp(priority), node='vrrp_shard_timeout = "1m"')
        for name, priority in (("a", 200), ("b", 100))
    ]
    a, b = nodes
    with a, b:
        a.await_role("active")
        eventually(lambda: b.instance()["active"], 5)
        preferring = threading.Thread(target=lambda: b.ctl("prefer"))
        with stopped(a.pid, "shard-0"):
            under_way = Slow(client, VIP)
            taken_in = lambda: [row.split()[1] for row in a.host.run("ss", "-Htn", "sport = :80").stdout.splitlines()]
            eventually(lambda: any(int(waiting) > 0 for waiting in taken_in()), 5, "the kernel has the request")
            preferring.start()
            eventually(lambda: a.instance()["hand_over"], 5, "it finishes what is under way", every=0.02)
            time.sleep(0.5)
            assert holds(a) and not holds(b)
        under_way.thread.join(15)
        assert under_way.answer and under_way.answer.endswith(b"\r\n\r\na"), under_way.answer
        b.await_role("active")
        preferring.join(20)
        eventually(lambda: holds(b) and not holds(a), 5)


@pytest.mark.parametrize("asked", ["release", "prefer"])
def test_an_active_node_that_dies_while_it_finishes_what_is_under_way_is_replaced(lan, tmp_path, asked):
    """kill -9 in the middle of a hand-over: the other takes over as after any other death."""
    origin, client = lan.host(), lan.host()
    slow = (
        f'[upstream.slow]\nservers = [{{ address = "{origin.address}:8080" }}]\n'
        '[[route]]\npath = "/slow"\nupstream = "slow"\n'
    )
    a = Ringgate(lan.host(), tmp_path, "a", vrrp(200, more='lease = "1s"'), more=slow)
    b = Ringgate(lan.host(), tmp_path, "b", vrrp(100, more='lease = "1s"'), more=slow)
    with SlowOrigin(origin) as server, b:
        a.start()
        try:
            a.await_role("active")
            eventually(lambda: b.instance()["active"], 5)
            under_way = Slow(client, VIP)
            assert server.asked.wait(10)
            node = a if asked == "release" else b
            done = []
            ordering = threading.Thread(target=lambda: done.append(node.ctl(asked, check=False)))
            ordering.start()
            # The slow request keeps it from offering the addresses for seconds.
            eventually(lambda: turns_away(client), 5, "what is under way is being finished", every=0.02)
        finally:
            a.kill()
        with Load(client, VIP, patience=5) as load:
            b.await_role("active")
            load.await_from("b")
        eventually(lambda: holds(b) and not holds(a), 10)
        ordering.join(30)
        assert (done[0].returncode == 0) == (asked == "prefer"), done
        under_way.thread.join(20)


def test_prefer_moves_a_sync_group_as_one(lan, tmp_path):
    more = '[vrrp_sync_group.G]\ngroup = ["VI_1", "VI_2"]\n'

    def two(priority):
        second = vrrp(priority, addresses='"10.77.0.101/24"').replace("VI_1", "VI_2").replace("= 51", "= 52")
        return vrrp(priority) + second + more

    a, b = (Ringgate(lan.host(), tmp_path, name, two(priority)) for name, priority in (("a", 200), ("b", 100)))
    with a, b:
        for name in ("VI_1", "VI_2"):
            a.await_role("active", name)
            eventually(lambda n=name: b.instance(n)["active"], 5)
        assert b.ctl("prefer", "VI_1").stdout.strip() == "1 active here"
        for name in ("VI_1", "VI_2"):
            b.await_role("active", name)
        assert "preempted" not in b.log()
        eventually(lambda: all(holds(b, vip) and not holds(a, vip) for vip in (VIP, "10.77.0.101")), 5)


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


def turns_away(client):
    """Connections end after an answer, or new ones are not heard any more."""
    done = client.run("curl", "-si", "--max-time", "1", f"http://{VIP}/", check=False)
    return done.returncode == 28 or "connection: close" in done.stdout.lower()


def counted(node, sample):
    page = node.host.run("curl", "-s", "http://127.0.0.1:9090/metrics").stdout
    return next((float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(f"{sample} ")), 0)
