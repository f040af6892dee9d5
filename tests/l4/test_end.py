"""What is left behind: nothing, however the process ends."""

import pytest

from harness.proxy import ROOT, run_once
from harness.tools import eventually

from .common import VIP, Node, Server, prepare, spread, tables, virtual_server


@pytest.fixture
def node(lan, tmp_path):
    host, client = lan.host(), lan.host()
    server = Server(lan.host(), tmp_path, "s1")
    host.ip("addr", "add", f"{VIP}/24", "dev", "eth0")
    config = virtual_server(f"{VIP}:80", [server.host.address])
    config += f'[real_server]\naddresses = ["10.77.0.101", "fd77::101"]\nlease = "2s"\n'
    node = Node(host, tmp_path, "a", config)
    node.start()
    node.await_neighbours(1)
    node.client, node.server = client, server
    assert spread(client, f"http://{VIP}/", 2) == {"s1": 2}
    eventually(lambda: tables(host) == [f"ringgate-{pid_inside(node)}"], 5)
    eventually(lambda: {"10.77.0.101", "fd77::101"} <= set(host.addresses("lo")), 5)
    yield node
    node.stop()
    server.stop()


def pid_inside(node):
    """`ip netns exec` becomes the process: it has the same number."""
    return node.pid


def test_a_killed_process_leaves_nothing(node):
    host = node.host
    node.kill()
    # What a ring of io_uring has open, the kernel closes a moment after the process has gone.
    eventually(lambda: tables(host) == [], 5, "no table")
    eventually(lambda: not host.run("ss", "-H0n").stdout.strip(), 5, "no packet sockets")
    gone = lambda: not {"10.77.0.101", "fd77::101"} & set(host.addresses("lo"))
    eventually(gone, 10, "the leases run out")


def test_virtual_servers_come_and_go_by_reload(node):
    text = node.file.read_text()
    node.file.write_text(text + virtual_server(f"{VIP}:8080", [node.server.host.address]))
    node.control("reload")
    eventually(lambda: spread(node.client, f"http://{VIP}:8080/", 2) == {"s1": 2}, 5, "it is forwarded")
    node.file.write_text(text)
    node.control("reload")
    # Nobody listens there on the director itself, which may say so again.
    eventually(lambda: spread(node.client, f"http://{VIP}:8080/", 1) == {"curl 7": 1}, 5, "it is not")
    assert spread(node.client, f"http://{VIP}/", 2) == {"s1": 2}


def test_a_process_that_ends_leaves_nothing(node):
    host = node.host
    node.stop()
    eventually(lambda: tables(host) == [], 5, "no table")
    assert not {"10.77.0.101", "fd77::101"} & set(host.addresses("lo"))


def test_a_real_server_that_would_answer_arp_does_not_start(lan, tmp_path):
    host = lan.host()
    node = Node(host, tmp_path, "a", f'[real_server]\naddresses = ["{VIP}"]\n')
    host.run("sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=0")
    with pytest.raises(RuntimeError, match="would answer ARP"):
        node.start()
    node.kill()
    assert VIP not in host.addresses()
    prepare(host)
    with node:
        assert VIP in host.addresses("lo") and VIP not in host.addresses("eth0")
        # The setting changes under it: better no service than the director's traffic taken away.
        host.run("sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=0")
        eventually(lambda: VIP not in host.addresses(), 10, "the address is withdrawn")
        host.run("sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1")
        eventually(lambda: VIP in host.addresses("lo"), 10, "and put back")
    assert VIP not in host.addresses()


def test_an_interface_that_goes_away_and_comes_back(lan, tmp_path):
    host, client = lan.host(("eth0", "eth1")), lan.host()
    server = Server(lan.host(), tmp_path, "s1")
    host.ip("addr", "add", f"{VIP}/24", "dev", "eth0")
    config = '[director]\ninterfaces = ["eth0", "eth1"]\n' + virtual_server(f"{VIP}:80", [server.host.address])
    with Node(host, tmp_path, "a", config) as node:
        node.await_neighbours(1)
        host.ip("link", "del", "eth1")
        eventually(lambda: "there is no eth1" in node.log(), 10, "the loss is told")
        cpu = node.process.cpu()
        assert spread(client, f"http://{VIP}/", 20) == {"s1": 20}
        assert node.process.cpu() - cpu < 1.0, "spins"
        lan.switch("link", "add", "again", "type", "veth", "peer", "name", "eth1", "netns", host.name)
        host.ip("link", "set", "eth1", "up")
        eventually(lambda: "eth1" in node.host.run("curl", "-s", "http://127.0.0.1:9090/status").stdout, 10, "it is back")
    server.stop()


def test_the_samples_are_valid():
    for name in ("director.toml", "real-server.toml"):
        done = run_once("check", ROOT / "deploy" / name)
        assert done.returncode == 0, done
