"""What others see of a virtual router on the wire."""

import socket
import threading
from collections import Counter

from harness.lan import in_namespace
from harness.tools import eventually

from .common import VIP, vrrp
from .test_claims import VIP6, mac_of


def announced(frame):
    """The address that an unasked ARP or neighbour advertisement to everybody claims."""
    if frame[12:14] == b"\x08\x06" and frame[28:32] == frame[38:42]:
        return socket.inet_ntoa(frame[28:32])
    if frame[12:14] == b"\x86\xdd" and frame[:2] == b"\x33\x33" and frame[20:21] == b"\x3a" and frame[54:55] == b"\x88":
        return socket.inet_ntop(socket.AF_INET6, frame[62:78])
    return None


class Announcements:
    """How often each address was announced to a host, by (MAC, address)."""

    def __init__(self, host):
        self.host, self.count, self.over, self.ready = host, Counter(), threading.Event(), threading.Event()

    def __enter__(self):
        self.thread = in_namespace(self.host.name, self._work)
        assert self.ready.wait(10), "no packet socket"
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join(10)

    def _work(self):
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as tap:
            tap.bind(("eth0", 3))  # ETH_P_ALL
            tap.settimeout(0.05)
            self.ready.set()
            while not self.over.is_set():
                try:
                    frame = tap.recv(2048)
                except TimeoutError:
                    continue
                if address := announced(frame):
                    self.count[":".join(f"{byte:02x}" for byte in frame[6:12]), address] += 1


def test_the_active_router_goes_on_announcing_and_the_backup_does_not(pair):
    # An interval that no stall of this machine outlasts; nothing but the refresh is left after taking over.
    more = 'garp_master_repeat = 1\ngarp_master_delay = "0s"\ngarp_master_refresh = "1s"\n'
    six = vrrp(200, "1s", addresses=f'"fe80::100/64", "{VIP6}/64"').replace("VI_1", "VI_6")
    a, b, client = pair(interval="1s", more=more + six + more)
    a.await_role("active", "VI_6")
    with Announcements(client) as seen:
        for address in (VIP, VIP6):
            eventually(lambda address=address: seen.count[mac_of(a.host), address] >= 3, 15, f"three more of {address}")
        assert seen.count[mac_of(b.host), VIP] == 0
    assert b.instance()["role"] == "backup"
