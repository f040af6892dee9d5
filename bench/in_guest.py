"""What bench/guest.py has a guest do: IPVS, the kernel's forwarding, nftables and Ringgate in turn, on one CPU.

Two kinds of input:

- sockets: `ringgate-bench blast` in the generator's namespace, as bench/l4.py does it. A socket buffer comes with the packet.
- frames: a program sends frames through BPF_PROG_TEST_RUN (live frames); they arrive in the director's driver without a
  socket buffer, as they do from a network card. Who needs one has to make it.
"""

import contextlib
import ctypes
import json
import os
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import l4

libc = ctypes.CDLL(None, use_errno=True)
BPF, PROG_LOAD, PROG_TEST_RUN, LINK_CREATE = 321, 5, 10, 28
XDP_PROGRAM, XDP_ATTACH, LIVE_FRAMES, NATIVE = 6, 37, 2, 4
DROP, PASS, TRANSMIT = 1, 2, 3


def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, 128)
    result = libc.syscall(BPF, command, buffer, 128)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf command {command}: {os.strerror(ctypes.get_errno())}")
    return result, buffer.raw


def code(opcode, destination=0, source=0, offset=0, value=0):
    return struct.pack("<BBhi", opcode, source << 4 | destination, offset, value)


def constant(result):
    return code(0xB7, 0, value=result) + code(0x95)


def sender(addresses):
    """XDP_TX, with one of 64 UDP source ports. The kernel uses a frame again as the last receiver left it, so the hardware
    addresses are written each time."""
    words = struct.unpack("<3i", addresses)
    return b"".join((
        code(0xBF, 6, 1),  # r6 = context
        code(0x85, value=7),  # r0 = bpf_get_prandom_u32()
        code(0x57, 0, value=0x3F00),
        code(0x47, 0, value=0x04),  # ports 1024 to 1087
        code(0x61, 2, 6, 0),  # r2 = data
        code(0x61, 3, 6, 4),  # r3 = end of data
        code(0xBF, 4, 2),
        code(0x07, 4, value=60),
        code(0x2D, 4, 3, 4),  # shorter: out
        *(code(0x62, 2, offset=4 * number, value=word) for number, word in enumerate(words)),
        code(0x6B, 2, 0, 34),
        constant(TRANSMIT),
    ))  # fmt: skip


def sink():
    """Drops IPv4, and lets ARP through."""
    return b"".join((
        code(0x61, 2, 1, 0),
        code(0x61, 3, 1, 4),
        code(0xBF, 4, 2),
        code(0x07, 4, value=14),
        code(0x2D, 4, 3, 4),
        code(0x69, 5, 2, 12),
        code(0x55, 5, offset=2, value=0x0008),
        constant(DROP),
        constant(PASS),
    ))  # fmt: skip


def program(instructions):
    text, licence = ctypes.create_string_buffer(instructions), ctypes.create_string_buffer(b"MIT")
    head = struct.pack("<IIQQIIQ", XDP_PROGRAM, len(instructions) // 8, ctypes.addressof(text), ctypes.addressof(licence), 0, 0, 0)
    return bpf(PROG_LOAD, head)[0]


@contextlib.contextmanager
def entered(name):
    """This process in another network namespace."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        assert libc.setns(there, 0) == 0
        yield
    finally:
        assert libc.setns(home, 0) == 0
        os.close(home)
        os.close(there)


def index(name, device):
    return json.loads(l4.inside(name, "ip", "-json", "link", "show", device))[0]["ifindex"]


@contextlib.contextmanager
def dropping(name, device):
    """Drops in the driver of a device what is IPv4."""
    with entered(name):
        attributes = struct.pack("<IIII", program(sink()), index(name, device), XDP_ATTACH, NATIVE)
        link = bpf(LINK_CREATE, attributes)[0]
    yield
    os.close(link)


@contextlib.contextmanager
def native(options):
    """In veth's own driver frames go only where a program runs: on both interfaces, and at the server's."""
    with dropping(l4.SERVER, "eth0"), l4.director(options, "in0 out0", datapath="native", scheduler="mh"):
        yield


def busy():
    """CPU seconds so far: all but the idle time, which /proc/timer_list has in nanoseconds."""
    now, idle = time.monotonic(), 0
    for line in Path("/proc/timer_list").read_text().splitlines():
        if ".idle_sleeptime" in line or ".iowait_sleeptime" in line:
            idle += int(line.split(":")[1].split()[0])
    return os.cpu_count() * now - idle / 1e9


class Frames:
    """Sends frames from the generator's eth0."""

    def __init__(self):
        mac = lambda name, device: bytes.fromhex(l4.mac(name, device).replace(":", ""))
        address = lambda text: bytes(map(int, text.split(".")))
        ip = bytes.fromhex("4500002e00004000401100000a4e0001") + address(l4.VIP)
        total = sum(struct.unpack("!10H", ip))
        total = (total & 0xFFFF) + (total >> 16)
        ip = ip[:10] + struct.pack("!H", ~total & 0xFFFF) + ip[12:]
        addresses = mac(l4.FORWARDER, "in0") + mac(l4.GENERATOR, "eth0")
        self.program = program(sender(addresses))
        self.frame = ctypes.create_string_buffer(addresses + b"\x08\0" + ip + struct.pack("!HHHH", 4000, l4.PORT, 26, 0) + bytes(18), 60)
        context = struct.pack("<6I", 0, 60, 0, index(l4.GENERATOR, "eth0"), 0, 0)
        self.context = ctypes.create_string_buffer(context, 24)

    def send(self, count):
        attributes = struct.pack(
            "<IIIIQQIIIIQQIII", self.program, 0, 60, 0, ctypes.addressof(self.frame), 0, count, 0, 24, 0,
            ctypes.addressof(self.context), 0, LIVE_FRAMES, 0, 64,
        )  # fmt: skip
        bpf(PROG_TEST_RUN, attributes)

    def measure(self, count):
        """`count` frames as fast as they go, until the last is through. The kernel rests in between: CPU time counts."""
        with entered(l4.GENERATOR):
            before, cpu = l4.arrived(), busy()
            self.send(count)
            time.sleep(0.05)
            cpu = busy() - cpu
        return {"sent": count, "arrived": l4.arrived() - before, "seconds": cpu, "cpu": cpu}


@contextlib.contextmanager
def ipvs(_, scheduler, server="10.78.1.1"):
    l4.inside(l4.FORWARDER, "ip", "addr", "add", f"{l4.VIP}/32", "dev", "lo")
    l4.inside(l4.FORWARDER, "ipvsadm", "-A", "-u", f"{l4.VIP}:{l4.PORT}", "-s", scheduler)
    l4.inside(l4.FORWARDER, "ipvsadm", "-a", "-u", f"{l4.VIP}:{l4.PORT}", "-r", server, "-g")
    yield
    l4.inside(l4.FORWARDER, "ipvsadm", "-C")
    l4.inside(l4.FORWARDER, "ip", "addr", "del", f"{l4.VIP}/32", "dev", "lo")


@contextlib.contextmanager
def reflected(options):
    """The director's way without a decision: what packet sockets cost at least."""
    argv = ["ip", "netns", "exec", l4.FORWARDER, options.generator, "reflect", f"{l4.VIP}:{l4.PORT}", "--from", "in0", "--out", "out0",
            "--to", l4.mac(l4.SERVER, "eth0")]  # fmt: skip
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline(), "it does not begin"
        yield
    finally:
        process.kill()
        process.wait()


CONTENDERS = {
    "dropped": l4.dropped,
    "dropped in the driver": lambda _: dropping(l4.FORWARDER, "in0"),
    "kernel IP forwarding": l4.routed,
    "nftables fwd": l4.nftables,
    "IPVS rr": lambda options: ipvs(options, "rr"),
    "IPVS mh": lambda options: ipvs(options, "mh"),
    "packet sockets, undecided": reflected,
    "ringgate, packet": lambda options: l4.director(options, scheduler="mh"),
    "ringgate, XDP generic": lambda options: l4.director(options, datapath="generic", scheduler="mh"),
    "ringgate, XDP native": native,
}
IN_DRIVER = ("ringgate, XDP native", "dropped in the driver")


def by_sockets(options):
    """Packets with a socket buffer from the start."""
    l4.blast(options, seconds=0.1)
    return l4.blast(options)


def by_frames(options, name):
    """Frames as a driver has them. GRO gives veth's driver the queue that it receives them from; an XDP program does too."""
    queue = "in0" if name not in IN_DRIVER else "lo"
    l4.inside(l4.FORWARDER, "ethtool", "-K", queue, "gro", "on")
    frames = Frames()
    frames.measure(512)
    result = frames.measure(options.frames)
    l4.inside(l4.FORWARDER, "ethtool", "-K", queue, "gro", "off")
    return result


ON_A_SWITCH = {
    "IPVS mh": lambda options: ipvs(options, "mh", l4.TO_SERVER),
    "ringgate, packet": lambda options: l4.director(options, "eth0", l4.TO_SERVER, scheduler="mh"),
    "ringgate, XDP generic": lambda options: l4.director(options, "eth0", l4.TO_SERVER, datapath="generic", scheduler="mh"),
}


def round_trip(options, contender):
    """Median nanoseconds of a datagram and its answer, by way."""
    ways = {"straight": l4.TO_SERVER, "forwarded": l4.VIP, "kernel IP forwarding": l4.ROUTED}
    with l4.bridged(), contender(options):
        argv = ["ip", "netns", "exec", l4.SERVER, sys.executable, "-c", l4.ECHO]
        echo = subprocess.Popen(argv, stdout=subprocess.PIPE)
        try:
            echo.stdout.readline()
            times = json.loads(l4.inside(l4.GENERATOR, sys.executable, "-c", l4.PING, 1, *ways.values()))
        finally:
            echo.kill()
            echo.wait()
    return {name: statistics.median(times[address]) for name, address in ways.items()}


def main():
    options = SimpleNamespace(**json.loads(Path("/job/options").read_text()))
    l4.busy = busy
    with l4.line():
        for number in range(options.rounds):
            order = list(CONTENDERS.items())
            for name, contender in order if number % 2 else reversed(order):
                if options.only and name not in (*options.only, "dropped", "dropped in the driver"):
                    continue
                with contender(options):
                    result = {"sockets": by_sockets(options), "frames": by_frames(options, name)}
                print(json.dumps({"round": number, "name": name, **result}), flush=True)
    for name, contender in ON_A_SWITCH.items() if options.round_trips and not options.only else ():
        print(json.dumps({"trip": name, **round_trip(options, contender)}), flush=True)


if __name__ == "__main__":
    main()
