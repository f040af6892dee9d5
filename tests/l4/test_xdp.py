"""The XDP datapath: what the program forwards, what it leaves, and that it goes with the process."""

import hashlib
import json
import os
import socket
import threading
import time

import pytest

from harness.lan import Lan, in_namespace
from harness.proxy import binary
from harness.tools import eventually

from .common import VIP, VIP6, Capture, Node, Server, curl, mac, send_frames, spread, virtual_server

FRAMES = "ringgate_director_xdp_frames_total"
SO_RCVBUFFORCE = 33


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
            tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
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

        def ends_go_up():
            # So many frames that the program has been told of the connection before it ends.
            talk = Talk(client, VIP, 80)
            for _ in range(5):
                talk.ask()
            talk.socket.close()
            return "control" in counted()

        eventually(ends_go_up, 20, "ends of connections go up", every=0.3)
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


NOBODY = "10.77.0.77"


def frame(source, target, protocol, port):
    """A SYN, or a datagram, from an address that nobody has, to port 8080 of the virtual address."""
    addresses = socket.inet_aton(NOBODY) + socket.inet_aton(VIP)
    ports = port.to_bytes(2) + (8080).to_bytes(2)
    if protocol == socket.IPPROTO_TCP:
        body = ports + bytes(8) + bytes.fromhex("5002200000000000")
    else:
        body = ports + bytes.fromhex("000c0000") + b"data"
    head = bytes([0x45, 0]) + (20 + len(body)).to_bytes(2) + bytes([0, 1, 0, 0, 64, protocol, 0, 0]) + addresses
    total = sum(int.from_bytes(head[at : at + 2]) for at in range(0, 20, 2))
    head = head[:10] + (~(total % 0xFFFF) & 0xFFFF).to_bytes(2) + head[12:]
    return bytes.fromhex((target + source).replace(":", "")) + b"\x08\0" + head + body


class Arrivals:
    """Which of those frames arrive at which server."""

    def __init__(self, servers):
        self.taps = {server.name: Tap(server.host, "eth0") for server in servers}

    def __enter__(self):
        for tap in self.taps.values():
            tap.__enter__()
        return self

    def __exit__(self, *_):
        for tap in self.taps.values():
            tap.__exit__()

    def __call__(self, protocol):
        """(client's port, server) of each frame."""
        ours = lambda one: one[23] == protocol and one[26:30] == socket.inet_aton(NOBODY)
        return [
            (int.from_bytes(one[34:36]), name) for name, tap in self.taps.items() for one in list(tap.frames) if ours(one)
        ]


def limited(lan, tmp_path, keys, protocol):
    """A director with a limit, and a service that its program schedules; beside it one for the ordinary client."""
    host = lan.host()
    host.ip("addr", "add", f"{VIP}/24", "dev", "eth0")
    four = [f"10.77.0.{number}" for number in (2, 3, 4)]
    services = virtual_server(f"{VIP}:80", four, scheduler="mh")
    services += virtual_server(f"{VIP}:8080", four, scheduler="mh", protocol=protocol)
    return host, Node(host, tmp_path, "a", f'[director]\ndatapath = "generic"\n{keys}' + services)


def await_program(node, client, counted):
    node.await_neighbours(3)
    forwards = lambda: spread(client, f"http://{VIP}/", 2) and counted().get("forwarded", 0) > 0
    eventually(forwards, 10, "the program forwards", every=0.3)


def test_connections_of_one_source_are_limited(network, tmp_path):
    """Beyond `syns_per_source` they are dropped and counted; a client of another address does not notice."""
    lan, client, servers = network
    limit, flood = 50, 600
    host, node = limited(lan, tmp_path, f"syns_per_source = {limit}\n", "tcp")
    with node, Arrivals(servers) as arrivals:
        counted = Counted(node)
        await_program(node, client, counted)
        counted, begin = Counted(node), time.monotonic()
        macs = mac(client), mac(host)
        send_frames(client, [frame(*macs, socket.IPPROTO_TCP, 1024 + number) for number in range(flood)])
        # In the same second.
        names = spread(client, f"http://{VIP}/", 9)
        assert sum(names.values()) == 9 and set(names) <= {"s1", "s2", "s3"}, names
        send_frames(client, [frame(*macs, socket.IPPROTO_TCP, 8192 + number) for number in range(flood)])
        seconds = time.monotonic() - begin
        dropped = lambda: counted().get("syn_limit", 0)
        told = lambda: f"{len(arrivals(socket.IPPROTO_TCP))} arrived, {counted()}"
        eventually(lambda: dropped() + len(arrivals(socket.IPPROTO_TCP)) == 2 * flood, 10, told)
        # In each second that began meanwhile so many, and no more.
        passed = 2 * flood - dropped()
        assert limit <= passed <= limit * (int(seconds) + 2), (passed, seconds)
        assert len({port for port, _ in arrivals(socket.IPPROTO_TCP)}) == passed
        node.stop()


def test_new_flows_beyond_the_limit_go_by_hash(network, tmp_path):
    """Beyond `new_flows_per_second` they are forwarded without being remembered: each goes to one server all the same,
    none to the packet socket, and a connection that begins meanwhile works."""
    lan, client, servers = network
    limit, flows = 20, 400
    host, node = limited(lan, tmp_path, f"new_flows_per_second = {limit}\n", "udp")
    with node, Arrivals(servers) as arrivals:
        counted = Counted(node)
        await_program(node, client, counted)
        counted, begin = Counted(node), time.monotonic()
        macs = mac(client), mac(host)
        for turn in (1, 2):
            send_frames(client, [frame(*macs, socket.IPPROTO_UDP, 1024 + number) for number in range(flows)])
            eventually(lambda t=turn: len(arrivals(socket.IPPROTO_UDP)) == t * flows, 10, "each datagram arrives")
            names = spread(client, f"http://{VIP}/", 3)
            assert sum(names.values()) == 3 and set(names) <= {"s1", "s2", "s3"}, names
        seconds = time.monotonic() - begin
        places = {}
        for port, name in arrivals(socket.IPPROTO_UDP):
            places.setdefault(port, []).append(name)
        assert len(places) == flows and all(len(names) == 2 and len(set(names)) == 1 for names in places.values()), places
        assert {name for names in places.values() for name in names} == {"s1", "s2", "s3"}
        # The limit is each CPU's.
        remembered = limit * os.cpu_count() * (int(seconds) + 2)
        eventually(lambda: counted().get("stateless", 0) >= 2 * (flows - remembered), 5, lambda: f"{counted()}, {seconds} s")
        eventually(lambda: counted().get("forwarded", 0) >= 2 * flows, 5, "the program forwarded them all")
        assert counted().get("stateless", 0) > 0, counted()
        node.stop()
