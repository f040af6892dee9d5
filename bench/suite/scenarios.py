"""What is measured."""

from dataclasses import dataclass

from .contenders import BALANCE, NAMES

PROXIES = tuple(name for name in NAMES if name != "relay")
KIB = 1024
MIB = 1024 * 1024


@dataclass(frozen=True)
class Scenario:
    """A kind of load and the configuration it meets."""

    name: str
    title: str
    group: str
    connections: int
    body: int = 128
    balance: str = "round_robin"
    servers: int = 1
    routes: int = 0
    path: str = "/"
    options: tuple = ()
    tls: bool = False
    http2: bool = False
    # HTTP/2: requests under way on each connection.
    streams: int = 1
    contenders: tuple = NAMES
    latency: bool = False
    # In place of the usual number of rounds and length of a slice, as factors.
    rounds: float = 1.0
    seconds: float = 1.0
    # Seconds of load before what counts, at least: all connections are to have been answered once by then.
    warmup: float = 0.0
    # Whether system calls are counted.
    syscalls: bool = True
    # The clients set the pace: nobody is expected to be the bottleneck.
    paced: bool = False
    # The configuration changes and is taken over again and again meanwhile.
    reload: bool = False
    # Memory of idle connections: another kind of measurement.
    idle: bool = False


def keepalive(connections):
    """Small requests on connections that stay."""
    title = f"small, {connections:,} connection{'s' if connections > 1 else ''}"
    return Scenario(f"keepalive-{connections}", title, "Small keep-alive requests", connections,
                    latency=connections == 256, **({"seconds": 1.5, "warmup": 2.0, "rounds": 0.6} if connections > 1000 else {}))


def secure(name, title, connections, **more):
    """A scenario over TLS. The relay has none, so it is no floor here."""
    return Scenario(name, title, "HTTPS and HTTP/2", connections, **{"tls": True, "contenders": PROXIES, "rounds": 0.6} | more)


SECURE = (
    secure("tls-64", "HTTPS, 64 connections", 64),
    secure("tls-256", "HTTPS, 256 connections", 256),
    secure("h2-1", "HTTP/2, 64 connections, 1 stream each", 64, http2=True),
    secure("h2-10", "HTTP/2, 32 connections, 10 streams each", 32, http2=True, streams=10, rounds=1.0, latency=True),
    secure("h2-100", "HTTP/2, 8 connections, 100 streams each", 8, http2=True, streams=100),
    secure("tls-full", "a connection and a full handshake per request", 64, options=("--new-connections",)),
    secure("tls-resumed", "a connection and a resumed handshake per request", 64, options=("--new-connections", "--resume")),
    secure("tls-16k", "HTTPS, 16 KiB body", 64, body=16 * KIB),
    secure("tls-1m", "HTTPS, 1 MiB body", 32, body=MIB, seconds=1.5),
    secure("h2-16k", "HTTP/2, 16 KiB body, 16 connections, 4 streams each", 16, body=16 * KIB, http2=True, streams=4),
    secure("h2-1m", "HTTP/2, 1 MiB body, 8 connections, 4 streams each", 8, body=MIB, http2=True, streams=4, seconds=1.5),
)

ALL = (
    *(keepalive(connections) for connections in (1, 16, 64, 256, 1000, 5000)),
    # The relay opens a server connection each time, where proxies have a pool: it is no floor here.
    Scenario("new-connections", "a connection per request", "Connections and bodies", 64,
             options=("--new-connections",), contenders=PROXIES, latency=True),
    Scenario("body-1k", "1 KiB body", "Connections and bodies", 256, body=KIB),
    Scenario("body-16k", "16 KiB body", "Connections and bodies", 256, body=16 * KIB, latency=True),
    Scenario("body-1m", "1 MiB body", "Connections and bodies", 64, body=MIB, seconds=1.5),
    Scenario("upload-1m", "1 MiB upload", "Connections and bodies", 64, options=("--method", "POST", "--body", str(MIB)), rounds=0.6,
             seconds=1.5, syscalls=False),
    Scenario("slow-clients", "200 clients that read 1 MiB bodies at 2 MiB/s, 250 a second", "Connections and bodies", 200, body=MIB,
             options=("--read-rate", str(2 * MIB), "--rate", "250"), rounds=0.4, seconds=3.0, paced=True),
    *SECURE,
    Scenario("routes-1000", "1,000 routes", "Routes and balancing", 256, routes=1000, contenders=PROXIES, rounds=0.6),
    *(Scenario(f"balance-{method}", f"{method}, 8 servers", "Routes and balancing", 256, balance=method, servers=8,
               contenders=PROXIES, rounds=0.6, syscalls=False) for method in BALANCE),
    Scenario("reload", "64 connections, a reload every 0.25 s", "Reload under load", 64, routes=100, contenders=PROXIES, rounds=0.6,
             seconds=2.0, reload=True, syscalls=False),
    Scenario("idle-10000", "10,000 idle connections", "Idle connections", 10_000, contenders=PROXIES, rounds=0.4,
             idle=True),
)
LEFT_OUT = {"reload": "Reload under load: this build of Ringgate has no reload, so there is nothing to compare."}


def choose(patterns):
    """The scenarios whose names match one of the patterns (shell wildcards), in order."""
    from fnmatch import fnmatch
    return [one for one in ALL if not patterns or any(fnmatch(one.name, pattern) for pattern in patterns)]
