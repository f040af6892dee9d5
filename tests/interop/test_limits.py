"""Whatever runs out (descriptors, connections, buffers, CPUs, rights): decided, counted, survived."""

import contextlib
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness import Client, eventually, free_port, get, names, say
from harness.client import message, tool
from harness.proxy import binary, complete, one, run_once
from harness.tools import toml

ONE_SHARD = {"shards": 1, "pin": False, "drain_timeout": "5s"}


def used_cpu(proxy, seconds):
    """The share of one CPU that the proxy takes over a window: the thing measured."""
    before, begin = proxy.cpu(), time.monotonic()
    time.sleep(seconds)
    return (proxy.cpu() - before) / (time.monotonic() - begin)


def test_idle_costs_no_cpu(start, origin):
    """100 idle connections, half of them after a request, and idle ones to the server."""
    proxy = start(one(origin))
    idle = [Client(proxy.address) for _ in range(100)]
    for client in idle[::2]:
        assert client.ask(message()).status == 200
    eventually(lambda: proxy.metric(names.CONNECTIONS) == 100)
    assert used_cpu(proxy, 5) <= 0.01, "more than 1 % of a CPU while idle"
    for client in idle:
        client.close()


def start_short_of_files(start, config, more):
    """A proxy that can open this many descriptors beyond those it starts with."""
    first = start(config)
    eventually(lambda: first.metric(names.CONNECTIONS) == 0)
    # The figure settles once the connection that asked for readiness is gone.
    eventually(lambda: len({first.process.open_files() for _ in range(5)}) == 1)
    limit = first.process.open_files() + more
    first.stop()
    return start(config, nofile=limit)


def test_out_of_descriptors(start, origin):
    """EMFILE: accepting rests, counted, without spinning; servers are not blamed; it recovers."""
    node = {**ONE_SHARD, "shards": 2, "max_connections": 100_000}
    proxy = start_short_of_files(start, {**one(origin, keepalive=0), "node": node}, 12)
    assert "max_connections exceeds half the limit on open files" in proxy.log()
    clients = [Client(proxy.address) for _ in range(60)]
    for client in clients:
        client.send(message())
    eventually(lambda: "out of file descriptors" in proxy.log())
    assert used_cpu(proxy, 1) < 0.2, "spins at the file limit"
    answers = []
    # Who holds a descriptor was answered at once: served, or 503 when none was left for the server.
    for client in clients:
        if not client.silent(0.01):
            answers.append(client.read_response(timeout=2).status)
    assert answers and set(answers) <= {200, 503}, answers
    # Whoever waited in the listen queue is served as the others go, one after the other.
    while clients:
        clients.pop(0).close()
        if clients:
            eventually(lambda: not clients[-1].silent(0.01) or len(clients) > 12, 5)
    eventually(lambda: get(proxy.address, timeout=2).status == 200, 10)
    assert proxy.metric(names.NO_DESCRIPTORS) > 0
    assert proxy.metric(names.SERVER_CONNECT_FAILURES) == 0, "the server is not to blame"
    proxy.await_equal(names.SERVER_UP, 1)
    assert proxy.log().count("out of file descriptors") <= 4, "floods the log"


def test_clients_at_the_start_take_no_descriptors_of_shards(start, origin):
    """Each shard has its ring before any takes connections, however early clients come."""
    port = free_port()
    config = {
        **one(origin, keepalive=0),
        "node": {**ONE_SHARD, "shards": 8},
        "listener": [{"bind": f"127.0.0.1:{port}"}],
    }
    first = start(config)
    limit = first.process.open_files() + 4
    first.stop()
    ended = threading.Event()

    def connect():
        while not ended.is_set():
            with contextlib.suppress(OSError):
                with socket.create_connection(("127.0.0.1", port), 1) as client:
                    client.settimeout(0.2)
                    client.recv(1)

    with ThreadPoolExecutor(16) as pool:
        for _ in range(16):
            pool.submit(connect)
        try:
            proxy = start(config, nofile=limit, ready=False)
            eventually(lambda: "out of file descriptors" in proxy.log())
        finally:
            ended.set()
    eventually(lambda: get(proxy.address, timeout=2).status == 200, 10)


def test_too_few_descriptors_to_start_is_said(tmp_path, origin):
    """Nothing is served by half of the shards: exit code 1 and the fix."""
    file = tmp_path / "ringgate.toml"
    file.write_text(toml(complete({**one(origin), "node": {**ONE_SHARD, "shards": 8}})))
    ended = run_once("run", file, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)))
    assert ended.returncode == 1 and "LimitNOFILE" in ended.stderr, ended
    assert "serving" not in ended.stderr, ended


def test_no_descriptor_for_the_server_is_our_503(start, serve):
    """Clients hold all descriptors: their requests get 503, and no server is taken out."""
    a, b = serve(), serve()
    servers = [{"address": o, "max_fails": 1, "fail_timeout": "60s"} for o in (a, b)]
    config = {**one(*servers), "node": {**ONE_SHARD, "max_connections": 100_000}}
    proxy = start_short_of_files(start, config, 4)
    clients = [Client(proxy.address) for _ in range(12)]
    eventually(lambda: "out of file descriptors" in proxy.log())
    limit = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)[0]

    def nothing_is_free():
        """For longer than accepting rests: a descriptor that came free has a client again."""
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            if proxy.process.open_files() < limit:
                return False
        return True

    eventually(nothing_is_free)
    first = clients[0]
    assert [first.ask(message()).status for _ in range(3)] == [503] * 3
    for client in clients[1:]:
        client.close()
    eventually(lambda: first.ask(message()).status == 200)
    first.close()
    assert proxy.metric(names.CONNECTS_EXHAUSTED) >= 3
    assert proxy.metric(names.SERVER_CONNECT_FAILURES) == 0
    proxy.await_equal(names.SERVER_UP, 2)


def test_default_limit_leaves_room_for_server_connections(start, serve):
    """With a low file limit and no max_connections, nobody is refused: clients wait their turn."""
    def slow(connection):
        for _ in connection.requests():
            time.sleep(0.05)
            connection.send(say())

    proxy = start(one(serve(slow)), nofile=128)
    with ThreadPoolExecutor(60) as pool:
        statuses = list(pool.map(lambda _: get(proxy.address).status, range(120)))
    assert statuses == [200] * 120
    assert proxy.metric(names.AT_LIMIT) > 0
    assert proxy.metric(names.NO_DESCRIPTORS) == 0


def test_max_connections_is_global_and_others_wait(start, origin):
    """Eight are served whichever shards they fall on; more wait in the listen queue, unanswered."""
    proxy = start({**one(origin), "node": {**ONE_SHARD, "shards": 2, "max_connections": 8}})
    clients = [Client(proxy.address) for _ in range(8)]
    for client in clients:
        assert client.ask(message()).status == 200
    files = proxy.process.open_files()
    late = [Client(proxy.address) for _ in range(40)]
    for client in late:
        client.send(message())
    assert all(client.silent(0.02) for client in late)
    assert proxy.process.open_files() <= files + 2, "accepted, though not served"
    assert len(origin.requests) == 8
    assert get(proxy.admin, "/readyz").status == 200, "the admin listener is not limited"
    assert used_cpu(proxy, 1) < 0.05, "spins at the limit"
    for client in clients:
        client.close()
    waiting = list(late)
    deadline = time.monotonic() + 60
    while waiting and time.monotonic() < deadline:
        ready = [client for client in waiting if not client.silent(0.01)]
        for client in ready:
            assert client.read_response().status == 200
            client.close()
            waiting.remove(client)
    assert not waiting and proxy.metric(names.AT_LIMIT) >= 1
    eventually(lambda: proxy.metric(names.CONNECTIONS) == 0)


def unsent(port):
    """Bytes that the kernel holds for clients of this port and has not sent."""
    lines = subprocess.run([tool("ss"), "-Htin", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
    return sum(int(number) for number in re.findall(r"notsent:(\d+)", lines))


def test_the_kernel_is_given_little_that_a_client_does_not_take(start, serve):
    """A send buffer takes megabytes over loopback, in segments as small as the client's window allows."""
    body = b"x" * (8 << 20)

    def handler(connection):
        for _ in connection.requests():
            connection.send(say(200, body))

    proxy = start({**one(serve(handler)), "node": ONE_SHARD})
    with Client(proxy.address, rcvbuf=4096) as slow:
        slow.send(message("GET", "/"))
        port = proxy.address[1]
        eventually(lambda: unsent(port) >= 16 << 10, 10, "what the client does not take waits")
        seen = [unsent(port) for _ in range(20)]
        assert max(seen) <= 256 << 10, seen
        answer = slow.read_response(timeout=30)
    assert (answer.status, len(answer.body)) == (200, len(body))


SLOW = 60  # connections
LARGE = 32 << 20  # more than the kernel ever keeps of a transfer, on both sides of the proxy


def crowd_of_readers(address, _):
    """Clients that ask for a large body and read nothing of it."""
    clients = [Client(address, 60, rcvbuf=4096) for _ in range(SLOW)]
    for client in clients:
        client.send(message("GET", "/large"))
    return clients, None


def crowd_of_senders(address, over):
    """Clients that send a large body, as it is taken, to a server that reads nothing of it."""
    clients = [Client(address, 60) for _ in range(SLOW)]
    left = {client.sock: LARGE for client in clients}
    for client in clients:
        client.send(b"POST /large HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % LARGE)
        client.sock.setblocking(False)

    def push():
        while not over.is_set():
            _, writable, _ = select.select([], [sock for sock, rest in left.items() if rest], [], 0.05)
            for sock in writable:
                left[sock] -= sock.send(b"x" * min(65536, left[sock]))

    pusher = threading.Thread(target=push)
    pusher.start()
    return clients, pusher


@pytest.mark.parametrize("crowd", [crowd_of_readers, crowd_of_senders])
def test_slow_ones_leave_buffers_to_others(start, serve, crowd):
    """128 buffers, and 60 transfers of 2,048 buffers each that nobody takes: others' requests complete meanwhile."""
    begun, ended, over, large = [], [], threading.Event(), b"l" * LARGE

    def handler(connection):
        while (r := connection.read_head(60)).target != "/large":
            connection.send(say(200, b"o" * 65536))
        begun.append(r)
        if r.method == "POST":
            over.wait(60)
        else:
            with contextlib.suppress(OSError):
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE)
                connection.send(large)
        ended.append(r)

    node = {**ONE_SHARD, "receive_buffers": 64, "buffer_memory": "2m"}
    http = {"client_max_body_size": "64m"}
    proxy = start({**one(serve(handler, timeout=60), http=http), "node": node})
    slow, pusher = crowd(proxy.address, over)
    try:
        eventually(lambda: len(begun) == SLOW, 20, "all of them are under way")
        proxy.await_metric(names.BUFFERS_USED, SLOW // 2)
        for _ in range(20):
            answer = get(proxy.address, timeout=20)
            assert (answer.status, len(answer.body)) == (200, 65536)
        assert not ended, "none of the slow ones was over before"
    finally:
        over.set()
        if pusher:
            pusher.join()
        for client in slow:
            client.close()
    proxy.await_equal(names.BUFFERS_USED, 0, 20)


def test_out_of_receive_buffers(start, serve):
    """Slow readers hold every buffer: no spinning, no growth; once they go, others are served."""
    body = b"x" * (1 << 20)

    def handler(connection):
        for r in connection.requests():
            connection.send(say(200, body if r.target == "/big" else b"ok"))

    back = serve(handler)
    node = {**ONE_SHARD, "receive_buffers": 16, "buffer_memory": "256k"}
    proxy = start({**one(back, keepalive=0), "node": node})
    for _ in range(20):
        assert get(proxy.address).status == 200
    base = proxy.rss()
    slow = [Client(proxy.address, rcvbuf=4096) for _ in range(40)]
    for client in slow:
        client.send(message("GET", "/big"))
    proxy.await_metric(names.BUFFERS_EXHAUSTED, 1)
    proxy.await_metric(names.BUFFERS_RELIEVED, 1)
    assert used_cpu(proxy, 2) < 0.2, "spins without buffers"
    before = proxy.metric(names.BUFFERS_EXHAUSTED)
    time.sleep(1)  # the window in which the counter must stand still
    assert proxy.metric(names.BUFFERS_EXHAUSTED) - before < 50, "tries again and again"
    assert proxy.rss() - base < 16 << 20, "grows"
    for client in slow[20:]:
        client.close()
    for client in slow[:20]:
        answer = client.read_response(timeout=30)
        assert (answer.status, len(answer.body)) == (200, len(body))
    assert [get(proxy.address).status for _ in range(20)] == [200] * 20
    for client in slow:
        client.close()
    proxy.await_equal("ringgate_ring_buffers", 16)


def test_stuck_access_log_stalls_nothing(start, origin, tmp_path):
    """A FIFO that nobody reads: requests go on, lines are dropped and counted, and it still ends."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        log = {"access": "json", "access_file": str(fifo), "access_buffer": "16k"}
        proxy = start({**one(origin), "log": log})
        # The client's patience is the mark: nobody will ever read the log.
        with Client(proxy.address) as client:
            for _ in range(2000):
                assert client.ask(message("GET", "/" + "x" * 200)).status == 200
        proxy.await_metric(names.LOG_DROPPED, 500)
        assert used_cpu(proxy, 1) < 0.05
        proxy.stop()
    finally:
        os.close(reader)


def test_small_log_buffer_drops_nothing_while_the_file_takes_it(start, origin, tmp_path):
    path = tmp_path / "access.log"
    log = {"access": "combined", "access_file": str(path), "access_buffer": "8k"}
    proxy = start({**one(origin), "node": ONE_SHARD, "log": log})
    with Client(proxy.address) as client:
        for _ in range(1000):
            client.ask(message("GET", "/" + "x" * 100))
    eventually(lambda: len(path.read_text().splitlines()) == 1000, 5)
    assert proxy.metric(names.LOG_DROPPED) == 0


def test_log_fifo_without_reader_is_told(tmp_path, origin):
    """Opening it would wait for ever."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    file = tmp_path / "ringgate.toml"
    log = {"access": "combined", "access_file": str(fifo)}
    file.write_text(toml(complete({**one(origin), "log": log})))
    done = run_once("run", file)
    assert done.returncode == 1 and str(fifo) in done.stderr and "reads" in done.stderr, done.stderr


@pytest.mark.parametrize("which", ["listener", "admin"])
def test_address_in_use(tmp_path, origin, which):
    """Exit code 1, and the message names the address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        address = "{}:{}".format(*taken.getsockname())
        config = one(origin)
        config |= {"listener": [{"bind": address}]} if which == "listener" else {"admin": {"bind": address}}
        file = tmp_path / "ringgate.toml"
        file.write_text(toml(complete(config)))
        done = run_once("run", file)
        assert done.returncode == 1 and address in done.stderr, (done.returncode, done.stderr)


def test_two_instances_do_not_share_an_address(start, origin, tmp_path):
    """SO_REUSEPORT would let a second one take half of the connections."""
    proxy = start(one(origin))
    config = complete({**one(origin), "listener": [{"bind": proxy.config["listener"][0]["bind"]}]})
    file = tmp_path / "second.toml"
    file.write_text(toml(config))
    done = run_once("run", file)
    assert done.returncode == 1 and config["listener"][0]["bind"] in done.stderr, done.stderr


@pytest.mark.parametrize("shards, expected", [("auto", 1), (2, 2)])
@pytest.mark.parametrize("pin", [True, False])
def test_one_cpu(start, origin, shards, expected, pin):
    cpu = min(os.sched_getaffinity(0))
    node = {"shards": shards, "pin": pin, "drain_timeout": "2s"}
    proxy = start({**one(origin), "node": node}, affinity={cpu})
    clients = [Client(proxy.address) for _ in range(20)]
    for _ in range(10):
        for client in clients:
            client.send(message())
        for client in clients:
            assert client.read_response().status == 200
    proxy.await_equal(names.CONNECTIONS, 20)
    assert len({labels["shard"] for name, labels, _ in proxy.metrics() if name == names.CONNECTIONS}) == expected
    for client in clients:
        client.close()


def test_unprivileged_with_little_locked_memory(start):
    """User 65534, 8 MiB of lockable memory, samples served by itself as `run --demo` does."""
    directory = Path(tempfile.mkdtemp(prefix="ringgate-nobody-"))
    try:
        directory.chmod(0o755)
        program = shutil.copy(binary(), directory / "ringgate")
        prefix = [
            tool("prlimit"), f"--memlock={8 << 20}:{8 << 20}",
            tool("setpriv"), "--reuid", "65534", "--regid", "65534", "--clear-groups",
            "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs",
            "sh", "-c", f'exec "$0" run "{directory}/ringgate.toml"', program,
        ]
        ports = [free_port() for _ in range(3)]
        config = {
            "node": {"shards": "auto", "pin": True, "drain_timeout": "2s"},
            "listener": [{"name": f"l{n}", "bind": f"127.0.0.1:{port}"} for n, port in enumerate(ports)],
            "route": [
                {"listeners": ["l1"], "respond": {"body": "1"}},
                {"listeners": ["l2"], "respond": {"body": "2"}},
                {"listeners": ["l0"], "upstream": "samples"},
            ],
            "upstream": {"samples": {"servers": [{"address": f"127.0.0.1:{port}"} for port in ports[1:]]}},
        }
        Path(directory / "ringgate.toml").write_text(toml(config := complete(config)))
        proxy = start(config, prefix=prefix)
        assert Path(f"/proc/{proxy.pid}").stat().st_uid == 65534
        assert {get(proxy.address).body for _ in range(20)} == {b"1", b"2"}
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
    finally:
        shutil.rmtree(directory)
