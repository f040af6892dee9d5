"""What a successor goes on with: health of servers, what was changed at run time; and what may not happen meanwhile."""

import os
import signal
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path

from harness import Client, Deadline, binary, eventually, get, respond, say
from harness.proxy import one, upstream

from .test_health import await_state, server, spread
from .test_tunnel import SWITCH, WEBSOCKET
from .test_upgrade import is_alive, line, script  # noqa: F401 (a fixture)


def named(name, fails=None):
    """Answers with its name; `fails` set: checks get 503, and requests 500."""
    def handler(connection):
        for asked in connection.requests():
            bad = fails is not None and fails.is_set()
            status = 200 if not bad else 503 if asked.target == "/check" else 500
            connection.send(say(status, name.encode()))

    return handler


def bodies(proxy, path, count=16):
    return {get(proxy.address, path).body.decode() for _ in range(count)}


def test_health_passes_to_the_successor(line, serve):
    """Probes of the new process alone would say otherwise: all of them would be good."""
    fails = {name: threading.Event() for name in ("down", "bad", "slow", "cut")}
    down, bad, slow = (serve(named(name, fails[name])) for name in ("down", "bad", "slow"))
    fine = serve(named("fine"))
    cut = serve(lambda connection: [None for _ in connection.requests()] and None)
    once = {"http": "/check", "interval": "1h"}
    fast = {"http": "/check", "interval": "100ms", "rise": 1, "fall": 1}
    outlier = {"interval": "1s", "error_percent": 50, "min_requests": 3, "ejection_time": "1h"}
    fails["down"].set()
    proxy = line({
        "node": {"shards": 1},
        "route": [{"path": f"/{name}", "upstream": name} for name in ("down", "bad", "slow", "cut")],
        "upstream": {
            "down": upstream(down, fine, check=once),
            "bad": upstream(bad, fine, outlier=outlier),
            "slow": upstream(slow, fine, check=fast, slow_start="1h"),
            "cut": upstream({"address": cut, "max_fails": 1, "fail_timeout": "1h"}, fine),
        },
    })
    assert server(proxy, down.text, "down")["state"] == "unhealthy"
    why = server(proxy, down.text, "down")["check"]["why"]
    assert "503" in why
    fails["down"].clear()
    fails["bad"].set()

    def is_ejected():
        bodies(proxy, "/bad")
        return server(proxy, bad.text, "bad")["state"] == "ejected"

    eventually(is_ejected, 15)
    fails["bad"].clear()
    fails["slow"].set()
    await_state(proxy, slow.text, "unhealthy", name="slow")
    fails["slow"].clear()
    await_state(proxy, slow.text, "up", name="slow")
    cut.refuse()

    def is_out():
        bodies(proxy, "/cut", 4)
        return server(proxy, cut.text, "cut")["state"] not in ("up", "failing")

    eventually(is_out, 15)
    out = server(proxy, cut.text, "cut")["state"]
    cut.listen()
    seen = len(down.requests)
    for turn in range(2):  # what was handed over is handed on
        proxy.upgrade()
        assert bodies(proxy, "/down") == {"fine"}, "from the first request on"
        found = server(proxy, down.text, "down")
        assert found["state"] == "unhealthy" and found["check"]["why"] == why
        assert found["check"]["since_seconds"] > 0
        assert bodies(proxy, "/bad") == {"fine"}
        found = server(proxy, bad.text, "bad")
        assert found["state"] == "ejected" and "of its requests failed" in found["outlier"]["why"]
        assert bodies(proxy, "/slow", 8) and server(proxy, slow.text, "slow")["slow_start_percent"] < 50
        assert bodies(proxy, "/cut") == {"fine"} and server(proxy, cut.text, "cut")["state"] == out
    # One may come due by chance in these seconds of an hour.
    assert len(down.requests) - seen < 2, "no round of probes is needed for what is known"
    # Another kind of check has no verdict yet: its first result counts.
    proxy.write(lambda text: text.replace('http = "/check"\ninterval = "1h"', 'tcp = true\ninterval = "1h"')
                .replace('{ http = "/check", interval = "1h" }', '{ tcp = true, interval = "1h" }'))
    assert "tcp = true" in proxy.file.read_text()
    proxy.upgrade()
    await_state(proxy, down.text, "up", name="down")
    eventually(lambda: bodies(proxy, "/down") == {"down", "fine"})
    proxy.stop()


def test_only_the_newest_process_probes(line, serve, tmp_path):
    """Old processes live on for their WebSockets, and probe nobody; one that is started by a probe says who probes."""
    def echo(connection):
        connection.read_head()
        connection.send(SWITCH)
        connection.sock.settimeout(None)
        while data := connection.sock.recv(100):
            connection.send(data)

    back = serve(echo)
    seen = tmp_path / "seen"
    probe = script(tmp_path / "probe", f"echo $PPID >> {seen}")
    check = {"exec": [str(probe)], "interval": "50ms", "timeout": "10s"}
    proxy = line({**one(back, check=check), "node": {"shards": 1}})

    def probers(pid):
        """Names of its threads."""
        return [(task / "comm").read_text().strip() for task in Path(f"/proc/{pid}/task").iterdir()]

    with ExitStack() as stack:
        clients = []
        for _ in range(3):
            clients.append(stack.enter_context(Client(proxy.address)))
            assert clients[-1].ask(WEBSOCKET).status == 101
            proxy.upgrade()
        assert len(proxy.pids) == 4 and "health" in probers(proxy.newest)
        for pid in proxy.pids[:-1]:
            eventually(lambda p=pid: "health" not in probers(p), what=f"{pid} probes no more")
        lines = lambda: seen.read_text().split()
        from_here = len(lines())
        eventually(lambda: len(lines()) >= from_here + 10, what="probes go on")
        assert set(lines()[from_here + 1:]) == {str(proxy.newest)}
        assert server(proxy, back.text)["state"] == "up"
        for client in clients:
            client.send(b"still there")
            assert client.stream.exactly(len(b"still there"), Deadline(10), "the echo") == b"still there"
        assert all(map(is_alive, proxy.pids))
    proxy.stop()


def test_changes_at_run_time_pass_to_the_successor(line, serve):
    a, b, c, d, e = (serve(named(name)) for name in "abcde")
    proxy = line({**one(a, b, c), "node": {"shards": 2}})
    by_name = f"localhost:{e.text.rpartition(':')[2]}"
    for order in (["add", d.text, "--weight", 3], ["add", by_name], ["remove", a.text], ["drain", b.text],
                  ["weight", 5, c.text]):
        proxy.ctl("upstream", "up", *order)
    proxy.ctl("log", "level", "warn")
    def drift():
        [found] = proxy.status()["upstreams"]
        return sorted((one["server"], one["what"]) for one in found["drift"])

    expected = sorted([(d.text, "added"), (by_name, "added"), (a.text, "removed"), (b.text, "drained"),
                       (c.text, "weight 5 instead of 1")])
    assert drift() == expected
    for _ in range(2):
        proxy.upgrade()
        assert bodies(proxy, "/", 40) == {"c", "d", "e"}
        assert drift() == expected
        assert "warn" in proxy.ctl("log", "level").stdout
    proxy.ctl("upstream", "up", "undrain", b.text)
    assert "b" in bodies(proxy, "/", 40)
    # The file's list has changed: it counts, and that is said.
    proxy.ctl("log", "level", "info")
    proxy.write(lambda text: text.replace(a.text, d.text))
    proxy.upgrade()
    assert drift() == [] and bodies(proxy, "/", 40) == {"b", "c", "d"}
    proxy.await_log("what was changed at run time is gone")
    proxy.stop()


def in_background(proxy, *args):
    return subprocess.Popen(
        [str(binary()), "ctl", "--socket", str(proxy.socket), *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_an_upgrade_lets_nothing_else_change(line, serve, tmp_path):
    """The successor is held before its first step; what would change the process meanwhile is refused."""
    back, other = serve(respond(body=b"a")), serve(respond(body=b"b"))
    proxy = line(one(back))
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    held = script(tmp_path / "held", f'read go < {gate}\nexec {binary()} "$@"')
    good = proxy.file.read_text()
    upgrade = in_background(proxy, "upgrade", "--binary", held)
    eventually(lambda: proxy.status()["upgrade"]["under_way"], 10)
    proxy.file.write_text(good.replace(back.text, other.text))
    for order in (["reload"], ["reload", "--dry-run"], ["upstream", "up", "add", other.text], ["upgrade"]):
        done = proxy.ctl(*order, check=False)
        assert done.returncode == 1 and "an upgrade is under way" in done.stderr, (order, done)
    # Signals are refused as well, and that is logged.
    proxy.signal(signal.SIGHUP)
    eventually(lambda: proxy.log().count("reload refused") >= 2, 10)
    assert get(proxy.address).body == b"a" and not upgrade.poll()
    gate.write_text("go\n")
    out, err = upgrade.communicate(timeout=30)
    assert upgrade.returncode == 0, err
    eventually(lambda: proxy.note() != proxy.pid, 10)
    # The successor has read the file as it is now, and can be changed; the old process may take a last connection.
    eventually(lambda: get(proxy.address).body == b"b", 10)
    proxy.file.write_text(good)
    proxy.ctl("reload")
    assert get(proxy.address).body == b"a"
    proxy.stop()


def test_a_reload_is_finished_before_an_upgrade(line, serve):
    """The reload is held while it reads the file, a pipe; then it goes on as if nobody had asked."""
    back, other = serve(respond(body=b"a")), serve(respond(body=b"b"))
    proxy = line(one(back))
    new = proxy.file.read_text().replace(back.text, other.text)
    proxy.file.unlink()
    os.mkfifo(proxy.file)
    reload = in_background(proxy, "reload")
    # Opening for writing succeeds once somebody reads.
    with open(proxy.file, "w") as pipe:
        for turn in range(2):
            done = proxy.ctl("upgrade", check=False)
            assert done.returncode == 1 and "a reload or a change of servers is under way" in done.stderr
        assert proxy.status()["pid"] == proxy.pid and not proxy.status()["upgrade"]["failures"]
        assert get(proxy.address).body == b"a" and not reload.poll()
        pipe.write(new)
    out, err = reload.communicate(timeout=30)
    assert reload.returncode == 0 and "in force" in out, (out, err)
    assert get(proxy.address).body == b"b"
    proxy.file.unlink()
    Path(proxy.file).write_text(new)
    proxy.upgrade()
    assert get(proxy.address).body == b"b"
    proxy.stop()
