"""Active health checks, outliers, panic threshold, breaker, slow start."""

import base64
import hashlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from harness import Client, Nginx, eventually, free_port, respond, say
from harness.client import message
from harness.http2 import H2
from harness.process import Process, accepts
from harness.proxy import one, parse_metrics, upstream
from harness.tls import Authority
from harness.tools import cpu_seconds, toml

from .test_http2 import websocket_fields
from .test_tunnel import SWITCH, WEBSOCKET

# What a busy machine answers late is no failure; who has to be late on purpose says so.
FAST = {"interval": "100ms", "timeout": "2s", "rise": 2, "fall": 3}
SINGLE = {"shards": 1, "pin": False, "drain_timeout": "5s"}


def server(proxy, text, name="up"):
    """The server's part of /status."""
    [found] = [u for u in proxy.status()["upstreams"] if u["name"] == name]
    [found] = [s for s in found["servers"] if s["address"] == text]
    return found


def state(proxy, text, name="up"):
    return server(proxy, text, name)["state"]


def await_state(proxy, text, wanted, timeout=10.0, name="up"):
    eventually(lambda: state(proxy, text, name) == wanted, timeout, f"{text} {wanted}", every=0.02)


def spread(proxy, count):
    """Statuses or bodies of so many requests on one connection."""
    with Client(proxy.address) as client:
        answers = (client.ask(message()) for _ in range(count))
        return Counter(a.body.decode().strip() if a.status == 200 else a.status for a in answers)


def answering(text):
    return respond(200, text.encode())


def test_down_after_fall_and_up_after_rise(start, tmp_path):
    """A real nginx is killed and comes back; what the operator sees of it."""
    with Nginx.origin(tmp_path / "a", "a") as a, Nginx.origin(tmp_path / "b", "b") as b:
        # Without checks its failures alone would take it out: those are switched off.
        servers = [{"address": n, "max_fails": 0} for n in (a, b)]
        proxy = start(one(*servers, check={"http": "/", **FAST}))
        assert state(proxy, a.text) == state(proxy, b.text) == "up", "the first round comes first"
        a.kill()
        began = time.monotonic()
        await_state(proxy, a.text, "unhealthy")
        took = time.monotonic() - began
        print(f"down after {took * 1000:.0f} ms with fall 3 of 100 ms")
        seen = server(proxy, a.text)["check"]
        assert (seen["state"], seen["kind"], seen["changes"]) == ("down", "http", 1)
        assert "refused" in seen["why"].lower() and seen["failures"] >= 3
        proxy.await_equal("ringgate_server_up", 0, server=a.text)
        proxy.await_equal("ringgate_health_check_up", 0, server=a.text, check="http")
        proxy.await_equal("ringgate_health_check_up", 1, server=b.text)
        proxy.await_equal("ringgate_health_check_changes_total", 1, server=a.text)
        assert spread(proxy, 20) == {"b": 20}
        a.start()
        await_state(proxy, a.text, "up")
        assert set(spread(proxy, 20)) == {"a", "b"}
        proxy.await_log("server is down", "server is up")
        assert "refused" in proxy.log().lower()


def test_a_single_failure_changes_nothing(start, serve):
    answers = iter([503] + [200] * 10_000)
    lock, seen = threading.Lock(), []

    def handler(connection):
        for request in connection.requests():
            with lock:
                status = 200 if not seen else next(answers)
                seen.append(status)
            connection.send(say(status, b"x"))

    back = serve(handler)
    proxy = start(one(back, check={"http": "/", **FAST}))
    eventually(lambda: len(seen) > 6)
    check = server(proxy, back.text)["check"]
    assert check["failures"] == 1 and check["changes"] == 0 and check["state"] == "up"


def test_nobody_loses_a_request(start, tmp_path):
    """Servers are killed and restarted under load with checks on."""
    with Nginx.origin(tmp_path / "a", "a") as a, Nginx.origin(tmp_path / "b", "b") as b:
        proxy = start(one(a, b, check={"http": "/", **FAST}, keepalive=64))
        over, answers, lock = threading.Event(), Counter(), threading.Lock()

        def load():
            mine = Counter()
            with Client(proxy.address) as client:
                while not over.is_set():
                    mine[client.ask(message()).status] += 1
            with lock:
                answers.update(mine)

        threads = [threading.Thread(target=load) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            for one_server in (a, b):
                one_server.kill()
                await_state(proxy, one_server.text, "unhealthy")
                one_server.start()
                await_state(proxy, one_server.text, "up")
        finally:
            over.set()
            for thread in threads:
                thread.join(10)
        assert set(answers) == {200} and answers[200] > 100, answers


def test_what_is_asked_and_expected(start, serve):
    """Method, path, host, fields; statuses; a body that has to match; its bound."""
    def handler(connection):
        for request in connection.requests():
            if request.target == "/big":
                connection.send(say(200, b"x" * 5000 + b"late"))
            else:
                connection.send(say(207, b"status: all good\n"))

    back = serve(handler)
    good = {"http": "/deep?x=1", "method": "OPTIONS", "host": "shop.example",
            "headers": {"X-Probe": "yes"}, "status": [200, "206-208"], "body": "(?i)STATUS: +all"}
    wanted = {
        "good": good,
        "status": {**good, "status": "200-206"},
        "body": {**good, "body": "^all good"},
        "big": {"http": "/big", "body": "late"},
        "bound": {"http": "/big", "body": "late", "max_body": "4k"},
    }
    config = one(back)
    config["upstream"] = {
        name: upstream(back, check={**FAST, **check}) for name, check in wanted.items()
    }
    config["route"] = [{"upstream": "good"}]
    proxy = start(config)
    seen = {name: server(proxy, back.text, name)["check"] for name in wanted}
    assert {n: c["state"] for n, c in seen.items()} == {
        "good": "up", "status": "down", "body": "down", "big": "up", "bound": "down"}
    assert seen["status"]["why"] == "status 207"
    assert "is not in the body (17 bytes)" in seen["body"]["why"]
    assert "(4096 bytes)" in seen["bound"]["why"]
    request = next(r for r in back.requests if r.target == "/deep?x=1")
    fields = {k.lower(): v for k, v in request.fields}
    assert request.method == "OPTIONS" and fields["host"] == "shop.example"
    assert fields["x-probe"] == "yes" and fields["connection"] == "close"


def test_checks_of_their_own_port(start, serve):
    """The probed port decides, for the upstream or for one server, and equal checks are one probe."""
    back, probe = serve(answering("ok")), serve(answering("alive"))
    check = {"http": "/", **FAST}
    config = one(back)
    config["upstream"] = {
        "same1": upstream(back, check=check),
        "same2": upstream(back, check=check),
        "port": upstream(back, check={**check, "port": probe.port}),
        "own": upstream({"address": back, "check_port": free_port()}, check=check),
    }
    config["route"] = [{"upstream": "same1"}]
    proxy = start(config)
    seen = {name: server(proxy, back.text, name) for name in config["upstream"]}
    assert [s["state"] for s in seen.values()] == ["up", "up", "up", "unhealthy"]
    proxy.await_equal("ringgate_health_check_endpoints", 3)
    assert seen["port"]["check"]["address"] == probe.text
    back.refuse()
    for name in ("same1", "same2"):
        await_state(proxy, back.text, "unhealthy", name=name)
    assert state(proxy, back.text, "port") == "up", "its own state"


@contextmanager
def s_server(directory, pair, *args):
    """openssl s_server as the endpoint."""
    port = free_port()
    Path(directory).mkdir(parents=True, exist_ok=True)
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", pair["cert"],
               "-key", pair["key"], "-quiet", *args]
    process = Process(command, Path(directory) / "s_server.log", cwd=directory)
    try:
        process.await_ready(lambda: accepts(("127.0.0.1", port)))
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()


def test_tls(start, tmp_path):
    """Handshakes with openssl: a good certificate, one of somebody else, one for another name; then HTTPS."""
    (tmp_path / "good").mkdir()
    (tmp_path / "bad").mkdir()
    authority, other = Authority(tmp_path / "good"), Authority(tmp_path / "bad")
    good, bad = authority.issue("good", "app.test"), other.issue("bad", "app.test")
    with s_server(tmp_path / "s1", good, "-www") as one_good, \
            s_server(tmp_path / "s2", bad, "-www") as one_bad:
        check = {"tls": True, "ca": str(authority.cert), "server_name": "app.test", **FAST}
        https = {k: v for k, v in check.items() if k != "tls"}
        config = one(one_good)
        config["upstream"] = {
            "good": upstream(one_good, check=check),
            "bad": upstream(one_bad, check=check),
            "name": upstream(one_good, check={**check, "server_name": "other.test"}),
            "unverified": upstream(one_bad, check={**check, "verify": False}),
            "https": upstream(one_good, check={**https, "https": "/", "body": "Ciphers supported"}),
            "inherited": upstream(
                one_good, check={"https": "/", **FAST},
                tls={"ca": str(authority.cert), "server_name": "app.test"}),
        }
        config["route"] = [{"upstream": "good"}]
        proxy = start(config)
        wanted = {"good": (one_good, "up"), "bad": (one_bad, "unhealthy"),
                  "name": (one_good, "unhealthy"), "unverified": (one_bad, "up"),
                  "https": (one_good, "up"), "inherited": (one_good, "up")}
        for name, (text, expected) in wanted.items():
            await_state(proxy, text, expected, name=name)
        assert "invalid peer certificate" in server(proxy, one_bad, "bad")["check"]["why"]
        assert "not valid for name" in server(proxy, one_good, "name")["check"]["why"]


def test_udp(start, serve):
    back = serve(answering("ok"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
        echo.bind(("127.0.0.1", 0))
        echo.settimeout(0.1)
        over, got = threading.Event(), set()

        def answer():
            while not over.is_set():
                try:
                    data, peer = echo.recvfrom(2048)
                except TimeoutError:
                    continue
                got.add(data)
                if data != b"silent":
                    echo.sendto(b"re: " + data, peer)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            port, check = echo.getsockname()[1], {**FAST, "port": echo.getsockname()[1]}
            quick = {**check, "timeout": "90ms"}
            config = one(back)
            config["upstream"] = {
                "reply": upstream(back, check={"udp": "ping", "reply": "^re: ping$", **check}),
                "hex": upstream(back, check={"udp_hex": "00ff", "require_reply": True, **check}),
                "wrong": upstream(back, check={"udp": "x", "reply": "pong", **quick}),
                "silent": upstream(back, check={"udp": "silent", "require_reply": True, **quick}),
                "quiet": upstream(back, check={"udp": "silent", **quick}),
                "refused": upstream(back, check={"udp": "x", **quick, "port": free_port()}),
            }
            config["route"] = [{"upstream": "reply"}]
            proxy = start(config)
            wanted = {"reply": "up", "hex": "up", "wrong": "unhealthy",
                      "silent": "unhealthy", "quiet": "up", "refused": "unhealthy"}
            for name, expected in wanted.items():
                await_state(proxy, back.text, expected, name=name)
            assert b"\x00\xff" in got
            assert "refused" in server(proxy, back.text, "refused")["check"]["why"].lower()
        finally:
            over.set()
            thread.join(5)


def test_exec(start, serve, tmp_path):
    """Exit codes, arguments, environment and user; a hanging one is killed with all its children."""
    back = serve(answering("ok"))
    verdict, pids = tmp_path / "verdict", tmp_path / "pids"
    verdict.write_text("0")
    script = tmp_path / "check"
    script.write_text(f"""#!/bin/sh
        [ "$1" = 127.0.0.1 ] && [ "$2" = "$RINGGATE_PORT" ] && [ "$RINGGATE_ADDRESS" = "$1" ] || exit 9
        exit $(cat {verdict})
    """)
    hang = tmp_path / "hang"
    hang.write_text(f"#!/bin/sh\nsleep 30 &\necho $$ $! >> {pids}\nwait\n")
    for path in (script, hang):
        path.chmod(0o755)
    config = one(back)
    quick, patient = ({**FAST, "timeout": timeout} for timeout in ("300ms", "20s"))
    nobody = ["/bin/sh", "-c", "[ $(id -u) = 65534 ]"]
    config["upstream"] = {
        "script": upstream(back, check={"exec": [str(script), "$address", "$port"], **patient}),
        "nobody": upstream(back, check={"exec": nobody, "user": "nobody", **patient}),
        "root": upstream(back, check={"exec": nobody, **patient}),
        "hang": upstream(back, check={"exec": [str(hang)], **quick}),
        "missing": upstream(back, check={"exec": ["/nonexistent/check"], **FAST}),
    }
    config["route"] = [{"upstream": "script"}]
    proxy = start(config)
    await_state(proxy, back.text, "up", name="script")
    await_state(proxy, back.text, "up", name="nobody")
    await_state(proxy, back.text, "unhealthy", name="root")
    await_state(proxy, back.text, "unhealthy", name="hang")
    assert server(proxy, back.text, "hang")["check"]["why"] == "timeout: killed"
    assert "No such file" in server(proxy, back.text, "missing")["check"]["why"]
    verdict.write_text("3")
    await_state(proxy, back.text, "unhealthy", name="script")
    assert server(proxy, back.text, "script")["check"]["why"] == "exit code 3"
    verdict.write_text("0")
    await_state(proxy, back.text, "up", name="script")
    started = eventually(lambda: pids.read_text().splitlines()[:3], what="a script that hangs")
    killed = [int(pid) for line in started for pid in line.split()]
    eventually(lambda: not any(alive(pid) for pid in killed), what="killed with their children")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_first_round_comes_before_serving(start, serve):
    """A server that is dead at the start gets no request, though nothing else would spare it one."""
    back = serve(answering("ok"))
    dead = [{"address": f"127.0.0.1:{free_port()}", "max_fails": 0} for _ in range(3)]
    config = one(*dead, back, retry={"tries": 1}, check={"tcp": True, **FAST})
    proxy = start({**config, "node": SINGLE})
    assert spread(proxy, 12) == {"ok": 12}
    assert proxy.metric("ringgate_server_connect_failures_total") == 0


def test_alpha_is_down_until_the_first_success(start, serve):
    back, probe = serve(answering("ok")), serve(answering("ok"))
    slow = threading.Event()

    def handler(connection):
        for _ in connection.requests():
            slow.wait(20)
            connection.send(say(200, b"x"))

    late = serve(handler)
    check = {"http": "/", "interval": "10s", "timeout": "10s", "alpha": True, "port": late.port}
    proxy = start(one(back, check=check))  # the first round is given up after 3 s
    assert state(proxy, back.text) == "unhealthy" and spread(proxy, 1) == {503: 1}
    slow.set()
    await_state(proxy, back.text, "up")
    assert spread(proxy, 1) == {"ok": 1} and probe is not back


def test_slow_start(start, serve):
    """A server that comes back gets little at first and its full share at the end."""
    a, b = serve(answering("a")), serve(answering("b"))
    config = one(a, b, slow_start="4s", check={"tcp": True, **FAST})
    proxy = start({**config, "node": SINGLE})
    assert spread(proxy, 100) == {"a": 50, "b": 50}, "no slow start at the start"
    b.refuse()
    await_state(proxy, b.text, "unhealthy")
    assert spread(proxy, 20) == {"a": 20}
    b.listen()
    await_state(proxy, b.text, "up")
    early = spread(proxy, 60)
    percent = server(proxy, b.text).get("slow_start_percent", 100)
    assert early["b"] * 100 <= 60 * percent, (early, percent)  # half of the share at most, with room
    eventually(lambda: "slow_start_percent" not in server(proxy, b.text) or
               server(proxy, b.text)["slow_start_percent"] == 100, 10, every=0.1)
    assert spread(proxy, 100) == {"a": 50, "b": 50}


def test_panic_threshold(start, serve):
    """Checks that fail everywhere are not believed below the threshold, and that shows."""
    backs = [serve(answering(n)) for n in "abc"]
    probes = [serve(answering("ok")) for _ in backs]
    servers = [{"address": b, "check_port": p.port} for b, p in zip(backs, probes)]
    proxy = start(one(*servers, panic_threshold=50, check={"http": "/", **FAST}))
    for probe in probes[:2]:
        probe.refuse()
    eventually(lambda: proxy.metric("ringgate_upstream_panic", upstream="up") == 1)
    assert set(spread(proxy, 30)) == {"a", "b", "c"}
    assert proxy.status()["upstreams"][0]["panic"] is True
    proxy.await_log("too few servers are usable")
    probes[0].listen()
    eventually(lambda: proxy.metric("ringgate_upstream_panic", upstream="up") == 0)
    await_state(proxy, backs[0].text, "up")
    assert set(spread(proxy, 30)) == {"a", "c"}
    for probe in (probes[0], probes[2]):
        probe.refuse()
    eventually(lambda: proxy.metric("ringgate_upstream_panic", upstream="up") == 1)
    assert set(spread(proxy, 30)) == {"a", "b", "c"}


def test_without_a_threshold_nobody_is_asked(start, serve):
    back, probe = serve(answering("a")), serve(answering("ok"))
    proxy = start(one({"address": back, "check_port": probe.port}, check={"http": "/", **FAST}))
    assert spread(proxy, 1) == {"a": 1}
    probe.refuse()
    await_state(proxy, back.text, "unhealthy")
    assert spread(proxy, 3) == {503: 3}


def test_outliers_are_ejected_up_to_the_cap(start, serve):
    """Two of three servers fail: one is ejected, the other spared; it comes back once it behaves."""
    bad = threading.Event()

    def failing(name):
        def handler(connection):
            for _ in connection.requests():
                status = 500 if bad.is_set() else 200
                connection.send(say(status, name.encode()))
        return handler

    a, b, c = serve(failing("a")), serve(failing("b")), serve(answering("c"))
    outlier = {"interval": "300ms", "error_percent": 50, "min_requests": 5,
               "ejection_time": "1500ms", "max_ejected": 34}
    proxy = start(one(a, b, c, outlier=outlier))
    bad.set()
    ejections = "ringgate_server_ejections_total"

    def ejected():
        spread(proxy, 30)
        return proxy.metric(ejections) > 0

    out = {}

    def one_of_three():
        """An ejection ends after a while, and the server is ejected again as long as it fails."""
        spread(proxy, 30)
        out.update({s["address"]: s for s in proxy.status()["upstreams"][0]["servers"]})
        states = [out[s.text]["state"] for s in (a, b, c)]
        if states.count("ejected") > 1 or states[2] != "up":
            pytest.fail(f"the cap is one of three, and the last one answers well: {states}")
        return states.count("ejected") == 1 and proxy.metric("ringgate_server_ejections_spared_total") > 0

    eventually(ejected)
    eventually(one_of_three)
    seen = next(s["outlier"] for s in out.values() if s["state"] == "ejected")
    assert seen["ejected"] and "of its requests failed" in seen["why"]
    bad.clear()
    for s in (a, b):
        await_state(proxy, s.text, "up")
    proxy.await_log("ejected as an outlier", "no longer ejected")


def test_slow_servers_are_outliers_too(start, serve):
    def slow(connection):
        for _ in connection.requests():
            time.sleep(0.1)
            connection.send(say(200, b"slow"))

    quick, lame = [serve(answering("quick")) for _ in range(2)], serve(slow)
    outlier = {"interval": "1s", "latency_factor": 4, "min_requests": 5, "ejection_time": "10m"}
    proxy = start(one(*quick, lame, outlier=outlier))

    def ejected():
        spread(proxy, 18)
        return state(proxy, lame.text) == "ejected"

    eventually(ejected)
    assert "ms to a response, the others" in server(proxy, lame.text)["outlier"]["why"]
    assert spread(proxy, 20) == {"quick": 20}


def test_breaker_in_flight(start, serve):
    """The third request of two allowed ones is refused at once and counted; then there is room again."""
    release = threading.Event()

    def handler(connection):
        for _ in connection.requests():
            release.wait(20)
            connection.send(say(200, b"ok"))

    back = serve(handler)
    proxy = start(one(back, breaker={"max_in_flight": 2}))
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(proxy.address)) for _ in range(2)]
        for client in clients:
            client.send(message())
        eventually(lambda: len(back.heads) == 2)
        assert spread(proxy, 5) == {503: 5}
        name = "ringgate_upstream_breaker_refused_total"
        proxy.await_equal(name, 5, limit="max_in_flight")
        assert len(back.heads) == 2
        release.set()
        for client in clients:
            assert client.read_response().status == 200
        assert spread(proxy, 5) == {"ok": 5}
        proxy.await_equal(name, 5)


def test_tunnels_count_for_the_breaker(start, serve):
    """As HAProxy's maxconn and nginx's max_conns count them: for as long as they last."""
    def handler(connection):
        for asked in connection.requests():
            if not asked.header("upgrade"):
                connection.send(say(200, b"ok"))
                continue
            connection.send(SWITCH)
            with suppress(OSError):
                while data := connection.sock.recv(100):
                    connection.send(data)
            return

    back = serve(handler)
    proxy = start(one(back, breaker={"max_in_flight": 2}))
    with Client(proxy.address) as first, Client(proxy.address) as second:
        for client in (first, second):
            client.send(WEBSOCKET)
            assert client.read_head().status == 101
        assert spread(proxy, 3) == {503: 3}
        first.send(b"still there")
        assert first.sock.recv(100) == b"still there"
        first.close()
        # Its place is free once the server has seen the end, too.
        eventually(lambda: set(spread(proxy, 1)) == {"ok"})
    eventually(lambda: proxy.metric("ringgate_server_in_flight") == 0)
    # Nothing is given back twice: two requests fit and a third does not.
    with Client(proxy.address) as first, Client(proxy.address) as second:
        for client in (first, second):
            client.send(WEBSOCKET)
            assert client.read_head().status == 101
        assert spread(proxy, 3) == {503: 3}


def test_tunnels_over_http2_count_for_the_breaker(start, serve):
    """RFC 8441: the streams of one connection are as many tunnels, and a place is free as soon as one ends."""
    def handler(connection):
        for asked in connection.requests():
            if not asked.header("upgrade"):
                connection.send(say(200, b"ok"))
                continue
            key = asked.header("sec-websocket-key").encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            accept = base64.b64encode(hashlib.sha1(key).digest())
            connection.send(SWITCH[:-2] + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
            with suppress(OSError):
                while data := connection.sock.recv(100):
                    connection.send(data)
            return

    back = serve(handler)
    proxy = start({**one(back, breaker={"max_in_flight": 3}), "listener": [{"http2": True}]})

    def tunnel(h2, stream):
        h2.send(h2.headers(stream, websocket_fields(), end=False))
        h2.until(lambda: h2.stream(stream).heads, "an answer")
        return h2.stream(stream).status

    with H2(proxy.address) as h2, H2(proxy.address) as other:
        assert [tunnel(h2, stream) for stream in (1, 3)] == [200, 200]
        assert tunnel(other, 1) == 200, "of another connection"
        assert [tunnel(h2, 5), tunnel(other, 3)] == [503, 503]
        assert spread(proxy, 2) == {503: 2}, "requests count with them"
        refused = proxy.metric("ringgate_upstream_breaker_refused_total", limit="max_in_flight")
        assert refused == 4
        h2.data(3, b"still there")
        h2.until(lambda: h2.stream(3).body == b"still there", "the echo")
        # One place comes back however a tunnel ends: by its end, by a reset, with its connection.
        h2.data(1, end=True)
        h2.until(lambda: h2.stream(1).ended, "the end")
        eventually(lambda: set(spread(proxy, 1)) == {"ok"})
        assert tunnel(h2, 7) == 200
        assert spread(proxy, 2) == {503: 2}
        h2.reset(7)
        eventually(lambda: set(spread(proxy, 1)) == {"ok"})
        assert tunnel(h2, 9) == 200
        other.sock.close()
        eventually(lambda: set(spread(proxy, 1)) == {"ok"})
        # Exactly one, each time: with two streams open, one more fits.
        assert tunnel(h2, 11) == 200
        assert spread(proxy, 2) == {503: 2}
    eventually(lambda: proxy.metric("ringgate_server_in_flight") == 0)


def test_commands_end_with_what_asked_for_them(start, serve, tmp_path):
    """A reload that has the check no more, the end of the process, and its death by SIGKILL."""
    back = serve(answering("ok"))
    pids, script = tmp_path / "pids", tmp_path / "hang"
    script.write_text(f"#!/bin/sh\nsleep 1000 &\necho $$ $! >> {pids}\nwait\n")
    script.chmod(0o755)
    check = {"exec": [str(script)], "interval": "1h", "timeout": "1h", "warmup": "1ms"}

    def running():
        """The newest command and its child."""
        words = pids.read_text().split()
        return words and [int(word) for word in words[-2:]]

    proxy = start({**one(back, check=check), "node": SINGLE})
    first = eventually(running, what="the command runs")
    assert all(map(alive, first))
    with_check = proxy.file.read_text()
    without = re.sub(r"\[upstream\.up\.check\]\n(.+\n)*", "", with_check)
    assert "exec" in with_check and "exec" not in without
    proxy.file.write_text(without)
    proxy.signal(signal.SIGHUP)
    eventually(lambda: not any(map(alive, first)), what="the check is gone, and its command")
    proxy.file.write_text(with_check)
    proxy.signal(signal.SIGHUP)
    second = eventually(lambda: running() != first and running(), what="it runs again")
    proxy.stop()
    eventually(lambda: not any(map(alive, second)), what="nothing outlives the process")
    proxy = start({**one(back, check=check), "node": SINGLE})
    third = eventually(lambda: running() != second and running(), what="it runs again")
    try:
        proxy.kill()
        # The kernel kills the command itself; of what that started nobody is left to know.
        eventually(lambda: not alive(third[0]), what="nor does it outlive a crash")
    finally:
        if alive(third[1]):
            os.kill(third[1], signal.SIGKILL)


def test_breaker_pending(start):
    """A server that takes no connections: the bound on waiting requests answers the rest at once."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", free_port()))
        full.listen(0)
        address = full.getsockname()
        for _ in range(4):  # its queue is full from here on: SYNs are dropped
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        server = {"address": f"{address[0]}:{address[1]}", "max_fails": 0}
        proxy = start(one(server, connect_timeout="3s", retry={"tries": 1},
                          breaker={"max_pending": 2}))
        clients = [stack.enter_context(Client(proxy.address)) for _ in range(2)]
        for client in clients:
            client.send(message())
        eventually(lambda: proxy.metric("ringgate_server_in_flight") == 2)
        assert spread(proxy, 5) == {503: 5}
        proxy.await_equal("ringgate_upstream_breaker_refused_total", 5, limit="max_pending")
        assert [client.read_response().status for client in clients] == [504, 504]


def test_two_thousand_endpoints(start, tmp_path):
    """Probed once a second from one thread; what it costs is reported, not judged."""
    many = Nginx(tmp_path / "all", "location / { return 200 ok; }")
    many.text = f"0.0.0.0:{many.port}"
    addresses = [f"127.1.{n // 250}.{n % 250 + 1}:{many.port}" for n in range(2000)]
    with many, Nginx.origin(tmp_path / "one", "one") as served:
        config = one(served)
        config["upstream"]["many"] = upstream(
            *addresses, check={"http": "/", "interval": "1s", "timeout": "10s"})
        plain = start(one(served))
        before = latencies(plain, 1.0)
        plain.stop()
        proxy = start(config)
        def figures():
            """Sums by name: one look at a page this long is enough."""
            sums = Counter()
            for name, _, value in proxy.metrics():
                sums[name] += value
            return sums

        first = eventually(lambda: (f := figures())["ringgate_health_check_up"] == 2000 and f, 20, every=0.5)
        cpu, began = cpu_seconds(proxy.pid), time.monotonic()
        during = latencies(proxy, 2.0)
        share = (cpu_seconds(proxy.pid) - cpu) / (time.monotonic() - began)
        last, seconds = figures(), time.monotonic() - began
        probes = last["ringgate_health_check_successes_total"] - first["ringgate_health_check_successes_total"]
        print(f"{probes / seconds:.0f} probes/s beside {len(during) / 2.0:.0f} requests/s; CPU {share:.2f}; "
              f"p50 {at(before, 50):.2f} -> {at(during, 50):.2f} ms, p99 {at(before, 99):.2f} -> "
              f"{at(during, 99):.2f} ms; late {last['ringgate_health_check_late_total']:.0f}")
        assert last["ringgate_health_check_endpoints"] == 2000
        assert probes > 0 and last["ringgate_health_check_failures_total"] == 0
        assert last["ringgate_health_check_postponed_total"] == 0


def latencies(proxy, seconds):
    """In ms, sorted, of requests one after the other."""
    taken, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        with Client(proxy.address) as client:
            for _ in range(100):
                began = time.monotonic()
                assert client.ask(message()).status == 200
                taken.append((time.monotonic() - began) * 1000)
    return sorted(taken)


def at(values, percent):
    return values[min(len(values) - 1, len(values) * percent // 100)]


def test_descriptors_that_run_out_change_no_verdict(start, serve):
    """Clients take every descriptor: verdicts stay, that is said, and probing goes on afterwards."""
    back = serve(answering("ok"))
    config = one(back, check={"http": "/", **FAST})
    config["node"] = {**SINGLE, "max_connections": 5000}
    proxy = start(config, prefix=["/bin/sh", "-c", 'ulimit -n 120; exec "$@"', "sh"])
    def descriptors():
        return len(os.listdir(f"/proc/{proxy.pid}/fd"))

    before = descriptors()
    with Client(proxy.admin, timeout=10) as admin, ExitStack() as stack:
        eventually(lambda: descriptors() > before, what="the connection to ask through is accepted")
        for _ in range(150):
            held = stack.enter_context(socket.socket())
            held.settimeout(5)
            held.connect(proxy.address)
        eventually(lambda: "verdicts stay" in proxy.log())
        before = len(back.heads)
        time.sleep(1)  # ten intervals, in which nothing can happen
        assert len(back.heads) - before <= 1
        # Accepted before descriptors ran out.
        samples = parse_metrics(admin.ask(message(target="/metrics"), timeout=30).body.decode())
        seen = {name: value for name, _, value in samples}
        assert seen["ringgate_health_check_postponed_total"] > 1
        assert seen["ringgate_health_check_up"] == seen["ringgate_server_up"] == 1
        assert seen["ringgate_health_check_failures_total"] == 0
    eventually(lambda: "health checks are made again" in proxy.log())
    back.refuse()
    await_state(proxy, back.text, "unhealthy")


def test_status_is_json_whatever_a_server_says(start, serve):
    """Reasons come from the network: they are bounded, and one line."""
    def handler(connection):
        connection.read_head()
        connection.send(b"HTTP/1.1 200 \x01\xff\r\nX\x00: y\r\n\r\n" * 10)

    back = serve(handler, lenient=True)
    proxy = start(one(back, check={"http": "/", "body": "a\nb" * 90, **FAST}))
    why = server(proxy, back.text)["check"]["why"]
    assert why.startswith("malformed response") and len(why) <= 200 and why.isprintable()
    assert json.dumps(proxy.status())


def test_reload_keeps_what_is_known(start, serve):
    """An unchanged check goes on through a reload; a new one begins; without one a server is up."""
    a, b = serve(answering("a")), serve(answering("b"))
    servers = [{"address": s, "max_fails": 0} for s in (a, b)]
    proxy = start(one(*servers, check={"tcp": True, **FAST}))
    b.refuse()
    await_state(proxy, b.text, "unhealthy")
    config = proxy.config

    def reload(keys):
        before = proxy.log().count("reload")
        config["upstream"]["up"] = {**config["upstream"]["up"], **keys}
        proxy.file.write_text(toml({k: v for k, v in config.items()}))
        proxy.signal(signal.SIGHUP)
        eventually(lambda: proxy.log().count("reload") > before, what="reloaded")

    failures = server(proxy, b.text)["check"]["failures"]
    reload({"keepalive": 7})
    seen = server(proxy, b.text)
    assert seen["state"] == "unhealthy" and seen["check"]["failures"] >= failures
    assert seen["check"]["changes"] == 1
    assert spread(proxy, 10) == {"a": 10}
    del config["upstream"]["up"]["check"]
    reload({})
    await_state(proxy, b.text, "up")
    reload({"check": {"tcp": True, **FAST, "rise": 1}})
    await_state(proxy, b.text, "unhealthy")
    b.listen()
    await_state(proxy, b.text, "up")
