"""The real keepalived (Debian) at the other end: versions 2 and 3, as active and as backup, by multicast and by
unicast, with PASS; and tshark's opinion of our frames.

Each story has a network of its own and mostly waits for advertisements, so all are played at once.

Debian's keepalived has no HMAC. With one from 2.4 on first in PATH, the same stories are played with it too:
    PATH=/where/it/was/built/bin:$PATH pytest interop/test_vrrp.py
"""

import json
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest

from harness.client import tool
from harness.lan import Capture, Keepalived, Lan, Load, Ringgate
from harness.tools import eventually

VIP = "10.77.0.100"

CASES = {
    "v3-multicast": {},
    "v3-unicast": {"unicast": True},
    "v2-pass-unicast": {"version": 2, "password": "sesame", "unicast": True},
    "v2-pass": {"version": 2, "password": "12345678"},
    "v3-ipv6": {"vip": "fe80::100"},
}
KEY = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"


def keepalived_version():
    said = subprocess.run([tool("keepalived"), "--version"], capture_output=True, text=True, timeout=10).stderr
    return tuple(int(part) for part in re.search(r"v(\d+)\.(\d+)", said).groups())


if keepalived_version() >= (2, 4):
    CASES |= {
        "v3-hmac": {"key": KEY},
        "v3-hmac-unicast": {"key": KEY, "unicast": True},
        "v3-hmac-ipv6": {"key": KEY, "vip": "fe80::100"},
    }


def ours(priority, case, peer):
    version, vip = case.get("version", 3), case.get("vip", VIP)
    lines = [
        '[vrrp.VI_1]\ninterface = "eth0"\nvirtual_router_id = 51',
        f'priority = {priority}\nversion = {version}\naddresses = ["{vip}/{64 if ":" in vip else 24}"]',
        f'advertise = "{"1s" if version == 2 else "100ms"}"',
    ]
    if "password" in case:
        lines.append(f'auth_pass = "{case["password"]}"')
    if "key" in case:
        lines.append(f'auth_hmac_keys = ["1:{case["key"]}"]')
    if case.get("unicast"):
        lines.append(f'unicast_peers = ["{peer.address}"]')
    return "\n".join(lines) + "\n"


def theirs(priority, case, host, peer):
    version, vip = case.get("version", 3), case.get("vip", VIP)
    auth = unicast = ""
    if "password" in case:
        auth = f"    authentication {{\n auth_type PASS\n auth_pass {case['password']}\n }}\n"
    if "key" in case:
        auth = f"    auth_hmac {{\n key 1 hex:{case['key']}\n active_key 1\n }}\n"
    if case.get("unicast"):
        unicast = f"    unicast_src_ip {host.address}\n    unicast_peer {{\n {peer.address}\n }}\n"
    return (
        f"global_defs {{\n router_id x\n vrrp_version {version}\n vrrp_garp_master_refresh 1\n}}\n"
        f"vrrp_instance VI_1 {{\n    interface eth0\n    virtual_router_id 51\n"
        f"    priority {priority}\n    version {version}\n"
        f"    advert_int {1 if version == 2 else 0.1}\n{auth}{unicast}"
        f"    virtual_ipaddress {{\n {vip}/{64 if ':' in vip else 24}\n }}\n}}\n"
    )


def keepalived_as_backup_and_as_active(name, lan, tmp_path):
    case = CASES[name]
    one, other = lan.host(), lan.host()
    vip = case.get("vip", VIP)
    has = lambda host: vip in host.addresses("eth0")
    with Ringgate(one, tmp_path, "a", ours(150, case, other)) as ringgate:
        ringgate.await_role("active")
        with Keepalived(other, tmp_path, theirs(100, case, other, one)) as keepalived:
            # It may claim once, before we have learned which checksum it speaks.
            settle(ringgate, keepalived, "active", "BACKUP")
            assert has(one) and not has(other)
            # Handed over by our resignation, and back.
            ringgate.ctl("release")
            settle(ringgate, keepalived, "backup", "MASTER")
            eventually(lambda: has(other) and not has(one), 5)
            assert ringgate.instance()["active"] == {
                "address": link_local(other) if ":" in vip else other.address,
                "priority": 100,
            }
            ringgate.ctl("resume")
            settle(ringgate, keepalived, "active", "BACKUP")
            eventually(lambda: has(one) and not has(other), 5)
            # We die, it takes over; we come back and take over from it.
            ringgate.kill()
            keepalived.await_state("MASTER")
            ringgate.start()
            settle(ringgate, keepalived, "active", "BACKUP")
            # It resigns in good order, and dies.
        ringgate.await_role("active")
        status = ringgate.instance()
        assert status["packets_dropped"] == {}, status
        assert status["adverts_received"] > 0


def ringgate_as_backup_of_keepalived(name, lan, tmp_path):
    case = CASES[name]
    one, other, client = lan.host(), lan.host(), lan.host()
    with Keepalived(other, tmp_path, theirs(200, case, other, one)) as keepalived:
        keepalived.await_state("MASTER")
        with Ringgate(one, tmp_path, "a", ours(100, case, other)) as ringgate:
            ringgate.await_role("backup")
            eventually(lambda: ringgate.instance()["active"], 5)
            before = ringgate.instance()["adverts_received"]
            eventually(lambda: ringgate.instance()["adverts_received"] >= before + 3, 10)
            assert ringgate.instance()["role"] == "backup"
            preferring_us_is_no_question_for_it(ringgate, keepalived)
            keepalived.stop()
            with Load(client, VIP) as load:
                load.await_from("a")
            assert "resigned" in ringgate.instance()["last_transition"]["reason"]
            keepalived.start()
            keepalived.await_state("MASTER")
            ringgate.await_role("backup")
            assert ringgate.instance()["packets_dropped"] == {}


def the_owner_takes_over_whatever_else_is_wished(lan, tmp_path):
    """Priority 255 (RFC 9568, section 6.1): it waits for nobody, and preempts although it is told not to."""
    case = CASES["v3-multicast"]
    one, other = lan.host(), lan.host()
    has = lambda host: VIP in host.addresses("eth0")
    with Keepalived(other, tmp_path, theirs(254, case, other, one)) as keepalived:
        keepalived.await_state("MASTER")
        with Ringgate(one, tmp_path, "a", ours(255, case, other) + "preempt = false\n") as ringgate:
            settle(ringgate, keepalived, "active", "BACKUP")
            eventually(lambda: has(one) and not has(other), 5)
            assert ringgate.instance()["priority"] == 255
            ringgate.kill()
            keepalived.await_state("MASTER")
            ringgate.start()
            settle(ringgate, keepalived, "active", "BACKUP")
            eventually(lambda: has(one) and not has(other), 5)
        # It resigns in good order.
        keepalived.await_state("MASTER")
        eventually(lambda: has(other) and not has(one), 5)


def preferring_us_is_no_question_for_it(ringgate, keepalived):
    """keepalived discards our request to hand over, so it is preempted; nothing else happens to it."""
    assert ringgate.ctl("prefer").stdout.strip() == "1 active here"
    settle(ringgate, keepalived, "active", "BACKUP")
    assert ringgate.instance()["last_transition"]["reason"] == "preferred by the operator"
    assert "does not answer requests to hand over" in ringgate.log()
    said = [line for line in keepalived.log().splitlines() if "packet type" in line]
    assert len(said) <= 1, said
    ringgate.ctl("resume")
    settle(ringgate, keepalived, "backup", "MASTER")


def settle(ringgate, keepalived, role, state):
    """Both in these states, and still so a while later."""
    ringgate.await_role(role, timeout=15)
    keepalived.await_state(state)

    def stays():
        before = time.monotonic()
        while time.monotonic() - before < 0.5:
            if ringgate.instance()["role"] != role or keepalived.state() != state:
                return False
            time.sleep(0.05)
        return True

    logs = lambda: f"{keepalived.log()[-2000:]}\n{ringgate.log()}"
    eventually(stays, 15, lambda: f"Ringgate {role} and keepalived {state}:\n{logs()}")


def link_local(host):
    return next(a for a in host.addresses("eth0") if a.startswith("fe80") and a != "fe80::100")


def a_wrong_password_and_a_stranger_are_named(lan, tmp_path):
    one, other = lan.host(), lan.host()
    case = CASES["v2-pass"]
    with Ringgate(one, tmp_path, "a", ours(100, case, other)) as ringgate:
        ringgate.await_role("active")
        wrong = theirs(150, {**case, "password": "other"}, other, one)
        with Keepalived(other, tmp_path, wrong):
            eventually(lambda: ringgate.instance()["packets_dropped"].get("password"), 10)
            found = ringgate.instance()["misconfigurations"]
            assert any("wrong password" in text for text in found), found
            assert ringgate.instance()["role"] == "active"


def tshark_finds_nothing_wrong_with_our_frames(lan, tmp_path):
    one, other = lan.host(("eth0",)), lan.host()
    six = (
        '[vrrp.VI_6]\ninterface = "eth0"\nvirtual_router_id = 52\n'
        'addresses = ["fe80::100/64", "fd77::100/64"]\n'
    )
    two = (
        '[vrrp.VI_2]\ninterface = "eth0"\nvirtual_router_id = 53\nversion = 2\nauth_pass = "sesame"\n'
        'addresses = ["10.77.0.102/24"]\n'
    )
    with Capture(other, "eth0", tmp_path / "frames.pcap"):
        # This tshark knows the IPv4 checksum of RFC 5798 only; that of RFC 9568 has unit tests.
        four = ours(100, {}, other) + 'checksum = "pseudo"\n'
        with Ringgate(one, tmp_path, "a", four + six + two) as ringgate:
            for name in ("VI_1", "VI_6", "VI_2"):
                ringgate.await_role("active", name)
            time.sleep(0.3)  # some more frames of each kind
    frames = dissect(tmp_path / "frames.pcap")
    vrrp = [f for f in frames if "vrrp" in f]
    assert {f["vrrp"]["vrrp.virt_rtr_id"] for f in vrrp} == {"51", "52", "53"}
    assert {f["vrrp"]["vrrp.typever_tree"]["vrrp.version"] for f in vrrp} == {"2", "3"}
    assert {f["vrrp"]["vrrp.prio"] for f in vrrp} == {"100", "0", "1"}, "offered, and resigned at the end"
    for frame in vrrp:
        text = json.dumps(frame)
        assert "_ws.expert" not in text and "_ws.malformed" not in text, text
        hops = frame["ip"]["ip.ttl"] if "ip" in frame else frame["ipv6"]["ipv6.hlim"]
        assert hops == "255"
        assert frame["vrrp"]["vrrp.checksum.status"] == "1", text
    claims = [f["arp"] for f in frames if "arp" in f and f["arp"].get("arp.src.proto_ipv4") == VIP]
    assert {c["arp.opcode"] for c in claims} == {"1", "2"}
    advertised = [f for f in frames if "icmpv6" in f and f["icmpv6"].get("icmpv6.type") == "136"]
    targets = {f["icmpv6"].get("icmpv6.nd.na.target_address") for f in advertised}
    assert {"fe80::100", "fd77::100"} <= targets


def dissect(file):
    """The layers of each frame, as tshark sees them."""
    done = subprocess.run(
        [tool("tshark"), "-r", str(file), "-T", "json", "-o", "ip.check_checksum:TRUE"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return [packet["_source"]["layers"] for packet in json.loads(done.stdout)]


STORIES = {
    **{f"keepalived as backup and as active: {n}": partial(keepalived_as_backup_and_as_active, n) for n in CASES},
    **{f"Ringgate as backup of keepalived: {n}": partial(ringgate_as_backup_of_keepalived, n)
       for n in ("v3-multicast", "v2-pass")},
    "the owner takes over whatever else is wished": the_owner_takes_over_whatever_else_is_wished,
    "a wrong password and a stranger are named": a_wrong_password_and_a_stranger_are_named,
    "tshark finds nothing wrong with our frames": tshark_finds_nothing_wrong_with_our_frames,
}  # fmt: skip


@pytest.fixture(scope="module")
def played(request, tmp_path_factory):
    """The stories that are asked for, under way: name -> future."""
    wanted = [item.callspec.params["name"] for item in request.session.items if item.path == request.path]
    with ExitStack() as stack:
        # One after the other: the first namespace of a machine is not made twice at once.
        places = [(name, stack.enter_context(Lan()), tmp_path_factory.mktemp("vrrp")) for name in wanted]
        pool = stack.enter_context(ThreadPoolExecutor(len(places)))
        yield {name: pool.submit(STORIES[name], lan, directory) for name, lan, directory in places}


@pytest.mark.parametrize("name", STORIES)
def test_with_keepalived(played, name):
    played[name].result()
