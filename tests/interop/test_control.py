"""The admin API and `ringgate ctl`: servers changed at run time, the token, the socket."""

import grp
import json
import os
import shutil
import stat
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from harness import Client, eventually, get, request, respond
from harness.client import message
from harness.proxy import one, run_once


@pytest.fixture
def place():
    """A directory with a path short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="rg-ctl-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def controlled(start, place):
    """Starts a proxy with a socket; `proxy.ctl(...)` is `ringgate ctl ...`."""

    def begin(config, admin=None, **options):
        socket = place / "admin.sock"
        config = {**config, "admin": {"socket": str(socket), **(admin or {})}}
        proxy = start(config, **options)
        proxy.socket = socket
        proxy.ctl = lambda *args: run_once("ctl", "--socket", socket, *args)
        proxy.json = lambda *args: json.loads(proxy.ctl("--json", *args).stdout)
        return proxy

    return begin


def say(name):
    """An origin's handler that answers with its name."""
    return respond(body=name.encode())


def who(proxy, count=12):
    """The bodies of so many answers."""
    return [get(proxy.address).body.decode() for _ in range(count)]


def servers(proxy, name="up"):
    found = proxy.json("upstream", name)["upstreams"][0]
    return {s["server"]: s for s in found["servers"]}, found["drift"]


class Load:
    """Requests on kept connections and new ones until the end; every answer but 200 is remembered."""

    def __init__(self, proxy, threads=4):
        self.proxy, self.bad, self.count, self.over = proxy, [], 0, threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join(20)

    def _run(self, number):
        try:
            while not self.over.is_set():
                with Client(self.proxy.address) as client:
                    for _ in range(1 if number % 2 else 50):
                        response = client.ask(message())
                        self.count += 1
                        if response.status != 200:
                            self.bad.append(response)
        except Exception as error:
            self.bad.append(repr(error))


def test_status_in_lines_and_in_json(controlled, serve):
    back = serve(say("a"))
    proxy = controlled(one(back))
    who(proxy, 3)
    text = proxy.ctl("status")
    assert text.returncode == 0 and not text.stderr
    for part in ("serving", "2 shards", "listener web", "upstream up", back.text):
        assert part in text.stdout, part
    whole = proxy.json("status")
    assert whole == {**proxy.status(), "uptime_seconds": whole["uptime_seconds"]} or (
        whole["pid"] == proxy.pid and whole["upstreams"][0]["name"] == "up"
    )
    assert "connections" in proxy.ctl("shards").stdout
    eventually(lambda: sum(s["requests"] for s in proxy.json("shards")["shards"]) == 3)
    with Client(proxy.address) as client:
        client.ask(message())
        eventually(lambda: proxy.json("connections")["clients"] >= 1)
        assert "client connections" in proxy.ctl("connections").stdout
    assert "POST" in proxy.ctl("api").stdout
    verbs = {(v["method"], v["path"]): v["who"] for v in proxy.json("api")}
    assert verbs[("GET", "/metrics")] == "anyone"
    assert verbs[("POST", "/upstreams/{}/drain")] == "operator"


def test_a_drained_server_finishes_and_gets_no_more(controlled, serve):
    release = threading.Event()

    def slow(connection):
        for asked in connection.requests():
            if asked.target == "/slow":
                assert release.wait(10)
            connection.send(b"HTTP/1.1 200 X\r\nContent-Length: 1\r\n\r\na")

    a, b = serve(slow), serve(say("b"))
    proxy = controlled(one(a, b))
    assert set(who(proxy)) == {"a", "b"}
    waiting = []
    while not any(asked.target == "/slow" for asked in a.requests):
        seen = len(a.requests) + len(b.requests)
        client = Client(proxy.address)
        client.send(message(target="/slow"))
        waiting.append(client)
        eventually(lambda: len(a.requests) + len(b.requests) > seen)
    done = proxy.ctl("upstream", "up", "drain", a.text)
    assert done.returncode == 0 and "drained" in done.stdout, done
    assert set(who(proxy)) == {"b"}
    state, drift = servers(proxy)
    assert state[a.text]["state"] == "drained" and state[a.text]["in_flight"] >= 1
    assert state[a.text]["why"] and drift == [{"server": a.text, "what": "drained"}]
    assert f"{a.text} drained" in proxy.ctl("upstream", "list").stdout
    release.set()
    for client in waiting:
        assert client.read_response().status == 200
        client.close()
    eventually(lambda: servers(proxy)[0][a.text]["in_flight"] == 0)
    assert proxy.metric("ringgate_server_up", server=a.text) == 0
    assert proxy.ctl("upstream", "up", "undrain", a.text).returncode == 0
    assert set(who(proxy)) == {"a", "b"} and servers(proxy)[1] == []
    proxy.await_equal("ringgate_server_up", 1, server=a.text)


def test_add_weigh_and_remove(controlled, serve):
    a, b, c = serve(say("a")), serve(say("b")), serve(say("c"))
    proxy = controlled(one(a))
    assert set(who(proxy)) == {"a"}
    assert proxy.ctl("upstream", "up", "add", b.text, "--weight", 3).returncode == 0
    answers = who(proxy, 40)
    assert 25 <= answers.count("b") <= 35, answers.count("b")
    named = f"localhost:{c.text.rpartition(':')[2]}"
    assert proxy.ctl("upstream", "up", "add", named).returncode == 0
    eventually(lambda: "c" in who(proxy, 10))
    assert proxy.ctl("upstream", "up", "weight", 1, b.text).returncode == 0
    assert proxy.ctl("upstream", "up", "weight", 9, a.text).returncode == 0
    answers = who(proxy, 40)
    assert answers.count("a") >= 25, answers
    _, drift = servers(proxy)
    said = {d["server"]: d["what"] for d in drift}
    assert said == {a.text: "weight 9 instead of 1", b.text: "added", named: "added"}
    assert proxy.ctl("upstream", "up", "remove", a.text, named).returncode == 0
    assert set(who(proxy)) == {"b"}
    last = proxy.ctl("upstream", "up", "remove", b.text)
    assert last.returncode == 1 and "last" in last.stderr
    assert proxy.ctl("upstream", "up", "remove", b.text, "--force").returncode == 0
    assert get(proxy.address).status in (502, 503)


@pytest.mark.parametrize("balance", ["round_robin", "maglev", "least_conn"])
def test_servers_come_and_go_under_load_without_a_failure(controlled, serve, balance):
    backs = [serve(say(str(n))) for n in range(3)]
    proxy = controlled(one(*backs[:2], balance=balance))
    texts = [back.text for back in backs]
    with Load(proxy) as load:
        for _ in range(8):
            for args in (
                ("add", texts[2]),
                ("drain", texts[0]),
                ("weight", "7", texts[1]),
                ("undrain", texts[0]),
                ("remove", texts[2]),
            ):
                done = proxy.ctl("upstream", "up", *args)
                assert done.returncode == 0, done.stderr
    assert load.count > 100 and not load.bad, (load.count, load.bad[:3])
    # Only the weight is left as a difference.
    assert [d["what"] for d in servers(proxy)[1]] == ["weight 7 instead of 1"]


def test_persist_edits_the_file_in_place(controlled, serve):
    a, b = serve(say("a")), serve(say("b"))
    proxy = controlled(one(a))
    # Written by hand since the start: what is there stays.
    text = proxy.file.read_text().replace("[node]", "# by hand\n[node] # shards")
    proxy.file.write_text(text)
    proxy.file.chmod(0o640)
    assert proxy.ctl("upstream", "up", "weight", 4, a.text).returncode == 0
    assert proxy.file.read_text() == text, "only if asked"
    done = proxy.ctl("upstream", "up", "add", b.text, "--persist")
    assert done.returncode == 0 and "written into the file" in done.stdout, done.stderr
    new = proxy.file.read_text()
    assert b.text in new and "weight" not in new and "# by hand\n[node] # shards" in new
    assert stat.S_IMODE(proxy.file.stat().st_mode) == 0o640
    assert run_once("check", proxy.file).returncode == 0
    assert [d["what"] for d in servers(proxy)[1]] == ["weight 4 instead of 1"]
    assert proxy.ctl("upstream", "up", "drain", a.text, "--persist").returncode == 0
    assert "down = true" in proxy.file.read_text()
    # A file that does not fit is left alone, and nothing changes.
    broken = "nonsense = 1\n" + proxy.file.read_text()
    proxy.file.write_text(broken)
    refused = proxy.ctl("upstream", "up", "undrain", a.text, "--persist")
    assert refused.returncode == 1 and "not changed" in refused.stderr, refused.stderr
    assert proxy.file.read_text() == broken and set(who(proxy)) == {"b"}
    assert not [path for path in proxy.directory.iterdir() if path.name.endswith(".new")]


def post(address, path, body=b"{}", **headers):
    return request(address, "POST", path, headers=headers, body=body)


def test_the_listener_is_read_only_without_a_token(controlled, serve):
    back = serve(say("a"))
    proxy = controlled(one(back))
    body = json.dumps({"servers": [back.text], "force": True}).encode()
    for headers in ({}, {"Authorization": "Bearer x"}):
        refused = post(proxy.admin, "/upstreams/up/drain", body, **headers)
        assert refused.status == 403 and b"admin.socket" in refused.body
    assert get(proxy.admin, "/upstreams").status == 200
    assert set(who(proxy)) == {"a"}


def test_a_token_makes_an_operator(controlled, serve, place):
    token = place / "token"
    token.write_text("0123456789abcdef-secret\n")
    back = serve(say("a"))
    proxy = controlled(one(back), admin={"token_file": str(token)})
    good = {"Authorization": "Bearer 0123456789abcdef-secret"}
    for headers in (
        {},
        {"Authorization": "Bearer 0123456789abcdef-secreT"},
        {"Authorization": "Basic 0123456789abcdef-secret"},
    ):
        refused = post(proxy.admin, "/log/level", b'{"level":"warn"}', **headers)
        assert refused.status == 401 and refused.header("www-authenticate").startswith("Bearer")
    # A wrong token is told at once, not taken for none.
    wrong = {"Authorization": "Bearer wrong-wrong-wrong-wrong"}
    assert get(proxy.admin, "/status", headers=wrong).status == 401
    assert get(proxy.admin, "/status").status == 200
    assert post(proxy.admin, "/log/level", b'{"level":"warn"}', **good).status == 200
    assert json.loads(get(proxy.admin, "/log/level").body) == {"level": "warn"}
    assert "0123456789abcdef" not in proxy.log()


@pytest.mark.parametrize("text", ["short\n", "has a space in its middle\n", ""])
def test_a_token_that_is_none_stops_the_start(place, serve, text, tmp_path):
    from harness.proxy import Proxy

    (place / "token").write_text(text)
    config = {**one(serve(say("a"))), "admin": {"token_file": str(place / "token")}}
    proxy = Proxy(config, tmp_path / "p", ready=False)
    proxy.start()
    assert proxy.wait() == 1
    assert "admin.token_file" in proxy.log() and "openssl rand" in proxy.log()


def test_bad_requests_are_answered(controlled, serve):
    back = serve(say("a"))
    proxy = controlled(one(back))

    def ask(method, path, body=b"", *more):
        argv = ["curl", "-s", "--unix-socket", proxy.socket, "-X", method, "-w", "\n%{http_code}"]
        if body:
            argv += ["--data-binary", "@-", "-H", "Content-Type: application/json"]
        done = subprocess.run(
            [*map(str, argv), *more, f"http://x{path}"], input=body, capture_output=True, timeout=20
        )
        text, _, code = done.stdout.decode().rpartition("\n")
        return int(code), text

    for method, path, body, status, says in [
        ("GET", "/nothing", b"", 404, "GET /api"),
        ("POST", "/status", b"{}", 405, "GET"),
        ("DELETE", "/log/level", b"", 405, "POST"),
        ("POST", "/upstreams/none/drain", b'{"servers":["a:1"]}', 404, "there are: up"),
        ("POST", "/upstreams/up/drain", b'{"servers":["a:1"]}', 409, back.text),
        ("POST", "/upstreams/up/drain", b"{}", 400, "servers"),
        ("POST", "/upstreams/up/drain", b"nonsense", 400, "no JSON"),
        ("POST", "/upstreams/up/drain", b"[1]", 400, "object"),
        ("POST", "/upstreams/up/add", b'{"servers":["10.0.0.1"]}', 400, "the port is missing"),
        ("POST", "/upstreams/up/add", b'{"servers":[{"address":"a:1","x":1}]}', 400, "unknown key"),
        ("POST", "/upstreams/up/weight", b'{"servers":["a:1"],"weight":0}', 400, "use drain"),
        ("POST", "/log/level", b'{"level":"loud"}', 400, "error, warn, info, debug"),
        ("POST", "/log/level", b'{"level":"' + b"x" * 70000 + b'"}', 413, "65536"),
        ("POST", "/vrrp/release", b"", 409, "no [vrrp.NAME]"),
        ("POST", "/tune/verify", b"", 409, "tuning is off"),
    ]:
        code, text = ask(method, path, body)
        assert code == status and says in json.loads(text)["error"], (path, code, text)
    code, text = ask("POST", "/log/level", b'{"level":"warn"}', "-H", "Transfer-Encoding: chunked")
    assert code == 200 and "warn" in json.loads(text)["done"]
    # A client that sends nothing more holds up nobody.
    silent = [Client(proxy.admin) for _ in range(8)]
    for client in silent:
        client.send(b"POST /log/level HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
    assert ask("GET", "/healthz")[0] == 200
    for client in silent:
        client.close()


def test_exit_codes(controlled, serve, place):
    back = serve(say("a"))
    proxy = controlled(one(back))
    for args, code, says in [
        (("upstream", "none"), 1, "there is no upstream"),
        (("upstream", "up", "drain", "b:1"), 1, "there is no server b:1"),
        (("upstream", "up", "drain"), 2, "which server?"),
        (("upstream", "up", "weight", "x", back.text), 2, "no weight"),
        (("upstream", "up", "drain", back.text, "--weight", "3"), 2, "for `add`"),
        (("upstream", "a b"), 2, "no upstream"),
        (("upstream", "up", "explode", back.text), 2, "invalid value"),
        (("log", "level", "loud"), 2, "invalid value"),
        (("vrrp", "release"), 1, "no [vrrp.NAME]"),
        (("vrrp", "release", "a\r\nb"), 2, "can be no instance"),
        (("tune", "verify"), 1, "tuning is off"),
    ]:
        done = proxy.ctl(*args)
        assert done.returncode == code and says in done.stderr and not done.stdout, (args, done)
    assert "error" in json.loads(proxy.ctl("--json", "upstream", "none").stdout)
    nobody = run_once("ctl", "--socket", place / "none.sock", "status")
    assert nobody.returncode == 1 and "cannot reach" in nobody.stderr


def test_the_socket_is_as_configured_and_goes_with_the_process(controlled, serve):
    group = grp.getgrgid(os.getgid() if os.getuid() else 4).gr_name
    proxy = controlled(one(serve(say("a"))), {"socket_mode": "0660", "socket_owner": f":{group}"})
    found = proxy.socket.stat()
    assert stat.S_IMODE(found.st_mode) == 0o660 and grp.getgrgid(found.st_gid).gr_name == group
    proxy.stop()
    assert not proxy.socket.exists()


def test_a_socket_that_another_has_taken_over_stays(controlled, serve):
    proxy = controlled(one(serve(say("a"))))
    proxy.socket.unlink()
    proxy.socket.write_text("another's")
    proxy.stop()
    assert proxy.socket.read_text() == "another's"


def test_log_level_and_events(controlled, serve):
    proxy = controlled({**one(serve(say("a"))), "log": {"level": "error"}})
    assert proxy.ctl("log", "level").stdout == "error\n"
    assert "serving" not in proxy.log()
    done = proxy.ctl("log", "level", "info")
    assert done.returncode == 0 and "info" in done.stdout
    eventually(lambda: "log level changed" in proxy.log())
    # Events are kept whatever the level of the log.
    text = proxy.ctl("events").stdout
    assert text.index("serving") < text.index("log level changed")
    assert proxy.json("events")["events"][0]["message"] == "log level changed"


def test_verify_looks_at_the_machine_now(controlled, serve, tmp_path):
    root = tmp_path / "root"
    somaxconn = root / "proc/sys/net/core/somaxconn"
    somaxconn.parent.mkdir(parents=True)
    somaxconn.write_text("65535\n")
    tuning = {
        "profile": "minimal",
        "root": str(root),
        "check_interval": "1h",
        "interfaces": ["lo"],
    }
    proxy = controlled({**one(serve(say("a"))), "tuning": tuning})
    before = proxy.ctl("tune", "verify")
    somaxconn.write_text("1\n")
    after = proxy.ctl("tune", "verify")
    assert after.returncode == 1 and "net.core.somaxconn is 1" in after.stdout, (before, after)
    assert "net.core.somaxconn is 1" not in before.stdout
    drift = proxy.json("tune", "verify")["tuning"]["drift"]
    assert any(d["key"] == "net.core.somaxconn" and d["now"] == "1" for d in drift)
    assert any(d["key"] == "net.core.somaxconn" for d in proxy.status()["tuning"]["drift"])


def test_completions_and_the_manual_page(tmp_path):
    script = tmp_path / "ringgate.bash"
    script.write_text(run_once("completions", "bash").stdout)
    complete = 'source "$0"; COMP_WORDS=(ringgate ctl upst); COMP_CWORD=2; _ringgate ringgate upst ctl; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", complete, script], capture_output=True, text=True, timeout=20)
    assert done.stdout.split() == ["upstream"], done
    assert run_once("completions", "zsh").stdout.startswith("#compdef ringgate")
    assert "complete -c ringgate" in run_once("completions", "fish").stdout
    assert run_once("completions", "tcsh").returncode == 2
    page = run_once("man").stdout
    assert ".TH" in page and "RINGGATE CTL UPSTREAM" in page and "persist" in page

