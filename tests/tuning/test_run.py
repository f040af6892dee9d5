"""The step as part of `run`: applied before anything listens, watched from then on."""

import os
import shutil
import socket
import subprocess
import sys

from harness import NetNs, eventually
from harness.proxy import Proxy, binary, complete
from harness.tools import free_port, toml

from .root import NOBODY, Root


def config(address, tuning):
    return {
        "admin": {"bind": f"{address}:{free_port()}"},
        "listener": [{"bind": f"{address}:{free_port()}"}],
        "route": [{"respond": {}}],
        "tuning": tuning,
    }


def test_run_applies_watches_and_shows_drift(tmp_path):
    with NetNs() as ns:
        tuning = {"profile": "proxy", "state_dir": str(tmp_path / "state"), "check_interval": "200ms"}
        site = config(ns.inside, tuning)
        with Proxy(site, tmp_path / "one", prefix=ns.argv()) as proxy:
            assert ns.run("cat", "/proc/sys/net/core/somaxconn").stdout == "65535\n"
            lines = [line for line in proxy.log().splitlines() if " tuned " in line]
            assert len(lines) == 1 and "net.core.somaxconn 4096 -> 65535" in lines[0], lines
            assert proxy.log().index(" tuned ") < proxy.log().index("listening")
            tuned = proxy.status()["tuning"]
            assert tuned["profiles"] == ["proxy"] and tuned["changed_at_start"] > 5
            # Limits take CAP_SYS_RESOURCE, which a container seldom has.
            drift = [d["key"] for d in tuned["drift"] if not d["key"].startswith("limit.")]
            assert drift == [] and tuned["counts"]["not_applicable"] > 0
            assert proxy.metric("ringgate_tuning_settings", status="holds") > 5
            limits = proxy.metric("ringgate_tuning_drift")
            queue = ns.run("ss", "-ltnH", f"sport = :{proxy.address[1]}").stdout.split()
            assert queue[2] == "4096", "the accept queue is the listener's backlog"
            ns.run("sh", "-c", "echo 128 > /proc/sys/net/core/somaxconn")
            proxy.await_metric("ringgate_tuning_drift", 1, key="net.core.somaxconn")
            drift = proxy.status()["tuning"]["drift"]
            assert ("net.core.somaxconn", "128") in [(d["key"], d["now"]) for d in drift]
            proxy.await_log("has drifted key=net.core.somaxconn")
            ns.run("sh", "-c", "echo 65535 > /proc/sys/net/core/somaxconn")
            eventually(lambda: proxy.metric("ringgate_tuning_drift") == limits, 5, "no drift")
        with Proxy(site, tmp_path / "two", prefix=ns.argv()) as proxy:
            assert " tuned profile=proxy changed=0 " in proxy.log()


def test_without_privilege_it_says_so_and_serves_or_stops_if_required(public):
    tmp_path = public
    root = Root(tmp_path / "root")
    before = root.snapshot()
    shutil.copy(binary(), tmp_path / "program")
    argv = [*NOBODY, str(tmp_path / "program")]
    for require in (False, True):
        tuning = {"profile": "proxy", "root": str(root.path), "require": require}
        site = complete(config("127.0.0.1", tuning))
        file = tmp_path / "site.toml"
        file.write_text(toml(site))
        log = open(tmp_path / f"log{require}", "w+")
        child = subprocess.Popen([*argv, "run", str(file)], stderr=log, stdout=log, cwd="/")

        def text():
            log.seek(0)
            return log.read()

        try:
            if require:
                assert child.wait(20) == 1
                assert "tuning.require is set" in text() and "net.core.somaxconn" in text()
                assert "listening" not in text()
            else:
                eventually(lambda: "serving" in text(), 20, "serving")
                assert "tuning: could not set" in text() and "net.core.somaxconn" in text()
        finally:
            child.terminate()
            child.wait(20)
            log.close()
    assert root.snapshot() == before


def test_a_pending_trial_is_left_alone(tmp_path):
    root = Root(tmp_path / "root")
    root.tune("apply", "--profile", "minimal", "--try", "60s", expect=0)
    site = config("127.0.0.1", {"profile": "edge", "root": str(root.path)})
    with Proxy(site, tmp_path / "proxy") as proxy:
        assert "a trial is under way" in proxy.log()
        assert root.sysctl("vm.swappiness") == "60\n"
    root.tune("rollback", expect=0)


CLIENT = """
import os, socket, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
held = [socket.create_connection((sys.argv[2], int(sys.argv[3])), 5) for _ in range(40)]
print("ready", flush=True)
sys.stdin.read()
"""


def test_connections_land_on_the_shard_whose_cpu_took_them(tmp_path):
    cpus = sorted(os.sched_getaffinity(0))[:2]
    assert len(cpus) == 2, "needs two CPUs"
    site = config("127.0.0.1", {"profile": "off"})
    site["node"] = {"shards": ",".join(map(str, cpus)), "pin": True, "steering": "cpu"}
    with Proxy(site, tmp_path / "proxy") as proxy:
        for shard, cpu in enumerate(cpus):
            argv = [sys.executable, "-c", CLIENT, str(cpu), proxy.address[0], str(proxy.address[1])]
            with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
                assert client.stdout.readline() == "ready\n"
                proxy.await_metric("ringgate_connections", 40, shard=str(shard))
                proxy.await_equal("ringgate_connections", 40)
            eventually(lambda: proxy.metric("ringgate_connections") == 0, 5, "no connections")


def test_steering_needs_a_cpu_for_each_shard(tmp_path):
    site = complete(config("127.0.0.1", {"profile": "off"}))
    site["node"] = {"shards": 64, "pin": True, "steering": "cpu"}
    file = tmp_path / "site.toml"
    file.write_text(toml(site))
    done = subprocess.run([binary(), "run", file], capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and 'node.steering = "cpu" needs' in done.stderr
    with socket.socket() as probe:
        host, port = site["listener"][0]["bind"].split(":")
        assert probe.connect_ex((host, int(port))) != 0
