"""Limits for each client address, and what attackers who hold connections do to everybody else."""

import re
import statistics
import threading
import time

import pytest

from harness import Client, eventually, get
from harness.client import message, run, url
from harness.proxy import one

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
OTHER = "127.0.0.2"


def test_connections_of_one_address(start, origin):
    proxy = start({**one(origin), "limits": {"connections": 3, "exempt": ["127.0.0.9"]}})
    held = [Client(proxy.address) for _ in range(3)]
    for client in held:
        assert client.ask(GET).status == 200
    with Client(proxy.address) as client:
        answer = client.read_response(timeout=5)
        assert answer.status == 429 and client.closed()
    with Client(proxy.address, source=OTHER) as client:
        assert client.ask(GET).status == 200, "another address"
    for client in [Client(proxy.address, source="127.0.0.9") for _ in range(8)]:
        assert client.ask(GET).status == 200, "exempt"
        client.close()
    proxy.await_equal("ringgate_client_connections_refused_total", 1)
    eventually(lambda: "a client address is limited" in proxy.log(), 5)
    held.pop().close()
    eventually(lambda: get(proxy.address).status == 200, 5, "a place is free again")
    for client in held:
        client.close()


def test_connections_are_counted_over_all_shards(start, origin):
    proxy = start({**one(origin), "node": {"shards": 4}, "limits": {"connections": 20, "status": 503}})
    clients = [Client(proxy.address) for _ in range(40)]
    statuses = []
    for client in clients:
        try:
            statuses.append(client.ask(GET).status)
        except (ConnectionError, BrokenPipeError):
            statuses.append(503)
    assert statuses.count(200) == 20 and statuses.count(503) == 20, statuses
    for client in clients:
        client.close()


def test_request_rate(start, origin):
    proxy = start({
        **one(origin, http={"trusted_proxies": ["127.0.0.3"]}),
        "limits": {"request_rate": 1, "request_burst": 4},
    })
    with Client(proxy.address) as client:
        began = time.monotonic()
        statuses = [client.ask(GET).status for _ in range(8)]
        earned = int(time.monotonic() - began) + 1  # on a machine that took seconds for this
        assert statuses[:4] == [200] * 4 and 4 <= statuses.count(200) <= 4 + earned, statuses
        assert statuses.count(200) + statuses.count(429) == 8, statuses
    with Client(proxy.address, source=OTHER) as client:
        assert client.ask(GET).status == 200, "another address"
    proxy.await_equal("ringgate_client_requests_refused_total", statuses.count(429))
    # Behind a trusted proxy the client is who that says.
    with Client(proxy.address, source="127.0.0.3") as client:
        for number in range(6):
            assert client.ask(message(headers={"X-Forwarded-For": f"192.0.2.{number}"})).status == 200
        statuses = [client.ask(message(headers={"X-Forwarded-For": "2001:db8::%x" % n})).status for n in range(20)]
        assert 429 in statuses, "one /64 is one client"


def test_streams_of_http2_are_requests(start, origin):
    proxy = start({**one(origin), "listener": [{"http2": True}], "limits": {"request_rate": 1, "request_burst": 4}})
    began = time.monotonic()
    done = run("h2load", "-n", "9", "-c", "1", "-m", "3", url(proxy.address))
    earned = int(time.monotonic() - began)  # one more for each second that this took
    good, bad = map(int, re.search(r"status codes: (\d+) 2xx, 0 3xx, (\d+) 4xx, 0 5xx", done.stdout).groups())
    assert good + bad == 9 and 4 <= good <= 4 + earned and bad, done.stdout
    proxy.await_equal("ringgate_client_requests_refused_total", bad)


def test_slow_uploads_are_given_up(start, origin):
    proxy = start({**one(origin), "limits": {"min_upload_rate": 10_000, "rate_grace": "300ms"}})
    with Client(proxy.address) as client:
        assert client.ask(message("POST", "/", body=b"x" * 200_000)).status == 200
    with Client(proxy.address) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        over = threading.Event()

        def drip():
            while not over.wait(0.02):
                try:
                    client.sock.send(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        assert client.read_response(timeout=10).status == 408, "progress alone does not do"
        over.set()
        thread.join(5)
    proxy.await_equal("ringgate_client_slow_total", 1)


def test_a_slow_server_is_not_the_clients_fault(start, serve):
    taken = threading.Event()

    def slow(connection):
        request = connection.read_head()
        taken.wait(2)
        connection.read_body(request)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    origin = serve(slow)
    proxy = start({**one(origin, http={"client_max_body_size": "64m"}),
                   "limits": {"min_upload_rate": 1_000_000, "rate_grace": "500ms"}})
    timer = threading.Timer(1.5, taken.set)
    timer.start()
    with Client(proxy.address, timeout=30) as client:
        assert client.ask(message("POST", "/", body=b"x" * (24 << 20))).status == 200
    timer.join()


def test_slow_reads_are_given_up(start, serve):
    big = b"x" * (24 << 20)

    def answer(connection):
        for _ in connection.requests():
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(big))
            connection.send(big)

    proxy = start({**one(serve(answer)), "limits": {"min_download_rate": "200k", "rate_grace": "1s"}})
    assert get(proxy.address, timeout=30).body == big
    with Client(proxy.address, rcvbuf=4096) as client:
        client.send(GET)
        end = time.monotonic() + 20
        with pytest.raises((ConnectionError, EOFError)):
            while time.monotonic() < end:
                if not client.sock.recv(512):
                    raise EOFError
                time.sleep(0.01)
    proxy.await_equal("ringgate_client_slow_total", 1)


class Bystander:
    """Requests from an address of its own, each on a new connection; their times."""

    def __init__(self, address):
        self.address, self.times, self.failures = address, [], []
        self.over = threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join(20)

    def _work(self):
        while not self.over.is_set():
            begin = time.monotonic()
            try:
                with Client(self.address, timeout=3, source=OTHER) as client:
                    assert client.ask(GET).status == 200
                self.times.append(time.monotonic() - begin)
            except (OSError, AssertionError, EOFError) as error:
                self.failures.append(repr(error))
            time.sleep(0.005)

    def median(self):
        return statistics.median(self.times)


ATTACKS = {
    "slowloris": ["-H", "-i", "1"],
    "slow body": ["-B", "-i", "1", "-s", "65536"],
    "slow read": ["-X", "-w", "512", "-y", "1024", "-n", "1", "-z", "32", "-k", "3"],
}


def under_attack(address, kind, connections=600):
    """The bystander's times alone and beside the attack, and the tool's last words."""
    with Bystander(address) as calm:
        eventually(lambda: len(calm.times) >= 50, 20)
    with Bystander(address) as shaken:
        done = run(
            "slowhttptest", *ATTACKS[kind], "-c", connections, "-r", "300", "-l", "5", "-p", "3",
            "-u", url(address), timeout=40, check=False,
        )  # fmt: skip
        eventually(lambda: len(shaken.times) + len(shaken.failures) >= 50, 30)
    return calm, shaken, done.stdout


@pytest.mark.parametrize("kind", ATTACKS)
def test_attackers_do_not_disturb_others(start, serve, tmp_path, kind):
    page = b"x" * 65536

    def answer(connection):
        for _ in connection.requests():
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(page) + page)

    proxy = start({
        **one(serve(answer)),
        "limits": {"connections": 50, "min_upload_rate": "1k", "min_download_rate": "1k", "rate_grace": "2s"},
    })
    calm, shaken, words = under_attack(proxy.address, kind)
    assert not shaken.failures, shaken.failures[:5]
    assert proxy.metric("ringgate_client_connections_refused_total") > 100, words[-2000:]
    ratio = shaken.median() / calm.median()
    print(f"{kind}: median of others {shaken.median() * 1000:.2f} ms, {ratio:.2f} of calm")
    # 600 attackers may cost something while they come; what is asserted is that nobody waits for them, who are
    # given up after two seconds.
    assert ratio < 10 or shaken.median() < 0.2
