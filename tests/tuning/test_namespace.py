"""The real kernel, in network namespaces: nothing outside them is changed."""

import json
import subprocess
from pathlib import Path

import pytest

from harness import NetNs
from harness.client import tool
from harness.proxy import binary

GLOBAL = ("vm/swappiness", "net/core/netdev_max_backlog", "fs/file-max", "kernel/timer_migration")


@pytest.fixture
def ns():
    outside = [Path("/proc/sys", key).read_text() for key in GLOBAL]
    with NetNs() as space:
        yield space
    assert [Path("/proc/sys", key).read_text() for key in GLOBAL] == outside


def everything(ns):
    """Every readable sysctl of the namespace's network."""
    script = "cd /proc/sys/net && grep -rs . ipv4 core | grep -v route/flush | sort"
    lines = ns.run("sh", "-c", script).stdout.splitlines()
    # Counters of their own.
    return [line for line in lines if "tcp_fastopen_key" not in line]


def tune(ns, state, *args, expect=0):
    argv = ns.argv(binary(), "tune", *args, "--state-dir", state)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == expect, (done.returncode, done.stdout, done.stderr)
    return done.stdout


def test_apply_verify_rollback(ns, tmp_path):
    before = everything(ns)
    tune(ns, tmp_path, "verify", "--profile", "edge", expect=1)
    items = {i["key"]: i for i in json.loads(tune(ns, tmp_path, "apply", "--profile", "edge", "--json"))["items"]}
    assert items["vm.swappiness"]["status"] == "not_applicable"
    assert items["net.core.rmem_max"]["status"] == "not_applicable", "read-only outside the first namespace"
    assert ns.run("cat", "/proc/sys/net/core/somaxconn").stdout == "65535\n"
    assert ns.run("cat", "/proc/sys/net/ipv4/ip_local_port_range").stdout.split() == ["10240", "65535"]
    tune(ns, tmp_path, "verify", "--profile", "edge")
    assert everything(ns) != before
    tune(ns, tmp_path, "rollback")
    assert everything(ns) == before


def test_reserved_ports_join_the_list_and_leave_it(ns, tmp_path):
    ns.run("sh", "-c", "echo 7000-7002 > /proc/sys/net/ipv4/ip_local_reserved_ports")
    site = tmp_path / "site.toml"
    site.write_text(
        '[tuning]\nprofile = "minimal"\n[[listener]]\nbind = "0.0.0.0:40080"\n[[route]]\nrespond = {}\n'
    )
    tune(ns, tmp_path, "apply", site)
    reserved = "/proc/sys/net/ipv4/ip_local_reserved_ports"
    assert ns.run("cat", reserved).stdout == "7000-7002,9090,40080\n"
    tune(ns, tmp_path, "rollback")
    assert ns.run("cat", reserved).stdout == "7000-7002\n"
    ns.run("sh", "-c", f"echo > {reserved}")
    tune(ns, tmp_path, "apply", site)
    tune(ns, tmp_path, "rollback")
    assert ns.run("cat", reserved).stdout == "\n"


def test_killed_in_mid_apply(ns, tmp_path):
    before = everything(ns)
    for number in (8, 15, 22):
        argv = [tool("strace"), "-o", "/dev/null", "-e", "trace=fsync"]
        argv += ["-e", f"inject=fsync:signal=SIGKILL:when={number}"]
        argv += [binary(), "tune", "apply", "--profile", "edge", "--state-dir", tmp_path]
        done = subprocess.run(ns.argv(*argv), capture_output=True, timeout=30)
        assert done.returncode != 0 and everything(ns) != before
        tune(ns, tmp_path, "rollback")
        assert everything(ns) == before


def test_a_container_with_read_only_proc_sys(ns, tmp_path):
    before = everything(ns)
    command = f"{binary()} tune apply --profile edge --state-dir {tmp_path} --json"
    script = f"mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && {command}"
    done = subprocess.run(
        ns.argv("unshare", "-m", "sh", "-c", script), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done
    counts = json.loads(done.stdout)["counts"]
    assert counts["change"] == counts["denied"] == 0 and counts["not_applicable"] > 15
    assert everything(ns) == before


def test_offloads_and_channels_of_an_interface(ns, tmp_path):
    def features():
        return ns.run(tool("ethtool"), "-k", ns.link_inside).stdout

    ns.run(tool("ethtool"), "-K", ns.link_inside, "gro", "on")
    before = features()
    assert "generic-receive-offload: on" in before
    what = ("--profile", "director", "--interface", ns.link_inside)
    done = json.loads(tune(ns, tmp_path, "apply", *what, "--json"))
    items = {item["key"]: item for item in done["items"]}
    assert items[f"nic.{ns.link_inside}.gro"]["status"] == "holds"
    assert items[f"nic.{ns.link_inside}.rx_ring"]["status"] == "not_applicable"
    assert "generic-receive-offload: off" in features()
    tune(ns, tmp_path, "rollback")
    assert features() == before
