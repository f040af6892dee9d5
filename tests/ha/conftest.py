"""A pair of Ringgates on a switch."""

import pytest

from harness.lan import Lan, Ringgate

from .common import vrrp

@pytest.fixture
def lan():
    with Lan() as one:
        yield one


@pytest.fixture
def pair(lan, tmp_path):
    """`pair(**keys)` gives two running nodes, the first one active, and a client."""
    started = []

    def begin(first=200, second=100, **keys):
        a = Ringgate(lan.host(), tmp_path, "a", vrrp(first, **keys))
        b = Ringgate(lan.host(), tmp_path, "b", vrrp(second, **keys))
        client = lan.host()
        for node in (a, b):
            started.append(node)
            node.start()
        a.await_role("active")
        b.await_role("backup")
        return a, b, client

    yield begin
    for node in started:
        node.stop()
