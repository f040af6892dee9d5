"""Reload in place: what the file changes is changed, and nothing else notices."""

import json
import os
import re
import signal
import socket
import threading
import time

import pytest

from harness import Client, Deadline, Origin, Proxy, eventually, get, say
from harness.client import message
from harness.lan import Lan, Ringgate
from harness.lan import Load as LanLoad
from harness.process import Process
from harness.proxy import binary, run_once, upstream
from harness.tools import free_port, rss_bytes, toml

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
WEBSOCKET = (
    b"GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
RELOADS = int(os.environ.get("RELOADS", "150"))
WEBSOCKETS = int(os.environ.get("WEBSOCKETS", "20"))


class Reloadable(Proxy):
    """A proxy whose file can be changed while it runs."""

    def __init__(self, config, directory, watch=False, **more):
        directory.mkdir(parents=True, exist_ok=True)
        self.socket = directory / "admin.sock"
        admin = {"bind": f"127.0.0.1:{free_port()}", "socket": str(self.socket)}
        super().__init__({**config, "admin": admin}, directory, **more)
        self.watch = watch

    def start(self):
        self.file = self.directory / "ringgate.toml"
        self.file.write_text(toml(self.config))
        log = self.directory / "ringgate.log"
        argv = [binary(), "run", *(["--watch"] if self.watch else []), self.file]
        self.process = Process(argv, log, cwd=self.directory, **self.process_options)
        self.process.await_ready(self.is_ready)

    def write(self, change):
        """Changes the configuration (in place, by `change`) and the file (as a whole)."""
        change(self.config)
        self.write_text(toml(self.config))

    def write_text(self, text):
        beside = self.file.with_suffix(".new")
        beside.write_text(text)
        beside.rename(self.file)

    def ctl(self, *args):
        return run_once("ctl", "--socket", self.socket, "reload", *args)

    def reload(self, change):
        """A change that must be put in force; the words for it."""
        self.write(change)
        done = self.ctl()
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def post(self, target="/reload"):
        """The same without a process of its own."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(self.socket))
            sock.sendall(f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)

    def generation(self):
        return self.status()["configuration"]["generation"]


def web(*servers, **more):
    return {
        "route": [
            {"path": "/v", "respond": {"status": 200, "body": "one"}},
            {"upstream": "up"},
        ],
        "upstream": {"up": upstream(*servers)},
        **more,
    }


def set_body(text):
    def change(config):
        config["route"][0]["respond"]["body"] = text

    return change


def echo(connection):
    """Answers anything; a WebSocket echoes, `/long` trickles for as long as somebody reads."""
    for request in connection.requests():
        if request.header("upgrade"):
            connection.send(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            )
            while True:
                data = connection.sock.recv(4096)
                if not data:
                    return
                connection.sock.sendall(data)
        elif request.target == "/long":
            connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while not connection.origin.enough.is_set():
                connection.send(b"4\r\nwait\r\n")
                time.sleep(0.01)
            connection.send(b"0\r\n\r\n")
        else:
            connection.send(say(200, connection.origin.name))


def origin_of(name):
    origin = Origin(echo, timeout=120)
    origin.name, origin.enough = name, threading.Event()
    return origin


class Load:
    """Requests without a pause on kept connections and on new ones; everything that goes wrong is noted."""

    def __init__(self, address, kept=4, fresh=2):
        self.address, self.over = address, threading.Event()
        self.failures, self.served = [], [0] * (kept + fresh)
        self.threads = [
            threading.Thread(target=self._work, args=(n, n < kept), daemon=True)
            for n in range(kept + fresh)
        ]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join(30)

    def _work(self, number, keep):
        client = None
        while not self.over.is_set():
            try:
                client = client or Client(self.address, 20)
                answer = client.ask(GET)
                if answer.status != 200:
                    self.failures.append(f"status {answer.status}")
                self.served[number] += 1
                # A server may say that it ends the connection; it may not just end it.
                if not keep or (answer.header("connection") or "").lower() == "close":
                    client.close()
                    client = None
            except Exception as error:
                self.failures.append(repr(error))
                client = None
            time.sleep(0.002)


def variations(a, b, port):
    """Changes that follow one another for ever; each reload changes something else."""

    def weight(config, n):
        config["upstream"]["up"]["servers"][0]["weight"] = 1 + n % 7

    def second(config, n):
        servers = config["upstream"]["up"]["servers"]
        config["upstream"]["up"]["servers"] = servers[:1] if len(servers) > 1 else [*servers, {"address": b.text}]

    def body(config, n):
        config["route"][0]["respond"]["body"] = f"body {n}"

    def route(config, n):
        routes = [r for r in config["route"] if r.get("path") != "/extra"]
        extra = {"path": "/extra", "upstream": "up", "request_headers": {"set": {"x-n": str(n)}}}
        config["route"] = routes if len(routes) < len(config["route"]) else [*routes[:1], extra, *routes[1:]]

    def listener(config, n):
        if len(config["listener"]) > 1:
            config["listener"].pop()
        else:
            config["listener"].append({"name": "more", "bind": f"127.0.0.1:{port}"})

    def http(config, n):
        config["http"] = {"keepalive_timeout": f"{60 + n % 30}s"}

    def balance(config, n):
        config["upstream"]["up"]["balance"] = ["round_robin", "least_conn", "random_two", "maglev"][n // 8 % 4]

    def other(config, n):
        name = "spare"
        if name in config["upstream"]:
            del config["upstream"][name]
        else:
            config["upstream"][name] = upstream(a)

    return [weight, second, body, route, listener, http, balance, other]


def websocket(address):
    client = Client(address, 60)
    client.send(WEBSOCKET)
    assert client.read_head().status == 101
    return client


def says(client, text):
    client.send(text)
    return client.stream.exactly(len(text), Deadline(20), "an echo") == text


def test_reloads_under_load(tmp_path):
    """Every reload changes something: no request fails, no WebSocket or download is cut, memory stays."""
    with origin_of(b"a") as a, origin_of(b"b") as b:
        config = web(a)
        with Reloadable(config, tmp_path / "p", nofile=4096) as proxy:
            sockets = [websocket(proxy.address) for _ in range(WEBSOCKETS)]
            download = Client(proxy.address, 120)
            download.send(b"GET /long HTTP/1.1\r\nHost: a.example\r\n\r\n")
            assert download.read_head().status == 200
            changes = variations(a, b, free_port())
            with Load(proxy.address) as load:
                settled = None
                for n in range(RELOADS):
                    change = changes[n % len(changes)]
                    proxy.write(lambda config: change(config, n))
                    status, answer = proxy.post()
                    assert status == 200 and answer["outcome"] == "applied", answer
                    assert answer["generation"] == n + 2
                    if n % 10 == 0:
                        client = sockets[n // 10 % len(sockets)]
                        assert says(client, b"ping %d" % n)
                    if n == RELOADS // 3:
                        settled = rss_bytes(proxy.pid)
                assert all(says(client, b"still here") for client in sockets)
                a.enough.set()
                assert download.stream.until(b"0\r\n\r\n", 1 << 30, Deadline(20), "its end")
            assert load.failures == []
            assert min(load.served) > 10, load.served
            for client in sockets:
                client.close()
            download.close()
            grown = rss_bytes(proxy.pid) - settled
            print(f"{RELOADS} reloads, {sum(load.served)} requests, RSS grew by {grown >> 10} KiB "
                  f"of {settled >> 10}")
            # Two thirds of the reloads: a generation that is kept has tens of KiB.
            assert grown < (4 << 20) + settled // 10
            proxy.await_equal("ringgate_config_generation", RELOADS + 1)
            proxy.await_equal("ringgate_config_reloads_total", RELOADS, outcome="applied")
            # Figures outlive reloads.
            proxy.await_metric("ringgate_upstream_requests_total", sum(load.served), upstream="up")


def test_idle_server_connections_and_counts_stay(tmp_path):
    """A pool whose upstream does not change keeps its connections; one that does keeps those of its servers."""
    with origin_of(b"a") as a, origin_of(b"b") as b:
        config = {**web(a), "upstream": {"up": upstream(a), "other": upstream(b)}}
        with Reloadable(config, tmp_path / "p") as proxy:
            client = Client(proxy.address)
            assert client.ask(GET).status == 200
            proxy.reload(set_body("two"))
            assert client.ask(GET).status == 200
            assert client.ask(message("GET", "/v")).body == b"two", "a kept connection sees the new file"

            def change(config):
                config["upstream"]["up"]["servers"][0]["weight"] = 5
                config["upstream"]["up"]["keepalive"] = 8
                del config["upstream"]["other"]

            proxy.reload(change)
            assert client.ask(GET).status == 200
            assert len(a.connections) == 1, "one connection to the server through both reloads"
            proxy.await_equal("ringgate_server_connects_total", 1, server=a.text)
            proxy.await_equal("ringgate_server_reuses_total", 2, server=a.text)
            names = [one["name"] for one in proxy.status()["upstreams"]]
            assert names == ["up"]


def test_runtime_changes_outlive_reloads_of_something_else(tmp_path):
    with origin_of(b"a") as a, origin_of(b"b") as b:
        with Reloadable(web(a, b), tmp_path / "p") as proxy:
            order = ("ctl", "--socket", proxy.socket, "upstream", "up", "drain", b.text)
            assert run_once(*order).returncode == 0
            proxy.reload(set_body("two"))
            assert {get(proxy.address).body for _ in range(8)} == {b"a"}
            drift = proxy.status()["upstreams"][0]["drift"]
            assert [one["what"] for one in drift] == ["drained"]

            def change(config):
                config["upstream"]["up"]["keepalive"] = 8

            text = proxy.reload(change)
            assert f"upstream up: {b.text} drained at run time: as in the file again" in text, text
            assert {get(proxy.address).body for _ in range(8)} == {b"a", b"b"}


def test_a_bad_file_changes_nothing_and_says_why(tmp_path):
    with origin_of(b"a") as a, Reloadable(web(a), tmp_path / "p") as proxy:
        good = proxy.file.read_text()
        hash_before = proxy.status()["configuration"]["sha256"]
        proxy.write_text(good + "\n[http]\nkeepalive_timeot = 3\n")
        line = proxy.file.read_text().splitlines().index("keepalive_timeot = 3") + 1
        done = proxy.ctl()
        assert done.returncode == 1
        assert f"ringgate.toml:{line}:1: unknown key `keepalive_timeot`" in done.stderr, done.stderr
        assert "did you mean `keepalive_timeout`" in done.stderr
        proxy.await_log(f"ringgate.toml:{line}:1", "reload refused")
        standing = proxy.status()["configuration"]
        assert standing["last_reload_successful"] is False
        assert f":{line}:1:" in standing["last_refusal"]
        assert standing["sha256"] == hash_before and standing["generation"] == 1
        proxy.await_equal("ringgate_config_last_reload_successful", 0)
        assert get(proxy.address, "/v").body == b"one"
        proxy.write_text(good)
        assert "nothing to change" in proxy.ctl().stdout
        proxy.await_equal("ringgate_config_last_reload_successful", 1)
        stamp = proxy.metric("ringgate_config_last_reload_success_timestamp_seconds")
        assert abs(stamp - time.time()) < 60


def test_what_cannot_be_reloaded_is_refused_with_the_fix(tmp_path):
    with origin_of(b"a") as a, Reloadable(web(a), tmp_path / "p") as proxy:

        def change(config):
            config["node"]["shards"] = 1
            set_body("two")(config)

        proxy.write(change)
        done = proxy.ctl()
        assert done.returncode == 1
        assert "node.shards changed from 2 to 1: cannot be changed by reload" in done.stderr
        assert "ringgate ctl upgrade" in done.stderr
        assert get(proxy.address, "/v").body == b"one", "nothing of the file is taken"


def test_a_failing_bind_changes_nothing(tmp_path):
    with origin_of(b"a") as a, Reloadable(web(a), tmp_path / "p") as proxy:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port, free = taken.getsockname()[1], free_port()

            def change(config):
                set_body("two")(config)
                config["listener"] += [
                    {"name": "free", "bind": f"127.0.0.1:{free}"},
                    {"name": "taken", "bind": f"127.0.0.1:{port}"},
                ]

            proxy.write(change)
            for arguments in (["--dry-run"], []):
                done = proxy.ctl(*arguments)
                assert done.returncode == 1
                assert f"cannot listen on 127.0.0.1:{port}" in done.stderr, done.stderr
                assert "somebody else listens there" in done.stderr
            assert get(proxy.address, "/v").body == b"one"
            with pytest.raises(ConnectionRefusedError):
                Client(("127.0.0.1", free))
        assert proxy.ctl().returncode == 0, "the port is free now"
        assert get(("127.0.0.1", port), "/v").body == b"two"


def test_listeners_come_go_and_move(tmp_path):
    with origin_of(b"a") as a, Reloadable(web(a), tmp_path / "p") as proxy:
        first, second = free_port(), free_port()
        proxy.reload(lambda c: c["listener"].append({"name": "more", "bind": f"127.0.0.1:{first}"}))
        kept = Client(("127.0.0.1", first))
        assert kept.ask(GET).status == 200
        tunnel = websocket(("127.0.0.1", first))
        text = proxy.reload(lambda c: c["listener"][1].update(bind=f"127.0.0.1:{second}", backlog=64))
        assert f'listener more: bind changed from "127.0.0.1:{first}" to "127.0.0.1:{second}"' in text
        assert get(("127.0.0.1", second)).status == 200
        assert says(tunnel, b"on a listener that is gone")
        assert kept.closed(5), "an idle connection of a removed listener ends"

        def refused():
            try:
                Client(("127.0.0.1", first)).close()
            except ConnectionRefusedError:
                return True

        eventually(refused, 5)
        proxy.reload(lambda c: c["listener"][1].update(bind=f"127.0.0.1:{first}"))
        assert get(("127.0.0.1", first)).status == 200, "back again at once"
        assert says(tunnel, b"still")


def test_what_waits_in_the_queue_of_a_removed_listener_is_served(tmp_path):
    """The shards are stopped, so connections wait; the reload and they are then found together."""
    port = free_port()
    with origin_of(b"a") as a, Reloadable(web(a), tmp_path / "p") as proxy:
        proxy.reload(lambda c: c["listener"].append({"name": "more", "bind": f"127.0.0.1:{port}"}))
        proxy.write(lambda c: c["listener"].pop())
        for _ in range(5):
            answers = []
            proxy.signal(signal.SIGSTOP)
            clients = [Client(("127.0.0.1", port)) for _ in range(20)]
            for client in clients:
                client.send(GET)
            proxy.signal(signal.SIGHUP)
            proxy.signal(signal.SIGCONT)
            answers = [client.read_response().status for client in clients]
            assert answers == [200] * len(clients)
            generation = eventually(lambda: proxy.generation() % 2 and proxy.generation(), 5)
            proxy.reload(lambda c: c["listener"].append({"name": "more", "bind": f"127.0.0.1:{port}"}))
            assert proxy.generation() == generation + 1
            proxy.write(lambda c: c["listener"].pop())


def test_dry_run_says_and_does_nothing(tmp_path):
    with origin_of(b"a") as a, Reloadable(web(a), tmp_path / "p") as proxy:

        def change(config):
            set_body("two")(config)
            config["listener"].append({"name": "more", "bind": f"127.0.0.1:{free_port()}"})
            config["upstream"]["up"]["servers"].append({"address": "127.0.0.1:1", "backup": True})

        proxy.write(change)
        done = proxy.ctl("--dry-run")
        lines = done.stdout.splitlines()
        assert done.returncode == 0 and len(lines) == 4, done.stdout
        assert re.fullmatch(r'listener more added \(bind = "127\.0\.0\.1:\d+"\)', lines[0])
        assert lines[1] == 'route (path = "/v"): respond.body changed from "one" to "two"'
        assert lines[2] == "server 127.0.0.1:1 added to upstream up"
        assert lines[3] == "3 changes; nothing was changed (dry run)"
        assert get(proxy.address, "/v").body == b"one" and proxy.generation() == 1
        assert proxy.metric("ringgate_config_reloads_total") == 0


def test_sighup_and_watch(tmp_path):
    with origin_of(b"a") as a:
        with Reloadable(web(a), tmp_path / "p") as proxy:
            proxy.write(set_body("two"))
            proxy.signal(signal.SIGHUP)
            eventually(lambda: get(proxy.address, "/v").body == b"two", 5)
            proxy.await_log("reloaded by=SIGHUP")
        with Reloadable(web(a), tmp_path / "w", watch=True) as proxy:
            proxy.write(set_body("three"))
            eventually(lambda: get(proxy.address, "/v").body == b"three", 10)
            proxy.write_text("nonsense")
            eventually(lambda: proxy.metric("ringgate_config_last_reload_successful") == 0, 10)
            assert get(proxy.address, "/v").body == b"three"
            proxy.write(set_body("four"))
            eventually(lambda: get(proxy.address, "/v").body == b"four", 10)
            proxy.await_log("by=watch")


def test_logs_change_in_place(tmp_path):
    with origin_of(b"a") as a, Reloadable(web(a), tmp_path / "p") as proxy:
        lines = lambda path: path.read_text().splitlines() if path.exists() else []
        first, second = tmp_path / "first.log", tmp_path / "second.log"
        client = Client(proxy.address)
        assert client.ask(GET).status == 200
        proxy.reload(lambda c: c["log"].update(access="combined", access_file=str(first)))
        assert client.ask(GET).status == 200
        proxy.reload(lambda c: c["log"].update(access="json", access_file=str(second)))
        assert client.ask(GET).status == 200
        eventually(lambda: len(lines(first)) == 1 and len(lines(second)) == 1, 5)
        assert json.loads(lines(second)[0])["status"] == 200
        proxy.reload(lambda c: c["log"].update(access="off", format="json"))
        assert client.ask(GET).status == 200
        in_json = lambda: [line for line in proxy.log().splitlines() if line.startswith("{")]
        eventually(lambda: any('"reloaded"' in line for line in in_json()), 5, "a line in the new format")
        time.sleep(0.3)
        assert len(lines(second)) == 1


VRRP = (
    '[vrrp.VI_1]\ninterface = "eth0"\nvirtual_router_id = 51\npriority = {}\n'
    'advertise = "50ms"\naddresses = ["10.77.0.100/24"]\n'
    '[vrrp.VI_2]\ninterface = "eth0"\nvirtual_router_id = 52\npriority = {}\n'
    'advertise = "50ms"\naddresses = ["10.77.0.101/24"]\n'
)


@pytest.fixture
def lan():
    with Lan() as one:
        yield one


def test_vrrp_is_not_touched(lan, tmp_path):
    """Reloads of something else move nothing; a priority changes in place; the rest restarts one instance."""
    a = Ringgate(lan.host(), tmp_path, "a", VRRP.format(100, 50))
    b = Ringgate(lan.host(), tmp_path, "b", VRRP.format(50, 100))
    client, good = lan.host(), a.file.read_text()

    def reload(text):
        a.file.write_text(text)
        done = run_once("ctl", "--socket", a.socket, "reload")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def history(*names):
        return [[node.instance(name)["last_transition"] for node in (a, b)] for name in names]

    def held(address):
        return [node.name for node in (a, b) if address in node.host.addresses("eth0")]

    with a, b:
        a.await_role("active")
        b.await_role("active", "VI_2")
        b.await_role("backup")
        a.await_role("backup", "VI_2")
        before, sent = history("VI_1", "VI_2"), a.instance()["adverts_sent"]
        with LanLoad(client, "10.77.0.100") as load:
            for n in range(20):
                reload(good + f'[http]\nkeepalive_timeout = "{n + 10}s"\n')
        assert load.failures == [], load.failures[:5]
        assert history("VI_1", "VI_2") == before
        # The HA thread publishes its counts twice a second.
        eventually(lambda: a.instance()["adverts_sent"] > sent, 3, "no advertisement after the reloads")
        # Ours falls below the peer's: it takes over, and ours has not begun anew.
        assert "priority changed from 100 to 20 (in place)" in reload(good.replace("= 100", "= 20"))
        b.await_role("active")
        a.await_role("backup")
        assert a.instance()["last_transition"]["from"] == "active"
        reload(good)
        a.await_role("active")
        b.await_role("backup")
        second = history("VI_2")
        # One more address: that instance begins anew, the other one does not notice.
        more = good.replace('"10.77.0.100/24"', '"10.77.0.100/24", "10.77.0.102/24"')
        assert "resigns and begins anew" in reload(more)
        eventually(lambda: held("10.77.0.102") == ["a"] and held("10.77.0.100") == ["a"], 10)
        # Removed, and added again.
        reload(good[: good.index("[vrrp.VI_1]")] + good[good.index("[vrrp.VI_2]") :])
        eventually(lambda: held("10.77.0.100") == ["b"], 10)
        reload(good)
        eventually(lambda: held("10.77.0.100") == ["a"], 10)
        assert history("VI_2") == second


def big(a, marker=0):
    """5,000 routes to 1,000 servers."""
    names = [f"u{n}" for n in range(250)]
    routes = [
        {"host": f"h{n % 500}.example", "path": f"/p{n}/", "upstream": names[n % 250]} for n in range(5000)
    ]
    return {
        "route": [{"path": "/v", "respond": {"status": 200, "body": str(marker)}}, *routes, {"upstream": "up"}],
        "upstream": {
            "up": upstream(a),
            **{
                name: upstream(*(f"127.1.{n // 250}.{n % 250 + 1}:{8000 + k}" for k in range(4)))
                for n, name in enumerate(names)
            },
        },
    }


def test_a_big_file_reloads_under_load(tmp_path):
    """5,000 routes and 1,000 servers: no request fails, and none waits for the reload."""
    with origin_of(b"a") as a, Reloadable(big(a), tmp_path / "p") as proxy:
        with Load(proxy.address, kept=2, fresh=1) as load:
            for n in range(1, 4):
                proxy.write(set_body(str(n)))
                began = time.monotonic()
                status, answer = proxy.post()
                assert status == 200 and answer["done"].startswith("route"), answer
                print(f"reload of 5,000 routes: {time.monotonic() - began:.2f} s")
                assert get(proxy.address, "/v").body == str(n).encode()
            proxy.write(lambda c: [s.update(weight=3) for u in c["upstream"].values() for s in u["servers"]])
            status, answer = proxy.post()
            assert status == 200 and "1001 changes in force" in answer["done"], answer["done"][-200:]
        assert load.failures == []
        assert get(proxy.address, "/p4999/x", host="h499.example").status == 502
