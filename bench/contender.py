"""Starts, samples and stops the processes under measurement. Every process is stopped by its own PID."""

import ctypes
import http.client
import os
import platform
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

BENCH = Path(__file__).resolve().parent
PEERS = BENCH / "peers"
RINGGATE = BENCH.parent / "target/release/ringgate"
ORIGIN = BENCH.parent / "target/release/ringgate-bench"
NAMES = ("ringgate", "nginx", "haproxy")
HOST = "shop.example"
BODY = "0123456789abcdef" * 8
READY_SECONDS = 10
STOP_SECONDS = 5


class BenchError(Exception):
    """The measurement cannot be made, or what it measured is not valid."""


@dataclass(frozen=True)
class Contender:
    """A proxy to measure: its label in the report, which kind of configuration it reads, its binary."""

    label: str
    kind: str
    binary: str


def contender(spec, label=None, ringgate=RINGGATE):
    """A contender from its name (`ringgate`, `nginx`, `haproxy`) or from the path of a ringgate binary."""
    if spec in ("nginx", "haproxy"):
        kind, binary = spec, shutil.which(spec) or shutil.which(spec, path="/usr/sbin:/usr/local/sbin")
    else:
        kind, binary = "ringgate", str(ringgate if spec == "ringgate" else spec)
    if binary is None or not os.access(binary, os.X_OK):
        hint = "install it" if kind != "ringgate" else "build it with cargo build --release"
        raise BenchError(f"{spec}: no executable {binary or spec}: {hint}, or choose others with --only")
    return Contender(label or spec, kind, binary)


def choose(only, ringgate):
    """The contenders of a comma-separated list of names."""
    names = only.split(",")
    if set(names) - set(NAMES) or len(names) != len(set(names)):
        raise BenchError(f"--only takes {', '.join(NAMES)}, each once")
    return [contender(name, ringgate=ringgate) for name in names]


def run(main):
    """Runs a program's `main`: a failed measurement is one line and exit code 1."""
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def need_tools(*tools):
    """Fails when a program the measurement needs is missing."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise BenchError("missing: " + ", ".join(missing))


def raise_file_limit(wanted):
    """Raises the file limit, which the contenders inherit, to at least `wanted`; as high as allowed otherwise."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limits in ((max(wanted, hard), max(wanted, hard)), (hard, hard)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            break
        except (ValueError, OSError):
            continue
    reached = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if reached < wanted:
        raise BenchError(f"file limit {reached} (was {soft}) is below the {wanted} needed")


def free_port():
    """A free port outside the ephemeral range, so that no outgoing connection takes it before the server binds."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(200):
        port = random.randrange(10000, max(low, 10001))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise BenchError("no free port")


def die_with_parent():
    """In the child: SIGTERM when the harness is killed without a chance to clean up (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)


def spawn(cpu, command, **options):
    """Starts a command pinned to one CPU."""
    return subprocess.Popen(["taskset", "-c", str(cpu), *command], stdin=subprocess.DEVNULL,
                            preexec_fn=die_with_parent, **options)


def get(port, path="/", connection=None):
    """One GET; returns status and body text. Without `connection`, on a connection of its own."""
    own = connection is None
    connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers={"Host": HOST})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        if own:
            connection.close()


@dataclass
class Server:
    """A started server process and its descendants."""

    label: str
    port: int
    directory: Path
    process: subprocess.Popen
    pids: list = field(default_factory=list)

    def wait_ready(self):
        """Waits until the port answers 200, then notes the process tree."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if get(self.port)[0] == 200:
                    self.pids = process_tree(self.process.pid)
                    return
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.02)
        raise BenchError(f"{self.label} does not answer on port {self.port}:\n{self.tail()}")

    def tail(self):
        """The end of what the server wrote."""
        return (self.directory / "output.log").read_text(errors="replace")[-2000:]

    def stop(self):
        """SIGTERM, then SIGKILL to whatever of the process tree is left."""
        tree = {pid: start_time(pid) for pid in set(self.pids) | set(process_tree(self.process.pid))}
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid, started in tree.items():
            if started is not None and start_time(pid) == started:
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)


class Backend:
    """What stands behind the contenders: nginx, which echoes what it was sent, for the check of features, and
    `ringgate-bench serve` for the load. nginx and wrk on one CPU are slower than the fastest contender, and a
    contender that has to wait pays for going to sleep."""

    def __init__(self, cpu):
        self.echo = start("backend", cpu)
        self.port, self.origin_port = self.echo.port, free_port()
        command = [ORIGIN, "serve", "--bind", f"127.0.0.1:{self.origin_port}", "--body", str(len(BODY))]
        try:
            with open(self.echo.directory / "origin.log", "wb") as output:
                process = spawn(cpu, command, stdout=output, stderr=subprocess.STDOUT)
            directory = Path(tempfile.mkdtemp(prefix="ringgate-bench-origin-"))
            self.origin = Server("origin", self.origin_port, directory, process)
            self.origin.wait_ready()
        except BaseException:
            self.echo.stop()
            raise

    def stop(self):
        self.origin.stop()
        self.echo.stop()


def start(who, cpu, backend=None, max_connections=4096):
    """Starts a contender, or the echo when `who` is "backend", alone on `cpu`; returns it once it answers."""
    label, kind, binary = ("backend", "backend", shutil.which("nginx")) if who == "backend" else (
        who.label, who.kind, who.binary)
    directory = Path(tempfile.mkdtemp(prefix=f"ringgate-bench-{kind}-"))
    port = free_port()
    template = next(PEERS.glob(f"{kind}.*"))
    text = template.read_text()
    for key, value in (("DIR", directory), ("PORT", port), ("BACKEND_PORT", backend.port if backend else 0),
                       ("ORIGIN_PORT", backend.origin_port if backend else 0), ("MAXCONN", max_connections), ("BODY", BODY)):
        text = text.replace(f"@{key}@", str(value))
    config = directory / template.name
    config.write_text(text)
    command = {
        "haproxy": [binary, "-db", "-f", config],
        "ringgate": [binary, "run", config],
    }.get(kind, [binary, "-p", directory, "-e", directory / "error.log", "-c", config])
    with open(directory / "output.log", "wb") as output:
        process = spawn(cpu, command, stdout=output, stderr=subprocess.STDOUT)
    server = Server(label, port, directory, process)
    try:
        server.wait_ready()
    except BaseException:
        server.stop()
        raise
    return server


def check_features(server):
    """Fails unless the contender does the work all of them are measured at: body, headers, upstream keep-alive."""
    status, body = get(server.port)
    if (status, len(body)) != (200, len(BODY)):
        raise BenchError(f"{server.label}: unexpected response {status} {body!r}")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        echoes = [dict(line.split("=", 1) for line in get(server.port, "/echo", connection)[1].splitlines())
                  for _ in range(2)]
    finally:
        connection.close()
    expected = {"host": HOST, "forwarded_for": "127.0.0.1", "real_ip": "127.0.0.1", "proto": "http",
                "connection": "", "version": "HTTP/1.1"}
    wrong = [f"{key}={echoes[0][key]!r}, not {value!r}" for key, value in expected.items() if echoes[0][key] != value]
    if not echoes[0]["request_id"] or echoes[0]["request_id"] == echoes[1]["request_id"]:
        wrong.append("request_id is missing or repeated")
    if echoes[0]["reuse"].split(":")[0] != echoes[1]["reuse"].split(":")[0]:
        wrong.append("the upstream connection is not reused")
    if wrong:
        raise BenchError(f"{server.label} does not send the agreed request upstream: " + "; ".join(wrong))


def start_time(pid):
    """Start time of a process in clock ticks since boot, which tells a reused PID apart; None when it is gone."""
    try:
        return stat_fields(pid)[19]
    except OSError:
        return None


def stat_fields(pid):
    """The fields of /proc/PID/stat after the command name; index 0 is proc(5)'s field 3."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def process_tree(pid):
    """A PID and all its descendants."""
    pids = []
    queue = [pid]
    while queue:
        pid = queue.pop()
        pids.append(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                queue += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
    return pids


def rss_bytes(pids):
    """Sum of VmRSS."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) * 1024
    return total


def machine():
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")), "unknown")
    commit = subprocess.run(["git", "-C", str(BENCH), "describe", "--always", "--dirty"], capture_output=True,
                            text=True, check=False).stdout.strip()
    return {
        "cpu": model, "cpus": os.cpu_count(), "kernel": platform.release(),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "congestion_control": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        "load_average": os.getloadavg()[0], "commit": commit,
    }


def version(who):
    """First line of what the binary says about its version."""
    flag = {"nginx": "-v", "haproxy": "-v"}.get(who.kind, "--version")
    answer = subprocess.run([who.binary, flag], capture_output=True, text=True, timeout=5, check=False)
    return ((answer.stdout or answer.stderr).splitlines() or ["unknown"])[0]
