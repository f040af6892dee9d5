"""Others that claim the address by ARP or neighbour advertisements, which VRRP does not see."""

import socket
import struct

from harness.lan import Load, Ringgate, in_namespace
from harness.tools import eventually

from .common import VIP, vrrp

VIP6 = "fd77::100"


def mac_of(host):
    return host.ip("link", "show", "eth0").split("link/ether ")[1].split()[0]


def arp_claim(mac, address):
    mac = bytes.fromhex(mac.replace(":", ""))
    address = socket.inet_aton(address)
    message = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + mac + address + b"\xff" * 6 + address
    return b"\xff" * 6 + mac + b"\x08\x06" + message


def ndp_claim(mac, address):
    mac = bytes.fromhex(mac.replace(":", ""))
    target, everybody = (socket.inet_pton(socket.AF_INET6, a) for a in (address, "ff02::1"))
    body = struct.pack("!I", 0x20000000) + target + b"\x02\x01" + mac
    pseudo = target + everybody + struct.pack("!II", len(body) + 4, 58)
    total = sum(struct.unpack(f"!{(len(pseudo) + len(body)) // 2}H", pseudo + body)) + 0x8800
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    message = struct.pack("!BBH", 136, 0, ~total & 0xFFFF) + body
    head = struct.pack("!IHBB", 6 << 28, len(message), 58, 255) + target + everybody
    return b"\x33\x33\x00\x00\x00\x01" + mac + b"\x86\xdd" + head + message


def send(host, frame):
    def work():
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
            raw.bind(("eth0", 0))
            raw.send(frame)

    in_namespace(host.name, work).join(5)


def provoke(node, name, host, frame):
    """Sends until it is counted: right after a take-over claims are expected, and do not count."""
    before = node.instance(name)["foreign_claims"]
    eventually(lambda: send(host, frame) or node.instance(name)["foreign_claims"] > before, 5)


def test_a_stranger_that_claims_the_address_is_named_and_answered(pair, lan):
    a, b, client = pair(addresses=f'"{VIP}/24"', more='garp_master_refresh = "0s"')
    stranger = lan.host()
    with Load(client, VIP) as load:
        load.await_from("a")
    for _ in range(2):
        before = a.instance()["announcements_sent"]
        provoke(a, "VI_1", stranger, arp_claim(mac_of(stranger), VIP))
        eventually(lambda: a.instance()["announcements_sent"] > before, 5)
        eventually(lambda: mac_of(a.host) in client.ip("neigh", "show", VIP), 5)
    assert f"{mac_of(stranger)} claims {VIP} as well" in a.instance()["misconfigurations"]
    # Neither its own announcements nor claims of other addresses count, and a backup does not answer.
    other = "02:00:00:00:00:99"
    send(stranger, arp_claim(mac_of(a.host), VIP))
    send(stranger, arp_claim(other, "10.77.0.222"))
    provoke(a, "VI_1", stranger, arp_claim(mac_of(stranger), VIP))
    eventually(lambda: f"{mac_of(stranger)} claims {VIP} as well" in a.log(), 5)
    assert f"{mac_of(a.host)} claims" not in a.log() and f"{other} claims" not in a.log()
    assert b.instance()["foreign_claims"] == 0
    assert (a.instance()["role"], b.instance()["role"]) == ("active", "backup")


def test_a_neighbour_advertisement_is_a_claim_too(lan, tmp_path):
    six = f'[vrrp.VI_6]\ninterface = "eth0"\nvirtual_router_id = 51\naddresses = ["fe80::100/64", "{VIP6}/64"]\n'
    stranger = lan.host()
    with Ringgate(lan.host(), tmp_path, "a", six) as a:
        a.await_role("active", "VI_6")
        provoke(a, "VI_6", stranger, ndp_claim(mac_of(stranger), VIP6))
        eventually(lambda: f"{mac_of(stranger)} claims {VIP6} as well" in a.log(), 5)


def test_a_takeover_is_no_foreign_claim(pair):
    """The peer advertises before it announces: going back and forth provokes no answer."""
    a, b, _ = pair()
    for _ in range(5):
        a.ctl("release")
        a.await_role("backup")
        b.await_role("active")
        a.ctl("resume")
        a.await_role("active")
        b.await_role("backup")
    assert [node.instance()["foreign_claims"] for node in (a, b)] == [0, 0], a.log() + b.log()
