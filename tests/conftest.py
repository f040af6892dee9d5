"""Fixtures of all suites."""

import time

import pytest

from harness import Origin
from harness.proxy import one
from harness.standin import proxy_kind
from harness.tools import held_ports, release_ports


@pytest.fixture(scope="session")
def told_to_end():
    """(test, proxy) of those that were told to end: a drain takes a quarter of a second, in which the next test runs."""
    told = []
    yield told
    finish(told)


def finish(told):
    """Awaits their ends; exit codes and logs are checked, and what is wrong names the test that it is about."""
    wrong = []
    for test, proxy in told:
        try:
            proxy.stop()
        except AssertionError as error:
            wrong.append(f"{test}: {error}")
        finally:
            proxy.kill()
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def start(tmp_path, request, told_to_end):
    """Starts proxies from configurations; each is stopped and its exit and log checked, by the end of the next test."""
    kind = proxy_kind()
    started = []

    def begin(config, **options):
        proxy = kind(config, tmp_path / f"proxy{len(started)}", **options)
        started.append(proxy)
        proxy.start()
        return proxy

    yield begin
    for proxy in started:
        proxy.tell_to_end()
    earlier, told_to_end[:] = [*told_to_end], [(request.node.nodeid, proxy) for proxy in started]
    finish(earlier)


@pytest.fixture
def origin():
    """An origin that answers 200 `ok` and records."""
    with Origin() as one_origin:
        yield one_origin


@pytest.fixture
def serve():
    """Starts origins with handlers of the test's own; handler failures fail the test."""
    started = []

    def begin(handler=None, **options):
        one_origin = Origin(handler, **options)
        one_origin.listen()
        started.append(one_origin)
        return one_origin

    yield begin
    for one_origin in started:
        one_origin.stop()
    for one_origin in started:
        one_origin.check()


@pytest.fixture
def web(start, serve):
    """`web(handler, **upstream_keys)` gives (proxy, origin) for the plain case."""

    def begin(handler=None, http=None, **keys):
        back = serve(handler)
        return start(one(back, http=http, **keys)), back

    return begin


@pytest.fixture(autouse=True)
def _ports():
    """A test's ports are given back with it; those of wider fixtures, which come first, stay theirs."""
    before = held_ports()
    yield
    release_ports(held_ports() - before)


@pytest.fixture(autouse=True)
def _bounded():
    """No test may take more than five minutes; a longer one failed to bound something."""
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < 300, "took more than five minutes"
