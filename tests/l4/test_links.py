"""Cables and switch ports that carry frames in one direction only: no link goes down, and nobody is told."""

import pytest

from harness.client import tool
from harness.tools import eventually

from .common import VIP, Node, Server, curl, spread, virtual_server
from .test_failover import VRRP

# A director that hears nobody looks well to its peer: it has to notice itself. That somebody refuses a connection (7) is an
# answer too.
HEARS = """
[vrrp_script.hears]
script = ["/bin/sh", "-c", "{curl} -s --max-time 1 http://{address}:9/; test $? = 7"]
interval = "1s"
timeout = "3s"
weight = -150
"""


class Pair:
    """Two directors and two real servers; a director that cannot hear the network is worth less."""

    def __init__(self, lan, directory):
        self.client, switch = lan.host(), lan.host()
        hosts = [lan.host(), lan.host()]
        self.servers = [Server(lan.host(), directory, f"s{n}") for n in (1, 2)]
        self.nodes = []
        for number, host in enumerate(hosts):
            text = f'[director]\npeers = ["{hosts[1 - number].address}"]\n'
            text += virtual_server(f"{VIP}:80", [server.host.address for server in self.servers], scheduler="rr")
            text += VRRP.format(id=51, priority=200 - 100 * number, address=f"{VIP}/24") + 'track_script = ["hears"]\n'
            text += HEARS.format(curl=tool("curl"), address=switch.address)
            self.nodes.append(Node(host, directory, "ab"[number], text))

    def start(self):
        for node in self.nodes:
            node.start()
            node.await_neighbours(3)
        a, b = self.nodes
        a.await_role("active", "VI_51")
        b.await_role("backup", "VI_51")
        return self

    def stop(self):
        for one in (*self.nodes, *self.servers):
            one.stop()


@pytest.fixture
def pair(lan, tmp_path):
    built = Pair(lan, tmp_path)
    yield built.start()
    built.stop()


def serves(client, patience=15):
    eventually(lambda: curl(client, f"http://{VIP}/", timeout=1).returncode == 0, patience, "the address serves")


def test_a_director_that_is_mute_or_deaf_is_replaced(pair):
    a, b = pair.nodes
    for direction in ("from", "to"):
        a.host.cut("eth0", direction)
        b.await_role("active", "VI_51", 20)
        serves(pair.client)
        before = b.forwarded()
        assert spread(pair.client, f"http://{VIP}/", 4).keys() <= {"s1", "s2"}
        eventually(lambda: b.forwarded() > before, 5, "the second one forwards")
        a.host.cut("eth0", None)
        a.await_role("active", "VI_51", 20)
        b.await_role("backup", "VI_51", 20)
        serves(pair.client)


def test_a_server_that_is_mute_or_deaf_gets_nothing_new(pair):
    a, _ = pair.nodes
    one = pair.servers[0]
    unreachable = lambda: a.metrics()['ringgate_neighbours{state="unreachable"}']
    for direction in ("from", "to"):
        one.host.cut("eth0", direction)
        eventually(lambda: unreachable() == 1, 20, f"cut {direction} it: it is unreachable")
        assert spread(pair.client, f"http://{VIP}/", 6) == {"s2": 6}
        one.host.cut("eth0", None)
        eventually(lambda: unreachable() == 0, 20, "it is found again")
        eventually(lambda: one.name in spread(pair.client, f"http://{VIP}/", 2), 10, "it has new flows")
