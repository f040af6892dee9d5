"""Where everybody runs: the CPUs, and the network between the contender and the others.

Two network namespaces joined by a veth pair are as near to network cards as one machine comes: a frame waits in a queue
and is taken from it on the receiver's CPUs (receive packet steering, Linux' Documentation/networking/scaling.rst), so
that each side pays for what it receives. Over the loopback interface the receiver's half of TCP runs inside the sender's
send: the load pays for the handshakes and the requests that the contender receives, and sets the pace the sooner.

Namespaces need root. They have no names: what is left of them goes with the processes, however those end.
"""

import ctypes
import os
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import BenchError

CLONE_NEWNET = 0x40000000
SETTINGS = {
    # A port in TIME_WAIT is free for a new connection after a second, as it is over loopback (2, the default, means only
    # there); otherwise a connection per request uses up the load's ports within two seconds.
    "net/ipv4/tcp_tw_reuse": "1",
    # Nothing is lost here and nothing in between can fill up. BBR, the default of some machines, paces with a timer for each connection:
    # that is three times HAProxy's CPU time for a body of 1 MiB, and slow readers wait for it. Every kernel has this one.
    "net/ipv4/tcp_congestion_control": "reno",
}
# Frames that wait for a CPU: the machine's limit, not a namespace's, and the value of Ringgate's own tuning. With the
# kernel's 1,000 some frames of 5,000 connections are dropped.
BACKLOG = Path("/proc/sys/net/core/netdev_max_backlog")
BACKLOG_FRAMES = 16384


@dataclass(frozen=True)
class Network:
    """Addresses (RFC 2544's for benchmarks, or those of loopback) and the interface of load and origin."""

    name: str = "loopback"
    contender: str = "127.0.0.1"
    others: str = "127.0.0.1"
    # More addresses for clients, which end in a number from 1 to 254.
    clients: str = "127.0.0."
    interface: str = "lo"
    # A file of the contender's namespace, when it has its own.
    namespace: int | None = None


LOOPBACK = Network()


@dataclass(frozen=True)
class Bed:
    """The CPUs, the network, and how the kernel counts."""

    contender_cpus: tuple
    load_cpus: tuple
    origin_cpus: tuple
    irq_time: bool
    network: Network = LOOPBACK

    @property
    def cpus(self):
        """All of them."""
        return sorted({*self.contender_cpus, *self.load_cpus, *self.origin_cpus})

    @property
    def apart(self):
        """Whether the contender's CPUs do the contender's receiving, and nothing else."""
        return self.network.namespace is not None

    @staticmethod
    def share(seen, cpus):
        """Mean shares of time over some CPUs."""
        return {key: sum(seen["cpus"][cpu][key] for cpu in cpus) / len(cpus) for key in seen["cpus"][cpus[0]]}


@contextmanager
def namespaces(contender_cpus, other_cpus):
    """Two namespaces: this thread and its children are in the one of load and origin until the end."""
    with ExitStack() as undo:
        try:
            home, backlog = namespace_file(undo), BACKLOG.read_text()
            if int(backlog) < BACKLOG_FRAMES:
                BACKLOG.write_text(f"{BACKLOG_FRAMES}\n")
                undo.callback(BACKLOG.write_text, backlog)
            # The first to be undone: namespaces do not show that limit.
            undo.callback(enter, home)
            system("unshare", CLONE_NEWNET)
            contender = namespace_file(undo)
            system("unshare", CLONE_NEWNET)
        except OSError as error:
            raise BenchError(f"no network namespaces here ({error}); --network loopback does without") from error
        join(contender)
        steer("contender0", contender_cpus, contender)
        steer("load0", other_cpus)
        yield Network("namespaces", "198.18.0.1", "198.18.0.2", "198.18.1.", "load0", contender)


def join(contender):
    """The pair of interfaces and their addresses; the clients' further addresses are local to the load's side."""
    sh("ip", "link", "add", "load0", "type", "veth", "peer", "name", "contender0", "netns",
       f"/proc/{os.getpid()}/fd/{contender}")
    for interface, address, namespace in (("load0", "198.18.0.2/15", None), ("contender0", "198.18.0.1/15", contender)):
        sh("ip", "link", "set", "lo", "up", namespace=namespace)
        sh("ip", "addr", "add", address, "dev", interface, namespace=namespace)
        sh("ip", "link", "set", interface, "up", namespace=namespace)
        for name, value in SETTINGS.items():
            sh("sh", "-c", f"echo {value} > /proc/sys/{name}", namespace=namespace)
    sh("ip", "route", "add", "local", "198.18.1.0/24", "dev", "lo")


def steer(interface, cpus, namespace=None):
    """Has an interface's frames be received on CPUs; sysfs shows the interfaces of the namespace it was mounted in."""
    script = "mount -t sysfs sysfs /sys && for queue in /sys/class/net/$0/queues/rx-*; do echo $1 > $queue/rps_cpus; done"
    sh("unshare", "--mount", "sh", "-ec", script, interface, cpu_mask(cpus), namespace=namespace)


def cpu_mask(cpus):
    """CPUs as the kernel reads them: hexadecimal words of 32, the highest first."""
    mask = sum(1 << cpu for cpu in cpus)
    words = [f"{mask >> shift & 0xffffffff:08x}" for shift in range(0, max(mask.bit_length(), 1), 32)]
    return ",".join(reversed(words))


def namespace_file(undo):
    """A file of the network namespace that this thread is in (namespaces(7)), closed at the end."""
    file = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    undo.callback(os.close, file)
    return file


def enter(namespace):
    """Enters a network namespace (setns(2))."""
    system("setns", namespace, CLONE_NEWNET)


def system(name, *arguments):
    """A function of the C library that says -1 when it fails (unshare(2), setns(2)); Python has these from 3.12."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def sh(*command, namespace=None):
    """A command, in a namespace."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False,
                          preexec_fn=None if namespace is None else lambda: enter(namespace))
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)}: {done.stderr.strip()}")
