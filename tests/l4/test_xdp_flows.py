"""The program's table of flows is bounded: what becomes of flows when it is full, and when others take it over."""

import contextlib
import itertools
import os
import signal
import socket

import pytest

from harness.tools import eventually

from .common import VIP, Node, mac, send_frames, virtual_server
from .test_upgrade import PAUSES, Line
from .test_xdp import Arrivals, Counted, Talk, await_program, frame

ROOM = 1024  # the least that `flows_max` can be
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP


def services(servers, weights=(1, 1, 1)):
    """Port 80 for connections; port 8080, whose frames are made up, for TCP and UDP."""
    weighted = [(server.host.address, weight) for server, weight in zip(servers, weights) if weight]
    return "".join(
        virtual_server(f"{VIP}:{port}", weighted, scheduler="mh", protocol=protocol)
        for port, protocol in ((80, "tcp"), (8080, "tcp"), (8080, "udp"))
    )


class Crowded:
    """A director with little room, and clients."""

    def __init__(self, network, directory):
        lan, self.client, self.servers = network
        self.host = lan.host()
        self.host.ip("addr", "add", f"{VIP}/24", "dev", "eth0")
        self.node = Node(self.host, directory, "a", self.config(), node=PAUSES)
        self.cpus = itertools.cycle(sorted(os.sched_getaffinity(0)))

    def config(self, room=ROOM, servers=None, **weights):
        head = f'[director]\ndatapath = "generic"\nnew_flows_per_second = 0\nflows_max = {room}\n'
        return head + services(servers or self.servers, **weights)

    def __enter__(self):
        self.node.start()
        self.text = self.node.file.read_text()
        self.line = Line(self.node)
        await_program(self.node, self.client, Counted(self.node))
        return self

    def __exit__(self, *_):
        for pid in self.line.pids[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.node.process:
            self.node.kill()

    def write(self, **changed):
        """Another configuration in the file."""
        assert self.config() in self.text
        self.node.file.write_text(self.text.replace(self.config(), self.config(**changed)))

    def reload(self, **changed):
        self.write(**changed)
        self.node.control("reload")

    def send(self, protocol, ports):
        macs = mac(self.client), mac(self.host)
        send_frames(self.client, [frame(*macs, protocol, port) for port in ports])

    def ask(self, talks):
        """Each connection once, from another CPU than the time before: the program runs on the sender's."""
        allowed = os.sched_getaffinity(0)
        try:
            for talk in talks:
                os.sched_setaffinity(0, {next(self.cpus)})
                talk.ask()
            next(self.cpus)
        finally:
            os.sched_setaffinity(0, allowed)

    def talks(self, count):
        """Connections to each of the servers."""
        made = [Talk(self.client, VIP, 80) for _ in range(count)]
        self.ask(made)
        assert set.union(*(talk.names for talk in made)) == {"s1", "s2", "s3"}
        return made

    def held(self):
        """Flows that are remembered, as they are shown."""
        return sum(self.node.metric(f"ringgate_real_server_{kind}_flows") for kind in ("active", "inactive"))


def places(arrivals, protocol):
    """Servers that got frames, by the client's port."""
    found = {}
    for port, name in arrivals(protocol):
        found.setdefault(port, []).append(name)
    return found


def stayed(talks):
    assert all(len(talk.names) == 1 for talk in talks), [talk.names for talk in talks]


def test_more_flows_than_there_is_room_for(network, tmp_path):
    """The program forwards each of them, again and again to the same server; connections among them go on."""
    turns, ports = 3, range(1024, 1024 + 4 * ROOM)
    with Crowded(network, tmp_path) as site, Arrivals(site.servers) as arrivals:
        talks, counted = site.talks(40), Counted(site.node)
        for turn in range(1, turns + 1):
            site.send(UDP, ports)
            told = lambda: f"{len(arrivals(UDP))} arrived"
            eventually(lambda t=turn: len(arrivals(UDP)) == t * len(ports), 20, told)
            site.ask(talks)
        stayed(talks)
        found = places(arrivals, UDP)
        assert len(found) == len(ports)
        assert all(len(names) == turns and len(set(names)) == 1 for names in found.values()), found
        assert {names[0] for names in found.values()} == {"s1", "s2", "s3"}
        eventually(lambda: counted().get("forwarded", 0) >= turns * len(ports), 5, lambda: f"{counted()}")
        # They are counted every five seconds. Some have room, and no more than that.
        eventually(lambda: site.held() > ROOM / 4, 15, lambda: f"{site.held()} flows are shown")
        assert site.held() <= 3 * ROOM  # a few more do no harm
        site.node.stop()


def test_a_flood_of_syns_moves_no_connection_that_is_used(network, tmp_path):
    """Only the table knows their servers: the hash has others by now. Their frames come on one CPU after the other."""
    with Crowded(network, tmp_path) as site, Arrivals(site.servers) as arrivals:
        talks = site.talks(60)
        site.reload(weights=(9, 1, 1))
        ports = iter(range(1024, 1 << 16))
        sent = 0
        for _ in range(40):
            some = list(itertools.islice(ports, ROOM // 4))
            site.send(TCP, some)
            sent += len(some)
            site.ask(talks)
        stayed(talks)
        eventually(lambda: len(places(arrivals, TCP)) == sent, 20, lambda: f"{len(arrivals(TCP))} of {sent}")
        again = Talk(site.client, VIP, 80)
        again.ask()
        site.node.stop()


@pytest.mark.parametrize("room", [ROOM, 2 * ROOM])
def test_an_upgrade_takes_the_programs_flows_over(network, tmp_path, room):
    """Into a table of the same size, which is the same, and into another: connections stay whose server the hash would not
    give, and those that are used do so when the table is full afterwards of flows that come once."""
    with Crowded(network, tmp_path) as site:
        talks = site.talks(240)  # so many that some share a place of the hash
        line = site.line
        for weights in ((9, 1, 1), (1, 9, 1)):
            site.write(room=room, weights=weights)
            line.upgrade()
            own = lambda: site.node.log().count("datapath=xdp-generic") == len(line.pids)
            eventually(own, 10, "a program of its own")
            site.ask(talks)
        stayed(talks)
        for begin in range(1024, 1024 + 8 * ROOM, ROOM // 4):
            site.send(UDP, range(begin, begin + ROOM // 4))
            site.ask(talks[:60])
        stayed(talks)
        line.stop()


def test_flows_of_a_server_that_is_gone_make_room(network, tmp_path):
    """The table is full of them; others are remembered all the same, and stay when the hash changes."""
    with Crowded(network, tmp_path) as site, Arrivals(site.servers) as arrivals:
        first, second, third = site.servers
        alone = {"servers": [first], "weights": (1,)}
        site.reload(**alone)
        await_hash(site, arrivals, {"s1"})
        crowd = range(8192, 8192 + 4 * ROOM)
        for _ in range(2):
            site.send(UDP, crowd)
        eventually(lambda: set(crowd) <= set(places(arrivals, UDP)), 20)
        assert {names[-1] for port, names in places(arrivals, UDP).items() if port in crowd} == {"s1"}
        # Nobody is left of those.
        site.reload(servers=[second, third], weights=(1, 1))
        await_hash(site, arrivals, {"s2", "s3"})
        few = range(1024, 1024 + ROOM // 4)
        site.send(UDP, few)
        eventually(lambda: set(few) <= set(places(arrivals, UDP)), 20)
        before = {port: names for port, names in places(arrivals, UDP).items() if port in few}
        site.reload(servers=[second, third], weights=(9, 1))
        await_hash(site, arrivals, {"s2", "s3"})
        site.send(UDP, few)
        eventually(lambda: all(len(places(arrivals, UDP)[port]) == 2 for port in few), 20)
        after = places(arrivals, UDP)
        moved = [port for port in few if len(set(after[port])) == 2]
        assert {name for names in before.values() for name in names} == {"s2", "s3"}
        # By the hash alone four of ten would have moved.
        assert len(moved) <= len(few) / 10, f"{len(moved)} of {len(few)}"
        site.node.stop()


def await_hash(site, arrivals, names):
    """Until new flows go to these servers and no others."""
    probes = iter(range(20_000, 1 << 16))

    def probe():
        some = list(itertools.islice(probes, 24))
        site.send(UDP, some)
        eventually(lambda: set(some) <= set(places(arrivals, UDP)), 5)
        return {places(arrivals, UDP)[port][0] for port in some} == names

    eventually(probe, 20, f"new flows go to {names}", every=0.2)
