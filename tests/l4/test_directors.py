"""Two directors on one interface, one a CPU; and SCTP and IP options, which the kernels here cannot send by themselves."""

import ipaddress
import re

import pytest

from harness.lan import Lan
from harness.tools import eventually

from .common import VIP, VIP6, Capture, Node, mac, prepare, send_frames, virtual_server
from .test_forwarding import with_sum


class Network:
    """A client, a host with two directors, and two real servers, of which only the neighbour matters."""

    def __init__(self, lan, directory):
        self.lan, self.client, self.host = lan, lan.host(), lan.host()
        self.servers = [prepare(lan.host()) for _ in range(2)]
        self.host.ip("addr", "add", f"{VIP}/24", "dev", "eth0")
        self.host.ip("addr", "add", f"{VIP6}/64", "dev", "eth0", "nodad")
        text = '[director]\ncpus = "0-1"\n'
        for vip, attribute in ((VIP, "address"), (f"[{VIP6}]", "address6")):
            servers = [getattr(server, attribute) for server in self.servers]
            for protocol, port in (("tcp", 80), ("udp", 5300), ("sctp", 3868)):
                text += virtual_server(f"{vip}:{port}", servers, protocol=protocol)
        self.node = Node(self.host, directory, "a", text)
        self.node.start()
        self.node.await_neighbours(4)

    def received(self):
        """Frames that each director has taken out of its ring."""
        pattern = re.compile(r'ringgate_director_frames_total\{director="(\d+)"\}')
        found = {pattern.fullmatch(name): value for name, value in self.node.metrics().items()}
        return {match[1]: value for match, value in found.items() if match}

    def frame(self, ip):
        kind = b"\x08\x00" if ip[0] >> 4 == 4 else b"\x86\xdd"
        return bytes.fromhex((mac(self.host) + mac(self.client)).replace(":", "")) + kind + ip


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    with Lan() as lan:
        built = Network(lan, tmp_path_factory.mktemp("two"))
        yield built
        built.node.stop()


def packet(source, target, protocol, body, place=0, options=b""):
    """An IP packet; `place`: flags and offset of IPv4, or the fragment header's of IPv6 if not 0."""
    source, target = ipaddress.ip_address(source), ipaddress.ip_address(target)
    if source.version == 4:
        head = bytes([0x45 + len(options) // 4, 0]) + (20 + len(options) + len(body)).to_bytes(2)
        head += bytes([0, 7]) + place.to_bytes(2) + bytes([64, protocol, 0, 0]) + source.packed + target.packed + options
        return with_sum(head, 10) + body
    if place:
        # More fragments: the lowest bit, where IPv4 has 0x2000.
        field = (place & 0x1FFF) << 3 | (place >> 13 & 1)
        body, protocol = bytes([protocol, 0]) + field.to_bytes(2) + bytes([0, 0, 0, 7]) + body, 44
    return bytes([0x60, 0, 0, 0]) + len(body).to_bytes(2) + bytes([protocol, 64]) + source.packed + target.packed + body


def tcp(port, flags=2):
    return port.to_bytes(2) + bytes([0, 80]) + bytes(8) + bytes([0x50, flags, 0x20, 0]) + bytes(4)


def of_one_client(source, target):
    """What comes from and about one client: segments, a datagram in three fragments of which the last comes first, and an
    ICMP error of a router about a segment to the client."""
    udp = (999).to_bytes(2) + (5300).to_bytes(2) + (24 + 8).to_bytes(2) + bytes(2) + bytes(24)
    parts = [(udp[24:], 3), (udp[:16], 0x2000), (udp[16:24], 0x2000 | 2)]
    yield packet(source, target, 6, tcp(1000))
    yield packet(source, target, 6, tcp(2000))
    for body, place in parts:
        yield packet(source, target, 17, body, place)
    quoted = packet(target, source, 6, (80).to_bytes(2) + (1000).to_bytes(2) + bytes(16))
    six = ":" in source
    error = bytes([2, 0, 0, 0, 0, 0, 5, 0] if six else [3, 4, 0, 0, 0, 0, 5, 0]) + quoted
    yield packet("fd77::fe" if six else "10.77.0.254", target, 58 if six else 1, error)


def test_everything_of_a_client_comes_to_one_director(two):
    clients = [(f"198.51.100.{n}", VIP) for n in range(1, 6)] + [(f"2001:db8::{n}", VIP6) for n in range(1, 6)]
    places = {4: [], 6: []}
    for source, target in clients:
        packets = list(of_one_client(source, target))
        before = two.received()
        assert set(before) == {"0", "1"}
        send_frames(two.client, [two.frame(one) for one in packets])
        came = lambda: sum(two.received().values()) >= sum(before.values()) + len(packets)
        eventually(came, 10, f"all frames of {source} taken")
        after = two.received()
        grown = [name for name in after if after[name] > before[name]]
        assert len(grown) == 1, (source, before, after)
        places[6 if ":" in source else 4] += grown
    assert all(set(names) == {"0", "1"} for names in places.values()), places


def test_sctp_and_ip_options_pass_as_they_are(two, tmp_path):
    init = (4000).to_bytes(2) + (3868).to_bytes(2) + bytes(4) + b"\x12\x34\x56\x78" + bytes([1, 0, 0, 20]) + bytes(16)
    data = (4000).to_bytes(2) + (3868).to_bytes(2) + b"\0\0\0\x09" + b"\x12\x34\x56\x78" + bytes([10, 0, 0, 4])
    router_alert, record_route = bytes([0x94, 4, 0, 0]), bytes([7, 7, 4, 0, 0, 0, 0, 0])
    sent = [
        packet("198.51.100.77", VIP, 132, init),
        packet("198.51.100.77", VIP, 132, data),
        packet("2001:db8::77", VIP6, 132, init),
        packet("198.51.100.77", VIP, 6, tcp(3000), options=router_alert),
        packet("198.51.100.77", VIP, 6, tcp(3000, flags=16), options=record_route),
    ]
    before = two.node.metric("ringgate_director_sent_total")
    with Capture(two.lan, two.host.port(), tmp_path / "frames") as frames:
        send_frames(two.client, [two.frame(one) for one in sent])
        eventually(lambda: two.node.metric("ringgate_director_sent_total") >= before + len(sent), 10, "all sent")
    own = mac(two.host)
    fields = ("eth.dst", "ip.src", "sctp.chunk_type", "ip.hdr_len", "ip.checksum", "ip.ttl", "tcp.srcport")
    only = f"(ip.dst == {VIP} or ipv6.dst == {VIP6})"
    came = frames.fields(*fields, only=f"{only} and eth.dst == {own}")
    went = frames.fields(*fields, only=f"{only} and eth.src == {own}")
    assert len(came) == len(sent) and sorted(row[1:] for row in went) == sorted(row[1:] for row in came)
    servers = {mac(server) for server in two.servers}
    to = lambda *wanted: {row[0] for row in went if tuple(row[n] for n in (2, 6)) in wanted and row[1]}
    # An association stays where its INIT went, a connection where its SYN went, whatever options the packets have.
    for one in (to(("1", ""), ("10", "")), to(("", "3000"))):
        assert len(one) == 1 and one <= servers, went
    assert {row[3] for row in went if row[6] == "3000"} == {"24", "28"}
