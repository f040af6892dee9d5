"""What the operator sees of virtual servers, and what checks do to them."""

import json
import subprocess

from harness.client import tool
from harness.proxy import ROOT, binary, run_once
from harness.tools import eventually

from .common import VIP, Node, Server, spread, virtual_server


def l4(node, *args):
    """`ringgate ctl l4` of a node."""
    done = subprocess.run(
        [str(binary()), "ctl", "--socket", str(node.socket), "l4", *args],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done
    return done.stdout


def service(node, port, protocol="TCP"):
    """A virtual server of VIP as `ctl --json l4` has it."""
    answer = json.loads(l4(node, "--json"))
    keys = (protocol, VIP, port)
    of = [one for one in answer["virtual_servers"] if (one["protocol"], one["address"], one["port"]) == keys]
    return of[0]


def test_the_sample_is_valid():
    done = run_once("check", ROOT / "deploy" / "director.toml")
    assert (done.returncode, done.stderr) == (0, ""), done


def test_figures_are_those_of_the_traffic(site):
    before = service(site.node, 80)
    assert sum(spread(site.client, f"http://{VIP}/", 6).values()) == 6
    after = {}

    def counted():
        """Not while something is under way: the service is counted before its server."""
        after.update(service(site.node, 80))
        sums = all(grown(key, after, before) == sum(grown(key, b, a) for a, b in pairs()) for key in ("in_packets", "in_bytes"))
        return grown("conns", after, before) == 6 and sums

    grown = lambda key, now, then: now[key] - then[key]
    pairs = lambda: zip(before["servers"], after["servers"])
    eventually(counted, 5, lambda: f"figures that agree: {before} {after}", every=0.05)
    by_server = [b["conns"] - a["conns"] for a, b in zip(before["servers"], after["servers"])]
    assert by_server == [2, 2, 2]
    # SYN, ACK, request, and what ends it.
    assert 4 * 6 <= after["in_packets"] - before["in_packets"] < 60
    assert all(one["state"] == "up" and one["forward"] == "Route" for one in after["servers"])
    table = l4(site.node).splitlines()
    assert table[0].split()[:3] == ["Prot", "LocalAddress:Port", "Scheduler"]
    assert any(line.split()[:4] == ["TCP", f"{VIP}:80", "rr", "active"] for line in table), table
    server = site.servers[0].host.address
    assert any(line.split()[:4] == ["->", f"{server}:80", "Route", "1"] for line in table), table
    metric = f'ringgate_real_server_flows_total{{virtual_server="TCP {VIP}:80",server="{server}"}}'
    assert site.node.metrics()[metric] == after["servers"][0]["conns"]


def test_checks_and_sorry_server(lan, tmp_path):
    client, host = lan.host(), lan.host()
    host.ip("addr", "add", f"{VIP}/24", "dev", "eth0")
    servers = [Server(lan.host(), tmp_path, f"s{n}") for n in (1, 2, 3)]
    addresses = [server.host.address for server in servers]
    check = '{ tcp = true, delay_loop = "200ms", connect_timeout = "200ms", retry = 1, delay_before_retry = "50ms", warmup = "0s" }'
    text = virtual_server(f"{VIP}:80", addresses[:2], sorry_server=addresses[2])
    text = text.replace("[[virtual_server]]\n", f"[[virtual_server]]\ncheck = {check}\n")
    node = Node(host, tmp_path, "a", text)
    node.start()
    try:
        node.await_neighbours(3)
        assert spread(client, f"http://{VIP}/", 4) == {"s1": 2, "s2": 2}
        states = lambda: [one["state"] for one in service(node, 80)["servers"]]
        servers[0].stop()
        eventually(lambda: states()[0] == "down", 10, "s1 is found dead")
        eventually(lambda: spread(client, f"http://{VIP}/", 3) == {"s2": 3}, 5)
        servers[1].stop()
        eventually(lambda: not service(node, 80)["quorum"], 10, "the quorum is lost")
        eventually(lambda: spread(client, f"http://{VIP}/", 2) == {"s3": 2}, 5)
        servers[1].start([tool("nginx"), "-p", servers[1].directory, "-c", servers[1].nginx(), "-e", "stderr"])
        eventually(lambda: states()[1] == "up", 10, "s2 is found alive")
        eventually(lambda: spread(client, f"http://{VIP}/", 2) == {"s2": 2}, 5)
        eventually(lambda: "real server is down" in node.log(), 5)
    finally:
        node.stop()
        for server in servers:
            server.stop()
