"""A switched network of hosts, each a network namespace, all removed on exit: for everything below TCP.

`with Lan() as lan: a = lan.host()` gives a host with `eth0` (10.77.0.N/24 and fd77::N/64) on the bridge.
"""

import contextlib
import ctypes
import errno
import itertools
import json
import os
import selectors
import socket
import struct
import subprocess
import threading
import time

from .client import tool
from .process import Process
from .proxy import binary, check_log
from .tools import eventually

_SUDO = [] if os.geteuid() == 0 else ["sudo", "-n"]
_numbers = itertools.count()
_CLONE_NEWNET = 0x40000000
_SO_RCVBUFFORCE, _SOL_PACKET, _PACKET_AUXDATA, _ETH_P_ALL, _VLAN_VALID = 33, 263, 8, 3, 0x10
STALL = 0.1  # seconds between two rounds of a load, from which on they count as its own fault
_libc = ctypes.CDLL(None, use_errno=True)


def _ip(*args, check=True):
    done = subprocess.run([*_SUDO, tool("ip"), *args], capture_output=True, text=True, timeout=10)
    if check and done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout


class Host:
    """A namespace with one or more interfaces on the switch."""

    def __init__(self, lan, number):
        self.lan, self.number, self.name = lan, number, f"{lan.name}h{number}"
        self.address, self.address6 = f"10.77.0.{number}", f"fd77::{number}"

    def ip(self, *args, check=True):
        return _ip("-n", self.name, *args, check=check)

    def argv(self, *args):
        return [*_SUDO, tool("ip"), "netns", "exec", self.name, *map(str, args)]

    def run(self, *args, timeout=30, check=True):
        return subprocess.run(
            self.argv(*args), capture_output=True, text=True, timeout=timeout, check=check
        )

    def addresses(self, device=None):
        """Every address of an interface, or of all, as text without prefix."""
        links = json.loads(self.ip("-json", "addr", "show", *(["dev", device] if device else [])))
        return [a["local"] for link in links for a in link.get("addr_info", [])]

    def plug(self, device, connected):
        """Pulls or plugs the cable: the switch's end goes down, and this one loses its carrier."""
        self.lan.switch("link", "set", self.port(device), "up" if connected else "down")

    def port(self, device="eth0"):
        return f"p{self.number}{device}"

    def isolate(self, device, isolated):
        """Cuts the switch port without the host seeing it: frames in both directions vanish."""
        if isolated:
            self.lan.switch("link", "set", self.port(device), "nomaster")
        else:
            self.lan.switch("link", "set", self.port(device), "master", self.lan.bridge_of(device))

    def cut(self, device, direction):
        """Cuts one direction at the switch port, without any link going down: frames "from" the host vanish, or those "to"
        it; None mends both."""
        port = self.port(device)
        argv = ["ip", "netns", "exec", self.lan.name, tool("tc")]
        tc = lambda *args, check=True: subprocess.run([*_SUDO, *argv, *args], check=check, capture_output=True, timeout=10)
        tc("qdisc", "del", "dev", port, "clsact", check=False)
        if direction:
            hook = {"from": "ingress", "to": "egress"}[direction]
            tc("qdisc", "add", "dev", port, "clsact")
            # ret TC_ACT_SHOT
            tc("filter", "add", "dev", port, hook, "bpf", "da", "bytecode", "1,6 0 0 2,")


class Lan:
    """A namespace with a bridge for each kind of interface, and hosts around it."""

    def __init__(self):
        self.name = f"rgl{os.getpid()}x{next(_numbers)}"
        self.hosts, self.bridges = [], {}

    def __enter__(self):
        _ip("netns", "add", self.name)
        return self

    def __exit__(self, *_):
        for host in self.hosts:
            _ip("netns", "del", host.name, check=False)
        _ip("netns", "del", self.name, check=False)

    def switch(self, *args):
        return _ip("-n", self.name, *args)

    def bridge_of(self, device):
        """The bridge that all interfaces of this name are on; fd and learning as a switch does."""
        if device not in self.bridges:
            name = f"br{len(self.bridges)}"
            self.switch("link", "add", name, "type", "bridge", "mcast_snooping", "0")
            self.switch("link", "set", name, "up")
            self.bridges[device] = name
        return self.bridges[device]

    def host(self, devices=("eth0",)):
        host = Host(self, len(self.hosts) + 1)
        _ip("netns", "add", host.name)
        self.hosts.append(host)
        host.ip("link", "set", "lo", "up")
        for net, device in enumerate(devices):
            self.switch(
                "link", "add", host.port(device), "type", "veth",
                "peer", "name", device, "netns", host.name,
            )  # fmt: skip
            self.switch("link", "set", host.port(device), "master", self.bridge_of(device), "up")
            host.ip("addr", "add", f"10.77.{net}.{host.number}/24", "dev", device)
            host.ip("addr", "add", f"fd77:{net or ''}::{host.number}/64".replace(":::", "::"), "dev", device, "nodad")
            host.ip("link", "set", device, "up", "addrgenmode", "eui64")
        for device in devices:
            eventually(lambda d=device: "fe80" in " ".join(host.addresses(d)), 5, "a link-local address")
        # Duplicate address detection takes a second or two; nobody else is here.
        host.run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", check=False)
        for device in devices:
            local = next(a for a in host.addresses(device) if a.startswith("fe80"))
            host.ip("addr", "del", f"{local}/64", "dev", device)
            host.ip("addr", "add", f"{local}/64", "dev", device, "nodad")
        return host


def in_namespace(name, work):
    """Starts a thread that does `work()` with its sockets in this namespace."""

    def begin():
        descriptor = os.open(f"/run/netns/{name}", os.O_RDONLY)
        if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(descriptor)
        work()

    thread = threading.Thread(target=begin, daemon=True)
    thread.start()
    return thread


class Capture:
    """`with Capture(host, "eth0", path) as frames:` has every frame that passes an interface of a host or switch in a
    file that tshark reads: `frames.fields("ip.src", ...)` has a row for each frame, once it is over."""

    QUIET = 0.3  # seconds without a frame of a connection after which it is over

    def __init__(self, host, device, path):
        self.host, self.device, self.path = host, device, path
        self.over, self.ready, self.last = threading.Event(), threading.Event(), time.monotonic()

    def __enter__(self):
        self.thread = in_namespace(self.host.name, self._work)
        assert self.ready.wait(10), "no packet socket"
        return self

    def __exit__(self, *_):
        eventually(lambda: time.monotonic() - self.last > self.QUIET, 10, "an end of frames")
        self.over.set()
        self.thread.join(10)

    def _work(self):
        with open(self.path, "wb") as file, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as tap:
            file.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1))
            tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
            tap.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            tap.settimeout(0.05)
            tap.bind((self.device, _ETH_P_ALL))
            self.ready.set()
            while not self.over.is_set():
                with contextlib.suppress(TimeoutError):
                    self._keep(file, *tap.recvmsg(1 << 18, 256)[:2])

    def _keep(self, file, frame, control):
        for level, kind, data in control:
            status, *_, tag, protocol = struct.unpack_from("=IIIHHHH", data)
            if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA) and status & _VLAN_VALID:
                # The kernel takes a tag out of the frame.
                frame = frame[:12] + struct.pack(">HH", protocol or 0x8100, tag) + frame[12:]
        now = time.time()
        file.write(struct.pack("=IIII", int(now), int(now % 1 * 1e6), len(frame), len(frame)) + frame)
        if frame[23:24] in (b"\x01", b"\x06", b"\x11") or frame[20:21] in (b"\x06", b"\x11"):
            self.last = time.monotonic()  # what hosts say of themselves goes on and on

    def fields(self, *names, only="", options=()):
        argv = [tool("tshark"), "-n", "-r", str(self.path), "-T", "fields", "-o", "tcp.relative_sequence_numbers:FALSE", *options]
        argv += ["-E", "occurrence=f", *(["-Y", only] if only else []), *(arg for name in names for arg in ("-e", name))]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
        return [line.split("\t") for line in done.stdout.splitlines()]


class Load:
    """A request every few milliseconds, each on a connection of its own and whatever became of those before it.

    `with Load(host, vip) as load:`; an attempt without an answer after `patience` is given up. What a
    browser would see is one of them; how long nobody is served shows in all of them together.
    """

    def __init__(self, host, address, port=80, patience=1.0, every=0.004):
        self.host, self.target = host, (address, port)
        self.family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.patience, self.every = patience, every
        self.successes, self.failures, self.over = [], [], threading.Event()

    def __enter__(self):
        self.thread = in_namespace(self.host.name, self._work)
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join(self.patience + 5)

    def _work(self):
        selector = selectors.DefaultSelector()
        following, stopping, last = time.monotonic(), False, time.monotonic()
        while not stopping or selector.get_map():
            now = time.monotonic()
            if now - last > STALL:
                # It was us who did not run: nobody is to blame for that time.
                for key in selector.get_map().values():
                    key.data.patience += now - last
            last = now
            stopping = stopping or self.over.is_set()
            if not stopping and now >= following:
                following = max(following + self.every, now)
                self._begin(selector, now)
            for key, events in selector.select(0.001):
                self._advance(selector, key, events)
            for key in [k for k in selector.get_map().values() if now - k.data.begin > k.data.patience]:
                self._end(selector, key, TimeoutError("no answer"))

    def _begin(self, selector, now):
        client = socket.socket(self.family, socket.SOCK_STREAM)
        client.setblocking(False)
        attempt = _Attempt(now, self.patience)
        error = client.connect_ex(self.target)
        if error not in (0, errno.EINPROGRESS):
            self.failures.append((now, now, OSError(error, os.strerror(error))))
            client.close()
            return
        selector.register(client, selectors.EVENT_WRITE, attempt)

    def _advance(self, selector, key, events):
        client, attempt = key.fileobj, key.data
        try:
            if events & selectors.EVENT_WRITE:
                error = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error:
                    raise OSError(error, os.strerror(error))
                client.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                selector.modify(client, selectors.EVENT_READ, attempt)
                return
            chunk = client.recv(4096)
            attempt.data += chunk
            if chunk:
                return
            if not attempt.data.startswith(b"HTTP/1.1 200"):
                raise OSError(f"no answer: {attempt.data[:40]!r}")
            body = attempt.data.rsplit(b"\r\n\r\n", 1)[1].strip().decode()
            self.successes.append((time.monotonic(), body))
            self._end(selector, key, None)
        except OSError as error:
            self._end(selector, key, error)

    def _end(self, selector, key, error):
        selector.unregister(key.fileobj)
        key.fileobj.close()
        if error:
            self.failures.append((key.data.begin, time.monotonic(), error))

    def await_from(self, body, timeout=10.0):
        """Waits for an answer that has this body and comes after now; returns its time."""
        begin = time.monotonic()

        def found():
            for at, text in reversed(self.successes[-50:]):
                if at > begin and text == body:
                    return at
            return None

        return eventually(found, timeout, f"an answer from {body}", every=0.002)

    def gap(self, since, until=None):
        """Longest time between successes around and after `since`."""
        times = [at for at, _ in self.successes if until is None or at <= until]
        before = max((at for at in times if at <= since), default=since)
        times = [before, *(at for at in times if at > since)]
        return max((b - a for a, b in itertools.pairwise(times)), default=float("inf"))


class _Attempt:
    def __init__(self, begin, patience):
        self.begin, self.patience, self.data = begin, patience, b""


class Ringgate:
    """Ringgate on a host, answering with its own name on port 80, and whatever `vrrp` says."""

    def __init__(self, host, directory, name, vrrp, node="", more="", env=None):
        self.host, self.name, self.process = host, name, None
        self.directory = directory / f"{name}{next(_numbers)}"
        self.directory.mkdir(parents=True)
        self.socket = self.directory / "admin.sock"
        self.file = self.directory / "ringgate.toml"
        self.env = env
        self.wrapper = []  # what it is started by
        self.file.write_text(
            f'[node]\nshards = 1\npin = false\n{node}\n'
            f'[admin]\nbind = "127.0.0.1:9090"\nsocket = "{self.socket}"\n'
            f'[[listener]]\nbind = "0.0.0.0:80"\n[[listener]]\nbind = "[::]:80"\n'
            f'[[route]]\npath = "/"\nrespond = {{ body = "{name}" }}\n{more}\n{vrrp}\n'
        )

    def start(self):
        argv = self.host.argv(*self.wrapper, binary(), "run", self.file)
        log = self.directory / f"log{next(_numbers)}"
        self.process = Process(argv, log, env=self.env)
        self.process.await_ready(lambda: "serving" in self.process.log())
        return self

    def __enter__(self):
        return self.start()

    def __exit__(self, kind, *_):
        self.stop(check=kind is None)

    def stop(self, check=True):
        if not self.process:
            return
        process, self.process = self.process, None
        code = process.terminate(20)
        if check:
            assert code == 0, f"exit code {code}:\n{process.log()[-4000:]}"
            check_log(process.log())

    def kill(self):
        self.process.kill()
        self.process = None

    @property
    def pid(self):
        return self.process.pid

    def log(self):
        return self.process.log()

    def ctl(self, *args, check=True, timeout=30):
        done = subprocess.run(
            [str(binary()), "ctl", "--socket", str(self.socket), "vrrp", *args],
            capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done

    def vrrp(self):
        return json.loads(self.ctl("status", "--json").stdout)

    def instance(self, name="VI_1"):
        found = [i for i in self.vrrp()["instances"] if i["name"] == name]
        assert found, f"{name} is not shown yet"
        return found[0]

    def await_role(self, role, name="VI_1", timeout=10.0):
        eventually(lambda: self.instance(name)["role"] == role, timeout, f"{self.name} {role}")
        return self.instance(name)


class Keepalived:
    """keepalived's VRRP on a host; `urgent`: with a real-time priority that it was not asked for."""

    def __init__(self, host, directory, text, options=(), urgent=True):
        self.host, self.process, self.urgent = host, None, urgent
        self.directory = directory / f"keepalived{next(_numbers)}"
        self.directory.mkdir(parents=True)
        self.file = self.directory / "keepalived.conf"
        self.file.write_text(text)
        self.options = options

    def start(self):
        for name in ("pid", "vrrp.pid"):
            (self.directory / name).unlink(missing_ok=True)  # of one that was killed
        # As a service that has the machine's ear: what it does late would be laid at our door.
        urgent = ("sh", "-c", 'chrt -f -p 30 $$ 2>/dev/null; exec "$0" "$@"') if self.urgent else ()
        argv = self.host.argv(
            *urgent, tool("keepalived"), "-n", "-l", "-D", "-P", "-f", self.file,
            "-p", self.directory / "pid", "-r", self.directory / "vrrp.pid", *self.options,
        )  # fmt: skip
        self.process = Process(argv, self.directory / f"log{next(_numbers)}")
        self.process.await_ready(lambda: "Entering" in self.process.log())
        return self

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        if self.process:
            process, self.process = self.process, None
            process.terminate(10)

    def vrrp_pid(self):
        """The child that speaks VRRP."""
        return int((self.directory / "vrrp.pid").read_text())

    def log(self):
        return self.process.log()

    def state(self):
        """The last state it says to have entered."""
        states = [line.split("Entering ")[1].split(" ")[0] for line in self.log().splitlines() if "Entering " in line]
        return states[-1] if states else None

    def await_state(self, state, timeout=15.0):
        eventually(lambda: self.state() == state, timeout, lambda: f"keepalived {state}:\n{self.log()[-2000:]}")
