"""Networks for the director's tests; those that only look share one."""

import pytest

from harness.lan import Lan

from .common import VIP, VIP6, Node, Server, virtual_server


@pytest.fixture
def lan():
    with Lan() as one:
        yield one


@pytest.fixture
def network(tmp_path):
    """A client and three web servers on one bridge; the director is the test's own."""
    with Lan() as lan:
        client = lan.host()
        servers = [Server(lan.host(), tmp_path, f"s{n}") for n in (1, 2, 3)]
        yield lan, client, servers
        for server in servers:
            server.stop()


class Site:
    """A client, one director with the virtual addresses on its interface, and three real servers: two with nginx, one
    with Ringgate, which has the role of a real server."""

    def __init__(self, lan, directory):
        self.lan, self.client, self.host = lan, lan.host(), lan.host()
        self.host.ip("addr", "add", f"{VIP}/24", "dev", "eth0")
        self.host.ip("addr", "add", f"{VIP6}/64", "dev", "eth0", "nodad")
        self.servers = [Server(lan.host(), directory, f"s{n}") for n in (1, 2)]
        third = lan.host()
        role = f'[real_server]\naddresses = ["{VIP}", "{VIP6}"]\n'
        self.third = Node(third, directory, "s3", role, listen=80)
        self.third.start()
        self.servers.append(Server(third, directory, "s3", web=False, addresses=False))
        self.node = Node(self.host, directory, "a", self.config())
        self.node.start()
        self.node.await_neighbours(6)

    def config(self):
        parts = []
        for vip, attribute in ((VIP, "address"), (f"[{VIP6}]", "address6")):
            servers = [getattr(server.host, attribute) for server in self.servers]
            weighted = list(zip(servers, (3, 2, 1)))
            parts.append(virtual_server(f"{vip}:80", servers))
            parts.append(virtual_server(f"{vip}:8080", weighted, scheduler="wrr"))
            parts.append(virtual_server(f"{vip}:8080", servers, protocol="udp", scheduler="mh"))
            parts.append(virtual_server(f"{vip}:53", servers, protocol="udp"))
        return "".join(parts)

    def stop(self):
        self.node.stop()
        self.third.stop()
        for server in self.servers:
            server.stop()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with Lan() as one:
        built = Site(one, tmp_path_factory.mktemp("site"))
        yield built
        built.stop()
