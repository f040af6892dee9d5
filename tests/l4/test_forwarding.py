"""What a client sees through a director: everybody is reached by weight, bytes come whole, and on the wire only MAC
addresses differ."""

import hashlib
import os
import re

import pytest

from harness.client import tool
from harness.process import Process
from harness.tools import eventually

from .common import VIP, VIP6, Capture, curl, mac, send_frames, spread

URLS = pytest.mark.parametrize("host", [VIP, f"[{VIP6}]"], ids=["ipv4", "ipv6"])


@URLS
def test_all_servers_are_reached_in_turn_and_by_weight(site, host):
    assert spread(site.client, f"http://{host}/", 9) == {"s1": 3, "s2": 3, "s3": 3}
    assert spread(site.client, f"http://{host}:8080/", 12) == {"s1": 6, "s2": 4, "s3": 2}


@URLS
def test_other_ports_of_the_address_are_served_here(site, host):
    assert spread(site.client, f"http://{host}:8000/", 2) == {"a": 2}
    # Nobody listens there: that the director's kernel may say.
    assert curl(site.client, f"http://{host}:9/").returncode == 7


@URLS
def test_load(site, host):
    done = site.client.run(tool("wrk"), "-t1", "-c30", "-d1s", f"http://{host}/", timeout=20).stdout
    assert "Socket errors" not in done and "Non-2xx" not in done, done
    assert int(re.search(r"(\d+) requests in", done)[1]) > 100, done


@URLS
def test_large_transfers_are_whole(site, host, tmp_path):
    sent = tmp_path / "sent"
    sent.write_bytes(hashlib.shake_128(b"up").digest(24 << 20))
    expected = hashlib.sha256(sent.read_bytes()).hexdigest()
    before = site.node.metric("ringgate_director_frames_total")
    done = curl(site.client, "-T", sent, f"http://{host}:8080/up", timeout=60)
    assert done.stdout.split()[-1:] == [expected], done
    frames = site.node.metric("ringgate_director_frames_total") - before
    if os.environ.get("RINGGATE_DATAPATH") != "native":
        # Merged frames have passed as such: one for each MTU would be 17,000. (Native XDP needs clients that merge none.)
        assert 100 < frames < 12_000, frames
    back = tmp_path / "back"
    size = 32 << 20
    done = curl(site.client, f"http://{host}:8080/bytes/{size}", "-o", back, timeout=60)
    body = hashlib.shake_128(b"body").digest(1 << 16) * (size >> 16)
    assert done.returncode == 0 and back.read_bytes() == body


@URLS
def test_udp_datagrams_come_whole_and_are_answered(site, host):
    script = (
        "import socket, sys, hashlib\n"
        "address, size = sys.argv[1], int(sys.argv[2])\n"
        "for n in range(60):\n"
        "    family = socket.AF_INET6 if ':' in address else socket.AF_INET\n"
        "    s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(5)\n"
        "    s.connect((address, 8080)); data = bytes([n]) * size; s.send(data)\n"
        "    name, digest = s.recv(1000).decode().split()\n"
        "    assert digest == hashlib.sha256(data).hexdigest()\n"
        "    print(name)\n"
    )
    address = host.strip("[]")
    # So many that none of three servers is missed by chance: ports are drawn anew each time.
    names = site.client.run("/usr/bin/python3", "-c", script, address, 100).stdout.split()
    assert set(names) == {"s1", "s2", "s3"} and len(names) == 60
    # In fragments: they follow the flow, which only the first one names.
    names = site.client.run("/usr/bin/python3", "-c", script, address, 4000).stdout.split()
    assert set(names) == {"s1", "s2", "s3"} and len(names) == 60


@URLS
def test_dns(site, host, tmp_path):
    servers = []
    for server in site.servers:
        argv = server.host.argv(
            tool("dnsmasq"), "-k", "-C", "/dev/null", "--no-resolv", "--no-hosts", "-x", tmp_path / server.name,
            "--txt-record", f"who.test,{server.name}", "--bind-interfaces",
            "--listen-address", f"{VIP},{VIP6}", "--log-facility", "-", "--user=root",
        )  # fmt: skip
        servers.append(Process(argv, tmp_path / f"{server.name}.log"))
    try:
        for server in site.servers:
            bound = lambda s=server: s.host.run("ss", "-Hlnu", "sport = :53").stdout.count(":53") >= 2
            eventually(bound, 10, f"dnsmasq on {server.name}")
        answers = []
        for _ in range(6):
            done = site.client.run(
                tool("dig"), "+short", "+tries=1", "+time=3", f"@{host.strip('[]')}", "who.test", "TXT", check=False
            )
            answers.append(done.stdout.strip().strip('"'))
        assert len(answers) == 6 and set(answers) == {"s1", "s2", "s3"}, answers
    finally:
        for server in servers:
            server.kill()


def test_only_mac_addresses_differ_and_replies_bypass(site, tmp_path):
    # At the switch: what goes past the queueing discipline is not seen on the director itself.
    with Capture(site.lan, site.host.port(), tmp_path / "frames") as frames:
        for host in (VIP, f"[{VIP6}]"):
            assert spread(site.client, f"http://{host}/", 6) == {"s1": 2, "s2": 2, "s3": 2}
    ip = ("ip.id", "ip.ttl", "ip.checksum", "ipv6.hlim", "ipv6.flow")
    tcp = ("srcport", "seq_raw", "ack_raw", "flags", "checksum", "window_size_value", "len")
    names = ("eth.src", "eth.dst", "ip.dst", "ipv6.dst", *ip, *(f"tcp.{name}" for name in tcp))
    rows = frames.fields(*names, only=f"tcp.dstport == 80 and (ip.dst == {VIP} or ipv6.dst == {VIP6})")
    own, client = mac(site.host), mac(site.client)
    servers = {mac(server.host) for server in site.servers}
    for address in (VIP, VIP6):
        of = [row for row in rows if address in row[2:4]]
        came = sorted(row[2:] for row in of if row[:2] == [client, own])
        went = sorted(row[2:] for row in of if row[0] == own)
        assert len(came) > 20 and came == went
        assert {row[1] for row in of if row[0] == own} == servers
        assert len(came) + len(went) == len(of)
    # Nothing comes back by the director, and it says nothing of its own.
    back = f"(ip.src == {VIP} or ipv6.src == {VIP6}) and tcp.port == 80"
    errors = "icmp.type in {3, 5, 11} or icmpv6.type in {1, 2, 3, 4, 137}"
    assert not frames.fields("frame.number", only=f"({back}) or (eth.src == {own} and ({errors}))")


def test_a_frame_that_another_host_is_meant_for_is_left_alone(site, tmp_path):
    """A sniffer on the director has the card take in everything."""
    before = site.node.metric("ringgate_director_frames_total")
    site.host.ip("link", "set", "eth0", "promisc", "on")
    try:
        frame = bytes.fromhex("02000000aaaa" + mac(site.client).replace(":", "") + "0800")
        frame += checksummed(syn_to_vip())
        send_frames(site.client, [frame] * 50)
        assert spread(site.client, f"http://{VIP}/", 3).total() == 3
        assert site.node.metric("ringgate_director_frames_total") - before < 40
    finally:
        site.host.ip("link", "set", "eth0", "promisc", "off")


def syn_to_vip(port=40000):
    source, target = bytes([10, 77, 0, 1]), bytes([10, 77, 0, 100])
    ip = bytes.fromhex("4500002800010000400600000000000000000000")[:12] + source + target
    return ip + port.to_bytes(2) + bytes.fromhex("00500000000100000000500220000000000000000000")


def test_tags_and_icmp_errors(site, tmp_path):
    """What only shows on the wire: a VLAN tag is still there, and an ICMP error finds the server of its flow."""
    client, own = mac(site.client), mac(site.host)
    header = bytes.fromhex((own + client).replace(":", ""))
    ip = checksummed(syn_to_vip())
    tagged = header + bytes.fromhex("81006005") + b"\x08\0" + ip
    ports = list(range(40100, 40109))
    flows = [checksummed(syn_to_vip(port)) for port in ports]
    with Capture(site.lan, site.host.port(), tmp_path / "frames") as frames:
        send_frames(site.client, [tagged] * 5 + [header + b"\x08\0" + flow for flow in flows])
        send_frames(site.client, [header + b"\x08\0" + fragmentation_needed(port) for port in ports])
    out = f"eth.src == {own} and ip.dst == {VIP}"
    rows = frames.fields("vlan.id", "vlan.priority", "eth.dst", only=f"{out} and vlan")
    assert len(rows) == 5 and {tuple(row[:2]) for row in rows} == {("5", "3")}, rows
    # The same server for a flow's SYN and for the error about it. Embedded is the answer, from port 80.
    syns = {port: to for port, to in frames.fields("tcp.srcport", "eth.dst", only=f"{out} and not icmp and not vlan")}
    errors = {port: to for port, to in frames.fields("tcp.dstport", "eth.dst", only=f"{out} and icmp.type == 3")}
    assert {str(port) for port in ports} <= set(syns), syns
    assert errors == {port: syns[port] for port in errors} and len(errors) == len(ports), (errors, syns)
    assert len(set(errors.values())) == 3


def fragmentation_needed(port):
    """From a router on the way back: what VIP:80 sent to the client's port was too big."""
    quoted = checksummed(bytes.fromhex("450005dc00014000400600000a4d00640a4d0001")) + (80).to_bytes(2) + port.to_bytes(2)
    body = bytes.fromhex("03040000000004b0") + quoted + bytes(4)
    ip = bytes.fromhex("4500") + (20 + len(body)).to_bytes(2) + bytes.fromhex("0001000040010000") + bytes([10, 77, 0, 254, 10, 77, 0, 100])
    return checksummed(ip) + with_sum(body, 2)


def checksummed(packet):
    """An IPv4 packet with its header's checksum."""
    return with_sum(packet[:20], 10) + packet[20:]


def with_sum(data, at):
    data = data[:at] + bytes(2) + data[at + 2 :]
    total = sum(int.from_bytes((data + b"\0")[n : n + 2]) for n in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return data[:at] + (0xFFFF - total).to_bytes(2) + data[at + 2 :]


def test_real_server_role_is_silent_and_marked(site):
    """The third server has its addresses from Ringgate: leased, on lo, and ARP asks it in vain."""
    text = site.third.host.ip("addr", "show", "dev", "lo")
    left = [int(seconds) for seconds in re.findall(r"valid_lft (\d+)sec", text)]
    assert f"{VIP}/32" in text and f"{VIP6}/128" in text and len(left) == 2 and all(0 < s <= 6 for s in left), text
    site.client.ip("neigh", "flush", "dev", "eth0")
    assert spread(site.client, f"http://{VIP}/", 3).total() == 3
    neighbours = site.client.ip("neigh", "show", VIP)
    assert mac(site.host) in neighbours, neighbours
