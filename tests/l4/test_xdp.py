"""The XDP datapath: what the program forwards, what it leaves, and that it goes with the process."""

import hashlib
import json
import os
import socket
import threading

import pytest

from harness.lan import Lan, in_namespace
from harness.proxy import binary
from harness.tools import eventually

from .common import VIP, VIP6, Capture, Node, Server, curl, mac, spread, virtual_server

FRAMES = "ringgate_director_xdp_frames_total"


def program(host, device="eth0"):
    """How an XDP program runs on an interface: "xdpgeneric", "xdp" in the driver, or None."""
    words = host.ip("link", "show", "dev", device).split("qdisc")[0].split()
    return next((word for word in words if word.startswith("xdp")), None)


def director(lan, datapath, services):
    """A director's host with its virtual addresses, and its configuration."""
    host = lan.host()
    host.ip("addr", "add", f"{VIP}/24", "dev", "eth0")
    host.ip("addr", "add", f"{VIP6}/64", "dev", "eth0", "nodad")
    return host, f'[director]\ndatapath = "{datapath}"\n' + services


class Counted:
    """What the program did since this was made: its counters are read twice a second, so a wait sums them up."""

    def __init__(self, node):
        self.node = node
        self.before = self.now()

    def now(self):
        return {k: v for k, v in self.node.metrics().items() if k.startswith(FRAMES)}

    def __call__(self):
        new = {k.split('"')[1]: int(v - self.before.get(k, 0)) for k, v in self.now().items()}
        return {k: v for k, v in new.items() if v}


class Tap:
    """A packet socket on an interface."""

    def __init__(self, host, device):
        self.host, self.device, self.frames, self.over = host, device, [], False

    def __enter__(self):
        ready = threading.Event()
        self.thread = in_namespace(self.host.name, lambda: self.read(ready))
        assert ready.wait(5)
        return self

    def __exit__(self, *_):
        self.over = True
        self.thread.join(5)

    def read(self, ready):
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
            tap.bind((self.device, 0))
            tap.settimeout(0.1)
            ready.set()
            while not self.over:
                try:
                    frame, address = tap.recvfrom(65536)
                except TimeoutError:
                    continue
                if address[2] != socket.PACKET_OUTGOING:
                    self.frames.append(frame)

    def count(self, protocol, port=None):
        """Frames that came in: IPv4 of this protocol, to this port."""
        return sum(
            frame[12:14] == b"\x08\0" and frame[23] == protocol
            and (port is None or frame[36:38] == port.to_bytes(2, "big"))
            for frame in list(self.frames)
        )  # fmt: skip


@pytest.fixture
def network(tmp_path):
    with Lan() as lan:
        client = lan.host()
        servers = [Server(lan.host(), tmp_path, f"s{n}") for n in (1, 2, 3)]
        yield lan, client, servers
        for server in servers:
            server.stop()


def told_before(host, node, why):
    """`tune plan` finds the director's interface and says of it what the director says."""
    xdp = json.loads(host.run(binary(), "tune", "plan", node.file, "--profile", "director", "--json").stdout)["xdp"]
    assert xdp["kernel"]["met"] is True and xdp["datapath"] == "auto", xdp
    (one,) = xdp["interfaces"]
    assert (one["interface"], one["driver"], one["modes"], one["why"]) == ("eth0", "veth", ["generic"], why), one
    needs = {need["about"]: need["met"] for need in one["native_needs"]}
    assert needs["mtu"] and needs["lro"] and needs["checksums"] is needs["other end"] is None, one


def test_the_program_forwards(network, tmp_path):
    lan, client, servers = network
    four = [server.host.address for server in servers]
    six = [server.host.address6 for server in servers]
    services = (
        virtual_server(f"{VIP}:80", four)
        + virtual_server(f"{VIP}:8080", four, scheduler="mh")
        + virtual_server(f"[{VIP6}]:80", six, scheduler="mh")
    )
    host, config = director(lan, "auto", services)
    with Node(host, tmp_path, "a", config) as node:
        node.await_neighbours(6)
        eventually(lambda: "datapath=xdp-generic" in node.log() and program(host) == "xdpgeneric", 5)
        status = json.loads(host.run("curl", "-s", "http://127.0.0.1:9090/status").stdout)
        assert [(one["interface"], one["datapath"]) for one in status["director"]["datapaths"]] == [("eth0", "xdp-generic")]
        told_before(host, node, status["director"]["datapaths"][0]["why"])
        counted = Counted(node)
        # mh: the program chooses; nothing of these connections goes up.
        for url in (f"http://{VIP}:8080/", f"http://[{VIP6}]/"):
            names = spread(client, url, 30)
            assert sum(names.values()) == 30 and set(names) == {"s1", "s2", "s3"}, names
        eventually(lambda: counted().get("forwarded", 0) >= 60 * 4, 5, "frames are counted")
        # rr: the packet socket chooses, each connection's beginning and end go up.
        assert spread(client, f"http://{VIP}/", 9) == {"s1": 3, "s2": 3, "s3": 3}
        new = {}
        eventually(lambda: new.update(counted()) or "control" in new, 5, "ends of connections go up")
        # The director's own port on the same address.
        assert spread(client, f"http://{VIP}:8000/", 2) == {"a": 2}
        # Many segments in one frame are left to the packet socket; none is lost or changed.
        body = hashlib.shake_128(b"upload").digest(20 << 20)
        (tmp_path / "body").write_bytes(body)
        for port in (80, 8080):
            done = curl(client, "-T", tmp_path / "body", f"http://{VIP}:8080/up", timeout=30)
            assert done.stdout.split()[1:] == [hashlib.sha256(body).hexdigest()], (port, done)
        # Without a trace afterwards, however it ends.
        node.kill()
        eventually(lambda: program(host) is None, 5, "the program is gone")


def test_taps_see_only_what_goes_up(network, tmp_path):
    """The kernel runs the program before packet sockets, so that none sees a forwarded frame a second time, and
    hands up the others before anything silences it."""
    lan, client, servers = network
    four = [server.host.address for server in servers]
    services = virtual_server(f"{VIP}:8080", four, scheduler="mh")
    host, config = director(lan, "generic", services)
    with Node(host, tmp_path, "a", config) as node:
        node.await_neighbours(3)
        counted = Counted(node)
        # Neighbours are told of before the program knows them.
        forwards = lambda: spread(client, f"http://{VIP}:8080/", 6) and counted().get("forwarded", 0) > 0
        eventually(forwards, 10, "the program forwards", every=0.3)
        with Tap(host, "eth0") as tap:
            spread(client, f"http://{VIP}:8080/", 10)
            # No service: up, and the tap hears it.
            client.run("bash", "-c", f"echo > /dev/udp/{VIP}/9")
            eventually(lambda: tap.count(protocol=17, port=9) == 1, 5, "a datagram that goes up is seen")
            assert tap.count(protocol=6, port=8080) == 0


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of bpf(2) is x86-64's")
def test_native(network, tmp_path):
    """In the driver: of veth, the other end needs a program too, and clients complete checksums themselves."""
    lan, client, servers = network
    four = [server.host.address for server in servers]
    services = virtual_server(f"{VIP}:8080", four, scheduler="mh") + virtual_server(f"{VIP}:80", four)
    host, config = director(lan, "native", services)
    with Node(host, tmp_path, "a", config) as node:
        node.await_neighbours(3)
        eventually(lambda: "datapath=xdp-native" in node.log() and program(host) == "xdp", 5)
        counted = Counted(node)
        names = spread(client, f"http://{VIP}:8080/", 30)
        assert sum(names.values()) == 30 and set(names) == {"s1", "s2", "s3"}, names
        assert spread(client, f"http://{VIP}/", 9) == {"s1": 3, "s2": 3, "s3": 3}
        eventually(lambda: counted().get("forwarded", 0) >= 30 * 4, 5, "frames are counted")


@pytest.mark.parametrize("mode", ["generic", "native"])
def test_servers_on_another_interface(tmp_path, mode):
    """The program redirects (XDP_REDIRECT): requests go out by eth1, answers come straight to the client."""
    with Lan() as lan:
        client, both = lan.host(), ("eth0", "eth1")
        servers = [Server(lan.host(both), tmp_path, f"s{n}") for n in (1, 2)]
        there = [(f"10.77.1.{server.host.number}", f"fd77:1::{server.host.number}") for server in servers]
        host = lan.host(both)
        host.ip("addr", "add", f"{VIP}/24", "dev", "eth0")
        host.ip("addr", "add", f"{VIP6}/64", "dev", "eth0", "nodad")
        four, six = zip(*there)
        services = virtual_server(f"{VIP}:8080", four, scheduler="mh") + virtual_server(f"[{VIP6}]:8080", six, scheduler="mh")
        services += virtual_server(f"{VIP}:80", four)
        config = f'[director]\ndatapath = "{mode}"\n' + services
        with Node(host, tmp_path, "a", config) as node:
            node.await_neighbours(4)
            attached = {"generic": "xdpgeneric", "native": "xdp"}[mode]
            eventually(lambda: [program(host, device) for device in both] == [attached] * 2, 5, "both have the program")
            counted, urls = Counted(node), (f"http://{VIP}:8080/", f"http://[{VIP6}]:8080/")
            forwards = lambda: spread(client, urls[0], 3) and counted().get("forwarded", 0) > 0
            eventually(forwards, 10, "the program forwards", every=0.3)
            sent = node.metric("ringgate_director_sent_total")
            with Capture(servers[0].host, "eth1", tmp_path / "frames") as frames:
                for url in urls:
                    names = spread(client, url, 20)
                    assert sum(names.values()) == 20 and set(names) == {"s1", "s2"}, names
            rows = frames.fields("eth.src", "eth.dst", only=f"tcp.dstport == 8080 and (ip.dst == {VIP} or ipv6.dst == {VIP6})")
            assert {tuple(row) for row in rows} == {(mac(host, "eth1"), mac(servers[0].host, "eth1"))}, rows[:3]
            # No packet socket had a part in it.
            assert node.metric("ringgate_director_sent_total") == sent
            body = hashlib.shake_128(b"upload").digest(4 << 20)
            (tmp_path / "body").write_bytes(body)
            for url in urls:
                done = curl(client, "-T", tmp_path / "body", url, timeout=30)
                assert done.stdout.split()[1:] == [hashlib.sha256(body).hexdigest()], done
            assert spread(client, f"http://{VIP}/", 6) == {"s1": 3, "s2": 3}
        for server in servers:
            server.stop()


class Talk:
    """A connection that asks again and again, and has to hear from one server only."""

    def __init__(self, client, address, port):
        made = []

        def connect():
            made.append(socket.create_connection((address, port), 10))

        in_namespace(client.name, connect).join(15)
        self.socket = made[0]
        self.names = set()

    def ask(self):
        self.socket.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        data = b""
        while b"\r\n\r\n" not in data:
            more = self.socket.recv(4096)
            assert more, f"the connection ended: {data!r}, {self.names}"
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        while len(body) < length:
            body += self.socket.recv(4096)
        self.names.add(body.decode())


def test_the_datapath_changes_under_connections(network, tmp_path):
    """Program, packet sockets, another program: each connection goes on with its server, also those whose server
    another hash would give."""
    lan, client, servers = network
    four = [server.host.address for server in servers]
    services = virtual_server(f"{VIP}:80", four, scheduler="mh")
    host, config = director(lan, "generic", services)
    with Node(host, tmp_path, "a", config) as node:
        node.await_neighbours(3)
        talks = [Talk(client, VIP, 80) for _ in range(60)]
        for talk in talks:
            talk.ask()
        text = node.file.read_text()
        # Most places get another server; the connections, which only the program knows, stay.
        weights = text.replace("weight = 1 }, { address", "weight = 9 }, { address", 1)
        assert weights != text
        steps = [("generic", "xdpgeneric"), ("packet", None), ("generic", "xdpgeneric"), ("packet", None)]
        for datapath, mode in steps:
            node.file.write_text(weights.replace('datapath = "generic"', f'datapath = "{datapath}"'))
            node.control("reload")
            eventually(lambda: program(host) == mode, 10, f"{datapath} runs")
            for talk in talks:
                talk.ask()
        assert all(len(talk.names) == 1 for talk in talks), [talk.names for talk in talks]
        assert {name for talk in talks for name in talk.names} == {"s1", "s2", "s3"}
        for talk in talks:
            talk.socket.close()
