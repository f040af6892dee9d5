"""A pair of directors: established flows survive the active one; dead servers and cut links are got round."""

import http.client
import socket
import time

import pytest

from harness.lan import in_namespace
from harness.tools import eventually

from .common import VIP, VIP6, Node, Server, curl, mac, send_frames, spread, tables, virtual_server
from .test_forwarding import checksummed

VRRP = '''
[vrrp.VI_{id}]
interface = "eth0"
virtual_router_id = {id}
priority = {priority}
advertise = "100ms"
addresses = ["{address}"]
'''


def config(servers, priority, peer=None, scheduler="mh", attribute="address"):
    four = [s.host.address for s in servers]
    six = [s.host.address6 for s in servers]
    text = "".join(
        virtual_server(f"{vip}:{port}", list_of, scheduler=scheduler)
        for vip, list_of in ((VIP, four), (f"[{VIP6}]", six))
        for port in (80, 8080)
    )
    text += VRRP.format(id=51, priority=priority, address=f"{VIP}/24")
    text += VRRP.format(id=52, priority=priority, address=f"{VIP6}/64")
    return (f'[director]\npeers = ["{peer}"]\n' if peer else "") + text


class Pair:
    def __init__(self, lan, directory):
        self.client = lan.host()
        hosts = [lan.host(), lan.host()]
        self.servers = [Server(lan.host(), directory, f"s{n}") for n in (1, 2, 3)]
        a, b = hosts
        self.a = Node(a, directory, "a", config(self.servers, 200, b.address))
        self.b = Node(b, directory, "b", config(self.servers, 100, a.address))

    def start(self):
        for node in (self.a, self.b):
            node.start()
            node.await_neighbours(6)
        for name in ("VI_51", "VI_52"):
            self.a.await_role("active", name)
            self.b.await_role("backup", name)
        return self

    def stop(self):
        for node in (self.a, self.b):
            node.stop()
        for server in self.servers:
            server.stop()


@pytest.fixture
def pair(lan, tmp_path):
    built = Pair(lan, tmp_path)
    yield built.start()
    built.stop()


class Flow:
    """A connection that stays, and asks again and again."""

    def __init__(self, host, address):
        self.names, self.failure, self.over = [], None, False
        self.address = address
        self.thread = in_namespace(host.name, self._work)

    def _work(self):
        connection = http.client.HTTPConnection(self.address, 8080, timeout=15)
        try:
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while not self.over:
                connection.request("GET", "/")
                self.names.append(connection.getresponse().read().decode())
                time.sleep(0.02)
        except Exception as error:  # noqa: BLE001: any of them is a failure of the flow
            self.failure = error

    def count(self):
        return len(self.names)

    def stop(self):
        self.over = True
        self.thread.join(20)


def test_flows_survive_the_death_of_the_active_director(pair):
    flows = [Flow(pair.client, vip) for vip in (VIP, VIP6) for _ in range(8)]
    eventually(lambda: all(flow.count() > 3 or flow.failure for flow in flows), 15, "flows under way")
    pair.a.kill()
    for name in ("VI_51", "VI_52"):
        pair.b.await_role("active", name)
    counts = [flow.count() for flow in flows]
    eventually(
        lambda: all(flow.count() > count + 5 or flow.failure for flow, count in zip(flows, counts)), 20, "flows go on"
    )
    for flow in flows:
        flow.stop()
    assert [flow.failure for flow in flows] == [None] * len(flows)
    # Each stayed on its server, and not all are on one.
    assert all(len(set(flow.names)) == 1 for flow in flows)
    assert len({flow.names[0] for flow in flows}) > 1
    assert spread(pair.client, f"http://{VIP}/", 5).keys() <= {"s1", "s2", "s3"}
    # The dead one's kernel was silent as long as it had the addresses, and not longer.
    eventually(lambda: not tables(pair.a.host) and VIP not in pair.a.host.addresses(), 10, "nothing is left")


def test_a_backup_never_forwards(pair):
    """Frames for the address that come to the backup: a switch that floods, a host with a stale ARP entry."""
    dropped = lambda: sum(v for k, v in pair.b.metrics().items() if "verdicts_total" in k and '"dropped"' in k)
    before = dropped()
    source, target = bytes([10, 77, 0, 1]), bytes([10, 77, 0, 100])
    frames = []
    for port in range(200):
        ip = bytes.fromhex("450000280001000040060000") + source + target
        tcp = (20000 + port).to_bytes(2) + (80).to_bytes(2) + bytes.fromhex("0000000100000000500220000000000000000000")
        header = bytes.fromhex((mac(pair.b.host) + mac(pair.client)).replace(":", "") + "0800")
        frames.append(header + checksummed(ip) + tcp)
    send_frames(pair.client, frames)
    eventually(lambda: dropped() - before >= 200, 5, "frames judged")
    verdicts = {k.split('verdict="')[1][:-2]: v for k, v in pair.b.metrics().items() if "verdicts_total" in k}
    assert verdicts["forwarded"] == verdicts["local"] == verdicts["replied"] == 0
    assert pair.b.metric("ringgate_director_sent_total") == 0


def test_servers_are_drained_and_those_that_have_gone_get_nothing(pair):
    flows = [Flow(pair.client, VIP) for _ in range(12)]
    eventually(lambda: all(flow.count() > 3 for flow in flows), 15, "flows under way")
    # Where flows go is a matter of their ports: the server is one that has some.
    drained = next(server for server in pair.servers if server.name == flows[0].names[0])
    name, address = drained.name, drained.host.address
    for port in (80, 8080):
        pair.a.control("l4", "weight", f"{VIP}:{port}", address, "0")
    eventually(lambda: name not in spread(pair.client, f"http://{VIP}/", 20), 5, "no new flows")
    counts = [flow.count() for flow in flows]
    eventually(lambda: all(flow.count() > n + 3 for flow, n in zip(flows, counts)), 10, "flows stay")
    for flow in flows:
        flow.stop()
    assert all(flow.failure is None and len(set(flow.names)) == 1 for flow in flows)
    for port in (80, 8080):
        pair.a.control("l4", "weight", f"{VIP}:{port}", address)
    eventually(lambda: name in spread(pair.client, f"http://{VIP}/", 10), 5, "new flows again")
    assert "no real server" in pair.a.control("l4", "weight", f"{VIP}:80", "10.77.0.99", "1", check=False).stderr

    drained.host.plug("eth0", False)
    gone = lambda: f"address={address}" in "".join(l for l in pair.a.log().splitlines() if "does not answer" in l)
    eventually(gone, 15, "the loss is told")
    others = {server.name for server in pair.servers} - {name}
    eventually(lambda: set(spread(pair.client, f"http://{VIP}/", 20)) == others, 15, "new flows go to the others")
    unreachable = lambda: pair.a.metrics()['ringgate_neighbours{state="unreachable"}']
    eventually(lambda: unreachable() >= 1, 5, "it is counted")
    drained.host.plug("eth0", True)
    eventually(lambda: unreachable() == 0, 15, "it is found again")
    eventually(lambda: name in spread(pair.client, f"http://{VIP}/", 30), 15, "it has new flows")


def test_a_director_that_is_cut_off_is_replaced_and_comes_back(pair):
    for cut in (
        lambda off: pair.a.host.isolate("eth0", off),  # frames vanish in both directions
        lambda off: pair.a.host.ip("link", "set", "eth0", "down" if off else "up"),  # the interface goes down
    ):
        cut(True)
        pair.b.await_role("active", "VI_51")
        eventually(lambda: curl(pair.client, f"http://{VIP}/", timeout=2).returncode == 0, 10, "the other serves")
        cut(False)
        pair.a.await_role("active", "VI_51", 15)
        pair.b.await_role("backup", "VI_51", 15)
        eventually(lambda: curl(pair.client, f"http://{VIP}/", timeout=2).returncode == 0, 15, "the first serves again")
        before = pair.a.forwarded()
        assert spread(pair.client, f"http://{VIP}/", 3).keys() <= {"s1", "s2", "s3"}
        eventually(lambda: pair.a.forwarded() > before, 5, "the first forwards again")
