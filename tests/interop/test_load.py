"""Under wrk and h2load: drains, restarts, log rotation and origins that hang up lose nothing."""

import random
import re
import signal
import socket
import threading
import time

import pytest

from harness import Client, Nginx, eventually, get, names, say
from harness.client import message, tool, url
from harness.process import Process
from harness.proxy import one

from .test_failures import outcome, wrk


def h2load(address, directory, *options):
    argv = [tool("h2load"), "--h1", "-t1", *map(str, options), url(address)]
    return Process(argv, directory / "h2load.log")


def h2load_outcome(process, timeout):
    """(2xx, other statuses, failed or errored) of an h2load run."""
    assert process.wait(timeout) == 0
    report = process.log()
    codes = [int(n) for n in re.search(
        r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", report).groups()]
    bad = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", report)
    return codes[0], sum(codes[1:]), sum(map(int, bad.groups()))


def spread_pairs(directory, count=2):
    return [Nginx.origin(directory / f"n{n}", f"n{n}") for n in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["terminate", "kill"])
@pytest.mark.parametrize("client", ["wrk", "h2load"])
def test_nginx_restarts_under_load(start, tmp_path, client, ending):
    """Two servers, restarted in turn: no GET fails."""
    servers = spread_pairs(tmp_path)
    for server in servers:
        server.start()
    try:
        members = [{"address": s, "max_fails": 1, "fail_timeout": "300ms"} for s in servers]
        proxy = start(one(*members, retry={"tries": 3, "budget_percent": 100}))
        if client == "wrk":
            load = wrk(proxy.address, tmp_path, 5, 16)
        else:
            load = h2load(proxy.address, tmp_path, "-c16", "-D", 5)
        for turn in range(4):
            time.sleep(0.5)  # the load's own pace, not a wait for a state
            victim = servers[turn % 2]
            victim.stop() if ending == "terminate" else victim.kill()
            time.sleep(0.2)
            victim.start()
            # The one that came back is in use again before the other goes.
            before = proxy.metric(names.SERVER_RESPONSES, server=victim.text)
            # Asked for here too: on a slow machine the load may be over.
            used = lambda: proxy.metric(names.SERVER_RESPONSES, server=victim.text) > before
            eventually(lambda: get(proxy.address).status == 200 and used(), 5, f"{victim.text} is used again")
        if client == "wrk":
            total, errors, bad = outcome(load, 30)
        else:
            total, errors, bad = h2load_outcome(load, 30)
    finally:
        for server in servers:
            server.kill()
    assert total > 500 and (errors, bad) == (0, 0), (total, errors, bad)
    assert proxy.metric(names.SERVER_CONNECT_FAILURES) > 0, "nothing was tested"


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(3))
def test_drain_under_wrk(start, tmp_path, turn):
    """SIGTERM in mid-load: every request that got in is answered, and wrk has every answer.

    wrk goes on connecting when nobody listens any more and counts that as write errors; what it
    would count for a lost request are read errors and timeouts.
    """
    path = tmp_path / "access.log"
    log = {"access": "combined", "access_file": str(path), "access_buffer": "4m"}
    with Nginx.origin(tmp_path / "nginx") as nginx:
        proxy = start({**one(nginx), "log": log})
        load = wrk(proxy.address, tmp_path, 3, 32)
        proxy.await_metric(names.REQUESTS, 1000, timeout=10)
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        assert load.wait(30) == 0
        report = load.log()
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", report)
    assert errors and (errors[2], errors[4]) == ("0", "0"), report
    assert "Non-2xx" not in report, report
    served = path.read_text().splitlines()
    assert all('" 200 ' in line for line in served)
    assert len(served) == int(re.search(r"(\d+) requests in", report)[1]), report


@pytest.mark.slow
def test_drain_under_h2load(start, tmp_path):
    """h2load ends a client whose connection closes: every request that was sent is answered."""
    with Nginx.origin(tmp_path / "nginx") as nginx:
        proxy = start(one(nginx))
        load = h2load(proxy.address, tmp_path, "-c16", "-n", 2_000_000)
        proxy.await_metric(names.REQUESTS, 1000, timeout=10)
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        load.wait(30)
        report = load.log()
    codes = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", report)
    print(report)
    assert int(codes[1]) >= 1000 and codes.groups()[1:] == ("0", "0", "0"), report


@pytest.mark.slow
def test_origin_that_hangs_up_at_random(start, serve, tmp_path):
    """Idle connections are closed at any moment, also as the next request arrives: no GET fails."""
    dice = random.Random(1)

    def handler(connection):
        connection.sock.settimeout(0.2)
        for _ in connection.requests():
            connection.send(say())
            if dice.random() < 0.2:
                time.sleep(dice.choice((0, 0, 0.0005, 0.002)))
                return connection.reset() if dice.random() < 0.3 else None

    back = serve(handler)
    proxy = start(one({"address": back, "max_fails": 1, "fail_timeout": "60s"}))
    total, errors, bad = outcome(wrk(proxy.address, tmp_path, 4, 8), 30)
    assert total > 200 and (errors, bad) == (0, 0), (total, errors, bad)
    assert proxy.metric("ringgate_upstream_stale_connections_total") > 0, "nothing was tested"
    proxy.await_equal(names.SERVER_UP, 1)
    back.malformed.clear()


def test_half_open_server(start, origin):
    """Connects (the kernel accepts), never answers: 504, and with a second server 200 if asked for."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        text = "127.0.0.1:{}".format(silent.getsockname()[1])
        proxy = start(one(text, read_timeout="300ms"))
        begin = time.monotonic()
        assert get(proxy.address).status == 504
        assert time.monotonic() - begin > 0.25
        servers = [{"address": text, "max_fails": 1, "fail_timeout": "60s"}, {"address": origin}]
        proxy = start(one(*servers, read_timeout="1s", retry={"on_timeout": True}))
        assert [get(proxy.address).status for _ in range(6)] == [200] * 6
        proxy.await_metric(names.SERVER_FAILURES, 1, server=text)


@pytest.mark.slow
def test_log_rotation_under_load_loses_no_line(start, tmp_path):
    path = tmp_path / "access.log"
    with Nginx.origin(tmp_path / "nginx") as nginx:
        log = {"access": "combined", "access_file": str(path), "access_buffer": "4m"}
        proxy = start({**one(nginx), "log": log})
        load = wrk(proxy.address, tmp_path, 3, 8)
        for turn in range(4):
            time.sleep(0.4)
            path.rename(tmp_path / f"access.log.{turn}")
            proxy.signal(signal.SIGUSR1)
            eventually(path.exists)
        outcome(load, 30)
        # wrk leaves without its last answers: they are counted, and logged, when they are over.
        proxy.await_equal(names.CONNECTIONS, 0)
        requests = proxy.metric(names.REQUESTS)
        dropped = proxy.metric(names.LOG_DROPPED)
        proxy.stop()
    found = [line for file in tmp_path.glob("access.log*") for line in file.read_text().splitlines()]
    assert dropped == 0 and len(found) == requests > 100
    line_of = re.compile(r'127\.0\.0\.1 - - \[.*\] "GET / HTTP/1\.1" (200|499) \d+ "')
    statuses = [line_of.match(line)[1] for line in found]
    assert statuses.count("499") <= 8, "those that wrk left, one a connection"


def test_json_lines_parse_whatever_the_request_holds(start, origin, tmp_path):
    import json

    path = tmp_path / "access.log"
    proxy = start({**one(origin), "log": {"access": "json", "access_file": str(path)}})
    wires = [
        b'GET /%22"<>\\ HTTP/1.1\r\nHost: a.example\r\n\r\n',
        b"GET / HTTP/1.1\r\nHost: a.example\r\nUser-Agent: \xff\xfe\x80\"\\\r\nReferer: \t\"x\r\n\r\n",
        b"\x00\x01\x02 garbage\xff\r\n\r\n",
        b"GET /\x7f\x1b HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \xe2\x80\xa8\r\n\r\n",
    ]
    for wire in wires:
        with Client(proxy.address) as client:
            client.send(wire)
            client.read_response()
    eventually(lambda: len(path.read_bytes().splitlines()) == len(wires), 5)
    for line in path.read_bytes().split(b"\n")[:-1]:
        entry = json.loads(line.decode())
        assert isinstance(entry["status"], int) and "time" in entry, entry


def test_a_server_taken_out_is_told_everywhere(start, serve):
    a, b = serve(), serve()
    a.refuse()
    servers = [{"address": o, "max_fails": 1, "fail_timeout": "1s"} for o in (a, b)]
    proxy = start({**one(*servers), "log": {"format": "json"}})

    def state():
        found = {s["address"]: s["state"] for u in proxy.status()["upstreams"] for s in u["servers"]}
        return found[a.text], found[b.text]

    assert state() == ("up", "up")
    assert [get(proxy.address).status for _ in range(4)] == [200] * 4

    def told():
        """Within the second for which it is out; requests have it fail again after that."""
        up = proxy.metric(names.SERVER_UP, server=a.text, upstream="up")
        return get(proxy.address).status == 200 and up == 0 and state() == ("failed", "up")

    eventually(told)
    proxy.await_equal(names.SERVER_UP, 1, server=b.text, upstream="up")
    line = eventually(lambda: [x for x in proxy.log().splitlines() if "server is out" in x])[0]
    assert a.text in line and '"up"' in line
    a.listen()
    eventually(lambda: get(proxy.address).status == 200 and state() == ("up", "up"), 5)
    proxy.await_equal(names.SERVER_UP, 1, server=a.text)


def test_a_name_that_resolves_later(start, origin, tmp_path):
    """Started while a name is unknown; once the hosts file has it, requests go there; it may move."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    mount = 'mount --bind "$0" /etc/hosts && exec "$@"'
    prefix = [tool("unshare"), "-m", "sh", "-c", mount, hosts]
    config = one(f"later.ringgate.test:{origin.port}")
    proxy = start({**config, "node": {"resolve_interval": "1s"}}, prefix=prefix)
    assert get(proxy.address).status == 503
    (unknown,) = proxy.status()["upstreams"][0]["servers"]
    assert (unknown["state"], unknown["address"]) == ("unresolved", f"later.ringgate.test:{origin.port}"), unknown
    hosts.write_text("127.0.0.1 localhost later.ringgate.test\n")
    eventually(lambda: get(proxy.address).status == 200, 10)
    proxy.await_log("name resolved")
    stop, statuses = threading.Event(), []

    def keep_asking():
        with Client(proxy.address) as client:
            while not stop.is_set():
                statuses.append(client.ask(message()).status)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    # Unknown again: the addresses stay.
    hosts.write_text("127.0.0.1 localhost\n")
    eventually(lambda: "its addresses stay" in proxy.log().rpartition("name resolved")[2], 10)
    stop.set()
    asking.join(10)
    assert set(statuses) == {200}
