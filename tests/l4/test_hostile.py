"""Random and mutated frames on a live interface: all are counted, none upsets the director."""

import os
import random
import re
import subprocess

import pytest

from bench.generator import bench as generator
from harness.lan import Lan
from harness.process import Process
from harness.tools import eventually

from .common import VIP, VIP6, Node, mac, prepare, send_frames, spread, virtual_server

COUNT = 20_000
# By ringgate-bench, which makes frames faster. HOSTILE_FRAMES=10000000 is the whole run.
MANY = int(os.environ.get("HOSTILE_FRAMES", 60_000))


def corpus(source, target):
    """Frames that mean something, to be mutated."""
    ethernet = bytes.fromhex((target + source).replace(":", ""))
    four = bytes([10, 77, 0, 1]) + bytes([10, 77, 0, 100])
    six = bytes.fromhex("fd77" + "00" * 13 + "01" + "fd77" + "00" * 12 + "0100")
    tcp = bytes.fromhex("9c4000500000000100000000500220000000000000000000")
    udp = bytes.fromhex("9c401f90000c0000") + b"data"
    quoted = bytes.fromhex("4500002800010000400600000a4d00640a4d0001") + bytes.fromhex("00509c4000000001")
    icmp = bytes.fromhex("0304000000000500") + quoted
    bodies = [(6, tcp), (17, udp), (1, icmp), (132, tcp)]
    frames = []
    for protocol, body in bodies:
        head = bytes([0x45, 0]) + (20 + len(body)).to_bytes(2) + bytes([0, 1, 0, 0, 64, protocol, 0, 0])
        frames.append(ethernet + b"\x08\0" + head + four + body)
        fragment = head[:6] + bytes([0x20, 0]) + head[8:]
        frames.append(ethernet + b"\x08\0" + fragment + four + body)
        options = bytes([0x47]) + head[1:]
        frames.append(ethernet + b"\x08\0" + options + four + bytes(8) + body)
        head6 = bytes([0x60, 0, 0, 0]) + len(body).to_bytes(2) + bytes([58 if protocol == 1 else protocol, 64])
        frames.append(ethernet + b"\x86\xdd" + head6 + six + body)
        extension = bytes([0x60, 0, 0, 0]) + (8 + len(body)).to_bytes(2) + bytes([44, 64])
        frames.append(ethernet + b"\x86\xdd" + extension + six + bytes([protocol, 0, 0, 1, 0, 0, 0, 1]) + body)
    return frames


def mutated(frames, seed):
    dice = random.Random(seed)
    for _ in range(COUNT):
        frame = bytearray(dice.choice(frames))
        for _ in range(dice.randrange(4)):
            at = dice.randrange(14, len(frame))
            frame[at] = dice.randrange(256)
        if dice.random() < 0.2:
            del frame[dice.randrange(14, len(frame)) :]
        if dice.random() < 0.1:
            frame[12:12] = bytes([0x81, 0, 0, dice.randrange(1, 100)])
        if dice.random() < 0.1:
            frame += dice.randbytes(dice.randrange(1200))
        yield bytes(frame)


def test_counters_add_up_and_service_goes_on(site):
    seed = 20261122
    print("seed", seed)
    before = counters(site.node)
    send_frames(site.client, mutated(corpus(mac(site.client), mac(site.host)), seed))
    settled = lambda: counters(site.node)["frames"] == (last.append(counters(site.node)["frames"]) or last[-2])
    last = [-1]
    eventually(settled, 10, "all frames judged", every=0.3)
    grown = {}

    def balanced():
        after = counters(site.node)
        grown.update({key: after[key] - before[key] for key in after})
        return grown["frames"] == grown["verdicts"] + grown["cut"]

    # Each frame had one verdict; each that was to be sent was sent or refused.
    eventually(balanced, 5, lambda: f"frames have a verdict each: {grown}", every=0.1)
    assert grown["frames"] > COUNT // 10, grown
    assert grown["sent"] + grown["refused"] >= grown["forwarded"] + grown["local"], grown
    assert grown["sent"] <= grown["forwarded"] + grown["local"] + grown["replied"] + grown["released"], grown
    assert grown["dropped"] + grown["passed"] > 0, grown
    # A connection may have the ports of a flow that a frame above began: then it stays there, and out of turn.
    for host in (VIP, f"[{VIP6}]"):
        in_turn = lambda host=host: spread(site.client, f"http://{host}/", 6) == {"s1": 2, "s2": 2, "s3": 2}
        eventually(in_turn, 10, "all servers in turn")


@pytest.mark.parametrize("datapath", ["packet", "generic", "native"])
def test_nothing_leaves_that_should_not(tmp_path, datapath):
    """What is sent is a packet to a virtual server, and as many arrive at the real servers as were counted."""
    with Lan() as lan:
        # A switch does not put fragments together.
        for family in ("ip", "ip6"):
            quiet = ("sysctl", "-qw", f"net.bridge.bridge-nf-call-{family}tables=0")
            subprocess.run(("ip", "netns", "exec", lan.name, *quiet), capture_output=True, timeout=10)
        sender, host, servers = lan.host(), lan.host(), [prepare(lan.host()) for _ in range(2)]
        host.ip("addr", "add", f"{VIP}/24", "dev", "eth0")
        host.ip("addr", "add", f"{VIP6}/64", "dev", "eth0", "nodad")
        text = f'[director]\ndatapath = "{datapath}"\n'
        for vip, attribute in ((VIP, "address"), (f"[{VIP6}]", "address6")):
            to = [getattr(server, attribute) for server in servers]
            text += virtual_server(f"{vip}:80", to, scheduler="mh") + virtual_server(f"{vip}:80", to, protocol="sctp")
            text += virtual_server(f"{vip}:8080", to, protocol="udp", scheduler="mh")
        with Node(host, tmp_path, "a", text) as node:
            node.await_neighbours(4)
            options = ("--to", mac(host), "--address", VIP, "--address6", VIP6)
            argv = (generator(), "hostile", *options, "--watch", "eth0")
            watches = [Process(server.argv(*argv), tmp_path / f"watch{n}") for n, server in enumerate(servers)]
            try:
                flood(lan, node, sender, watches, options)
            finally:
                for watch in watches:
                    watch.kill()


def flood(lan, node, sender, watches, options):
    for watch in watches:
        watch.await_ready(lambda watch=watch: "watching" in watch.log())
    argv = (generator(), "hostile", *options, "--interface", "eth0", "--count", MANY, "--seed", 8)
    told = sender.run(*argv, timeout=60 + MANY // 20_000).stdout
    assert int(re.search(r"(\d+) sent", told)[1]) > MANY // 2, told
    last = []

    def settled():
        last.append((counters(node), node.forwarded()))
        return len(last) > 1 and last[-1] == last[-2]

    # The program's counters are read twice a second.
    eventually(settled, 20, "all frames judged", every=1.2)
    counted, forwarded = last[-1]
    assert counted["frames"] == counted["verdicts"] + counted["cut"], counted
    for watch in watches:
        assert watch.terminate(20) == 0, watch.log()
    seen = [re.search(r"(\d+) frames to the virtual servers, (\d+) others, (\d+) missed", watch.log()) for watch in watches]
    print(told, counted, forwarded, [one[0] for one in seen])
    arrived, missed = (sum(int(one[n]) for one in seen) for n in (1, 3))
    # A watch's ring may be full: what it missed came too, if it was for the director's services. And so may the queue of a
    # driver that runs a program, without a word to who sends.
    lost = missed + driver_drops(node.host) + driver_drops(lan, node.host.port())
    answered = counted["replied"] + counted["local"]
    assert arrived <= forwarded - answered <= arrived + lost, (arrived, lost, counted, forwarded)
    assert forwarded > MANY // 20, forwarded


def driver_drops(host, device="eth0"):
    """Frames that veth could not give to its other end, or had no room for, by its own counts."""
    argv = ("ip", "netns", "exec", host.name, "ethtool", "-S", device)
    lines = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()
    counts = {name.strip(): int(count) for name, _, count in (line.partition(":") for line in lines) if count.strip().isdigit()}
    print(device, {name: count for name, count in counts.items() if count})
    return sum(count for name, count in counts.items() if name.endswith(("xdp_tx_errors", "xdp_xmit_errors", "_drops")))


def counters(node):
    metrics = node.metrics()
    total = lambda name: sum(v for k, v in metrics.items() if k.startswith(f"ringgate_director_{name}"))
    verdict = lambda name: sum(v for k, v in metrics.items() if f'verdict="{name}"' in k)
    return {
        "frames": total("frames_total"), "verdicts": total("verdicts_total"), "cut": total("cut_total"),
        "sent": total("sent_total"), "refused": total("send_errors_total"), "released": total("released_total"),
        **{name: verdict(name) for name in ("forwarded", "local", "replied", "dropped", "passed")},
    }  # fmt: skip
