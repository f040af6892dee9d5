"""The harness itself, proven on nginx and HAProxy."""

import os
import socket
import threading

import pytest

from harness import Client, HAProxy, NetNs, Nginx, Origin, curl, eventually, free_port, get, say
from harness.client import message, url
from harness.message import Closed, Malformed
from harness.proxy import parse_metrics
from harness.tools import held_ports, release_ports, toml


@pytest.fixture(params=["nginx", "haproxy"])
def through(request, tmp_path):
    """Gives `begin(origin)`: the address of a peer that proxies to the origin."""
    peers = []

    def begin(origin):
        kind = {"nginx": Nginx.proxy, "haproxy": HAProxy}[request.param]
        peer = kind(tmp_path / request.param, origin.text)
        peer.start()
        peers.append(peer)
        return peer.address

    yield begin
    for peer in peers:
        peer.stop()


def test_origin_records_what_comes(through):
    with Origin() as origin:
        address = through(origin)
        with Client(address) as client:
            for n in range(3):
                answer = client.ask(message("POST", f"/p{n}", {"X-N": n}, b"abc"))
                assert (answer.status, answer.body) == (200, b"ok")
        seen = [(r.method, r.target, r.header("x-n"), r.body) for r in origin.requests]
        assert seen == [("POST", f"/p{n}", str(n), b"abc") for n in range(3)]
        assert all(r.raw.startswith(b"POST /p") and r.raw.endswith(b"abc") for r in origin.requests)


def test_chunked_with_trailers(through):
    def handler(connection):
        for _ in connection.requests():
            connection.send(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n"
                b"3\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 1\r\n\r\n"
            )

    with Origin(handler) as origin, Client(through(origin)) as client:
        client.send_pieces(
            [b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-", b"Encoding: chunked\r\n\r\n5\r\nhe", b"llo\r\n0\r\n\r\n"]
        )
        answer = client.read_response()
        assert answer.body == b"abcde"
        assert origin.request.body == b"hello"
        assert client.leftover == b""


def test_chunked_reader_itself():
    def handler(connection):
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.send(b"3\r\nabc\r\n0\r\nX-T: 1\r\nX-U: 2\r\n\r\nrest")

    with Origin(handler) as origin, Client(origin.address) as client:
        answer = client.ask(message())
        assert answer.body == b"abc" and answer.trailers == [("X-T", "1"), ("X-U", "2")]
        assert client.read_until_eof() == b"rest"


def test_reset_is_seen(through):
    def handler(connection):
        connection.read_head()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        connection.reset()

    with Origin(handler) as origin, Client(through(origin)) as client:
        client.send(message())
        with pytest.raises((Closed, ConnectionResetError)):
            client.read_response()


def test_refuse_and_come_back(through):
    with Origin() as origin:
        address = through(origin)
        origin.refuse()
        assert get(address).status in (502, 503)
        origin.listen()
        eventually(lambda: get(address).status == 200, 5)


def test_origin_drops_connections():
    with Origin() as origin, Client(origin.address) as client:
        assert client.ask(message()).status == 200
        origin.drop_connections()
        assert client.closed()
        eventually(lambda: origin.open_connections() == 0)


def test_half_close_and_silence():
    with Origin() as origin, Client(origin.address) as client:
        assert client.silent(0.05)
        client.half_close()
        assert client.closed()


def test_partial_requests_are_recorded():
    with Origin() as origin:
        with Client(origin.address) as client:
            client.send(b"GET / HTTP/1.1\r\nHos")
        eventually(lambda: origin.partial == [b"GET / HTTP/1.1\r\nHos"])


def test_strict_reader_refuses():
    bad = [
        b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : y\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\n\r\n",
        b"HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n",
    ]
    for raw in bad:

        def handler(connection, raw=raw):
            connection.read_request()
            connection.send(raw)

        with Origin(handler) as origin, Client(origin.address) as client:
            with pytest.raises(Malformed):
                client.ask(message())


def test_origin_handler_failure_fails_the_test():
    def handler(connection):
        connection.read_request()
        raise ValueError("seen")

    with pytest.raises(AssertionError, match="seen"):
        with Origin(handler) as origin, Client(origin.address) as client:
            client.send(message())
            assert client.closed()


def test_ports_are_given_back():
    before = held_ports()
    port = free_port()
    assert held_ports() - before == {port}
    release_ports({port})
    assert held_ports() == before
    assert free_port() != port, "its turn comes last"


def test_ports_are_distinct_across_threads_and_bindable():
    ports = []
    threads = [threading.Thread(target=lambda: ports.append(free_port())) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_eventually_gives_up():
    with pytest.raises(AssertionError, match="never"):
        eventually(lambda: False, 0.05, "never")


def test_nginx_origin_and_curl(tmp_path):
    with Nginx.origin(tmp_path / "n", "one") as nginx:
        assert curl(url(nginx.address, "/")).stdout == "one\n"
        assert get(nginx.address, "/echo?x").body.startswith(b"GET /echo?x a.example")
        nginx.kill()
        with pytest.raises(OSError):
            get(nginx.address)
        nginx.start()
        assert get(nginx.address).body == b"one\n"


def test_toml_output():
    import tomllib

    config = {
        "node": {"shards": 2},
        "listener": [{"bind": "127.0.0.1:1"}],
        "route": [
            {
                "host": ["a", "*.b"],
                "path": {"regex": r"^/\d+"},
                "upstream": "up",
                "headers": {"X-A": {"present": True}},
                "request_headers": {"set": {"X-B": "$host"}, "remove": ["A"]},
            }
        ],
        "upstream": {"up": {"retry": {"tries": 3}, "servers": [{"address": "h:1", "down": False}]}},
    }
    assert tomllib.loads(toml(config)) == config


def test_metrics_parser():
    text = '# HELP a b\n# TYPE a counter\na{x="1",y="q\\"\\n"} 3\n# TYPE h histogram\nh_bucket{le="+Inf"} 1\nh_sum 0.5\nh_count 1\n'
    assert parse_metrics(text)[0] == ("a", {"x": "1", "y": 'q"\n'}, 3.0)
    for bad in ("a 1\n", "# TYPE a counter\na{x=1} 1\n", "# TYPE a counter\na 1\na 1\n"):
        with pytest.raises(AssertionError):
            parse_metrics(bad)


def test_network_namespace():
    with NetNs() as ns:
        assert ns.inside in ns.run("ip", "-4", "addr").stdout
        with Origin(host=ns.outside) as origin:
            script = f"import socket; socket.create_connection({origin.address!r}, 5)"
            ns.run("python3", "-c", script)
            eventually(lambda: origin.connections)
        name = ns.name
    assert not os.path.exists(f"/run/netns/{name}")


def test_say():
    assert say(201, b"x", {"A": "b"}) == b"HTTP/1.1 201 X\r\nContent-Length: 1\r\nA: b\r\n\r\nx"
