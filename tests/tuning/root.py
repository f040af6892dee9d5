"""A machine made of files, for `--root`: what a virtual machine lacks, and what a test must not touch."""

import json
import os
from pathlib import Path

from harness.proxy import run_once

# A command line that runs a program as nobody.
NOBODY = [
    *([] if os.geteuid() == 0 else ["sudo", "-n"]),
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
]

SYSCTLS = {
    "kernel/random/boot_id": "11111111-2222-3333-4444-555555555555\n",
    "net/core/somaxconn": "4096\n",
    "net/core/netdev_max_backlog": "1000\n",
    "net/core/netdev_budget": "300\n",
    "net/core/rps_sock_flow_entries": "0\n",
    "net/core/rmem_max": "212992\n",
    "net/core/wmem_max": "212992\n",
    "net/ipv4/ip_local_port_range": "32768\t60999\n",
    "net/ipv4/ip_local_reserved_ports": "\n",
    "net/ipv4/tcp_max_syn_backlog": "2048\n",
    "net/ipv4/tcp_syncookies": "1\n",
    "net/ipv4/tcp_tw_reuse": "2\n",
    "net/ipv4/tcp_max_tw_buckets": "262144\n",
    "net/ipv4/tcp_fin_timeout": "60\n",
    "net/ipv4/tcp_rmem": "4096\t131072\t6291456\n",
    "net/ipv4/tcp_wmem": "4096\t16384\t33554432\n",
    "net/ipv4/tcp_slow_start_after_idle": "1\n",
    "net/ipv4/ip_forward": "0\n",
    "net/ipv4/conf/all/rp_filter": "1\n",
    "net/ipv4/conf/all/arp_ignore": "0\n",
    "net/ipv4/conf/eth0/rp_filter": "1\n",
    "vm/swappiness": "60\n",
    "fs/nr_open": "1048576\n",
    "kernel/io_uring_disabled": "0\n",
}
OTHERS = {
    "proc/meminfo": "MemTotal:       16777216 kB\nMemFree: 1 kB\n",
    "proc/cmdline": "root=/dev/vda mitigations=auto quiet\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never\n",
    "sys/devices/system/cpu/online": "0-7\n",
    "sys/devices/system/node/node0/cpulist": "0-1,4-5\n",
    "sys/devices/system/node/node1/cpulist": "2-3,6-7\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "powersave\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_governor": "performance\n",
    "sys/devices/pci0/0000:03:00.0/numa_node": "1\n",
    "sys/class/net/lo/mtu": "65536\n",
    "sys/class/net/eth0/mtu": "1500\n",
    "ethtool/eth0/rx_ring": "512\n",
    "ethtool/eth0/rx_ring_max": "4096\n",
    "ethtool/eth0/tx_ring": "512\n",
    "ethtool/eth0/tx_ring_max": "768\n",
    "ethtool/eth0/lro": "1\n",
    "ethtool/eth0/channels": "2\n",
    "ethtool/eth0/channels_max": "8\n",
}


class Root:
    """Eight CPUs in two NUMA nodes, eth0 with two queues on the second one."""

    def __init__(self, path):
        self.path = Path(path)
        for name, text in SYSCTLS.items():
            self.write(f"proc/sys/{name}", text)
        for name, text in OTHERS.items():
            self.write(name, text)
        for cpu in range(8):
            name = f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
            self.write(name, f"{cpu % 4},{cpu % 4 + 4}\n")
        table = "           CPU0  CPU1\n"
        for queue in range(2):
            table += f" {40 + queue}:  0  0  PCI-MSI {queue}-edge  eth0-TxRx-{queue}\n"
            self.write(f"proc/irq/{40 + queue}/smp_affinity_list", "0-7\n")
            base = "sys/class/net/eth0/queues"
            self.write(f"{base}/rx-{queue}/rps_cpus", "00000000\n")
            self.write(f"{base}/rx-{queue}/rps_flow_cnt", "0\n")
            self.write(f"{base}/tx-{queue}/xps_cpus", "00000000\n")
        self.write("proc/interrupts", table)
        (self.path / "sys/class/net/eth0/device").symlink_to("../../../devices/pci0/0000:03:00.0")

    def write(self, name, text):
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def read(self, name):
        return (self.path / name).read_text()

    def sysctl(self, name):
        return self.read("proc/sys/" + name.replace(".", "/"))

    def snapshot(self):
        """Every byte outside the journal, and every mode."""
        found = {}
        for directory, _, names in os.walk(self.path):
            for name in names:
                path = Path(directory, name)
                if "var/lib" not in str(path):
                    found[str(path.relative_to(self.path))] = (path.read_bytes(), path.stat().st_mode)
        return found

    def journal(self):
        return self.path / "var/lib/ringgate/tune/netns-0/journal"

    def tune(self, *args, expect=None, **more):
        """`ringgate tune ARGS --root …`; the exit code is checked when `expect` is given."""
        done = run_once("tune", *args, "--root", self.path, **more)
        if expect is not None:
            assert done.returncode == expect, (done.returncode, done.stdout, done.stderr)
        return done

    def json(self, *args, expect=0):
        return json.loads(self.tune(*args, "--json", expect=expect).stdout)

    def plan(self, *args):
        """Items by key."""
        return {item["key"]: item for item in self.json("plan", *args)["items"]}
