#!/usr/bin/env python3
"""Failover measured from a client: how long no request succeeds. Ringgate beside keepalived and nginx, in turns.

    bench/ha.py [--repeat 50] [--only kill,stop,cable,partition,reload,release] [--intervals 100,10] [--loops 0,8,16]

Each pair of nodes is on a switch of its own (network namespaces); a client starts a request every 4 ms, each on a new
connection. The gap is the longest time between two successes around the fault. `--loops` counts take-overs that nothing caused while busy loops use the CPUs. Needs root, keepalived and nginx.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from harness.client import tool  # noqa: E402
from harness.lan import Keepalived, Lan, Load, Ringgate  # noqa: E402
from harness.process import Process  # noqa: E402
from harness.proxy import run_once  # noqa: E402
from harness.tools import PATIENCE, eventually  # noqa: E402

VIP = "10.77.0.100"
# Seconds after a repair in which the client has to reach the first node again.
HEALED_IN = 10
FAULTS = ("kill", "stop", "cable", "partition", "reload", "release")


class RinggateNode:
    """Ringgate: proxy and VRRP in one process."""

    def __init__(self, host, directory, name, priority, interval_ms, node=""):
        vrrp = (
            f'[vrrp.VI_1]\ninterface = "eth0"\nvirtual_router_id = 51\npriority = {priority}\n'
            f'advertise = "{interval_ms}ms"\naddresses = ["{VIP}/24"]\n'
        )
        self.host, self.name = host, name
        self.ringgate = Ringgate(host, directory, name, vrrp, node=node)
        self.text, self.reloads = self.ringgate.file.read_text(), 0

    def start(self):
        self.ringgate.start()

    def stop(self):
        self.ringgate.stop(check=False)

    def kill(self):
        self.ringgate.kill()

    def cleaned(self):
        """The kernel drops what a killed process left."""
        return VIP not in self.host.addresses()

    def signal(self, number):
        os.kill(self.ringgate.pid, number)

    def reload(self):
        """With another file each time."""
        self.reloads += 1
        self.ringgate.file.write_text(f'{self.text}[http]\nkeepalive_timeout = "{60 + self.reloads}s"\n')
        done = run_once("ctl", "--socket", self.ringgate.socket, "reload")
        assert done.returncode == 0, done.stderr

    def release(self):
        self.ringgate.ctl("release")

    def unrelease(self):
        self.ringgate.ctl("resume")

    def said(self):
        return self.ringgate.log() if self.ringgate.process else ""

    def takeovers(self):
        return self.said().count("to=active")


class KeepalivedNode:
    """keepalived and nginx, as one would run them."""

    def __init__(self, host, directory, name, priority, interval_ms, node=""):
        self.host, self.name = host, name
        self.directory = directory / f"nginx-{name}"
        self.directory.mkdir(parents=True, exist_ok=True)
        text = (
            f"global_defs {{\n router_id {name}\n vrrp_version 3\n{node}}}\n"
            "vrrp_instance VI_1 {\n interface eth0\n virtual_router_id 51\n"
            f" priority {priority}\n advert_int {interval_ms / 1000}\n"
            f" virtual_ipaddress {{\n {VIP}/24\n }}\n}}\n"
        )
        self.keepalived = Keepalived(host, directory, text)
        self.file = self.directory / "nginx.conf"
        self.file.write_text(
            f"daemon off; worker_processes 1; pid {self.directory}/pid; error_log {self.directory}/error;\n"
            "events {}\nhttp { access_log off; server { listen 80 reuseport; "
            f'return 200 "{name}"; }} }}\n'
        )
        self.nginx = None

    def start(self):
        argv = self.host.argv(tool("nginx"), "-p", self.directory, "-c", self.file)
        self.nginx = Process(argv, self.directory / "log")
        eventually(lambda: (self.directory / "pid").exists(), 5)
        self.keepalived.start()

    def stop(self):
        self.keepalived.stop()
        if self.nginx:
            self.nginx.terminate(5)
            self.nginx = None

    def _pids(self):
        nginx = self.nginx.pid
        children = Path(f"/proc/{nginx}/task/{nginx}/children").read_text().split()
        return [self.keepalived.process.pid, self.keepalived.vrrp_pid(), nginx, *map(int, children)]

    def kill(self):
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.keepalived.process.kill()
        self.keepalived.process = None
        self.nginx.kill()
        self.nginx = None

    def cleaned(self):
        """Nobody drops what a killed keepalived left, so this does, to go on."""
        self.host.ip("addr", "del", f"{VIP}/24", "dev", "eth0", check=False)
        return True

    def signal(self, number):
        for pid in self._pids():
            os.kill(pid, number)

    def reload(self):
        for pid in (self.keepalived.process.pid, self.nginx.pid):
            os.kill(pid, signal.SIGHUP)

    def release(self):
        self.keepalived.stop()

    def unrelease(self):
        self.keepalived.start()

    def said(self):
        return self.keepalived.log() if self.keepalived.process else ""

    def takeovers(self):
        return self.said().count("Entering MASTER")


class Pair:
    """Two nodes of a kind and a client."""

    def __init__(self, kind, interval_ms, directory, node=""):
        self.kind, self.interval_ms, self.stack = kind, interval_ms, contextlib.ExitStack()
        lan = self.stack.enter_context(Lan())
        directory = Path(directory)
        self.a = kind(lan.host(), directory / "a", "a", 200, interval_ms, node)
        self.b = kind(lan.host(), directory / "b", "b", 100, interval_ms, node)
        self.client = lan.host()
        for one in (self.a, self.b):
            self.stack.callback(one.stop)
            one.start()

    def close(self):
        self.stack.close()

    def settled(self):
        """The first holds the address and nobody else does."""
        holders = [one for one in (self.a, self.b) if VIP in one.host.addresses("eth0")]
        return holders == [self.a]

    def once(self, fault):
        """One fault and its repair: the gap in seconds, requests lost, and who answered last."""
        eventually(self.settled, 20, "the first node holds the address", every=0.02)
        patience = 5.0 if fault == "release" else 1.0
        with Load(self.client, VIP, patience=patience) as load:
            load.await_from("a", HEALED_IN / PATIENCE)
            time.sleep(0.1 + random.uniform(0, self.interval_ms / 1000))
            at = time.monotonic()
            self._break(fault)
            if fault == "reload":
                time.sleep(0.3 + 5 * self.interval_ms / 1000)  # nobody is to take over meanwhile
            else:
                load.await_from("b", 10)
            time.sleep(0.05)
            end = time.monotonic()
        lost = len([f for f in load.failures if at <= f[0] <= end])
        gap = load.gap(at, end)
        if gap > 10 * self.interval_ms / 1000 + 0.5:
            self.explain(fault, gap)
        self._mend(fault)
        return gap, lost

    def explain(self, fault, gap):
        """What the nodes and the client's kernel say about an unusually long gap."""
        print(f"{fault}: {gap:.3f} s; client: {self.client.ip('neigh', 'show', VIP).strip()}", file=sys.stderr)
        for one in (self.a, self.b):
            mac = one.host.ip("link", "show", "eth0").split("ether ")[1][:17]
            print(f"{one.name} {mac}\n{one.said()[-1200:]}", file=sys.stderr)

    def _break(self, fault):
        match fault:
            case "kill":
                self.a.kill()
            case "stop":
                self.a.signal(signal.SIGSTOP)
            case "cable":
                self.a.host.plug("eth0", False)
            case "partition":
                self.a.host.isolate("eth0", True)
            case "reload":
                self.a.reload()
            case "release":
                self.a.release()

    def _mend(self, fault):
        match fault:
            case "kill":
                eventually(lambda: self.a.cleaned(), 10, "the address of the dead gone")
                self.a.start()
            case "stop":
                self.a.signal(signal.SIGCONT)
            case "cable":
                self.a.host.plug("eth0", True)
            case "partition":
                self.a.host.isolate("eth0", False)
            case "release":
                self.a.unrelease()


def faults(options, directory):
    """Gaps of every fault, contenders in turns."""
    contenders = {
        f"{name} {ms} ms": Pair(kind, ms, Path(directory) / f"{name}{ms}")
        for ms in options.intervals
        for name, kind in (("ringgate", RinggateNode), ("keepalived+nginx", KeepalivedNode))
    }
    results = {}
    try:
        for fault in options.only:
            for _ in range(options.repeat):
                for name, pair in contenders.items():
                    try:
                        results.setdefault((fault, name), []).append(pair.once(fault))
                    except AssertionError as error:
                        print(f"{fault} {name}: {error}", file=sys.stderr)
                        results.setdefault((fault, name), []).append((float("inf"), 0))
            for name in contenders:
                show(fault, name, results[fault, name])
    finally:
        for pair in contenders.values():
            pair.close()
    return results


def show(fault, name, values):
    gaps = sorted(gap * 1000 for gap, _ in values)
    lost = sum(count for _, count in values)
    print(
        f"{fault:10} {name:26} n={len(gaps):3} gap ms min {gaps[0]:7.1f} median {statistics.median(gaps):7.1f} "
        f"max {gaps[-1]:7.1f}   attempts that failed {lost}",
        flush=True,
    )


def under_load(loops, seconds, directory):
    """Take-overs that nothing caused, of all contenders at once, while `loops` busy loops run."""
    kinds = {
        "ringgate": (RinggateNode, ""),
        "ringgate without real-time": (RinggateNode, "vrrp_rt_priority = 0"),
        "keepalived": (KeepalivedNode, ""),
        "keepalived real-time": (KeepalivedNode, " vrrp_rt_priority 50\n"),
    }
    pairs = {}
    with contextlib.ExitStack() as stack:
        for name, (kind, node) in kinds.items():
            for ms in (10, 100):
                pair = Pair(kind, ms, Path(directory) / f"{loops}-{name}-{ms}".replace(" ", "-"), node)
                stack.callback(pair.close)
                pairs[f"{name} {ms} ms"] = pair
        for pair in pairs.values():
            eventually(pair.settled, 20, "settled")
        before = {name: pair.a.takeovers() + pair.b.takeovers() for name, pair in pairs.items()}
        hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
        try:
            time.sleep(seconds)
        finally:
            for hog in hogs:
                hog.kill()
                hog.wait()
        counts = {}
        for name, pair in pairs.items():
            counts[name] = pair.a.takeovers() + pair.b.takeovers() - before[name]
            print(f"{loops:2} busy loops, {seconds} s: {name:34} false take-overs {counts[name]}", flush=True)
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(FAULTS))
    parser.add_argument("--intervals", type=lambda text: [int(i) for i in text.split(",")], default=[100, 10])
    parser.add_argument("--loops", type=lambda text: [int(i) for i in text.split(",") if i], default=[])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, Linux {os.uname().release}, loadavg {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="ringgate-ha-") as directory:
        results = {}
        if options.repeat:
            gaps = faults(options, directory)
            results["gaps_s"] = {f"{fault} {name}": [gap for gap, _ in v] for (fault, name), v in gaps.items()}
        for loops in options.loops:
            results[f"false take-overs with {loops} loops"] = under_load(loops, options.seconds, directory)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
