"""The load generator: it counts right, agrees with wrk, names errors, and cannot overlook a stall."""

import json
import os
import pty
import re
import signal
import socket
import statistics
import struct
import subprocess
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import Client, Deadline, Nginx, eventually, free_port, say
from harness.client import run as run_tool

from .generator import background, bench, failures, load, run, url

SHORT = ("--warmup", "200ms", "--duration", "800ms")


@pytest.fixture
def counting(tmp_path):
    """nginx that logs each request: `counting(server)` starts it, `.lines()` is what it saw."""
    started = []

    def begin(server="", answer="return 200 ok;"):
        directory = tmp_path / f"nginx{len(started)}"
        nginx = Nginx(
            directory,
            f"access_log {directory}/access.log short; {server} location / {{ {answer} }}",
            "log_format short '$request_method $request_uri $status';",
        )
        nginx.lines = (directory / "access.log").read_text
        nginx.start()
        started.append(nginx)
        return nginx

    yield begin
    for nginx in started:
        nginx.stop()


def seen(nginx, expected):
    """The lines that nginx logged, once there are as many as expected; then never more."""
    eventually(lambda: nginx.lines().count("\n") >= expected, 10, f"{expected} requests logged")
    return nginx.lines().splitlines()


@pytest.mark.parametrize(
    "options",
    [
        ("--connections", 16),
        ("--connections", 4, "--pipeline", 8),
        ("--connections", 8, "--new-connections"),
        ("--connections", 16, "--rate", 3000),
        ("--connections", 8, "--rate", 300, "--new-connections"),
        ("--connections", 8, "--think", "20ms"),
        ("--connections", 3, "--method", "POST", "--body", 50_000),
        ("--connections", 3, "--method", "HEAD"),
    ],
    ids=lambda options: " ".join(str(option).strip("-") for option in options),
)
def test_what_it_reports_is_what_nginx_counted(counting, options):
    # nginx closes after 70 requests, so connections are opened again, and pipelines sent again.
    nginx = counting("keepalive_requests 70;")
    result = load(url(nginx), *SHORT, *options)
    assert not failures(result), result
    requests = result["requests"]
    assert requests["sent"] == requests["responses"] > 20
    lines = seen(nginx, requests["responses"])
    assert len(lines) == requests["responses"]
    assert 0 < requests["measured"] <= requests["responses"]
    assert sum(result["per_second"]) == requests["measured"]
    if "--rate" in options:
        rate = options[options.index("--rate") + 1]
        assert requests["sent"] + requests["unsent"] == rate  # one second in all
        assert result["latency_us"]["count"] <= rate
    else:
        assert result["latency_us"]["count"] == requests["measured"]
    if "--new-connections" in options:
        assert result["connections_opened"] == requests["responses"]


def test_the_warm_up_is_cut_off(counting):
    nginx = counting()
    result = load(url(nginx), "--rate", 500, "--warmup", "1s", "--duration", "1s")
    assert result["requests"]["sent"] == 1000
    assert result["latency_us"]["count"] == 500
    # Half of them, give or take those that were due before and answered after; without a warm-up it would be all.
    assert 300 <= result["requests"]["measured"] <= 750


def test_think_time_limits_the_rate(counting):
    nginx = counting()
    result = load(url(nginx), "--connections", 5, "--think", "50ms", "--duration", "1s")
    assert 20 <= result["requests"]["measured"] <= 100, result  # 20 a second and connection


def test_a_mix_keeps_its_weights(counting, tmp_path):
    nginx = counting()
    mix = tmp_path / "mix.txt"
    mix.write_text("# reads and writes\n7 GET /read?x=1\n2 POST /write 3000\n1 PUT /large 40000\n")
    result = load(url(nginx), *SHORT, "--rate", 1000, "--requests", mix)
    assert not failures(result)
    total = result["requests"]["responses"]  # a thousand, unless the machine was too busy to send them
    assert total > 500, result
    lines = [line.split() for line in seen(nginx, total)]
    counts = Counter((method, path) for method, path, *_ in lines)
    shares = {("GET", "/read?x=1"): 0.7, ("POST", "/write"): 0.2, ("PUT", "/large"): 0.1}
    assert counts.keys() == shares.keys()
    assert all(abs(counts[one] - share * total) < 20 for one, share in shares.items()), counts


def test_fields_and_bodies_arrive(origin, tmp_path):
    mix = tmp_path / "mix.txt"
    mix.write_text("1 GET /\n1 POST /small 3000\n1 PUT /large 400000\n")
    fields = ("--header", "X-One: 1", "--header", "Host: shop.example")
    for pipeline in (1, 5):
        result = load(url(origin), *SHORT, "-c", 2, "--requests", mix, *fields, "--pipeline", pipeline)
        assert not failures(result)
    bodies = {"GET": 0, "POST": 3000, "PUT": 400_000}
    assert {request.method for request in origin.requests} == bodies.keys()
    for request in origin.requests:
        assert len(request.body) == bodies[request.method]
        assert (request.header("Host"), request.header("X-One")) == ("shop.example", "1")


def chunked(connection):
    for _ in connection.requests():
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.send(b"5\r\nhello\r\n")
        connection.send(b"0\r\nTrailer: x\r\n\r\n")


def until_close(connection):
    connection.read_request()
    connection.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 30_000)


def interim(connection):
    for _ in connection.requests():
        connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + say())


@pytest.mark.parametrize("handler", [chunked, until_close, interim])
def test_every_framing_ends_where_it_should(serve, handler):
    origin = serve(handler)
    result = load(url(origin), *SHORT, "--connections", 2)
    assert not failures(result)
    assert result["requests"]["responses"] == len(origin.requests) > 10


def test_large_responses_are_read_whole(tmp_path):
    size = 1 << 20
    with background(tmp_path, "serve", "--body", size) as server:
        result = load(url(server), *SHORT, "--connections", 4)
        assert not failures(result)
        assert result["requests"]["responses"] > 10
        # What was measured differs from whole responses by what was on its way at either end.
        assert abs(result["bytes"] / size - result["requests"]["measured"]) < 6


def once(misbehave):
    """A handler that misbehaves on the first request it sees, and answers all others."""
    first = threading.Lock()

    def handler(connection):
        for _ in connection.requests():
            if first.acquire(blocking=False):
                if misbehave(connection):
                    return
            else:
                connection.send(say())

    return handler


@pytest.mark.parametrize(
    ("kind", "misbehave"),
    [
        ("closed", lambda connection: True),
        ("closed", lambda connection: connection.reset() or True),
        ("closed", lambda connection: connection.send(say()[:-1]) or True),
        ("timeout", lambda connection: connection.stall(3) or True),
        ("malformed", lambda connection: connection.send(b"220 mail.example ESMTP\r\n\r\n")),
        ("malformed", lambda connection: connection.send(say() + b"more than asked for")),
        ("status_4xx", lambda connection: connection.send(say(404))),
        ("status_5xx", lambda connection: connection.send(say(503))),
    ],
)
def test_errors_are_counted_by_kind(serve, kind, misbehave):
    origin = serve(once(misbehave))
    # What is answered late by a busy machine is not what is counted here.
    patience = "700ms" if kind == "timeout" else "10s"
    result = load(url(origin), *SHORT, "--connections", 2, "--timeout", patience)
    assert failures(result) == {kind: 1}
    requests = result["requests"]
    assert requests["responses"] > 10
    lost = kind in ("closed", "timeout") or (kind == "malformed" and requests["sent"] > requests["responses"])
    assert requests["sent"] == requests["responses"] + lost


def test_connections_that_are_refused_are_errors():
    result = run(f"http://127.0.0.1:{free_port()}/", *SHORT, "--connections", 1, "--no-live")
    assert result.returncode == 1 and "no response at all" in result.stderr
    count = re.search(r"errors +connect (\d+)\n", result.stdout)
    assert count and 5 <= int(count[1]) <= 25, result.stdout  # one every 50 ms


def test_a_server_that_comes_back_is_used_again(serve):
    origin = serve()
    origin.refuse()
    back = threading.Timer(0.5, origin.listen)
    back.start()
    result = load(url(origin), "--warmup", "0ms", "--duration", "1s", "--connections", 2)
    back.join()
    assert failures(result).keys() == {"connect"}
    assert result["requests"]["responses"] == len(origin.requests) > 10


def test_a_rate_that_is_not_kept_is_reported(serve):
    def slow(connection):
        for _ in connection.requests():
            time.sleep(0.1)
            connection.send(say())

    origin = serve(slow)
    options = ("--rate", 50, "--connections", 1, "--timeout", "400ms", "--warmup", "0ms")
    result = load(url(origin), *options, "--duration", "2s")
    assert failures(result).keys() == {"overdue"}
    requests, overdue = result["requests"], result["errors"]["overdue"]
    assert requests["sent"] + overdue + requests["unsent"] == 100
    assert 10 <= requests["sent"] <= 21
    assert 300_000 < result["behind_us"]["max"] <= 401_000
    done = run(url(origin), *options, "--duration", "1s", "--no-live")
    assert "NOT SENT" in done.stdout


class Stalling:
    """Stops a process for 100 ms in every second."""

    def __init__(self, process):
        self.process, self.stalls, self.over = process, 0, threading.Event()
        self.thread = threading.Thread(target=self.go)

    def go(self):
        while not self.over.wait(0.9):
            self.process.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
            self.process.send_signal(signal.SIGCONT)
            self.stalls += 1

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def test_a_stall_shows_in_the_open_loop_and_hides_in_the_closed_one(tmp_path):
    with background(tmp_path, "serve") as server:
        options = ("--connections", 8, "--duration", "5s")
        with Stalling(server.process):
            closed = load(url(server), *options)
        with Stalling(server.process):
            opened = load(url(server), *options, "--rate", 1000)
    assert not failures(closed) and not failures(opened)
    percentiles = dict(map(tuple, opened["latency_us"]["percentiles"]))
    # A tenth of the requests is due in a stall, and waits for 50 ms of it on average.
    assert percentiles[99.9] > 80_000
    assert percentiles[95.0] > 20_000
    # Asking only what is answered, the generator has a handful of requests out in each stall.
    assert closed["requests"]["measured"] > opened["requests"]["measured"]
    hidden = dict(map(tuple, closed["latency_us"]["percentiles"]))
    assert hidden[95.0] < percentiles[95.0] / 2, (hidden, percentiles)
    assert closed["latency_us"]["max"] > 80_000


SLOW = "upstream slow { server %s; keepalive 64; keepalive_requests 1000000; }"
SLOWER = "location / { proxy_pass http://slow; proxy_http_version 1.1; proxy_set_header Connection ''; }"


@contextmanager
def busy_server(directory):
    """nginx before nginx, all on one CPU: several times dearer than any generator, which has another CPU."""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    with Nginx(directory / "back", "location / { return 200 ok; }") as back:
        with Nginx(directory / "front", SLOWER, SLOW % back.text) as front:
            os.sched_setaffinity(back.pid, {first})
            os.sched_setaffinity(front.pid, {first})
            yield front, second


def rate_of_wrk(server, cpu):
    command = ("taskset", "-c", cpu, "wrk", "-t1", "-c32", "-d1s", url(server))
    return float(re.search(r"Requests/sec: +([0-9.]+)", run_tool(*command).stdout)[1])


def rate_of_h2load(server, cpu):
    command = ("taskset", "-c", cpu, "h2load", "--h1", "-t1", "-c32", "-D1", url(server))
    done = re.search(r"finished in [0-9.]+s, ([0-9.]+) req/s", run_tool(*command).stdout)
    return float(done[1])


def test_its_rate_agrees_with_those_of_wrk_and_h2load(tmp_path):
    rates = {"ours": [], "wrk": [], "h2load": []}
    with busy_server(tmp_path) as (server, cpu):
        ours = ("--connections", 32, "--cpus", cpu, "--warmup", "0ms", "--duration", "1s")
        load(url(server), *ours)
        for _ in range(5):
            rates["ours"].append(load(url(server), *ours)["requests_per_second"])
            rates["wrk"].append(rate_of_wrk(server, cpu))
            rates["h2load"].append(rate_of_h2load(server, cpu))
    for other in ("wrk", "h2load"):
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates[other]))
        print(f"requests/s: {rates}, paired ratio to {other} {ratio:.2f}")
        # The server is the bottleneck; what is left is the noise of a shared machine.
        assert 0.8 <= ratio <= 1.25


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_with_the_result_so_far(counting, number, code):
    nginx = counting()
    options = ("--rate", "500", "--warmup", "0s", "--duration", "1h", "--json", "-")
    running = subprocess.Popen(
        [bench(), "run", url(nginx), *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    try:
        first = running.stderr.readline()  # the line of the first second
        assert "/s" in first
        running.send_signal(number)
        out, _ = running.communicate(timeout=10)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == code
    result = json.loads(out)
    assert result["interrupted"] is True
    assert 0.9 < result["seconds"] < 10
    assert result["requests"]["measured"] >= 400
    assert abs(result["requests_per_second"] - 500) < 100
    # What was not due yet is not missing.
    assert result["requests"]["unsent"] == 0
    assert len(seen(nginx, result["requests"]["responses"])) >= result["requests"]["responses"]


def test_a_signal_ends_the_part_of_agents_too(counting, tmp_path):
    nginx = counting()
    with background(tmp_path / "a", "agent") as agent:
        options = ("--rate", "500", "--warmup", "0s", "--duration", "1h", "--agents", agent.text)
        running = subprocess.Popen(
            [bench(), "run", url(nginx), *options],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        try:
            seen(nginx, 600)
            running.send_signal(signal.SIGINT)
            out, _ = running.communicate(timeout=10)
        finally:
            running.kill()
            running.wait()
        assert running.returncode == 130
        assert "INTERRUPTED" in out and "errors      none" in out
        eventually(lambda: run_over(agent), 10, "the agent's run ends")
        # It takes the next one.
        assert not failures(load(url(nginx), *SHORT, "--agents", agent.text))


def run_over(agent):
    """Whether the agent has noticed that nobody listens any more."""
    return "127.0.0.1" in agent.process.log().partition("\n")[2]


def test_slow_readers_take_their_time(tmp_path):
    with background(tmp_path, "serve", "--body", 1_000_000) as server:
        options = ("--connections", 4, "--warmup", "0s", "--duration", "3s")
        fast = load(url(server), *options)
        slow = load(url(server), *options, "--read-rate", 1_000_000)
    assert not failures(fast) and not failures(slow)
    # The kernel and the reactor take the first few hundred kilobytes at once.
    assert 0.4e6 < slow["latency_us"]["p50"] < 2e6
    assert 4 <= slow["requests"]["measured"] <= 30 < fast["requests"]["measured"]


def test_a_server_may_have_several_addresses(tmp_path):
    with background(tmp_path, "serve", "--bind", "127.0.0.1:0") as server:
        text = eventually(lambda: re.findall(r"127\.0\.0\.1:\d+", server.process.log()), 5)
        assert len(text) == 2
        for address in text:
            assert not failures(load(f"http://{address}/", *SHORT, "--connections", 2))


@contextmanager
def relay(directory, server):
    to = "{}:{}".format(*server.address)
    with background(directory, "relay", "--to", to) as one:
        yield one


def test_the_relay_passes_everything_on_both_ways(serve, tmp_path):
    body = os.urandom(3_000_000)

    def echo(connection):
        received = b""
        while piece := connection.sock.recv(65536):  # until our half-close comes through
            received += piece
        connection.send(received[::-1])

    origin = serve(echo)
    with relay(tmp_path, origin) as between, Client(between.address, timeout=30) as client:
        sender = threading.Thread(target=lambda: (client.send(body), client.half_close()))
        sender.start()
        received = client.read_until_eof()
        sender.join()
    assert len(received) == len(body) and received == body[::-1]


def test_the_relay_keeps_what_a_slow_reader_has_not_taken_when_both_have_ended(serve, tmp_path):
    body, ended = os.urandom(100_000), threading.Event()

    def answer(connection):
        connection.sock.recv(1)
        connection.send(body)
        connection.sock.close()
        ended.set()

    origin = serve(answer)
    with relay(tmp_path, origin) as between, Client(between.address, timeout=30, rcvbuf=4096) as client:
        client.send(b"?")
        client.half_close()
        assert ended.wait(10)
        received = client.read_until_eof()
    assert len(received) == len(body) and received == body


def test_the_relay_serves_requests_like_the_server_behind_it(counting, tmp_path):
    nginx = counting()
    with relay(tmp_path, nginx) as between:
        result = load(url(between), *SHORT, "--connections", 16)
        assert not failures(result)
        assert len(seen(nginx, result["requests"]["responses"])) == result["requests"]["responses"]
        nginx.stop()
        assert failures(load(url(between), *SHORT, "--connections", 2, code=1))  # and ends where it ends


def test_agents_add_up(counting, tmp_path):
    nginx = counting()
    with background(tmp_path / "a", "agent") as one, background(tmp_path / "b", "agent") as two:
        agents = ("--agents", f"{one.text},{two.text}")
        result = load(url(nginx), *SHORT, "--rate", 1001, "--connections", 9, *agents)
        assert not failures(result)
        assert result["requests"]["sent"] == result["requests"]["responses"] == 1001
        assert len(seen(nginx, 1001)) == 1001
        # 500 and 501 a second, of which 0.8 s are measured.
        assert abs(result["latency_us"]["count"] - 801) <= 1
        assert result["connections_opened"] == 9
        assert [machine["host"] for machine in result["machines"]] == [one.text, two.text]
        # They serve one run after the other.
        again = load(url(nginx), *SHORT, "--connections", 4, *agents)
        total = result["requests"]["responses"] + again["requests"]["responses"]
        assert not failures(again) and len(seen(nginx, total)) == total


def test_an_agent_serves_one_run_at_a_time(tmp_path, counting):
    nginx = counting()
    with background(tmp_path / "a", "agent") as agent:
        options = (url(nginx), "--rate", 100, "--agents", agent.text)
        first = threading.Thread(target=load, args=(*options, "--duration", "2s"))
        first.start()
        eventually(lambda: nginx.lines(), 10, "the first run began")
        second = run(*options, *SHORT)
        assert second.returncode == 1
        assert f"agent {agent.text}: this agent is busy" in second.stderr
        first.join()


def test_an_agent_that_dies_fails_the_run(tmp_path, counting):
    nginx = counting()
    with background(tmp_path / "a", "agent") as one, background(tmp_path / "b", "agent") as two:

        def kill():
            eventually(lambda: nginx.lines(), 10, "the run began")
            two.process.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        agents = f"{one.text},{two.text}"
        done = run(url(nginx), "--rate", 100, "--duration", "20s", "--agents", agents, timeout=15)
        killer.join()
        assert done.returncode == 1
        assert f"agent {two.text}: " in done.stderr and done.stdout == ""
        # The other notices that nobody listens, and takes the next run.
        eventually(lambda: "the run" in one.process.log() or one.process.log().count("\n") > 1, 10)
        eventually(lambda: run(url(nginx), *SHORT, "--agents", one.text).returncode == 0, 10)


def tell(client, message):
    data = json.dumps(message).encode()
    client.send(struct.pack(">I", len(data)) + data)


def hear(client):
    (length,) = struct.unpack(">I", client.stream.exactly(4, Deadline(10), "length"))
    return json.loads(client.stream.exactly(length, Deadline(10), "message"))


class FullQueue:
    """A listener that drops connects until `open()`; the kernel tries them again after a second."""

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.address = self.listener.getsockname()
        self.waiting = [socket.socket() for _ in range(4)]
        for one in self.waiting:
            one.setblocking(False)
            one.connect_ex(self.address)
        return self

    def open(self):
        for one in self.waiting:
            one.close()
        self.listener.listen(64)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                connection, _ = self.listener.accept()
                threading.Thread(target=self.answer, args=(connection,), daemon=True).start()
            except OSError:
                return

    @staticmethod
    def answer(connection):
        with connection:
            try:
                while connection.recv(65536):
                    connection.sendall(say())
            except OSError:
                pass

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def sleeping(pid):
    """Whether all load threads of a process sleep."""
    threads = [task for task in Path(f"/proc/{pid}/task").iterdir() if (task / "comm").read_text().startswith("load-")]
    return threads and all((task / "stat").read_text().rpartition(")")[2].split()[0] == "S" for task in threads)


def test_a_late_start_is_no_timeout(tmp_path, serve):
    plan = load(url(serve()), *SHORT, "--connections", 1)["options"]
    with FullQueue() as slow, background(tmp_path / "a", "agent") as agent:
        plan |= {"url": url(slow), "timeout_ms": 2500, "duration_ms": 2500}
        with Client(agent.address) as client:
            tell(client, {"message": "prepare", "protocol": 2, "plan": plan})
            assert hear(client)["message"] == "ready"
            # Other agents may take their time, here longer than the timeout; the rings sleep meanwhile.
            late = time.monotonic() + 1.2 * plan["timeout_ms"] / 1000
            eventually(lambda: time.monotonic() > late and sleeping(agent.process.pid), 10, "load threads that sleep")
            tell(client, {"message": "start"})
            threading.Timer(0.3, slow.open).start()
            totals, last = Counter(), False
            while not last:
                report = hear(client)
                last = report["last"]
                client.stream.exactly(report["histogram_bytes"], Deadline(10), "histogram")
                totals += Counter(report["counts"]["errors"])
                totals["opened"] += report["counts"]["opened"]
    assert totals == {"opened": 1}


def test_an_agent_refuses_nonsense(tmp_path):
    with background(tmp_path / "a", "agent") as agent:
        for nonsense in (b"\xff" * 64, b"\x00\x00\x00\x02{}", b"GET / HTTP/1.1\r\n\r\n"):
            with Client(agent.address) as client:
                client.send(nonsense)
                assert b'"failed"' in client.read_until_eof() or client.closed()
        assert agent.process.alive()


def test_a_line_a_second(counting):
    nginx = counting()
    options = (url(nginx), "--rate", 200, "--warmup", "1s", "--duration", "2500ms")
    done = run(*options)
    lines = done.stderr.splitlines()
    assert len(lines) == 3, done.stderr
    assert re.fullmatch(r" +\d+% +\d+s( warm-up)?  [0-9.]+/s", lines[0]), lines
    assert re.fullmatch(r" +\d+% +\d+s  [0-9.]+/s  p50 [0-9.]+ .s  p99 [0-9.]+ .s", lines[2]), lines
    assert 100 < float(re.search(r"([0-9.]+)/s", lines[2])[1]) < 300
    assert 150 < float(re.search(r"requests/s +([0-9.]+)", done.stdout)[1]) < 250
    assert run(*options, "--no-live").stderr == ""


def test_on_a_terminal_there_is_one_line(counting):
    nginx = counting()
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        [bench(), "run", url(nginx), "--rate", "100", "--duration", "1500ms"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs,
    )
    try:
        assert done.wait(20) == 0
    finally:
        os.close(theirs)
    shown = os.read(ours, 65536)
    os.close(ours)
    assert shown.count(b"\r\x1b[K") == 3 and b"\n" not in shown, shown


def test_the_json_goes_to_a_file_too(counting, tmp_path):
    nginx = counting()
    done = run(url(nginx), *SHORT, "--no-live", "--json", tmp_path / "result.json")
    assert done.returncode == 0 and "requests/s" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["options"]["url"] == url(nginx)
    assert result["machines"][0]["kernel"] == os.uname().release
    assert result["machines"][0]["cpus"] == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["ftp://127.0.0.1/"], "https://"),
        (["http://127.0.0.1/", "--rate", "0"], "rate"),
        (["http://127.0.0.1/", "--header", "Connection: close"], "set by the generator"),
        (["http://127.0.0.1/", "--requests", "/nonexistent"], "/nonexistent"),
        (["http://127.0.0.1/", "--pipeline", "2", "--new-connections"], "pipeline"),
        (["http://127.0.0.1/", "--duration", "5"], "unit"),
        (["http://127.0.0.1/", "--cpus", "1023"], "CPU 1023"),
    ],
)
def test_wrong_usage_is_explained(args, says):
    done = run(*args)
    assert done.returncode == 2 and says in done.stderr, done.stderr
    assert done.stdout == ""


def test_threads_are_pinned_where_they_should_be(counting):
    nginx = counting()
    cpus = sorted(os.sched_getaffinity(0))
    child = subprocess.Popen(
        [bench(), "run", url(nginx), "--rate", "50", "--duration", "1s", "--no-live",
         "--cpus", ",".join(map(str, cpus))],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )

    def placed():
        tasks = list(Path(f"/proc/{child.pid}/task").iterdir())
        load_tasks = [int(t.name) for t in tasks if (t / "comm").read_text().startswith("load-")]
        # A load thread's helpers have its name and CPU.
        return {tuple(os.sched_getaffinity(task)) for task in load_tasks}

    try:
        eventually(lambda: placed() == {(cpu,) for cpu in cpus}, 5, "a thread on each CPU")
    finally:
        assert child.wait(20) == 0
