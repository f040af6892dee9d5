"""Directors that are real servers themselves."""

import hashlib

import pytest

from harness.tools import eventually

from .common import VIP, VIP6, Capture, Node, Server, curl, mac, spread, virtual_server
from .test_failover import VRRP


class Both:
    """Two directors, each with the sink beside it, which send to each other and to themselves."""

    def __init__(self, lan, directory):
        self.lan, self.client = lan, lan.host()
        self.hosts = [lan.host(), lan.host()]
        self.nodes, self.sinks = [], []
        for number, host in enumerate(self.hosts):
            name, other = "ab"[number], self.hosts[1 - number]
            text = f'[director]\npeers = ["{other.address}", "{other.address6}"]\n'
            for vip, attribute in ((VIP, "address"), (f"[{VIP6}]", "address6")):
                both = [getattr(one, attribute) for one in self.hosts]
                text += virtual_server(f"{vip}:80", both) + virtual_server(f"{vip}:8080", both)
            text += f'[real_server]\naddresses = ["{VIP}", "{VIP6}"]\n'
            for id, address in ((51, f"{VIP}/24"), (52, f"{VIP6}/64")):
                text += VRRP.format(id=id, priority=200 - 100 * number, address=address)
            self.nodes.append(Node(host, directory, name, text, listen=80))
            self.nodes[-1].start()
            self.sinks.append(Server(host, directory, name, web=False, addresses=False))
        for node in self.nodes:
            node.await_neighbours(2)
        for name in ("VI_51", "VI_52"):
            self.nodes[0].await_role("active", name)
            self.nodes[1].await_role("backup", name)

    def stop(self):
        for node in self.nodes:
            node.stop()
        for sink in self.sinks:
            sink.stop()


@pytest.fixture
def both(lan, tmp_path):
    built = Both(lan, tmp_path)
    yield built
    built.stop()


def test_each_other_s_servers_without_a_loop(both, tmp_path):
    a, b = both.nodes
    hosts = (VIP, f"[{VIP6}]")
    with Capture(both.hosts[1], "eth0", tmp_path / "frames") as frames:
        for host in hosts:
            assert spread(both.client, f"http://{host}/", 6) == {"a": 3, "b": 3}
    # What came from the peer went nowhere else.
    rows = frames.fields("eth.src", "eth.dst", only=f"(ip.dst == {VIP} or ipv6.dst == {VIP6}) and tcp.port == 80")
    assert {tuple(row) for row in rows} == {(mac(both.hosts[0]), mac(both.hosts[1]))}
    sent = tmp_path / "sent"
    sent.write_bytes(hashlib.shake_128(b"up").digest(8 << 20))
    expected = hashlib.sha256(sent.read_bytes()).hexdigest()
    for host in hosts * 2:  # one of them to itself: merged frames too are delivered over lo
        done = curl(both.client, "-T", sent, f"http://{host}:8080/up", timeout=30)
        assert done.stdout.split()[-1:] == [expected], done
    assert a.metric("ringgate_director_ring_drops_total") == 0
    outcomes = {k.split('verdict="')[1][:-2]: v for k, v in b.metrics().items() if "verdicts_total" in k}
    assert outcomes["forwarded"] == 0 and outcomes["local"] > 10, outcomes
    # The roles change, and it is the same the other way round.
    a.kill()
    b.await_role("active", "VI_51")
    eventually(lambda: "b" in spread(both.client, f"http://{VIP}/", 2), 15, "the other serves alone")
