"""Real servers behind a tunnel: what is on the wire, and that a real service works through it."""

import contextlib
import hashlib
import socket
import time
from pathlib import Path

import pytest

from harness.lan import Lan, in_namespace
from harness.tools import eventually

from .common import VIP, VIP6, Capture, Node, Server, curl, mac, virtual_server

DECAP = Path(__file__).with_name("decap.py")


class Far:
    """A client and a director on one network, and one real server on another, which the director reaches through a tunnel."""

    def __init__(self, lan, directory):
        both = ("eth0", "eth1")
        self.client, self.host, far = lan.host(), lan.host(both), lan.host(both)
        self.here = [f"10.77.1.{self.host.number}", f"fd77:1::{self.host.number}"]
        self.there = [f"10.77.1.{far.number}", f"fd77:1::{far.number}"]
        self.host.ip("addr", "add", f"{VIP}/24", "dev", "eth0")
        self.host.ip("addr", "add", f"{VIP6}/64", "dev", "eth0", "nodad")
        self.server = Server(far, directory, "far", web=False)
        self.server.start(["/usr/bin/python3", DECAP])
        unpacks = self.server.processes[-1]
        unpacks.await_ready(lambda: "unpacking" in unpacks.log())
        text = ""
        for vip in (VIP, f"[{VIP6}]"):
            text += virtual_server(f"{vip}:8080", [self.there[0]], forward="tunnel")
        text += virtual_server(f"{VIP}:8080", [self.there[0]], protocol="udp", forward="tunnel", tunnel_type="gue")
        text += virtual_server(f"[{VIP6}]:8080", [self.there[1]], protocol="udp", forward="tunnel", tunnel_type="gue")
        self.node = Node(self.host, directory, "a", text)
        self.node.start()
        self.node.await_neighbours(2)

    def stop(self):
        self.node.stop()
        self.server.stop()


@pytest.fixture(scope="module")
def far(tmp_path_factory):
    with Lan() as lan:
        built = Far(lan, tmp_path_factory.mktemp("far"))
        yield built
        built.stop()


def balanced(node, before):
    """Merged frames came, and each packet in them has a verdict: none was refused."""
    name = "ringgate_director_frames_total"

    def grown():
        now = node.metrics()
        total = lambda start, of="": sum(v - before.get(k, 0) for k, v in now.items() if k.startswith(start) and of in k)
        verdicts = {kind: total("ringgate_director_verdicts_total", f'"{kind}"') for kind in ("encapsulated", "unsent")}
        return total(name), total("ringgate_director_verdicts_total") + total("ringgate_director_cut_total"), verdicts

    eventually(lambda: grown()[0] == grown()[1], 5, lambda: f"a verdict for each packet: {grown()}")
    frames, _, verdicts = grown()
    assert verdicts["unsent"] == 0 and verdicts["encapsulated"] > 2 * (4 << 20) // 1500, (frames, verdicts)


def test_a_service_works_through_ipip(far, tmp_path):
    body = tmp_path / "body"
    # The client's kernel hands over up to 64 KiB in one frame; the tunnel carries the packets that it stands for.
    body.write_bytes(hashlib.shake_128(b"upload").digest(4 << 20))
    before = far.node.metrics()
    with Capture(far.server.host, "eth1", tmp_path / "frames") as frames:
        for vip in (VIP, f"[{VIP6}]"):
            assert curl(far.client, f"http://{vip}:8080/").stdout == "far"
            # Segments of a full MTU do not fit: the client is told, and sends smaller ones.
            done = curl(far.client, "-T", body, f"http://{vip}:8080/", timeout=30)
            assert done.stdout == f"far {hashlib.sha256(body.read_bytes()).hexdigest()}", done
    balanced(far.node, before)
    fields = ("ip.proto", "eth.dst", "eth.src", "ip.src", "ip.dst", "ip.checksum.status", "tcp.checksum.status", "frame.len")
    checked = ["-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE"]
    # The server's kernel may complain of packets whose protocol it does not know.
    only = f"ip.proto in {{4, 41}} and eth.src == {mac(far.host, 'eth1')}"
    rows = frames.fields(*fields, only=only, options=checked)
    ends = [mac(far.server.host, "eth1"), mac(far.host, "eth1"), far.here[0], far.there[0], "1", "1"]
    assert [row for row in rows if row[1:7] != ends] == []
    for protocol in ("4", "41"):
        of = [row for row in rows if row[0] == protocol]
        assert len(of) > 200 and max(int(row[7]) for row in of) == 14 + 1500, "the largest that fit"


def test_datagrams_through_gue(far, tmp_path):
    answers = []

    def ask():
        for family, vip in ((socket.AF_INET, VIP), (socket.AF_INET6, VIP6)):
            with socket.socket(family, socket.SOCK_DGRAM) as udp:
                udp.settimeout(10)
                for number in range(20):
                    udp.sendto(b"question %d" % number, (vip, 8080))
                    answers.append(udp.recv(2000).decode())

    with Capture(far.server.host, "eth1", tmp_path / "frames") as frames:
        in_namespace(far.client.name, ask).join(60)
    assert answers == [f"far {hashlib.sha256(b'question %d' % n).hexdigest()}" for n in range(20)] * 2
    for outer, only, ends in zip(("ip", "ipv6"), ("not ipv6", "ipv6"), zip(far.here, far.there)):
        only += " and udp.dstport == 6080"
        rows = frames.fields(f"{outer}.src", f"{outer}.dst", "udp.srcport", "udp.dstport", "udp.checksum", only=only)
        assert len(rows) == 20
        # One flow has one source port, so that routers keep its packets in order.
        assert len({row[2] for row in rows}) == 1 and int(rows[0][2]) >= 49_152
        assert {(row[0], row[1], row[3], row[4]) for row in rows} == {(*ends, "6080", "0x0000")}


def await_mtu(client, vip, expected):
    """Sends the largest datagrams that may go to the address until the client's kernel has learned this MTU of the way."""
    six, seen = ":" in vip, []
    level, discover, do, mtu = (41, 23, 2, 24) if six else (0, 10, 2, 14)

    def send():
        with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.setsockopt(level, discover, do)
            udp.connect((vip, 8080))
            end = time.monotonic() + 20
            while time.monotonic() < end:
                seen.append(udp.getsockopt(level, mtu))
                if seen[-1] == expected:
                    return
                with contextlib.suppress(OSError):  # EMSGSIZE: it has just been learned
                    udp.send(bytes(seen[-1] - (48 if six else 28)))
                time.sleep(0.02)

    in_namespace(client.name, send).join(30)
    assert seen[-1] == expected, seen


def test_what_does_not_fit_is_answered(far, tmp_path):
    """GUE takes 20 or 40 bytes of IP header, 8 of UDP and 4 of its own."""
    with Capture(far.client, "eth0", tmp_path / "frames") as frames:
        await_mtu(far.client, VIP, 1500 - 32)
        await_mtu(far.client, VIP6, 1500 - 52)
        # The link's MTU as it is now, not as it was at the start.
        far.host.ip("link", "set", "eth1", "mtu", "1400")
        try:
            await_mtu(far.client, VIP, 1400 - 32)
            await_mtu(far.client, VIP6, 1400 - 52)
        finally:
            far.host.ip("link", "set", "eth1", "mtu", "1500")
    rows = frames.fields("icmp.type", "icmp.code", "icmp.mtu", "ip.src", "icmp.checksum.status", only="icmp.type == 3")
    assert ["3", "4", "1468", VIP, "1"] in rows and ["3", "4", "1368", VIP, "1"] in rows, rows
    rows = frames.fields("icmpv6.type", "icmpv6.mtu", "ipv6.src", "icmpv6.checksum.status", only="icmpv6.type == 2")
    assert ["2", "1448", VIP6, "1"] in rows and ["2", "1348", VIP6, "1"] in rows, rows
