"""Servers that die, stall and come back; nothing is lost beyond what the retry rules forbid."""

import random
import re
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness import Client, Nginx, eventually, get, say
from harness import names
from harness.client import message, tool, url
from harness.message import Closed
from harness.process import Process
from harness.proxy import one


def half(ending):
    def handler(connection):
        for _ in connection.requests():
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
            return ending(connection)

    return handler


@pytest.mark.parametrize("ending", [lambda c: c.close(), lambda c: c.reset()], ids=["close", "reset"])
def test_upstream_dies_within_a_body(web, ending):
    proxy, _ = web(half(ending))
    with Client(proxy.address) as client:
        client.send(message())
        head = client.read_head()
        with pytest.raises((Closed, ConnectionResetError)):
            client.read_body(head)
    proxy.await_metric(names.SERVER_FAILURES, 1)


def test_upstream_dies_within_a_chunked_body(web):
    def handler(connection):
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        connection.reset()

    proxy, _ = web(handler)
    with Client(proxy.address) as client:
        client.send(message())
        head = client.read_head()
        with pytest.raises((Closed, ConnectionResetError)):
            client.read_body(head)


def test_killed_nginx_within_a_body(start, tmp_path):
    with Nginx.origin(tmp_path / "nginx") as nginx:
        (tmp_path / "nginx/www/big").write_bytes(b"x" * (64 << 20))
        proxy = start(one(nginx))
        with Client(proxy.address, rcvbuf=65536) as client:
            client.send(message("GET", "/files/big"))
            head = client.read_head()
            nginx.kill()
            with pytest.raises((Closed, ConnectionResetError)):
                client.read_body(head)
        assert get(proxy.address).status in (502, 503)


def test_reset_before_the_response_without_retry(web):
    proxy, origin = web(lambda c: c.read_request() and c.reset(), retry={"tries": 1})
    assert get(proxy.address).status == 502
    assert len(origin.requests) == 1


def test_refused_reset_and_stalled_servers_beside_a_good_one(start, serve):
    """Each kind of failure costs its own request nothing, as long as a server is left."""
    refusing, resetting, good = serve(), serve(lambda c: c.read_request() and c.reset()), serve()
    refusing.refuse()
    servers = [{"address": o, "max_fails": 1, "fail_timeout": "60s"} for o in (refusing, resetting, good)]
    proxy = start(one(*servers, retry={"tries": 3, "budget_percent": 100}))
    assert [get(proxy.address).status for _ in range(30)] == [200] * 30
    proxy.await_metric(names.SERVER_CONNECT_FAILURES, 1, server=refusing.text)
    proxy.await_metric(names.SERVER_FAILURES, 1, server=resetting.text)
    for name in (names.SERVER_FAILURES, names.SERVER_CONNECT_FAILURES):
        assert proxy.metric(name, server=good.text) == 0


def wrk(address, directory, seconds, connections=32):
    argv = [tool("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "8s", url(address)]
    return Process(argv, directory / "wrk.log")


def outcome(process, timeout):
    """(requests, socket errors, non-2xx) of a wrk run."""
    assert process.wait(timeout) == 0
    report = process.log()
    total = int(re.search(r"(\d+) requests in", report)[1])
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", report)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", report)
    return total, sum(map(int, errors.groups())) if errors else 0, int(bad[1]) if bad else 0


@pytest.mark.slow
def test_servers_die_and_come_back_under_load(start, tmp_path):
    """GETs, two of three servers killed in turn: every request is answered 2xx."""
    servers = [Nginx.origin(tmp_path / f"n{n}", f"n{n}") for n in range(3)]
    for server in servers:
        server.start()
    try:
        members = [{"address": s, "max_fails": 1, "fail_timeout": "500ms"} for s in servers]
        proxy = start(one(*members, retry={"tries": 3, "budget_percent": 100}))
        load = wrk(proxy.address, tmp_path, 8)
        for turn in range(5):
            victim = servers[turn % 2]
            time.sleep(0.6)  # the load's own pace, not a wait for a state
            victim.kill()
            eventually(lambda: get(proxy.address).status == 200)
            time.sleep(0.4)
            victim.start()
        total, errors, bad = outcome(load, 30)
    finally:
        for server in servers:
            server.kill()
    assert total > 1000 and (errors, bad) == (0, 0), (total, errors, bad)
    assert proxy.metric(names.RETRIES) > 0, "nothing was tested"


@pytest.mark.slow
def test_servers_die_under_h2load(start, tmp_path):
    servers = [Nginx.origin(tmp_path / f"n{n}", f"n{n}") for n in range(2)]
    for server in servers:
        server.start()
    try:
        members = [{"address": s, "max_fails": 1, "fail_timeout": "500ms"} for s in servers]
        proxy = start(one(*members, retry={"tries": 3, "budget_percent": 100}))
        argv = [tool("h2load"), "--h1", "-t1", "-c16", "-D", "5", url(proxy.address)]
        load = Process(argv, tmp_path / "h2load.log")
        for _ in range(3):
            time.sleep(0.6)
            servers[0].kill()
            time.sleep(0.4)
            servers[0].start()
        assert load.wait(30) == 0
        report = load.log()
    finally:
        for server in servers:
            server.kill()
    codes = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", report)
    assert codes and int(codes[1]) > 500 and codes[2] == codes[3] == codes[4] == "0", report
    assert re.search(r"(\d+) failed, (\d+) errored", report).groups() == ("0", "0"), report


def test_drain_finishes_what_is_in_flight(start, serve):
    release = threading.Event()

    def handler(connection):
        for _ in connection.requests():
            release.wait(10)
            connection.send(say(200, b"late"))

    back = serve(handler)
    proxy = start(one(back))
    clients = [Client(proxy.address) for _ in range(10)]
    for client in clients:
        client.send(message())
    eventually(lambda: len(back.heads) == 10)
    proxy.signal(signal.SIGTERM)
    eventually(lambda: refuses(proxy.address), 5, "no new connections")
    release.set()
    for client in clients:
        answer = client.read_response()
        assert (answer.status, answer.body) == (200, b"late")
        assert answer.header("connection") == "close" and client.closed()
    assert proxy.wait() == 0


def refuses(address):
    try:
        with Client(address, 1) as client:
            return client.closed(1)
    except OSError:
        return True


def test_drain_closes_idle_connections_at_once(start, origin):
    proxy = start({**one(origin), "node": {"drain_timeout": "10m"}})
    with Client(proxy.address) as client:
        assert client.ask(message()).status == 200
        proxy.signal(signal.SIGTERM)
        assert client.closed()
        assert proxy.wait() == 0, "idle connections hold up the drain"


def test_drain_timeout_ends_the_rest(start, serve):
    back = serve(lambda c: c.read_request() and c.stall(20))
    config = {**one(back), "node": {"shards": 2, "pin": False, "drain_timeout": "500ms"}}
    proxy = start(config)
    with Client(proxy.address) as client:
        client.send(message())
        eventually(lambda: back.requests)
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        assert client.read_until_eof(10) == b""


def test_second_sigterm_ends_at_once(start, serve):
    back = serve(lambda c: c.read_request() and c.stall(60))
    config = {**one(back), "node": {"shards": 2, "pin": False, "drain_timeout": "10m"}}
    proxy = start(config)
    with Client(proxy.address) as client:
        client.send(message())
        eventually(lambda: back.requests)
        proxy.signal(signal.SIGTERM)
        eventually(lambda: refuses(proxy.address), 5, "draining")
        assert proxy.process.alive()
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0


@pytest.mark.slow
def test_drain_under_load_loses_nothing(start, serve):
    """Eight keep-alive clients send without pause while the proxy gets SIGTERM, five times over."""
    back = serve()
    for turn in range(5):
        proxy = start(one(back))
        load = Load(proxy.address, f"/turn{turn}")
        with load:
            eventually(lambda: load.answered > 200, 20)
            proxy.signal(signal.SIGTERM)
            assert proxy.wait() == 0
        reached = {r.target for r in back.requests}
        assert [t for t in load.unanswered if t in reached] == [], "reached the origin, not answered"
        assert load.bad == []


class Load:
    """Clients that ask until nobody listens.

    `unanswered`: targets of requests whose connection ended instead of an answer. One that crossed
    the close of an idle connection is among them; it has not reached the origin, so its client may
    repeat it (RFC 9112 9.3.1). `bad`: what no drain excuses: a first request on a connection that
    was accepted, an answer cut short, a status other than 200, a timeout.
    """

    def __init__(self, address, prefix, clients=8):
        self.address, self.prefix = address, prefix
        self.answered, self.unanswered, self.bad, self.ended = 0, [], [], threading.Event()
        self.threads = [threading.Thread(target=self._client, args=(n,)) for n in range(clients)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        for thread in self.threads:
            thread.join(15)

    def _client(self, number):
        connection = 0
        while not self.ended.is_set():
            connection += 1
            try:
                with Client(self.address, 8) as client:
                    self._ask(client, f"{self.prefix}/{number}/{connection}")
            except ConnectionRefusedError:
                return
            except (ConnectionResetError, TimeoutError) as error:
                self.bad.append(f"connect: {error!r}")
                return

    def _ask(self, client, prefix):
        for n in range(1000):
            target = f"{prefix}/{n}"
            try:
                answer = client.ask(message("GET", target))
            except (Closed, ConnectionResetError, BrokenPipeError) as error:
                self.unanswered.append(target)
                if n == 0 or getattr(error, "got", b""):
                    self.bad.append(f"{target}: {error!r}")
                return
            except TimeoutError as error:
                self.bad.append(f"{target}: {error!r}")
                return
            self.answered += 1
            if answer.status != 200:
                self.bad.append(f"{target}: {answer}")
            if answer.header("connection") == "close":
                return


def test_a_close_never_hits_another_connection(start, origin):
    """Descriptors are reused at once: what ends one connection must not end its successor."""
    proxy = start(one(origin))

    def ask(_):
        return [get(proxy.address).status for _ in range(100)]

    with ThreadPoolExecutor(8) as pool:
        statuses = Counter(status for found in pool.map(ask, range(8)) for status in found)
    assert statuses == {200: 800}
