"""Logs, metrics, the admin listener, limits and signals."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from harness import Client, eventually, get, names, request
from harness.client import message
from harness.proxy import Proxy, one


def lines(path, count):
    """The file's lines once there are `count`."""
    eventually(lambda: len(path.read_text().splitlines()) >= count, 5, f"{count} lines in {path}")
    return path.read_text().splitlines()


COMBINED = re.compile(
    r'(\S+) - (\S+) \[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\] "([^"]*)" (\d{3}) (\d+|-) "([^"]*)" "([^"]*)"\Z'
)


def test_combined_access_log(start, origin, tmp_path):
    path = tmp_path / "access.log"
    # One shard: each writes its lines by itself.
    proxy = start({**one(origin), "node": {"shards": 1}, "log": {"access": "combined", "access_file": str(path)}})
    get(proxy.address, "/a?b", headers={"Referer": "http://r/", "User-Agent": "agent/1"})
    get(proxy.address, "/q", headers={"User-Agent": 'a"b\\c'})
    first, second = lines(path, 2)
    match = COMBINED.match(first)
    assert match, first
    assert match[1] == "127.0.0.1" and match[4] == "GET /a?b HTTP/1.1"
    assert (match[5], match[6], match[7], match[8]) == ("200", "2", "http://r/", "agent/1")
    assert COMBINED.match(second), f"a quote in a value must not break the line: {second}"


def test_json_access_log(start, origin, tmp_path):
    path = tmp_path / "access.log"
    proxy = start({**one(origin), "node": {"shards": 1}, "log": {"access": "json", "access_file": str(path)}})
    get(proxy.address, "/a?b", headers={"User-Agent": 'q"\\\t\xff'})
    request(proxy.address, "POST", "/p", body=b"x" * 2000000)
    entries = [json.loads(line) for line in lines(path, 2)]
    assert [e["status"] for e in entries] == [200, 413]
    text = json.dumps(entries[0])
    for part in ("/a?b", "GET", "127.0.0.1", origin.text, origin.request.header("x-request-id")):
        assert part in text, part


def test_access_log_on_stdout(start, origin):
    proxy = start({**one(origin), "log": {"access": "combined", "access_file": "stdout"}})
    get(proxy.address, "/on-stdout")
    eventually(lambda: "GET /on-stdout HTTP/1.1" in proxy.log())


def test_access_log_off(start, origin):
    proxy = start({**one(origin), "log": {"level": "info"}})
    get(proxy.address, "/not-logged")
    proxy.stop()
    assert "/not-logged" not in proxy.log()


def test_sigusr1_reopens_the_access_log(start, origin, tmp_path):
    path, moved = tmp_path / "access.log", tmp_path / "access.log.1"
    proxy = start({**one(origin), "log": {"access": "combined", "access_file": str(path)}})
    get(proxy.address, "/before")
    assert "/before" in lines(path, 1)[0]
    path.rename(moved)
    proxy.signal(signal.SIGUSR1)
    eventually(path.exists, 5)
    get(proxy.address, "/after")
    assert "/after" in lines(path, 1)[0]
    assert "/after" not in moved.read_text() and "/before" not in path.read_text()


def test_sigusr1_without_a_log_and_sighup_end_nothing(start, origin):
    proxy = start(one(origin))
    for number in (signal.SIGUSR1, signal.SIGHUP):
        proxy.signal(number)
    eventually(lambda: "SIGHUP" in proxy.log())
    assert get(proxy.address).status == 200


def test_sigusr1_when_the_log_cannot_be_opened(start, origin, tmp_path):
    """It says so and goes on with the old file."""
    directory = tmp_path / "logs"
    directory.mkdir()
    path = directory / "access.log"
    proxy = start({**one(origin), "log": {"access": "combined", "access_file": str(path)}})
    directory.rename(tmp_path / "moved")
    proxy.signal(signal.SIGUSR1)
    eventually(lambda: "log not reopened" in proxy.log())
    get(proxy.address, "/still")
    assert "/still" in lines(tmp_path / "moved/access.log", 1)[0]


def test_many_admin_clients_wait_their_turn(start, origin):
    proxy = start(one(origin))
    clients = [Client(proxy.admin) for _ in range(100)]
    for client in clients:
        assert client.ask(message("GET", "/healthz")).status == 200
        client.close()


def test_full_access_log_drops_and_counts(start, origin, tmp_path):
    """A FIFO nobody reads: requests go on, lines are dropped and counted."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        log = {"access": "json", "access_file": str(fifo), "access_buffer": "4k"}
        proxy = start({**one(origin), "log": log})
        with Client(proxy.address) as client:
            for _ in range(2000):
                assert client.ask(message("GET", "/" + "x" * 200)).status == 200
        proxy.await_metric(names.LOG_DROPPED, 1)
    finally:
        os.close(reader)


@pytest.mark.parametrize("format", ["text", "json"])
def test_log_format(start, origin, format):
    proxy = start({**one(origin), "log": {"format": format, "level": "info"}})
    proxy.stop()
    found = [line for line in proxy.log().splitlines() if line]
    assert found, "a start and a stop are worth a line"
    for line in found:
        if format == "json":
            assert isinstance(json.loads(line), dict)


def test_health_and_readiness(start, origin):
    proxy = start(one(origin))
    assert get(proxy.admin, "/healthz").status == 200
    assert get(proxy.admin, "/readyz").status == 200
    assert get(proxy.admin, "/else").status == 404
    assert request(proxy.admin, "POST", "/healthz", body=b"").status in (404, 405)
    assert request(proxy.admin, "HEAD", "/healthz").body == b""


def test_not_ready_while_draining(start, serve):
    back = serve(lambda c: c.read_request() and c.stall(10))
    proxy = start(one(back))
    with Client(proxy.address) as client:
        client.send(message())
        eventually(lambda: back.requests)
        proxy.signal(signal.SIGTERM)
        eventually(lambda: get(proxy.admin, "/readyz", timeout=2).status == 503, 4)
        back.drop_connections()
        client.read_until_eof(6)
    assert proxy.wait() == 0


def test_metrics_agree_with_what_was_sent(start, serve):
    good = serve()
    proxy = start({
        "route": [{"path": "/own", "respond": {"status": 404}}, {"upstream": "up"}],
        "upstream": {"up": {"servers": [{"address": good.text}]}},
    })
    with Client(proxy.address) as client:
        for _ in range(30):
            client.ask(message())
        for _ in range(7):
            client.ask(message("GET", "/own"))
        proxy.await_metric(names.REQUESTS, 37)
        server = {"upstream": "up", "server": good.text}
        proxy.await_equal(names.SERVER_RESPONSES, 30, **server, **{"class": "2xx"})
        proxy.await_equal(names.SERVER_RESPONSES, 30)
        proxy.await_equal(names.UPSTREAM_REQUESTS, 30, upstream="up", **{"class": "2xx"})
        proxy.await_equal(names.REQUESTS, 37, listener="web")
        proxy.await_equal(names.REQUESTS, 7, **{"class": "4xx"})
        proxy.await_equal(names.DURATION + "_count", 30, upstream="up")
        proxy.await_equal(names.DURATION + "_bucket", 30, le="+Inf")
        proxy.await_equal(names.CONNECTIONS, 1)
        proxy.await_equal(names.SERVER_OPENED, len(good.connections), **server)
        proxy.await_equal(names.SERVER_REUSED, 30 - len(good.connections), **server)
    eventually(lambda: proxy.metric(names.CONNECTIONS) == 0)
    with Client(proxy.address) as client:
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        assert client.read_response().status == 400
    eventually(lambda: proxy.metric(names.REQUESTS, **{"class": "4xx"}) == 8)
    proxy.await_equal(names.REFUSED, 1)


def test_metrics_buckets_are_cumulative(start, origin):
    proxy = start(one(origin))
    for _ in range(5):
        get(proxy.address)
    series = {}
    for name, labels, value in proxy.metrics():
        if name == names.DURATION + "_bucket":
            key = tuple(sorted((k, v) for k, v in labels.items() if k != "le"))
            series.setdefault(key, []).append((float(labels["le"]), value))
    assert series
    for buckets in series.values():
        counts = [value for _, value in sorted(buckets)]
        assert counts == sorted(counts) and sorted(buckets)[-1][0] == float("inf")


def test_connections_by_shard(start, origin):
    proxy = start(one(origin))
    clients = [Client(proxy.address) for _ in range(40)]
    eventually(lambda: proxy.metric(names.CONNECTIONS) == 40)
    shards = {labels["shard"] for name, labels, _ in proxy.metrics() if name == names.CONNECTIONS}
    assert len(shards) == 2
    for client in clients:
        client.close()
    eventually(lambda: proxy.metric(names.CONNECTIONS) == 0)


def test_status(start, origin):
    proxy = start(one(origin))
    get(proxy.address)
    text = json.dumps(proxy.status())
    assert "up" in text and origin.text in text and "version" in text


def test_no_descriptor_is_leaked(start, origin):
    proxy = start(one(origin, keepalive=0))
    get(proxy.address)
    eventually(lambda: proxy.metric(names.CONNECTIONS) == 0)
    before = proxy.process.open_files()
    for n in range(100):
        with Client(proxy.address) as client:
            if n % 3 == 0:
                client.send(b"GET / HTT")
            elif n % 3 == 1:
                client.ask(message())
            else:
                client.send(message())
                client.reset()
    eventually(lambda: proxy.metric(names.CONNECTIONS) == 0)
    eventually(lambda: proxy.process.open_files() <= before + 2, 5)


def test_admin_off(start, origin):
    proxy = start({**one(origin), "admin": {"bind": "off"}})
    assert get(proxy.address).status == 200


def test_sigint_ends_cleanly(start, origin):
    proxy = start(one(origin))
    proxy.signal(signal.SIGINT)
    assert proxy.wait() == 0


@pytest.mark.parametrize("shards", [1, 2, "auto", "0"])
def test_shard_counts(start, origin, shards):
    proxy = start({**one(origin), "node": {"shards": shards, "pin": True, "drain_timeout": "2s"}})
    assert get(proxy.address).status == 200


def test_single_cpu_affinity(start, origin):
    cpu = min(os.sched_getaffinity(0))
    proxy = start({**one(origin), "node": {"shards": "auto", "drain_timeout": "2s"}}, affinity={cpu})
    assert get(proxy.address).status == 200
    assert len({labels["shard"] for name, labels, _ in proxy.metrics() if name == names.CONNECTIONS}) == 1


@pytest.fixture
def cpuset():
    """A cgroup whose processes may use one CPU, by its hierarchy's version; gives (directory, CPU)."""
    cpu = max(os.sched_getaffinity(0))
    name = f"ringgate-test-{os.getpid()}"
    v1 = Path("/sys/fs/cgroup/cpuset")
    group = (v1 if v1.is_dir() else Path("/sys/fs/cgroup")) / name
    try:
        if not v1.is_dir():
            Path("/sys/fs/cgroup/cgroup.subtree_control").write_text("+cpuset")
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        (group / "cpuset.mems").write_text("0")
        (group / "cpuset.cpus").write_text(str(cpu))
        yield group, cpu
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text(), 10, "an empty cgroup")
        group.rmdir()


def test_shards_keep_to_the_cpuset(tmp_path, origin, cpuset):
    """`auto` is one shard for each CPU of the cpuset, pinned there; a list beyond it is an error."""
    group, cpu = cpuset
    inside = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    node = {"shards": "auto", "pin": True, "drain_timeout": "2s"}
    with Proxy({**one(origin), "node": node}, tmp_path / "auto", prefix=inside) as proxy:
        assert get(proxy.address).status == 200
        shards = {labels["shard"] for name, labels, _ in proxy.metrics() if name == names.CONNECTIONS}
        assert len(shards) == 1
        assert f"cpus={cpu} " in proxy.log()
        threads = Path(f"/proc/{proxy.pid}/task").iterdir()
        assert {frozenset(os.sched_getaffinity(int(thread.name))) for thread in threads} == {frozenset({cpu})}
    outside = {"shards": "0-63", "drain_timeout": "2s"}
    with Proxy({**one(origin), "node": outside}, tmp_path / "list", ready=False, prefix=inside) as refused:
        assert refused.wait() != 0
        assert "cpuset" in refused.log() and f"[{cpu}]" in refused.log()


def test_ipv6_listener(start, origin):
    from harness import free_port

    proxy = start({**one(origin), "listener": [{"bind": f"[::1]:{free_port()}"}]})
    get(proxy.address)
    assert origin.request.header("x-real-ip") == "::1"
