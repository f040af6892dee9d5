"""Who is measured: how each is configured, started, and checked to do the same work as the others."""

import itertools
import os
import signal
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from . import BenchError, machine, tls
from .process import HOST, Server, connect, get, spawn

PEERS = machine.ROOT / "bench/peers"
RELEASE = Path(os.environ.get("CARGO_TARGET_DIR", machine.ROOT / "target")) / "release"
RINGGATE = RELEASE / "ringgate"
BENCH = Path(os.environ.get("RINGGATE_BENCH_BIN", RELEASE / "ringgate-bench"))
NAMES = ("ringgate", "nginx", "haproxy", "relay")
LABELS = {"relay": "byte relay"}
# Those that are no contenders: they run where the load does.
BESIDE = ("origin", "echo")
RELOAD = {"ringgate": signal.SIGHUP, "nginx": signal.SIGHUP, "haproxy": signal.SIGUSR2}
# Room for the 10,000 idle connections, and for 5,000 with a server connection each; nginx counts both kinds.
MAXCONN = 12000
# Files that a contender, the load or the memory measurement may have open.
FILES = 13000
# How each says what a scenario asks for; haproxy's and nginx's nearest where there is no equal.
BALANCE = {
    "round_robin": {"ringgate": "round_robin", "nginx": "", "haproxy": "roundrobin"},
    "least_conn": {"ringgate": "least_conn", "nginx": "least_conn;", "haproxy": "leastconn"},
    "ip_hash": {"ringgate": "ip_hash", "nginx": "ip_hash;", "haproxy": "source"},
    "maglev": {"ringgate": "maglev", "nginx": "hash $remote_addr consistent;",
               "haproxy": "source\n    hash-type consistent"},
    "random_two": {"ringgate": "random_two", "nginx": "random two least_conn;", "haproxy": "random(2)"},
}


@dataclass(frozen=True)
class Contender:
    """Something to measure: its label in the report, which kind of configuration it reads, its binary."""

    label: str
    kind: str
    binary: str

    def version(self):
        """First line of what the binary says about its version."""
        command = [self.binary, "-v" if self.kind in ("nginx", "haproxy") else "--version"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        return ((answer.stdout or answer.stderr).splitlines() or ["unknown"])[0]

    def can_reload(self):
        """Whether it takes over a changed configuration while it serves; earlier builds of Ringgate do not."""
        if self.kind != "ringgate":
            return self.kind in RELOAD
        answer = subprocess.run([self.binary, "run", "--help"], capture_output=True, text=True, timeout=5, check=False)
        return "SIGHUP" in answer.stdout


def named(kind, binary=None, label=None):
    """A contender of a kind, with the binary it is usually run from."""
    usual = {"ringgate": RINGGATE, "relay": BENCH}.get(kind) or machine.find(kind)
    binary = binary or usual
    if binary is None or not os.access(binary, os.X_OK):
        hint = "build it with cargo build --release" if kind in ("ringgate", "relay") else "install it"
        raise BenchError(f"{kind}: no executable {binary or kind}: {hint}, or leave it out with --only")
    return Contender(label or kind, kind, str(binary))


class Origin:
    """`ringgate-bench serve`: cheaper than any proxy before it. One process, an address for each server."""

    def __init__(self, bed, body, servers=1):
        self.servers = [f"{bed.network.others}:{port}" for port in machine.free_ports(servers)]
        command = [BENCH, "serve", "--bind", ",".join(self.servers), "--body", body, "--threads", len(bed.origin_cpus)]
        self.server = launch("origin", bed, int(self.servers[0].split(":")[1]), command)

    def stop(self):
        """Ends it."""
        self.server.stop()


def start(who, bed, origin, scenario, echo=None):
    """Starts a contender alone on its CPUs, configured for a scenario; returns it once it answers."""
    port, workers = machine.free_ports()[0], len(bed.contender_cpus)
    bind = f"{bed.network.contender}:{port}"
    if who.kind == "relay":
        command = [who.binary, "relay", "--bind", bind, "--to", origin.servers[0], "--threads", workers]
        return launch(who.label, bed, port, command)
    directory = Path(tempfile.mkdtemp(prefix=f"ringgate-bench-{who.kind}-"))
    config = write_config(who.kind, directory, bind, workers, origin.servers, scenario, echo)
    command = {
        "haproxy": [who.binary, *(["-W"] if scenario.reload else []), "-db", "-f", config],
        "ringgate": [who.binary, "run", config],
        "nginx": [who.binary, "-p", directory, "-e", directory / "error.log", "-c", config],
    }[who.kind]
    server = launch(who.label, bed, port, command, directory, scenario.path, scenario.tls)
    if scenario.reload:
        counts = itertools.cycle((scenario.routes + 1, scenario.routes))

        def reload():
            changed = replace(scenario, routes=next(counts))
            write_config(who.kind, directory, bind, workers, origin.servers, changed, echo)
            server.process.send_signal(RELOAD[who.kind])

        server.reload = reload
    return server


def start_echo(bed):
    """nginx, which says what it was sent; only for the check of features."""
    directory = Path(tempfile.mkdtemp(prefix="ringgate-bench-echo-"))
    port = machine.free_ports()[0]
    config = fill("backend.conf", directory, DIR=directory, BIND=f"{bed.network.others}:{port}")
    command = [machine.find("nginx"), "-p", directory, "-e", directory / "error.log", "-c", config]
    return launch("echo", bed, port, command, directory)


def launch(label, bed, port, command, directory=None, path="/", over_tls=False):
    """Starts a server, an origin on its side of the network, and waits for its first answer."""
    network, beside = bed.network, label in BESIDE
    directory = directory or Path(tempfile.mkdtemp(prefix="ringgate-bench-"))
    with open(directory / "output.log", "wb") as output:
        process = spawn(bed.origin_cpus if beside else bed.contender_cpus, command,
                        None if beside else network.namespace, stdout=output, stderr=subprocess.STDOUT)
    server = Server(label, network.others if beside else network.contender, port, directory, process, tls=over_tls)
    try:
        return server.wait_ready(path)
    except BaseException:
        server.stop()
        raise


def fill(template, directory, **values):
    """Writes a template of bench/peers with its @NAMES@ replaced."""
    config = directory / template
    config.write_text(filled(template, **values))
    return config


def filled(template, **values):
    """The text of a template of bench/peers with its @NAMES@ replaced."""
    text = (PEERS / template).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    return text


def write_config(kind, directory, bind, workers, servers, scenario, echo):
    """The configuration of a proxy for a scenario."""
    lines = {"ringgate": ringgate_parts, "nginx": nginx_parts, "haproxy": haproxy_parts}[kind]
    balance = BALANCE[scenario.balance][kind]
    template = {"ringgate": "ringgate.toml", "nginx": "nginx.conf", "haproxy": "haproxy.cfg"}[kind]
    routes = route_paths(scenario.routes)
    parts = lines(directory, servers, balance, routes, echo) | tls_parts(kind, directory, scenario)
    return fill(template, directory, DIR=directory, BIND=bind, MAXCONN=MAXCONN, WORKERS=workers, **parts)


def tls_parts(kind, directory, scenario):
    """What stands for @TLS@, @LISTEN@ and @SCHEME@."""
    if not scenario.tls:
        return {"TLS": "", "LISTEN": "", "SCHEME": "http"}
    tls.write_identity(directory)
    template = {"ringgate": "ringgate-tls.toml", "nginx": "nginx-tls.conf", "haproxy": "haproxy-tls.cfg"}[kind]
    listen = {"ringgate": "", "nginx": " ssl http2",
              "haproxy": f" ssl crt {directory}/both.pem alpn h2,http/1.1"}[kind]
    return {"TLS": filled(template, DIR=directory).rstrip("\n"), "LISTEN": listen, "SCHEME": "https"}


def route_paths(count):
    """The prefixes of a scenario with many routes."""
    return [f"/team{number % 40}/service{number}/" for number in range(count)]


def ringgate_parts(_directory, servers, balance, routes, echo):
    """What stands for @NAMES@ in ringgate.toml."""
    listed = ",\n".join(f'  {{ address = "{server}" }}' for server in servers)
    table = lambda path, upstream: f'[[route]]\npath = {path}\nupstream = "{upstream}"\n'
    route = table('{ exact = "/echo" }', "echo") if echo else ""
    upstream = f'[upstream.echo]\nservers = [{{ address = "{echo}" }}]' if echo else ""
    return {"BALANCE": balance, "SERVERS": f"[\n{listed},\n]", "ECHO": upstream,
            "ROUTES": route + "\n".join(table(f'"{path}"', "origin") for path in routes)}


def nginx_parts(_directory, servers, balance, routes, echo):
    """What stands for @NAMES@ in nginx.conf."""
    to = lambda path, upstream: f"        location {path} {{ proxy_pass http://{upstream}; }}\n"
    upstream = f"    upstream echo {{ server {echo}; keepalive 16; }}" if echo else ""
    return {"BALANCE": balance, "SERVERS": "\n".join(f"        server {server};" for server in servers),
            "ECHO": upstream, "ROUTES": (to("= /echo", "echo") if echo else "")
            + "".join(to(path, "origin") for path in routes)}


def haproxy_parts(directory, servers, balance, routes, echo):
    """What stands for @NAMES@ in haproxy.cfg; many routes go through a map, which is a tree."""
    use = "    use_backend echo if { path /echo }\n" if echo else ""
    if routes:
        (directory / "routes.map").write_text("".join(f"{path} origin\n" for path in routes))
        use += f"    use_backend %[path,map_beg({directory}/routes.map,origin)]\n"
    upstream = f"backend echo\n    server one {echo}" if echo else ""
    listed = [f"    server s{number} {server} pool-max-conn 8192 pool-purge-delay 60s"
              for number, server in enumerate(servers)]
    return {"BALANCE": balance, "SERVERS": "\n".join(listed), "ECHO": upstream, "ROUTES": use.rstrip("\n")}


def check_same_work(who, bed, origin, scenario, echo):
    """Fails unless the contender does the work all of them are measured at: headers, upstream keep-alive."""
    if who.kind == "relay":
        return
    server = start(who, bed, origin, scenario, f"{echo.address}:{echo.port}")
    try:
        if scenario.tls:
            tls.check(server)
        answers = [tls.get_http2(server, "/echo") for _ in range(2)] if scenario.http2 else echoed(server)
    finally:
        server.stop()
    echoes = [dict(line.split("=", 1) for line in answer.splitlines()) for answer in answers]
    expected = {"host": HOST, "forwarded_for": bed.network.others, "real_ip": bed.network.others, "proto": "https" if scenario.tls else "http",
                "connection": "", "version": "HTTP/1.1"}
    wrong = [f"{key}={echoes[0][key]!r}, not {value!r}" for key, value in expected.items() if echoes[0][key] != value]
    if not echoes[0]["request_id"] or echoes[0]["request_id"] == echoes[1]["request_id"]:
        wrong.append("request_id is missing or repeated")
    if echoes[0]["reuse"].split(":")[0] != echoes[1]["reuse"].split(":")[0]:
        wrong.append("the upstream connection is not reused")
    if wrong:
        raise BenchError(f"{who.label} does not send the agreed request upstream: " + "; ".join(wrong))


def echoed(server):
    """What two requests on a connection look like at the server behind."""
    connection = connect(server)
    try:
        return [get(server, "/echo", connection)[1].decode() for _ in range(2)]
    finally:
        connection.close()


def check_answer(server, scenario):
    """Fails unless the contender answers a scenario's request with the whole body."""
    status, body = get(server, scenario.path)
    if (status, len(body)) != (200, scenario.body):
        raise BenchError(f"{server.label}: status {status} and {len(body)} bytes, not 200 and {scenario.body}")
