"""Every verb and every class of setting against a machine made of files."""

import os
import shutil
import subprocess

from harness.proxy import binary, run_once

from .root import NOBODY, Root

EDGE = ("--profile", "edge")


def test_plan_shows_every_class_and_changes_nothing(root):
    root.write("etc/sysctl.d/50-mine.conf", "# mine\nnet.core.somaxconn = 1024\n")
    root.write("proc/900/comm", "irqbalance\n")
    before = root.snapshot()
    items = root.plan(*EDGE)
    text = root.tune("plan", *EDGE, expect=0).stdout
    assert root.snapshot() == before and not root.journal().exists()
    for word in ("KEY", "NOW", "WANTED", "RISK", "SCOPE", "ALSO SET BY", "WHY"):
        assert word in text
    somaxconn = items["net.core.somaxconn"]
    assert (somaxconn["now"], somaxconn["to"], somaxconn["status"]) == ("4096", "65535", "change")
    assert somaxconn["also_set_by"] == [{"by": "/etc/sysctl.d/50-mine.conf:2", "value": "1024"}]
    assert all(somaxconn[key] for key in ("why", "risk", "scope", "source", "undo"))
    expected = {
        "net.ipv4.tcp_rmem": ("change", "4096 131072 16777216"),
        "net.ipv4.tcp_wmem": ("beyond", None),
        "net.ipv4.conf.eth0.rp_filter": ("change", "2"),
        "vm.swappiness": ("change", "10"),
        "transparent_hugepage": ("change", "madvise"),
        "cpu.governor.policy0": ("change", "performance"),
        "cpu.governor.policy4": ("holds", None),
        "nic.eth0.irq41.irq_affinity": ("change", "6"),
        "nic.eth0.rx-0.rps_cpus": ("change", "cc"),
        "nic.eth0.tx-1.xps_cpus": ("change", "c0"),
        "nic.eth0.lro": ("change", "0"),
        "nic.eth0.rx_ring": ("refused", "2048"),
        "limit.nofile": ("advice", None),
        "boot.mitigations": ("holds", None),
        "kernel.numa_balancing": ("not_applicable", None),
    }
    for key, (status, to) in expected.items():
        assert (items[key]["status"], items[key]["to"]) == (status, to), items[key]
    assert items["boot.mitigations"]["now"] == "auto"
    assert {"by": "irqbalance", "value": ""} in items["nic.eth0.irq41.irq_affinity"]["also_set_by"]


def test_apply_verify_rollback_byte_for_byte(root):
    before = root.snapshot()
    root.tune("verify", *EDGE, expect=1)
    done = root.json("apply", *EDGE)
    assert len(done["changed"]) > 15 and done["failed"] == []
    assert root.sysctl("net.core.somaxconn").strip() == "65535"
    assert root.read("ethtool/eth0/lro").strip() == "0"
    assert root.read("sys/class/net/eth0/queues/rx-0/rps_cpus").strip() == "cc"
    root.tune("verify", *EDGE, expect=0)
    assert "net.core.somaxconn" in root.tune("show", expect=0).stdout
    applied, journal = root.snapshot(), root.journal().read_bytes()
    assert root.json("apply", *EDGE)["changed"] == [], "a second apply has nothing to do"
    assert (root.snapshot(), root.journal().read_bytes()) == (applied, journal)
    undone = root.json("rollback")
    assert len(undone["restored"]) == len(done["changed"])
    assert root.snapshot() == before and not root.journal().exists()
    assert root.json("rollback")["restored"] == []


def test_drift_is_named(root):
    root.tune("apply", *EDGE, expect=0)
    root.write("proc/sys/vm/swappiness", "60\n")
    done = root.tune("verify", *EDGE, expect=1)
    assert "drift: vm.swappiness is 60, wanted <= 10" in done.stdout
    assert "changed since" in root.tune("show").stdout


def test_larger_values_stay_unless_forced(root):
    root.write("proc/sys/net/core/somaxconn", "1000000\n")
    assert root.plan(*EDGE)["net.core.somaxconn"]["status"] == "beyond"
    root.tune("apply", *EDGE, expect=0)
    assert root.sysctl("net.core.somaxconn") == "1000000\n"
    root.tune("apply", *EDGE, "--force", "net.core.somaxconn", expect=0)
    assert root.sysctl("net.core.somaxconn") == "65535"
    root.tune("rollback", expect=0)
    assert root.sysctl("net.core.somaxconn") == "1000000\n"


def test_missing_and_read_only_keys_are_no_failure(root):
    (root.path / "proc/sys/net/ipv4/tcp_fin_timeout").unlink()
    (root.path / "proc/sys/vm/swappiness").chmod(0o444)
    shutil.rmtree(root.path / "sys/devices/system/cpu/cpufreq")
    items = {item["key"]: item for item in root.json("apply", *EDGE)["items"]}
    for key in ("net.ipv4.tcp_fin_timeout", "vm.swappiness", "cpu.governor"):
        assert items[key]["status"] == "not_applicable" and items[key]["reason"], key
    root.tune("verify", *EDGE, expect=0)
    assert root.sysctl("vm.swappiness") == "60\n"


def test_a_namespace_of_its_own_leaves_the_machine_alone(root):
    (root.path / "proc/sys/net/core/netdev_max_backlog").unlink()
    root.tune("apply", *EDGE, expect=0)
    assert root.sysctl("vm.swappiness") == "60\n"
    assert root.sysctl("net.core.somaxconn") == "65535"


def test_danger_needs_its_name(root):
    root.write("proc/sys/kernel/io_uring_disabled", "2\n")
    root.write("proc/sys/net/ipv4/ip_forward", "1\n")
    done = root.tune("apply", *EDGE, expect=0)
    for key in ("kernel.io_uring_disabled", "net.ipv4.conf.all.rp_filter", "nic.eth0.rx_ring"):
        assert f"refused {key}" in done.stdout
    assert root.sysctl("kernel.io_uring_disabled") == "2\n"
    assert root.sysctl("net.ipv4.conf.all.rp_filter") == "1\n"
    root.tune("apply", *EDGE, "--allow", "kernel.io_uring_disabled,nic.rx_ring", expect=0)
    assert root.sysctl("kernel.io_uring_disabled") == "0"
    assert root.read("ethtool/eth0/rx_ring") == "2048"


def test_the_configuration_decides(root, tmp_path):
    file = tmp_path / "site.toml"
    head = '[[listener]]\nbind = "0.0.0.0:50080"\n[[route]]\nrespond = {}\n'
    tuning = """[tuning]
profile = ["proxy", "director"]
set = { "vm.swappiness" = false, "net.core.somaxconn" = 20000, "net.ipv4.tcp_syncookies" = 0 }
"""
    file.write_text(head + tuning)
    root.tune("apply", file, expect=0)
    assert root.sysctl("net.ipv4.ip_local_reserved_ports") == "9090,50080"
    assert root.sysctl("net.core.somaxconn") == "20000"
    assert root.sysctl("vm.swappiness") == "60\n"
    assert root.sysctl("net.ipv4.tcp_syncookies") == "0"
    assert root.sysctl("net.ipv4.conf.all.rp_filter") == "0", "the later profile counts"
    root.tune("rollback", expect=0)
    before = root.snapshot()
    for line, says in (
        ('profile = "egde"', 'did you mean "edge"?'),
        ('set = { "net.ipv4.tcp_tw_recycle" = 1 }', "dangerous: removed in Linux 4.12"),
        ("set = { net.core = 1 }", "write the whole name in quotes"),
    ):
        file.write_text(head + "[tuning]\n" + line)
        done = root.tune("apply", file, expect=2)
        assert says in done.stderr and f"{file}:6:" in done.stderr, done.stderr
    assert root.snapshot() == before


def test_a_director_is_told_what_xdp_needs(root, tmp_path):
    file = tmp_path / "site.toml"
    director = '[tuning]\nprofile = "director"\n[director]\ndatapath = "auto"\ninterfaces = ["eth0"]\ncpus = "0-3"\n'
    service = '[[virtual_server]]\naddress = "10.0.0.1:80"\nservers = [{ address = "10.0.0.2" }]\n'
    file.write_text(director + service)
    root.write("ethtool/eth0/driver", "ena\n")
    root.write("sys/class/net/eth0/mtu", "9001\n")
    root.write("ethtool/eth0/channels", "8\n")
    before = root.snapshot()

    def needs():
        xdp = root.json("plan", file)["xdp"]
        (one,) = xdp["interfaces"]
        assert (xdp["datapath"], one["interface"], one["driver"]) == ("auto", "eth0", "ena")
        return one, {need["about"]: (need["met"], need["says"]) for need in one["native_needs"]}

    one, found = needs()
    assert one["modes"] == ["generic"] and one["why"] == found["lro"][1]
    for about, remedy in (
        ("lro", "ethtool -K eth0 lro off"), ("mtu", "ip link set eth0 mtu 3498"), ("channels", "ethtool -L eth0 combined 4"),
    ):  # fmt: skip
        assert found[about][0] is False and remedy in found[about][1], found
        assert remedy in root.tune("plan", file, expect=0).stdout
    assert root.snapshot() == before
    for name, value in (("ethtool/eth0/lro", 0), ("ethtool/eth0/channels", 4), ("sys/class/net/eth0/mtu", 1500)):
        root.write(name, f"{value}\n")
    one, found = needs()
    assert one["modes"] == ["native", "generic"] and one["why"] == "the driver ena takes the program"
    assert all(found[about][0] is True for about in ("lro", "mtu", "channels")), found
    assert "xdp" not in root.json("plan", *EDGE), "no director, no XDP"


def test_without_privilege_everything_is_reported_and_nothing_changed(public):
    root, program = Root(public / "root"), public / "ringgate"
    shutil.copy(binary(), program)
    before = root.snapshot()
    argv = [*NOBODY, program, "tune", "apply", *EDGE, "--root", root.path]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "not set net.core.somaxconn" in done.stdout
    assert root.snapshot() == before


def test_appliers_at_once_keep_one_journal(root):
    before = root.snapshot()
    profiles = ["edge", "proxy", "director", "minimal"] * 2
    argv = lambda profile: [binary(), "tune", "apply", "--profile", profile, "--root", root.path]
    children = [
        subprocess.Popen(argv(p), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for p in profiles
    ]
    for child in children:
        output, _ = child.communicate(timeout=60)
        assert child.returncode == 0, output
    root.tune("rollback", expect=0)
    assert root.snapshot() == before


def test_somebody_elses_lock_is_waited_for_and_named(root):
    import fcntl

    lock = root.journal().parent / "lock"
    lock.parent.mkdir(parents=True)
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("4711\n")
        file.flush()
        done = root.tune("apply", *EDGE, expect=1, timeout=30)
    assert "process 4711 is tuning already" in done.stderr
    assert root.sysctl("net.core.somaxconn") == "4096\n"


def test_a_reboot_begins_a_new_journal(root):
    root.tune("apply", *EDGE, expect=0)
    root.write("proc/sys/kernel/random/boot_id", "another\n")
    for name, text in (("net/core/somaxconn", "5000\n"), ("vm/swappiness", "50\n")):
        root.write(f"proc/sys/{name}", text)
    before = root.snapshot()
    assert "nothing is changed" in root.tune("show", expect=0).stdout
    root.tune("apply", *EDGE, expect=0)
    root.tune("rollback", expect=0)
    assert root.snapshot() == before


def test_show_and_wrong_use(root):
    done = root.tune("show", "net.ipv4.tcp_fin_timeout", expect=0)
    assert "TIME_WAIT" in done.stdout and "ip-sysctl.rst" in done.stdout
    root.tune("show", "net.nothing.known", expect=2)
    assert "no profile fast" in root.tune("plan", "--profile", "fast", expect=2).stderr
    root.tune("plan", expect=2)
    root.tune("apply", *EDGE, "--try", "60", expect=2)
    assert run_once("tune", "--help").returncode == 0


def test_cpu_picture(root):
    done = root.tune("cpu", expect=0)
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert "NUMA node 1  [eth0]" in lines
    assert any(line.startswith("  ┌ cpu 2    shard 0") and "q0 irq 40" in line for line in lines)
    assert "CPUAffinity=2-3,6-7" in lines
    plan = root.json("cpu")
    assert plan["shards"] == [2, 6, 3, 7] and plan["left"] == [0, 1, 4, 5]
    root.write("sys/devices/system/node/node0/cpulist", "0-7\n")
    shutil.rmtree(root.path / "sys/devices/system/node/node1")
    root.write("sys/devices/pci0/0000:03:00.0/numa_node", "0\n")
    plan = root.json("cpu")
    assert plan["housekeeping"] == [0, 4] and plan["shards"] == [1, 5, 2, 6, 3, 7]
    assert plan["kernel_parameters"] == ["nohz_full=1-3,5-7", "irqaffinity=0,4"]


def test_cpu_of_this_machine():
    import json

    done = run_once("tune", "cpu", "--json")
    assert done.returncode == 0
    plan = json.loads(done.stdout)
    assert set(plan["shards"]) <= os.sched_getaffinity(0) and plan["shards"]

