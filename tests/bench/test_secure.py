"""The load generator over TLS and HTTP/2: its counts are those of the server's log, its errors have names."""

import json
import threading

import pytest

from harness import Deadline, Nginx, eventually
from harness.http2 import (CANCEL, DATA, END_HEADERS, END_STREAM, GOAWAY, H2, HEADERS, NO_ERROR, PREFACE, REFUSED, RST,
                           frame, settings)
from harness.proxy import one
from harness.tls import Authority

from .generator import background, failures, load, run

# Long enough for some requests on a machine that does much else.
SHORT = ("--warmup", "100ms", "--duration", "1000ms")
OK = b"\x88"  # :status 200


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def pair(authority):
    return authority.issue("a.test", "a.test", "127.0.0.1")


@pytest.fixture
def secure(tmp_path, pair):
    """nginx with TLS that logs each request: `secure(listen)` starts it, `.lines()` is what it saw."""
    started = []

    def begin(listen="ssl http2", more=""):
        directory = tmp_path / f"nginx{len(started)}"
        nginx = Nginx(
            directory,
            f"""access_log {directory}/access.log short; ssl_certificate {pair["cert"]};
            ssl_certificate_key {pair["key"]}; ssl_protocols TLSv1.2 TLSv1.3; keepalive_requests 70; client_max_body_size 1m; {more}
            location / {{ return 200 ok; }}""",
            "log_format short '$request_method $server_protocol $status $connection "
            "$ssl_protocol $ssl_session_reused $ssl_cipher $ssl_server_name';",
            listen=listen,
        )
        nginx.lines = lambda: [line.split(" ") for line in (directory / "access.log").read_text().splitlines()]
        started.append(nginx)
        nginx.start()
        return nginx

    yield begin
    for nginx in started:
        nginx.stop()


def url(server, scheme="https"):
    return f"{scheme}://127.0.0.1:{server.address[1]}/"


def seen(nginx, expected):
    """The requests that nginx logged, once there are as many as expected."""
    eventually(lambda: len(nginx.lines()) >= expected, 10, f"{expected} requests logged")
    return nginx.lines()


@pytest.mark.parametrize(
    "options",
    [
        ("--connections", 16),
        ("--connections", 4, "--pipeline", 4),
        ("--connections", 8, "--new-connections"),
        ("--connections", 8, "--new-connections", "--resume", "--tls-version", "1.2"),
        ("--connections", 8, "--new-connections", "--rate", 100),
        ("--connections", 2, "--http2", "--streams", 500),
        ("--connections", 4, "--http2", "--streams", 10, "--rate", 1000),
        ("--connections", 4, "--http2", "--new-connections", "--resume"),
        ("--connections", 2, "--http2", "--streams", 4, "--method", "POST", "--body", 90_000),
        ("--connections", 2, "--http2", "--streams", 4, "--method", "HEAD"),
    ],
    ids=lambda options: " ".join(str(option).strip("-") for option in options),
)
def test_what_it_reports_is_what_nginx_counted(secure, authority, options):
    # nginx closes after 70 requests, with HTTP/2 by GOAWAY: connections are opened again, requests sent again.
    nginx = secure()
    result = load(url(nginx), *SHORT, "--ca", authority.cert, "--server-name", "a.test", *options)
    assert not failures(result), result
    requests = result["requests"]
    assert requests["sent"] == requests["responses"] > 0
    lines = seen(nginx, requests["responses"])
    assert len(lines) == requests["responses"]
    assert requests["measured"] <= requests["responses"]
    assert {line[1] for line in lines} == {"HTTP/2.0" if "--http2" in options else "HTTP/1.1"}
    assert {line[4] for line in lines} == {"TLSv1.2" if "1.2" in options else "TLSv1.3"}
    assert {line[7] for line in lines} == {"a.test"} and all("AES128" in line[6] or "AES_128" in line[6] for line in lines)
    # Each connection once, as nginx numbers them: `r` is a resumed one.
    reused = {line[3]: line[5] == "r" for line in lines}
    shaken = result["handshakes"]
    # What was opened when the run ended may have carried nothing.
    unused = sum(shaken.values()) - len(reused)
    assert 0 <= unused <= options[1]
    assert 0 <= shaken["resumed"] - list(reused.values()).count(True) <= unused
    if "--new-connections" in options:
        assert len(reused) == len(lines)
        assert (shaken["full"] <= options[1]) if "--resume" in options else shaken["resumed"] == 0
    if "--rate" in options:
        assert abs(requests["sent"] - 1.1 * options[options.index("--rate") + 1]) < 5 or requests["unsent"]


def test_http2_in_the_clear(secure):
    nginx = secure(listen="http2")
    result = load(url(nginx, "http"), *SHORT, "--connections", 4, "--http2", "--streams", 20)
    assert not failures(result), result
    lines = seen(nginx, result["requests"]["responses"])
    assert len(lines) == result["requests"]["sent"] > 0 and {line[1] for line in lines} == {"HTTP/2.0"}
    assert result["handshakes"] == {"full": 0, "resumed": 0}


@pytest.mark.parametrize("options", [(), ("--new-connections", "--resume"), ("--http2", "--streams", 20)], ids=str)
def test_ringgate_counts_the_same(start, origin, tmp_path, authority, pair, options):
    log = tmp_path / "access.log"
    proxy = start({**one(origin), "listener": [{"certificates": [pair]}],
                   "log": {"access": "json", "access_file": str(log), "access_buffer": "4m"}})
    result = load(url(proxy), *SHORT, "--connections", 4, "--ca", authority.cert, *options)
    assert not failures(result), result
    expected = result["requests"]["sent"]
    assert expected == result["requests"]["responses"] > 0
    eventually(lambda: log.read_text().count("\n") >= expected, 10, f"{expected} requests logged")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == expected and {line["status"] for line in lines} == {200}
    if "--resume" in options:
        assert result["handshakes"]["resumed"] >= expected - 4
    proxy.await_equal("ringgate_tls_handshakes_total", sum(result["handshakes"].values()))


def test_bodies_are_read_whole(tmp_path, pair, start):
    # Larger than the windows of a stream.
    size = 3_000_000
    with background(tmp_path / "origin", "serve", "--body", size) as origin:
        proxy = start({**one(origin), "listener": [{"certificates": [pair]}]})
        result = load(url(proxy), *SHORT, "--insecure", "--http2", "--streams", 3, "--connections", 2)
    assert not failures(result), result
    assert result["requests"]["responses"] > 0
    assert abs(result["bytes"] / size - result["requests"]["measured"]) < 14


def test_what_is_shown_is_verified(secure, authority, tmp_path):
    nginx = secure()
    other = Authority(tmp_path / "other", "other")
    for options in (("--ca", other.cert), (), ("--ca", authority.cert, "--server-name", "b.test")):
        done = run(url(nginx), *SHORT, "--no-live", "--connections", 1, *options)
        assert done.returncode == 1 and "errors      tls " in done.stdout, done.stdout
    assert not failures(load(url(nginx), *SHORT, "--ca", authority.cert))
    result = load(url(nginx), *SHORT, "--insecure", "--server-name", "b.test")
    assert not failures(result) and result["options"]["tls"]["authorities"] == "not verified"


def test_another_protocol_than_asked_for_is_an_error(secure, serve):
    for server, options in ((secure(listen="ssl"), ["--http2"]), (serve(), [])):
        done = run(url(server), *SHORT, "--insecure", "--no-live", "--connections", 1, *options)
        assert done.returncode == 1 and "errors      tls " in done.stdout, done.stdout


def http2_server(misbehave):
    """A handler of HTTP/2 in the clear that misbehaves on the first request of all, and answers the others."""
    first = threading.Lock()

    def handler(connection):
        assert connection.stream.exactly(len(PREFACE), Deadline(10), "a preface") == PREFACE
        peer = H2(sock=connection.sock, begin=False)
        peer.buffer = bytes(connection.stream.take(len(connection.stream.buffer)))
        connection.sock.sendall(settings())
        while (found := peer.read_frame()) is not None:
            if found[0] == HEADERS:
                answer = misbehave if first.acquire(blocking=False) else good
                connection.sock.sendall(answer(found[2]))

    return handler


def good(stream):
    return frame(HEADERS, END_HEADERS, stream, OK) + frame(DATA, END_STREAM, stream, b"ok")


@pytest.mark.parametrize(
    ("kind", "misbehave"),
    [
        ("closed", lambda stream: frame(RST, 0, stream, CANCEL.to_bytes(4, "big"))),
        ("malformed", lambda stream: frame(DATA, END_STREAM, stream, b"no head")),
        ("malformed", lambda stream: b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        ("status_4xx", lambda stream: frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\x8d")),
        ("timeout", lambda stream: b""),
        (None, lambda stream: frame(RST, 0, stream, REFUSED.to_bytes(4, "big"))),
        (None, lambda stream: frame(GOAWAY, 0, 0, bytes(4) + NO_ERROR.to_bytes(4, "big"))),
    ],
)
def test_errors_are_counted_by_kind(serve, kind, misbehave):
    origin = serve(http2_server(misbehave))
    # What is answered late by a busy machine is not what is counted here.
    patience = "500ms" if kind == "timeout" else "10s"
    result = load(url(origin, "http"), *SHORT, "--connections", 1, "--http2", "--timeout", patience)
    assert failures(result) == ({kind: 1} if kind else {})
    requests = result["requests"]
    assert requests["responses"] > 0
    assert requests["sent"] == requests["responses"] + (kind in ("closed", "malformed", "timeout"))


def test_agents_speak_tls_too(secure, authority, tmp_path):
    nginx = secure()
    with background(tmp_path / "a", "agent") as one_agent, background(tmp_path / "b", "agent") as other:
        result = load(url(nginx), *SHORT, "--ca", authority.cert, "--http2", "--streams", 5, "--connections", 4,
                      "--agents", f"{one_agent.text},{other.text}")
    assert not failures(result), result
    lines = seen(nginx, result["requests"]["responses"])
    assert len(lines) == result["requests"]["sent"] > 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["http://127.0.0.1/", "--insecure"], "https"),
        (["http://127.0.0.1/", "--resume"], "https"),
        (["http://127.0.0.1/", "--streams", "2"], "--http2"),
        (["http://127.0.0.1/", "--http2", "--pipeline", "2"], "streams"),
        (["https://127.0.0.1/", "--insecure", "--ca", "x"], "cannot be used with"),
        (["https://127.0.0.1/", "--ca", "/nonexistent"], "/nonexistent"),
        (["https://127.0.0.1/", "--insecure", "--http2", "--streams", "2", "--new-connections"], "one stream"),
    ],
)
def test_wrong_usage_is_explained(args, says):
    done = run(*args)
    assert done.returncode == 2 and says in done.stderr, done.stderr


def test_a_file_without_authorities_is_refused(tmp_path):
    (tmp_path / "empty.pem").write_text("nothing")
    done = run("https://127.0.0.1:1/", "--ca", tmp_path / "empty.pem")
    assert done.returncode == 1 and "no authority" in done.stderr
