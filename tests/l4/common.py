"""A director's network: a client, directors and real servers on one switch."""

import ctypes
import errno
import itertools
import json
import os
import socket
import struct
import subprocess
import time
from collections import Counter
from pathlib import Path

from harness.client import tool
from harness.lan import Capture, Ringgate, in_namespace
from harness.process import Process
from harness.proxy import binary
from harness.tools import eventually

VIP, VIP6 = "10.77.0.100", "fd77::100"
SINK = Path(__file__).with_name("sink.py")
BPF = 321  # the system call's number on x86-64
_numbers = itertools.count()


def virtual_server(address, servers, **keys):
    """`[[virtual_server]]`; servers are addresses or (address, weight)."""
    keys = {"scheduler": "rr", **keys}
    lines = [f'{key} = {json.dumps(value)}' for key, value in keys.items()]
    pairs = [one if isinstance(one, tuple) else (one, 1) for one in servers]
    inner = ", ".join(f'{{ address = "{address}", weight = {weight} }}' for address, weight in pairs)
    return f'[[virtual_server]]\naddress = "{address}"\n' + "\n".join(lines) + f"\nservers = [{inner}]\n"


def prepare(host):
    """What an operator sets on every machine of such a network."""
    host.run(
        "sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2",
        "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0",
        "net.ipv4.conf.eth0.rp_filter=0", "net.ipv4.conf.lo.rp_filter=0",
    )  # fmt: skip
    return host


class Server:
    """A real server: the virtual addresses on lo, the sink on port 8080, nginx on port 80."""

    def __init__(self, host, directory, name, web=True, addresses=True):
        self.host, self.name, self.processes = prepare(host), name, []
        if addresses:
            host.ip("addr", "add", f"{VIP}/32", "dev", "lo")
            host.ip("addr", "add", f"{VIP6}/128", "dev", "lo", "nodad")
        self.directory = directory / f"{name}-{next(_numbers)}"
        self.directory.mkdir()
        self.start(["/usr/bin/python3", SINK, name, 8080])
        if web:
            self.start([tool("nginx"), "-p", self.directory, "-c", self.nginx(), "-e", "stderr"])
        self.await_port(8080)
        if web:
            self.await_port(80)

    def nginx(self):
        path = self.directory / "nginx.conf"
        path.write_text(
            f"daemon off; pid {self.directory}/pid; error_log stderr; worker_processes 1;\n"
            "events { worker_connections 4096; }\n"
            f"http {{ access_log off; client_body_temp_path {self.directory}/b; proxy_temp_path {self.directory}/p;\n"
            f"fastcgi_temp_path {self.directory}/f; uwsgi_temp_path {self.directory}/u; scgi_temp_path {self.directory}/s;\n"
            "server { listen 80; listen [::]:80; keepalive_requests 100000;\n"
            f'location / {{ return 200 "{self.name}"; }} }} }}\n'
        )
        return path

    def start(self, argv):
        log = self.directory / f"log{next(_numbers)}"
        self.processes.append(Process(self.host.argv(*argv), log))

    def await_port(self, port):
        listening = lambda: f":{port}" in self.host.run("ss", "-Htln", f"sport = :{port}").stdout
        eventually(listening, 10, f"{self.name} listens on {port}")

    def stop(self):
        for process in self.processes:
            # A killed nginx would leave its worker behind, which goes on to serve.
            process.terminate(5)
        self.processes = []


def with_datapath(config):
    """The tests are about any datapath: RINGGATE_DATAPATH says by which one they are run, where they do not."""
    wanted = os.environ.get("RINGGATE_DATAPATH")
    if not wanted or "[[virtual_server]]" not in config or "datapath" in config:
        return config
    line = f'[director]\ndatapath = "{wanted}"\n'
    return config.replace("[director]\n", line, 1) if "[director]" in config else line + config


class Descriptor:
    """Closed when nobody needs it any more."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.close(self.number)


def pass_everything(namespace, device):
    """Puts an XDP program that does nothing on an interface; it stays as long as what this returns."""
    libc, result = ctypes.CDLL(None, use_errno=True), []

    def bpf(command, attributes):
        buffer = ctypes.create_string_buffer(attributes)
        descriptor = libc.syscall(BPF, command, buffer, len(attributes))
        assert descriptor >= 0, os.strerror(ctypes.get_errno())
        return descriptor

    def attach():
        # r0 = XDP_PASS; exit
        code = ctypes.create_string_buffer(bytes.fromhex("b700000002000000 9500000000000000"))
        license = ctypes.create_string_buffer(b"MIT")
        pointers = ctypes.addressof(code), ctypes.addressof(license)
        program = bpf(5, struct.pack("=IIQQIIQII16sII", 6, 2, *pointers, 0, 0, 0, 0, 0, b"pass", 0, 37))
        result.append(bpf(28, struct.pack("=IIII", program, socket.if_nametoindex(device), 37, 4)))
        os.close(program)

    in_namespace(namespace, attach).join(5)
    return Descriptor(result[0])


def prepare_for_native(host):
    """What native XDP on veth needs: a program at the other ends of the director's interfaces, and hosts that complete
    checksums themselves."""
    host.other_ends = vars(host).get("other_ends", {})
    for other in host.lan.hosts:
        for device in devices(other):
            other.run("ethtool", "-K", device, "tx", "off")
    for device in devices(host):
        if device not in host.other_ends:
            host.other_ends[device] = pass_everything(host.lan.name, host.port(device))


def devices(host):
    """The interfaces of a host that are on the switch."""
    names = [link["ifname"] for link in json.loads(host.ip("-json", "link", "show", "type", "veth"))]
    return [name for name in names if name.startswith("eth")]


class Node(Ringgate):
    """Ringgate as a director: listens for HTTP on port 8000 of every address."""

    def __init__(self, host, directory, name, config, listen=8000, node=""):
        prepare(host)
        config = with_datapath(config)
        super().__init__(host, directory, name, config, node=node)
        text = self.file.read_text()
        self.file.write_text(text.replace("0.0.0.0:80", f"0.0.0.0:{listen}").replace("[::]:80", f"[::]:{listen}"))

    def start(self):
        if 'datapath = "native"' in self.file.read_text():
            prepare_for_native(self.host)
        return super().start()

    def await_neighbours(self, count):
        """Until the director has found so many neighbours."""
        found = lambda: self.log().count("neighbour found") >= count
        eventually(found, 10, f"{count} neighbours of {self.name}:\n{self.log()[-2000:]}")

    def control(self, *args, check=True):
        argv = [str(binary()), "ctl", "--socket", str(self.socket), *map(str, args)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
        assert not check or done.returncode == 0, done
        return done

    def metrics(self):
        """Every sample of the metrics page: name with labels -> value."""
        text = self.host.run(tool("curl"), "-s", "http://127.0.0.1:9090/metrics").stdout
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def forwarded(self):
        """Frames sent, by packet sockets and by the XDP program, whose counters come half a second later."""
        program = self.metrics().get('ringgate_director_xdp_frames_total{outcome="forwarded"}', 0)
        return self.metric("ringgate_director_sent_total") + program

    def metric(self, name):
        """Sum of a metric over its labels."""
        return sum(v for k, v in self.metrics().items() if k == name or k.startswith(name + "{"))


def curl(host, *args, timeout=10):
    return host.run(tool("curl"), "-s", "--max-time", timeout, *args, timeout=timeout + 5, check=False)


def mac(host, device="eth0"):
    return json.loads(host.ip("-json", "link", "show", device))[0]["address"]


def send_frames(host, frames, device="eth0"):
    """Puts raw frames on the wire."""

    def work():
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
            raw.bind((device, 0))
            for frame in frames:
                try:
                    raw.send(frame)
                except OSError as error:
                    if error.errno not in (errno.ENOBUFS, errno.EMSGSIZE, errno.EINVAL):
                        failures.append(error)

    failures = []
    thread = in_namespace(host.name, work)
    thread.join(60)
    assert not failures, failures


def tables(host):
    """Names of the nftables tables in a namespace (NFT_MSG_GETTABLE)."""
    found = []

    def work():
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
            netlink.bind((0, 0))
            netlink.settimeout(5)
            netlink.send(struct.pack("=IHHII", 20, 10 << 8 | 1, 0x301, 1, 0) + bytes(4))
            while True:
                data = netlink.recv(65536)
                while data:
                    length, kind = struct.unpack_from("=IH", data)
                    if kind == 3:
                        return
                    attribute = 20
                    while attribute + 4 <= length:
                        size, name = struct.unpack_from("=HH", data, attribute)
                        if name & 0x3FFF == 1:
                            found.append(data[attribute + 4 : attribute + size].rstrip(b"\0").decode())
                        attribute += (size + 3) & ~3
                    data = data[(length + 3) & ~3 :]

    in_namespace(host.name, work).join(10)
    return found


def spread(client, url, count):
    """Who answers `count` requests, each on a connection of its own."""
    names = Counter()
    for _ in range(count):
        done = curl(client, url, timeout=5)
        names[done.stdout if done.returncode == 0 else f"curl {done.returncode}"] += 1
    return names
