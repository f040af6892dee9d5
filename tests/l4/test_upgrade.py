"""The binary is replaced while it forwards: every flow goes on with its server, no frame is lost or sent twice."""

import hashlib
import json
import os
import re
import signal
import socket
import threading
import time

import pytest

from harness.client import tool
from harness.lan import Lan, in_namespace
from harness.process import Process
from harness.tools import eventually

from .common import VIP, VIP6, Node, Server, tables, virtual_server
from .test_failover import Flow
from .test_xdp import Talk, program

# On a busy machine a shard may be late: that is not what is tested.
PAUSES = 'upgrade_drain_timeout = "2s"\ndrain_timeout = "1s"\nvrrp_shard_timeout = "60s"'
VRRP = f'[vrrp.VI_1]\ninterface = "eth0"\nvirtual_router_id = 51\npriority = 200\nadvertise = "100ms"\naddresses = ["{VIP}/24"]\n'
CHUNK = 1 << 14
SO_RCVBUFFORCE = 33


class Line:
    """The processes that succeed each other on one node."""

    def __init__(self, node):
        self.node, self.pids = node, [node.process.pid]

    def status(self):
        done = self.node.host.run(tool("curl"), "-s", "http://127.0.0.1:9090/status")
        return json.loads(done.stdout)

    def upgrade(self):
        done = self.node.control("upgrade", check=False)
        assert done.returncode == 0, f"{done.stderr}\n{self.node.log()[-3000:]}"
        self.pids.append(int(re.search(r"process (\d+)", done.stdout)[1]))

    def gone(self, pid):
        """The first one is our child, and stays as a zombie until it is waited for."""
        return not self.node.process.alive() if pid == self.node.process.pid else not os.path.exists(f"/proc/{pid}")

    def stop(self):
        """The newest ends; the older ones have gone, or follow."""
        os.kill(self.pids[-1], signal.SIGTERM)
        for pid in self.pids[1:]:
            eventually(lambda p=pid: self.gone(p), 20, f"process {pid} ends")
        self.node.stop()


class Datagrams:
    """Numbered datagrams from a few ports, and who got each of them how often."""

    PORTS = 12

    def __init__(self, client, servers):
        self.got, self.sent, self.over, self.failure = [], 0, threading.Event(), None
        ready = [threading.Event() for _ in servers]
        self.receivers = [
            in_namespace(server.host.name, lambda s=server, r=one: self.receive(s.name, r)) for server, one in zip(servers, ready)
        ]
        assert all(one.wait(5) for one in ready)
        self.sending = threading.Event()
        self.sender = in_namespace(client.name, self.send)

    def receive(self, name, ready):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
            udp.bind(("", 9000))
            udp.settimeout(0.1)
            ready.set()
            while not self.over.is_set():
                try:
                    data, (_, port) = udp.recvfrom(100)
                except TimeoutError:
                    continue
                self.got.append((int(data), port, name))

    def send(self):
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(self.PORTS)]
        for one in sockets:
            one.connect((VIP, 9000))
        while not self.sending.is_set():
            try:
                sockets[self.sent % self.PORTS].send(str(self.sent).encode())
            except OSError as error:
                # Among others what an ICMP error says: of a datagram that came through to the director's own kernel.
                self.failure = f"datagram {self.sent}: {error!r}"
                return
            self.sent += 1
            time.sleep(0.002)

    def finish(self):
        self.sending.set()
        self.sender.join(5)
        assert self.failure is None, self.failure
        eventually(lambda: len(self.got) >= self.sent, 5, lambda: f"{len(self.got)} of {self.sent} arrive")
        self.over.set()
        for receiver in self.receivers:
            receiver.join(5)
        numbers = sorted(number for number, _, _ in self.got)
        assert numbers == list(range(self.sent)), "each datagram arrives once"
        servers = {}
        for _, port, name in self.got:
            servers.setdefault(port, set()).add(name)
        assert {len(names) for names in servers.values()} == {1}, servers
        assert len(servers) == self.PORTS and len(set.union(*servers.values())) == 3


class Upload:
    """A request whose body is sent bit by bit until it is told to finish."""

    def __init__(self, client):
        self.over, self.answer, self.chunks = threading.Event(), None, 1000
        self.thread = in_namespace(client.name, self.work)

    def work(self):
        with socket.create_connection((VIP, 8080), 10) as connection:
            connection.settimeout(30)
            connection.sendall(f"PUT /up HTTP/1.1\r\nhost: a\r\ncontent-length: {self.chunks * CHUNK}\r\n\r\n".encode())
            digest = hashlib.sha256()
            for number in range(self.chunks):
                chunk = number.to_bytes(2, "big") * (CHUNK // 2)
                digest.update(chunk)
                connection.sendall(chunk)
                self.over.wait(0.02)
            answer = b""
            while digest.hexdigest().encode() not in answer:
                more = connection.recv(4096)
                assert more, answer
                answer += more
            self.answer = answer

    def finish(self):
        self.over.set()
        self.thread.join(30)
        assert self.answer, "the upload arrives whole"


class Download:
    """A response that is read bit by bit until it is told to finish."""

    LENGTH = 64 << 20

    def __init__(self, client):
        self.over, self.whole = threading.Event(), False
        self.thread = in_namespace(client.name, self.work)

    def work(self):
        expected = hashlib.shake_128(b"body").digest(1 << 16) * (self.LENGTH >> 16)
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            connection.settimeout(30)
            connection.connect((VIP, 8080))
            connection.sendall(f"GET /bytes/{self.LENGTH} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
            data = bytearray()
            while not data.endswith(expected[-CHUNK:]) or len(data) < self.LENGTH:
                more = connection.recv(CHUNK)
                assert more, len(data)
                data += more
                self.over.wait(0.02)
            self.whole = data.endswith(expected)

    def finish(self):
        self.over.set()
        self.thread.join(30)
        assert self.whole, "the download arrives whole"


def with_keys(text, keys):
    """A configuration with more keys in `[director]`."""
    head = "[director]\n"
    return text.replace(head, head + keys, 1) if head in text else head + keys + text


@pytest.fixture
def network(lan, tmp_path):
    client = lan.host()
    servers = [Server(lan.host(), tmp_path, f"s{n}") for n in (1, 2, 3)]
    yield lan, client, servers
    for server in servers:
        server.stop()


@pytest.mark.parametrize("datapath", ["packet", "generic"])
def test_flows_go_on_through_upgrades(network, tmp_path, datapath):
    lan, client, servers = network
    weighted = [(server.host.address, weight) for server, weight in zip(servers, (3, 2, 1))]
    config = f'[director]\ndatapath = "{datapath}"\n' + VRRP
    config += virtual_server(f"{VIP}:80", weighted, scheduler="wlc")
    config += virtual_server(f"{VIP}:8080", weighted, scheduler="wrr", persistence_timeout="60s")
    config += virtual_server(f"{VIP}:9000", weighted, scheduler="rr", protocol="udp")
    config += virtual_server(f"[{VIP6}]:80", [server.host.address6 for server in servers], scheduler="lc")
    host = lan.host()
    host.ip("addr", "add", f"{VIP6}/64", "dev", "eth0", "nodad")
    node = Node(host, tmp_path, "a", config, node=PAUSES).start()
    try:
        node.await_role("active", "VI_1")
        node.await_neighbours(6)
        expected = None if datapath == "packet" else "xdpgeneric"
        eventually(lambda: program(node.host) == expected, 5)
        watch = Process(node.host.argv(tool("ip"), "monitor", "address", "link"), tmp_path / "monitor")
        line = Line(node)
        talks = [Talk(client, vip, 80) for vip in (VIP, VIP, VIP6) for _ in range(20)]
        for talk in talks:
            talk.ask()
        upload, download, datagrams = Upload(client), Download(client), Datagrams(client, servers)
        # New flows of a client with persistence stay with its server.
        persistent = {name for talk in [Talk(client, VIP, 8080)] for name in [talk.ask()] for name in talk.names}
        for _ in range(3):
            sent = datagrams.sent
            line.upgrade()
            for talk in talks:
                talk.ask()
            again = Talk(client, VIP, 8080)
            again.ask()
            assert again.names == persistent
            eventually(lambda: datagrams.sent > sent + 50, 10)
            assert program(node.host) == expected
        datagrams.finish()
        upload.finish()
        download.finish()
        assert all(len(talk.names) == 1 for talk in talks), [talk.names for talk in talks]
        assert {name for talk in talks for name in talk.names} == {"s1", "s2", "s3"}
        eventually(lambda: len(tables(node.host)) == 1, 5, "of each process but the last the table is gone")
        watch.kill()
        assert not [row for row in watch.log().splitlines() if "Deleted" in row and VIP in row], watch.log()
        eventually(lambda: node.log().count("flows taken over") == 3, 5)
        assert "not used" not in node.log(), node.log()
        drops = {k: v for k, v in node.metrics().items() if "director_dropped_total" in k and "backup" in k}
        assert drops and not any(drops.values()), drops
        line.stop()
        assert tables(node.host) == [] and program(node.host) is None and VIP not in node.host.addresses()
    finally:
        if node.process:
            node.kill()


def test_a_program_in_the_driver_is_handed_over(network, tmp_path):
    """Its link passes to the successor, which puts its own program there: no datagram is lost, none arrives twice."""
    lan, client, servers = network
    four = [server.host.address for server in servers]
    config = '[director]\ndatapath = "native"\n' + virtual_server(f"{VIP}:80", four, scheduler="mh")
    config += virtual_server(f"{VIP}:9000", four, scheduler="rr", protocol="udp")
    host = lan.host()
    host.ip("addr", "add", f"{VIP}/24", "dev", "eth0")
    node, datagrams = Node(host, tmp_path, "a", config, node=PAUSES).start(), None
    try:
        node.await_neighbours(3)
        eventually(lambda: program(host) == "xdp", 5)
        talks, datagrams = [Talk(client, VIP, 80) for _ in range(20)], Datagrams(client, servers)
        line = Line(node)
        for processes in (2, 3):
            sent = datagrams.sent
            for talk in talks:
                talk.ask()
            line.upgrade()
            # The command is answered while the old one's program still forwards: the successor's comes a moment later.
            own = lambda: program(host) != "xdp" or node.log().count("datapath=xdp-native") == processes
            eventually(own, 10, "a program of its own")
            assert program(host) == "xdp", "never without one"
            eventually(lambda: datagrams.sent > sent + 50 or datagrams.failure, 10)
        datagrams.finish()
        for talk in talks:
            talk.ask()
        assert all(len(talk.names) == 1 for talk in talks), [talk.names for talk in talks]
        eventually(lambda: node.log().count("flows taken over") == 2, 5)
        line.stop()
        assert program(host) is None
    finally:
        if datagrams:
            datagrams.sending.set()
        if node.process:
            node.kill()


def test_a_successor_that_fails_changes_nothing(network, tmp_path):
    lan, client, servers = network
    four = [server.host.address for server in servers]
    node = Node(lan.host(), tmp_path, "a", VRRP + virtual_server(f"{VIP}:80", four, scheduler="lc"), node=PAUSES).start()
    try:
        node.await_role("active", "VI_1")
        node.await_neighbours(3)
        talks = [Talk(client, VIP, 80) for _ in range(12)]
        for talk in talks:
            talk.ask()
        text = node.file.read_text()
        node.file.write_text(text.replace('scheduler = "lc"', 'scheduler = "nobody"'))
        done = node.control("upgrade", check=False)
        assert done.returncode != 0 and "scheduler" in done.stderr, done
        # One that could start, and is not a Ringgate.
        done = node.control("upgrade", "--binary", "/bin/true", check=False)
        assert done.returncode != 0, done
        for talk in talks:
            talk.ask()
        assert all(len(talk.names) == 1 for talk in talks), [talk.names for talk in talks]
        # What a reload cannot change takes an upgrade: another table, hash and number of directors.
        other = with_keys(text, 'flows_max = 2048\nseed = "sixteen letters at least"\ncpus = "0-1"\n')
        node.file.write_text(other.replace('scheduler = "lc"', 'scheduler = "rr"'))
        done = node.control("reload", check=False)
        assert done.returncode != 0 and "ctl upgrade" in done.stderr, done
        line = Line(node)
        line.upgrade()
        for talk in talks:
            talk.ask()
        eventually(lambda: len(line.status()["director"]["directors"]) == 2, 5)
        # And back to one.
        node.file.write_text(text)
        line.upgrade()
        for talk in talks:
            talk.ask()
        assert all(len(talk.names) == 1 for talk in talks), [talk.names for talk in talks]
        line.stop()
    finally:
        if node.process:
            node.kill()


FAILS_AT_LAST = """#!/usr/bin/python3
import json, mmap, socket, struct, sys, time
channel, rings, taken = socket.socket(fileno=0), [], 0
say = lambda **message: channel.send(json.dumps(message).encode())
while True:
    data, descriptors, _, _ = socket.recv_fds(channel, 1 << 16, 253)
    message = json.loads(data)
    if message["kind"] == "whole":
        say(kind="ready", vrrp=[], real_server=[])
    if message["kind"] == "director":
        parts = zip(message["parts"], descriptors)
        rings += [(part["ring"]["place"], one) for part, one in parts if isinstance(part, dict) and "ring" in part]
    if message["kind"] == "go":
        break
(place, descriptor), end = rings[0], time.monotonic() + 3
at = place["head"]
with mmap.mmap(descriptor, place["slots"] * place["slot"]) as ring:
    while taken < 3 and time.monotonic() < end:
        if struct.unpack_from("=I", ring, at * place["slot"])[0] & 1:
            struct.pack_into("=I", ring, at * place["slot"], 0)
            at, taken = (at + 1) % place["slots"], taken + 1
        else:
            time.sleep(0.001)
say(kind="failed", reason=f"{taken} frames were taken")
time.sleep(60)
"""


def test_a_successor_that_fails_at_last(network, tmp_path):
    """It had everything, and took frames out of the ring: the old process finds where the ring goes on."""
    lan, client, servers = network
    four = [server.host.address for server in servers]
    host = lan.host()
    host.ip("addr", "add", f"{VIP}/24", "dev", "eth0")
    # It is about the ring of packet sockets.
    config = '[director]\ndatapath = "packet"\n' + virtual_server(f"{VIP}:8080", four, scheduler="lc")
    node = Node(host, tmp_path, "a", config, node=PAUSES).start()
    fails = tmp_path / "fails"
    fails.write_text(FAILS_AT_LAST)
    fails.chmod(0o755)
    try:
        node.await_neighbours(3)
        asking = [Flow(client, VIP) for _ in range(6)]
        eventually(lambda: all(flow.count() > 3 or flow.failure for flow in asking), 15, "flows under way")
        for _ in range(2):
            done = node.control("upgrade", "--binary", fails, check=False)
            assert done.returncode != 0 and "3 frames were taken" in done.stderr, done
            counts = [flow.count() for flow in asking]
            go_on = lambda: all(flow.count() > count + 5 or flow.failure for flow, count in zip(asking, counts))
            eventually(go_on, 20, "flows go on")
        for flow in asking:
            flow.stop()
        assert [flow.failure for flow in asking] == [None] * len(asking)
        assert all(len(set(flow.names)) == 1 for flow in asking)
        node.stop()
    finally:
        if node.process:
            node.kill()


def test_the_role_of_a_real_server_goes_on(lan, tmp_path):
    host = lan.host()
    role = lambda *addresses: f"[real_server]\naddresses = {json.dumps(addresses)}\n"
    node = Node(host, tmp_path, "s", role(VIP, VIP6), listen=80, node=PAUSES).start()
    try:
        held = lambda: {VIP, VIP6} & set(host.addresses("lo"))
        eventually(lambda: held() == {VIP, VIP6}, 5)
        watch = Process(host.argv(tool("ip"), "monitor", "address"), tmp_path / "monitor")
        line = Line(node)
        for _ in range(2):
            line.upgrade()
            eventually(lambda: line.gone(line.pids[-2]), 20, "the old process ends")
            assert held() == {VIP, VIP6}
        text = node.file.read_text()
        # A successor that fails takes nothing along.
        node.file.write_text(text.replace("[real_server]", "[real_serve]"))
        assert node.control("upgrade", check=False).returncode != 0
        assert held() == {VIP, VIP6}
        assert "Deleted" not in watch.log(), watch.log()
        # One that does not have an address any more: it goes.
        node.file.write_text(text.replace(f', "{VIP6}"', ""))
        line.upgrade()
        eventually(lambda: held() == {VIP}, 10)
        watch.kill()
        line.stop()
        assert held() == set()
    finally:
        if node.process:
            node.kill()


def flows(node):
    return sum(v for k, v in node.metrics().items() if k.startswith("ringgate_director_flows{"))


def test_what_a_reload_changes_of_directors(tmp_path):
    """Timeouts, interfaces and the other directors."""
    with Lan() as lan:
        client, peer, host = lan.host(), lan.host(), lan.host(("eth0", "eth1"))
        server = Server(lan.host(), tmp_path, "s1", web=False)
        host.ip("addr", "add", f"{VIP}/24", "dev", "eth0")
        text = virtual_server(f"{VIP}:9000", [server.host.address], protocol="udp")
        with Node(host, tmp_path, "a", text) as node:
            node.await_neighbours(1)
            begin = lambda: client.run("bash", "-c", f"echo > /dev/udp/{VIP}/9000") and flows(node) >= 1
            eventually(begin, 10, "a flow", every=0.2)
            line = Line(node)
            assert line.status()["director"]["interfaces"] == ["eth0"]
            keys = f'udp_timeout = "1s"\ninterfaces = ["eth0", "eth1"]\npeers = ["{peer.address}"]\n'
            node.file.write_text(with_keys(node.file.read_text(), keys))
            node.control("reload")
            eventually(lambda: flows(node) == 0, 15, "the flow times out sooner")
            eventually(lambda: sorted(line.status()["director"]["interfaces"]) == ["eth0", "eth1"], 5)
            known = lambda: {one["address"] for one in line.status()["director"]["neighbours"]}
            eventually(lambda: known() == {server.host.address, peer.address}, 5)
        server.stop()
