"""The binary is replaced while VRRP runs: to a real keepalived beside it nothing happens."""

import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest

from harness.client import tool
from harness.lan import Keepalived, Load, Ringgate, in_namespace
from harness.process import Process
from harness.proxy import binary
from harness.tools import eventually

from .common import VIP, holds, vrrp

PEER = """
vrrp_instance VI_1 {{
    state BACKUP
    interface eth0
    virtual_router_id 51
    version 3
    priority {priority}
    advert_int 0.1
    virtual_ipaddress {{ 10.77.0.100/24 }}
}}
"""


SO_TIMESTAMPNS = 35


class Adverts:
    """Time (of the kernel's, as `time.time`), source and priority of every VRRP packet on the switch."""

    def __init__(self, lan, bridge):
        self.lan, self.bridge, self.seen, self.over = lan, bridge, [], threading.Event()
        self.ready = threading.Event()

    def __enter__(self):
        self.thread = in_namespace(self.lan.name, self._work)
        assert self.ready.wait(5)
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join(5)

    def _work(self):
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as sniffer:
            sniffer.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            sniffer.bind((self.bridge, 0))
            sniffer.settimeout(0.05)
            self.ready.set()
            while not self.over.is_set():
                try:
                    frame, control, _, _ = sniffer.recvmsg(2000, 256)
                except TimeoutError:
                    continue
                if frame[23] == 112:
                    source = socket.inet_ntoa(frame[26:30])
                    stamp = next(data for _, kind, data in control if kind == SO_TIMESTAMPNS)
                    seconds, nanoseconds = struct.unpack("=qq", stamp)
                    self.seen.append((seconds + nanoseconds / 1e9, source, frame[14 + 20 + 2]))

    def of(self, host, since=0.0):
        return [(at, priority) for at, source, priority in self.seen if source == host.address and at >= since]


class Line:
    """The processes that succeed each other on one node."""

    def __init__(self, node):
        self.node = node
        self.pids = [self._pid()]

    def _pid(self):
        """The process that answers at the unix socket."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(self.node.socket))
            client.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
            text = b"".join(iter(lambda: client.recv(65536), b""))
        return json.loads(text.partition(b"\r\n\r\n")[2])["pid"]

    def upgrade(self):
        done = subprocess.run(
            [str(binary()), "ctl", "--socket", str(self.node.socket), "upgrade"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stderr}\n{self.node.log()[-3000:]}"
        self.pids.append(self._pid())
        assert self.pids[-1] != self.pids[-2]

    def stop(self):
        """The newest resigns; the older ones follow."""
        os.kill(self.pids[-1], signal.SIGTERM)
        for pid in self.pids[1:]:
            eventually(lambda p=pid: not os.path.exists(f"/proc/{p}"), 20, f"process {pid} ends")
        self.node.stop()


def settled(peer):
    """Waits until a peer that claimed once has given way, and stays; how often it has claimed."""
    claims = lambda: peer.log().count("Entering MASTER")
    eventually(lambda: claims() and peer.state() == "BACKUP", 15, "the peer has settled")
    return claims()


@pytest.fixture
def node(lan, tmp_path):
    nodes = []

    def start(priority, **keys):
        nodes.append(Ringgate(lan.host(), tmp_path, "a", vrrp(priority, **keys),
                              node='upgrade_drain_timeout = "2s"\ndrain_timeout = "1s"'))
        return nodes[-1].start()

    yield start
    for one in nodes:
        if one.process:
            one.kill()


def test_upgrades_of_the_active_router_do_not_flap(lan, node, tmp_path):
    active = node(200)
    peer = Keepalived(lan.host(), tmp_path, PEER.format(priority=100))
    client = lan.host()
    with peer, Adverts(lan, lan.bridge_of("eth0")) as adverts:
        active.await_role("active")
        # keepalived 2.2 takes our first checksums for wrong and claims once: from that its form is known,
        # which a successor has to know too.
        claims = settled(peer)
        watch = Process(active.host.argv(tool("ip"), "monitor", "address"), tmp_path / "monitor")
        line = Line(active)
        with Load(client, VIP) as load:
            load.await_from("a")
            began = time.time()
            for _ in range(3):
                line.upgrade()
                before = len(adverts.of(active.host))
                eventually(lambda: len(adverts.of(active.host)) > before + 10, 10)
                assert holds(active)
                load.await_from("a")
            ours = adverts.of(active.host, began)
        watch.kill()
        failures = load.failures
        story = [(round((at - began) * 1000), source, priority) for at, source, priority in adverts.seen if at > began - 0.5]
        assert not adverts.of(peer.host, began), f"the peer claimed: {story[:60]}\n{active.log()}\n{peer.log()}"
        assert peer.log().count("Entering MASTER") == claims, peer.log()
        assert {priority for _, priority in ours} == {200}, "nobody resigned"
        gap = max(b - a for (a, _), (b, _) in zip(ours, ours[1:]))
        # keepalived's Active_Down_Interval: three intervals and its skew of 156/256 of one.
        assert gap < 0.36, f"{gap * 1000:.0f} ms without an advertisement"
        assert not [row for row in watch.log().splitlines() if "Deleted" in row and VIP in row]
        assert not failures, failures[:5]
        status = active.instance()
        assert status["role"] == "active" and status["priority"] == 200
        # The successor hands over and resigns like any other.
        line.stop()
        peer.await_state("MASTER")
        assert not holds(active)


def test_upgrades_of_a_backup_and_of_a_released_router_keep_their_place(lan, node, tmp_path):
    ours = node(50, more="preempt = false")
    peer = Keepalived(lan.host(), tmp_path, PEER.format(priority=150))
    with peer, Adverts(lan, lan.bridge_of("eth0")) as adverts:
        peer.await_state("MASTER")
        ours.await_role("backup")
        line = Line(ours)
        began = time.time()
        for _ in range(2):
            line.upgrade()
            before = len(adverts.of(peer.host))
            eventually(lambda: len(adverts.of(peer.host)) > before + 10, 10)
        assert not adverts.of(ours.host, began)
        assert ours.instance()["role"] == "backup" and not holds(ours)
        ours.ctl("release")
        line.upgrade()
        eventually(lambda: ours.instance()["priority"] == 1, 5, "the operator's will goes along")
        ours.ctl("resume")
        eventually(lambda: ours.instance()["priority"] == 50, 5)
        line.stop()


def test_a_successor_without_the_router_resigns_it(lan, node, tmp_path):
    active = node(200)
    peer = Keepalived(lan.host(), tmp_path, PEER.format(priority=100))
    with peer, Adverts(lan, lan.bridge_of("eth0")) as adverts:
        active.await_role("active")
        settled(peer)
        began = time.time()
        line = Line(active)
        text = active.file.read_text()
        # A successor that fails after everything was passed leaves the router as it was.
        active.file.write_text(text.replace("virtual_router_id = 51", "virtual_router_id = 51000"))
        with pytest.raises(AssertionError, match="virtual_router_id"):
            line.upgrade()
        assert active.instance()["role"] == "active"
        assert not adverts.of(peer.host, began)
        active.file.write_text(text.replace("virtual_router_id = 51", "virtual_router_id = 52"))
        line.upgrade()
        peer.await_state("MASTER")
        eventually(lambda: 0 in {priority for _, priority in adverts.of(active.host)}, 5)
        line.stop()


FAILS_AT_LAST = """#!/usr/bin/python3
import json, socket, sys, time
channel = socket.socket(fileno=0)
say = lambda **message: channel.send(json.dumps(message).encode())
while True:
    message = json.loads(socket.recv_fds(channel, 1 << 16, 253)[0])
    if message["kind"] == "whole":
        say(kind="ready", vrrp=TAKEN, real_server=[])
    if message["kind"] == "go":
        say(kind="failed", reason="%d routers came" % len(message["vrrp"]))
        time.sleep(60)
"""


@pytest.mark.parametrize("taken", [["VI_1/eth0/51/1"], []], ids=["with the router", "without it"])
def test_after_a_successor_that_fails_at_last_the_router_goes_on(lan, node, tmp_path, taken):
    """One that it would have taken as if nothing had happened; one that it would not, which resigned, begins again."""
    active = node(200)
    active.await_role("active")
    fails = tmp_path / "fails"
    fails.write_text(FAILS_AT_LAST.replace("TAKEN", repr(taken)))
    fails.chmod(0o755)
    for count in (1, 2):
        argv = [str(binary()), "ctl", "--socket", str(active.socket), "upgrade", "--binary", str(fails)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert done.returncode != 0 and f"{len(taken)} routers came" in done.stderr, done
        active.await_role("active")
        eventually(lambda: holds(active), 5)
        starts = 1 if taken else 1 + count
        eventually(lambda: active.log().count("to=active") == starts, 5, lambda: active.log()[-3000:])
    active.stop()
