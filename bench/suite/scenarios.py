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
    contenders: tuple = NAMES
    latency: bool = False
    # In place of the usual number of rounds and length of a slice, as factors.
    rounds: float = 1.0
    seconds: float = 1.0
    # The clients set the pace: nobody is expected to be the bottleneck.
    paced: bool = False
    # Memory of idle connections: another kind of measurement.
    idle: bool = False


def keepalive(connections):
    """Small requests on connections that stay."""
    title = f"small, {connections:,} connection{'s' if connections > 1 else ''}"
    return Scenario(f"keepalive-{connections}", title, "Small keep-alive requests", connections,
                    latency=connections in (64, 256), seconds=1.5 if connections > 1000 else 1.0)


ALL = (
    *(keepalive(connections) for connections in (1, 16, 64, 256, 1000, 5000)),
    # The relay opens a server connection each time, where proxies have a pool: it is no floor here.
    Scenario("new-connections", "a connection per request", "Connections and bodies", 64,
             options=("--new-connections",), contenders=PROXIES, latency=True),
    Scenario("body-1k", "1 KiB body", "Connections and bodies", 256, body=KIB),
    Scenario("body-16k", "16 KiB body", "Connections and bodies", 256, body=16 * KIB, latency=True),
    Scenario("body-1m", "1 MiB body", "Connections and bodies", 64, body=MIB, seconds=1.5),
    Scenario("slow-clients", "200 clients that read 1 MiB bodies at 2 MiB/s", "Connections and bodies", 200, body=MIB,
             options=("--read-rate", str(2 * MIB)), rounds=0.6, seconds=3.0, paced=True),
    Scenario("routes-1000", "1,000 routes", "Routes and balancing", 256, routes=1000, contenders=PROXIES, rounds=0.6),
    *(Scenario(f"balance-{method}", f"{method}, 8 servers", "Routes and balancing", 256, balance=method, servers=8,
               contenders=PROXIES, rounds=0.6) for method in BALANCE),
    Scenario("idle-10000", "10,000 idle connections", "Idle connections", 10_000, contenders=PROXIES, rounds=0.4,
             idle=True),
)
LEFT_OUT = {"reload": "Reload under load: this version of Ringgate has no reload, so there is nothing to compare."}


def choose(patterns):
    """The scenarios whose names match one of the patterns (shell wildcards), in order."""
    from fnmatch import fnmatch
    return [one for one in ALL if not patterns or any(fnmatch(one.name, pattern) for pattern in patterns)]
