"""Runs in the guest of test_guest.py: what Ringgate does on the oldest kernel that is promised. Prints what worked."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, "/tests")

from harness.lan import Lan  # noqa: E402
from harness.process import Process  # noqa: E402
from harness.proxy import binary, run_once  # noqa: E402
from harness.tools import eventually  # noqa: E402
from l4.common import VIP, VIP6, Node, Server, spread, tables, virtual_server  # noqa: E402

VRRP = f'[vrrp.VI_1]\ninterface = "eth0"\nvirtual_router_id = 51\npriority = 200\nadvertise = "300ms"\naddresses = ["{VIP}/24"]\n'
FORWARDED = 'ringgate_director_xdp_frames_total{outcome="forwarded"}'
LIMITS = "syns_per_source = 1000\nnew_flows_per_second = 1000\n"


def say(*words):
    print(f"{time.monotonic():.1f}", *words, flush=True)


def demo(directory):
    """The front page in one command, and a plan for this machine."""
    process = Process([binary(), "run", "--demo"], directory / "demo")
    process.await_ready(lambda: "serving" in process.log())
    argv = ["curl", "-sS", "--max-time", "30", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:8080/"]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "200"
    assert process.terminate(60) == 0, process.log()
    say("demo")
    plan = run_once("tune", "plan", "--profile", "edge", timeout=120)
    assert "net.core.somaxconn" in plan.stdout, plan
    say("plan")


def configuration(datapath, servers, limits=""):
    four, six = [[getattr(one.host, name) for one in servers] for name in ("address", "address6")]
    return (
        f'[director]\ndatapath = "{datapath}"\n{limits}'
        + virtual_server(f"{VIP}:8080", four, scheduler="mh")
        + virtual_server(f"[{VIP6}]:8080", six, scheduler="mh")
        + virtual_server(f"{VIP}:80", four, persistence_timeout="60s")
        + virtual_server(f"{VIP}:8080", four, protocol="udp", forward="tunnel", tunnel_type="gue")
        + VRRP
    )  # fmt: skip


def answers(client):
    for url in (f"http://{VIP}:8080/", f"http://[{VIP6}]:8080/"):
        assert dict(spread(client, url, 3)) == {"s1": 3}, url


def director(directory):
    with Lan() as lan:
        client, host, third = lan.host(), lan.host(), lan.host()
        host.ip("addr", "add", f"{VIP6}/64", "dev", "eth0", "nodad")
        servers = [Server(third, directory, "s1", web=False)]
        with Node(host, directory, "a", configuration("packet", servers)) as node:
            eventually(lambda: VIP in host.addresses("eth0"), 30, "VRRP claims the address")
            say("vrrp")
            node.await_neighbours(2)
            answers(client)
            assert node.metric("ringgate_director_sent_total") > 0 and "ringgate" in " ".join(tables(host)), tables(host)
            say("packet")
            for mode, limits in (("generic", ""), ("native", LIMITS), ("generic", LIMITS)):
                text = node.file.read_text()
                begin = text.index("[director]")
                node.file.write_text(text[:begin] + configuration(mode, servers, limits))
                node.control("reload")
                chosen = f'ringgate_director_datapath{{interface="eth0",datapath="xdp-{mode}"}}'
                eventually(lambda name=chosen: node.metrics().get(name) == 1, 30, lambda: f"{mode}:\n{node.log()[-3000:]}")
                if mode == "generic":
                    forwarded = lambda: node.metrics().get(FORWARDED, 0)
                    before = forwarded()
                    answers(client)
                    eventually(lambda least=before + 24: forwarded() >= least, 30, lambda: f"{node.metrics()}")
                say(mode, "with limits" if limits else "without limits")
        assert VIP not in host.addresses() and not tables(host), "nothing stays"
        say("gone")
        for server in servers:
            server.stop()


def agreement():
    """The unit tests of the program in the kernel, if the tests' binary is there."""
    if os.path.exists("/unit"):
        argv = ["/unit", "packet::xdp", "l4::offload", "sys::bpf", "--test-threads", "1"]
        done = subprocess.run(argv, env={**os.environ, "XDP_FRAMES": "1000"}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        say("agreement", done.stdout.strip().splitlines()[-1])


def main():
    say(os.uname().release)
    directory = Path(tempfile.mkdtemp())
    demo(directory)
    director(directory)
    agreement()


main()
