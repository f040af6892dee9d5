"""A pair of Ringgates: who holds the address, what a client sees, and what the kernel does when a process dies."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from harness.lan import Load, Ringgate
from harness.tools import eventually

from .common import VIP, holds, vrrp


def test_the_best_is_active_and_serves(pair):
    a, b, client = pair()
    eventually(lambda: holds(a) and not holds(b), 5)
    with Load(client, VIP) as load:
        load.await_from("a")
    wanted = {"address": a.host.address, "priority": 200}
    eventually(lambda: b.instance()["active"] == wanted, 5)


def policies(a):
    """The scheduling policy of each thread, by its name."""
    tasks = [(int(task.name), (task / "comm").read_text().strip()) for task in Path(f"/proc/{a.pid}/task").iterdir()]
    return {(name, number): os.sched_getscheduler(number) & ~os.SCHED_RESET_ON_FORK for number, name in tasks}


def locked_memory(a):
    status = Path(f"/proc/{a.pid}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmLck")).split()[1])


def test_the_thread_is_as_urgent_as_the_machine_allows_and_kept_in_memory(pair):
    a, _, _ = pair()
    a.await_role("active")
    found = policies(a)
    # Said once the thread runs, and true of no other thread.
    ha = [policy for (name, _), policy in found.items() if name == "ha"]
    assert ha == [os.SCHED_FIFO if may_be_urgent() else os.SCHED_OTHER]
    assert {policy for (name, _), policy in found.items() if name != "ha"} == {os.SCHED_OTHER}
    shown = a.vrrp()
    assert shown["real_time"] == may_be_urgent()
    assert may_be_urgent() or "no real-time priority for VRRP" in a.log()
    if shown["memory_locked"]:
        assert locked_memory(a) > 0
    else:
        assert "memory is not locked" in a.log()


def test_who_may_not_be_urgent_says_so_and_serves(lan, tmp_path):
    """Without the two capabilities, and with limits to match."""
    a = Ringgate(lan.host(), tmp_path, "a", vrrp(100))
    without = "-sys_nice,-ipc_lock,-sys_resource"
    # Enough for io_uring's rings, far from enough for all memory; nobody may raise what this machine allows.
    memory = min(limit for limit in (8 << 20, resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]) if limit != resource.RLIM_INFINITY)
    a.wrapper = ["prlimit", "--rtprio=0", f"--memlock={memory}", "setpriv", f"--bounding-set={without}", f"--inh-caps={without}"]
    with a:
        a.await_role("active")
        eventually(lambda: "memory is not locked" in a.log(), 5)
        for said in ("no real-time priority for VRRP: ", "(CAP_SYS_NICE, or vrrp_rt_priority = 0)", "(CAP_IPC_LOCK, or vrrp_lock_memory = false)"):
            assert said in a.log()
        assert {*policies(a).values()} == {os.SCHED_OTHER} and locked_memory(a) == 0
        shown = a.vrrp()
        assert (shown["real_time"], shown["memory_locked"]) == (False, False)
    # Asked for neither, it says nothing.
    with Ringgate(lan.host(), tmp_path, "b", vrrp(100), node="vrrp_rt_priority = 0\nvrrp_lock_memory = false") as b:
        b.await_role("active")
        assert {*policies(b).values()} == {os.SCHED_OTHER} and locked_memory(b) == 0
        assert "memory is not locked" not in b.log() and "no real-time priority" not in b.log()


def may_be_urgent():
    """Whether this machine gives real-time priority to who asks."""
    code = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30).returncode == 0


def test_kill_nine_moves_the_address_and_leaves_none_behind(pair):
    a, b, client = pair()
    with Load(client, VIP) as load:
        load.await_from("a")
        killed = time.monotonic()
        a.kill()
        taken = load.await_from("b")
        assert taken - killed < 3, "an order of magnitude above three intervals"
        eventually(lambda: not holds(a), 5, "the kernel drops the lease of the dead")
        load.await_from("b")
        assert holds(b)
    # The one that comes back takes over again, and the other lets go.
    a.start()
    a.await_role("active")
    eventually(lambda: holds(a) and not holds(b), 5)


def test_a_hanging_process_loses_its_lease_and_does_not_fight_when_it_wakes(pair):
    a, b, client = pair(more="preempt = false")
    with Load(client, VIP) as load:
        load.await_from("a")
        os.kill(a.pid, signal.SIGSTOP)
        try:
            load.await_from("b")
            eventually(lambda: not holds(a), 5, "the lease runs out")
        finally:
            os.kill(a.pid, signal.SIGCONT)
        a.await_role("backup")
        assert not holds(a)
        assert b.instance()["role"] == "active"
        load.await_from("b")


def test_a_short_stall_leaves_everything_as_it_was(pair):
    # An interval so long that the stall stays short however late this process is told to go on.
    a, b, client = pair(interval="400ms", more="lease = \"5s\"")
    os.kill(a.pid, signal.SIGSTOP)
    time.sleep(0.05)  # the stall itself
    os.kill(a.pid, signal.SIGCONT)
    before = b.instance()["adverts_received"]
    eventually(lambda: b.instance()["adverts_received"] > before + 5, 5)
    assert (a.instance()["role"], b.instance()["role"]) == ("active", "backup")


def test_a_stalled_backup_hears_what_waits_before_it_claims(pair):
    a, b, client = pair()
    os.kill(b.pid, signal.SIGSTOP)
    time.sleep(1.0)  # ten intervals: its timer has run out by far
    os.kill(b.pid, signal.SIGCONT)
    before = b.instance()["adverts_received"]
    eventually(lambda: b.instance()["adverts_received"] > before + 10, 5)
    assert "to=active" not in b.log()
    assert a.instance()["role"] == "active"


def test_cable_pull_and_return(pair):
    a, b, client = pair()
    with Load(client, VIP) as load:
        load.await_from("a")
        a.host.plug("eth0", False)
        load.await_from("b")
        a.await_role("initialize")
        eventually(lambda: a.instance()["problems"] == ["interface eth0 is down"], 5)
        eventually(lambda: not holds(a), 2, "a port without carrier holds nothing")
        a.host.plug("eth0", True)
        load.await_from("a")
        b.await_role("backup")
        eventually(lambda: not holds(b), 2)


def test_partition_and_heal(pair):
    a, b, client = pair()
    with Load(client, VIP) as load:
        load.await_from("a")
        a.host.isolate("eth0", True)
        load.await_from("b")
        assert a.instance()["role"] == "active", "it cannot know"
        a.host.isolate("eth0", False)
        b.await_role("backup")
        eventually(lambda: holds(a) and not holds(b), 5)
        load.await_from("a")
        # Whoever hears the other first names it; both know in the end who is active.
        eventually(lambda: b.instance()["active"] == {"address": a.host.address, "priority": 200}, 5)
        eventually(lambda: "is active with higher priority 200" in b.log(), 5)


def test_a_second_heartbeat_path_prevents_the_split(lan, tmp_path):
    more = 'heartbeat_interfaces = ["eth1"]'
    a = Ringgate(lan.host(("eth0", "eth1")), tmp_path, "a", vrrp(200, more=more))
    b = Ringgate(lan.host(("eth0", "eth1")), tmp_path, "b", vrrp(100, more=more))
    with a, b:
        a.await_role("active")
        b.await_role("backup")
        b.host.isolate("eth0", True)
        before = b.instance()["adverts_received"]
        eventually(lambda: b.instance()["adverts_received"] > before + 20, 10)
        assert b.instance()["role"] == "backup", "it hears the active one over eth1"
        eventually(lambda: any("second path" in text for text in b.instance()["misconfigurations"]), 5)


def test_sigterm_resigns_first(pair):
    a, b, client = pair()
    with Load(client, VIP) as load:
        load.await_from("a")
        a.process.send_signal(signal.SIGTERM)
        load.await_from("b")
        assert a.process.wait(15) == 0
        log = a.log()
        assert "handed over to" in log
        assert log.index("resigning") < log.index("from=active to=backup") < log.index("draining"), log
        assert not holds(a)


def test_a_restart_removes_what_an_earlier_life_left(pair, tmp_path):
    a, b, client = pair(more='lease = "60s"')
    a.kill()
    assert holds(a), "the lease is long"
    b.await_role("active")
    b.process.send_signal(signal.SIGSTOP)  # so that nobody else acts
    a.start()
    a.await_role("active")
    assert holds(a)
    os.kill(b.pid, signal.SIGCONT)
    b.await_role("backup")


def test_an_address_that_is_not_ours_is_left_alone(lan, tmp_path):
    host = lan.host()
    host.ip("addr", "add", f"{VIP}/24", "dev", "eth0")
    with Ringgate(host, tmp_path, "a", vrrp(100)) as a:
        status = a.await_role("active")
        eventually(lambda: a.instance()["problems"], 5)
        assert "not ours" in a.instance()["problems"][0]
        assert status["addresses"] == [{"address": f"{VIP}/24", "held": False}]
    assert holds(a), "it was there before and stays"
    assert "valid_lft forever" in host.ip("addr", "show", "to", VIP)


def test_ipv6_several_addresses_labels_and_devices(lan, tmp_path):
    host = lan.host(("eth0", "eth1"))
    addresses = '"10.77.0.100/24 label eth0:vip", "10.77.1.100/24 dev eth1", "10.77.0.101"'
    six = (
        '[vrrp.VI_6]\ninterface = "eth0"\nvirtual_router_id = 51\n'
        'addresses = ["fe80::100/64", "fd77::100/128"]\n'
        '[vrrp_sync_group.G]\ngroup = ["VI_1", "VI_6"]\n'
    )
    client = lan.host()
    with Ringgate(host, tmp_path, "a", vrrp(100, addresses=addresses) + six) as a:
        a.await_role("active")
        a.await_role("active", "VI_6")
        wanted = {"10.77.0.100", "10.77.0.101", "fe80::100", "fd77::100"}
        eventually(lambda: wanted <= set(host.addresses("eth0")) and "10.77.1.100" in host.addresses("eth1"), 5)
        shown = host.ip("addr", "show", "dev", "eth0")
        assert "eth0:vip" in shown and "10.77.0.101/32" in shown
        assert "deprecated" in next(l for l in shown.splitlines() if "fd77::100" in l)
        with Load(client, "fd77::100") as load:
            load.await_from("a")
    assert not {"10.77.0.100", "10.77.1.100", "fe80::100", "fd77::100"} & set(host.addresses())


def test_a_sync_group_moves_as_one(lan, tmp_path):
    def both(priority):
        second = vrrp(priority).replace("VI_1", "VI_2").replace("51", "52").replace("eth0", "eth1")
        second = second.replace(VIP, "10.77.1.100")
        return vrrp(priority) + second + '[vrrp_sync_group.G]\ngroup = ["VI_1", "VI_2"]\n'

    a = Ringgate(lan.host(("eth0", "eth1")), tmp_path, "a", both(200))
    b = Ringgate(lan.host(("eth0", "eth1")), tmp_path, "b", both(100))
    with a, b:
        for name in ("VI_1", "VI_2"):
            a.await_role("active", name)
            b.await_role("backup", name)
        a.host.plug("eth1", False)
        for name in ("VI_1", "VI_2"):
            b.await_role("active", name)
        eventually(lambda: not {VIP, "10.77.1.100"} & set(a.host.addresses()), 5)


def test_the_virtual_mac_moves_with_the_address(pair):
    a, b, client = pair(more="use_vmac = true")
    mac = "00:00:5e:00:01:33"
    neighbour = lambda: client.ip("neigh", "show", VIP)
    with Load(client, VIP) as load:
        load.await_from("a")
        assert mac in neighbour()
        assert VIP in a.host.addresses("vrrp4.51") and VIP not in a.host.addresses("eth0")
        a.process.send_signal(signal.SIGTERM)
        load.await_from("b")
        assert mac in neighbour()
    assert a.process.wait(15) == 0
    assert "vrrp4.51" not in a.host.ip("link", "show")
    assert a.host.run("sysctl", "-n", "net.ipv4.conf.eth0.arp_ignore").stdout.strip() == "0"


def test_what_a_virtual_mac_changed_is_put_back_after_a_kill(lan, tmp_path):
    """kill -9 leaves the interface, without the address, until the next start: one that uses it adopts it, one that does
    not removes it; both put the parent's settings back in the end."""
    host = lan.host()
    settings = lambda: [
        host.run("sysctl", "-n", f"net.ipv4.conf.eth0.{key}").stdout.strip() for key in ("arp_ignore", "arp_announce")
    ]
    host.run("sysctl", "-qw", "net.ipv4.conf.eth0.arp_announce=1")
    links = lambda: host.ip("link", "show")
    with_vmac = vrrp(150, more='use_vmac = true\nlease = "1s"')
    for following in (with_vmac, vrrp(150)):
        killed = Ringgate(host, tmp_path, "a", with_vmac).start()
        killed.await_role("active")
        eventually(lambda: VIP in host.addresses("vrrp4.51"), 5)
        assert settings() == ["1", "1"], "only what was 0 is changed"
        killed.kill()
        eventually(lambda: VIP not in host.addresses(), 5, "the lease runs out")
        assert "vrrp4.51" in links()
        with Ringgate(host, tmp_path, "b", following) as b:
            b.await_role("active")
            if following is not with_vmac:
                eventually(lambda: "vrrp4.51" not in links(), 5, "nobody uses it")
                assert settings() == ["0", "1"]
        assert settings() == ["0", "1"]
        assert "vrrp4.51" not in links()


def test_without_a_lease_a_lost_address_comes_back_and_is_removed_at_the_end(lan, tmp_path):
    host = lan.host()

    def prefixes():
        links = json.loads(host.ip("-json", "addr", "show", "dev", "eth0"))
        return [i["prefixlen"] for link in links for i in link.get("addr_info", []) if i["local"] == VIP]

    off = 'lease = "off"'
    earlier = Ringgate(host, tmp_path, "a", vrrp(150, more=off, addresses=f'"{VIP}/25"'))
    earlier.start()
    earlier.await_role("active")
    eventually(lambda: prefixes() == [25], 5)
    earlier.kill()
    assert prefixes() == [25], "without a lease it stays"
    with Ringgate(host, tmp_path, "b", vrrp(150, more=off)) as a:
        a.await_role("active")
        eventually(lambda: prefixes() == [24], 5, "the new prefix instead of the old")
        for _ in range(3):
            host.ip("addr", "del", f"{VIP}/24", "dev", "eth0")
            eventually(lambda: prefixes() == [24], 5, "the address is put back")
        eventually(lambda: not a.instance()["problems"], 5, "and that is no trouble any more")
    assert prefixes() == []
