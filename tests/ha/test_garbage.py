"""Packets that are not to be believed, at speed: counted, dropped, and nothing changes."""

import os
import socket
import struct
import time

from harness.lan import in_namespace
from harness.tools import eventually

from .common import VIP, vrrp

SECONDS = 2


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def advert(vrid=51, priority=254, kind=0x31, interval=10, vips=(VIP,), spoil=0):
    body = b"".join(socket.inet_aton(vip) for vip in vips)
    head = struct.pack("!BBBBHH", kind, vrid, priority, len(vips), interval, 0)
    total = checksum(head + body) ^ spoil
    return head[:6] + struct.pack("!H", total) + body


def flood(host, over, sent):
    """Sends everything that is wrong, as fast as it goes, by multicast with TTL 255 unless that is what is wrong."""
    good = advert()
    wrong = [
        (255, b""),
        (255, good[:5]),
        (255, good[:-1]),
        (255, good + b"\0" * 5),
        (254, good),
        (255, advert(spoil=1)),
        (255, advert(vrid=99)),
        (255, advert(kind=0x32)),
        (255, advert(kind=0x41)),
        (255, advert(interval=0)),
        (255, advert(vips=())),
        (255, os.urandom(40)),
    ]

    def work():
        sockets = {}
        for ttl in {ttl for ttl, _ in wrong}:
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 112)
            raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
            raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(host.address))
            sockets[ttl] = raw
        while not over:
            for ttl, payload in wrong:
                sockets[ttl].sendto(payload, ("224.0.0.18", 0))
                sent[0] += 1

    return in_namespace(host.name, work)


def dropped(node, reason):
    """Packets of no instance that were dropped for this."""
    metrics = node.host.run("curl", "-s", "http://127.0.0.1:9090/metrics").stdout
    wanted = f'ringgate_vrrp_packets_dropped_total{{instance="",reason="{reason}"}}'
    found = [line for line in metrics.splitlines() if line.startswith(wanted)]
    return int(found[0].split()[-1]) if found else 0


def test_garbage_at_speed_changes_nothing(pair, lan):
    a, b, client = pair()
    over, sent = [], [0]
    before = [node.log().count("transition") for node in (a, b)]
    thread = flood(client, over, sent)
    time.sleep(SECONDS)  # the load itself
    eventually(lambda: sent[0] > 10_000, 30, "a flood")
    over.append(True)
    thread.join(5)
    assert [node.log().count("transition") for node in (a, b)] == before
    assert (a.instance()["role"], b.instance()["role"]) == ("active", "backup")
    for node in (a, b):
        eventually(lambda node=node: {"hop_limit", "checksum"} <= set(node.instance()["packets_dropped"]), 5)
        eventually(lambda node=node: node.vrrp()["foreign_packets"] > 100, 5)
        for reason in ("length", "version", "type", "interval", "address_list"):
            eventually(lambda node=node: dropped(node, reason) > 100, 5, f"{reason} on {node.name}")


def test_a_replayed_advertisement_is_not_believed_when_signed(lan, tmp_path):
    """Recorded from the active router and sent again from its address: refused by its sequence."""
    from harness.lan import Ringgate

    key = 'auth_hmac_keys = ["1:' + "ab" * 32 + '"]'
    a = Ringgate(lan.host(), tmp_path, "a", vrrp(200, more=key))
    b = Ringgate(lan.host(), tmp_path, "b", vrrp(100, more=key))
    attacker = lan.host()
    recorded = []

    def record():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        raw.bind(("eth0", 0))
        raw.settimeout(10)
        while not recorded:
            frame = raw.recv(2048)
            if frame[23] == 112:
                recorded.append(frame)

    def replay():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        raw.bind(("eth0", 0))
        for _ in range(50):
            raw.send(recorded[0])

    with a, b:
        a.await_role("active")
        b.await_role("backup")
        in_namespace(attacker.name, record).join(15)
        in_namespace(attacker.name, replay).join(15)
        eventually(lambda: b.instance()["packets_dropped"].get("replay", 0) >= 50, 5)
        peer = b.instance()["peers"][0]
        assert peer["authenticated"] and b.instance()["role"] == "backup"
        assert a.instance()["role"] == "active"
