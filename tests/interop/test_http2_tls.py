"""HTTP/2 inside TLS, chosen by ALPN, towards clients and servers."""

import re
import socket
import ssl
import threading

import grpc
import pytest

from harness import Nginx, curl, eventually, get, say
from harness.client import run, url
from harness.http2 import H2, NO_ERROR, get_fields
from harness.proxy import one
from harness.tls import Authority, context

MIB = 1 << 20


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def pair(authority):
    return authority.issue("a.test", "a.test", "127.0.0.1")


def https(origin, pair, listener=None, **more):
    return {**one(origin, **more), "listener": [{"certificates": [pair], **(listener or {})}]}


def dial(proxy, authority, alpn=("h2",), version=None):
    raw = socket.create_connection(proxy.address, timeout=10)
    return context(authority, version=version, alpn=alpn).wrap_socket(raw, server_hostname="a.test")


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_curl(start, origin, authority, pair, version):
    config = https(origin, pair)
    config["route"][0]["request_headers"] = {"set": {"X-Tls": "$scheme $ssl_protocol $ssl_server_name"}}
    proxy = start(config)
    host, port = proxy.address
    done = curl("--cacert", authority.cert, "--resolve", f"a.test:{port}:{host}", "--http2", "--tls-max", version,
                "-d", "x" * 40000, "-o", "-", "-w", "%{http_code} %{http_version}", f"https://a.test:{port}/p")
    assert done.stdout == "ok200 2"
    asked = origin.requests[-1]
    assert asked.header("x-forwarded-proto") == "https" and len(asked.body) == 40000
    assert asked.header("x-tls") == f"https TLSv{version} a.test"


def test_alpn(start, origin, authority, pair):
    proxy = start(https(origin, pair))
    for alpn, agreed in ((("h2", "http/1.1"), "h2"), (("http/1.1", "h2"), "h2"), (("http/1.1",), "http/1.1")):
        with dial(proxy, authority, alpn) as secure:
            assert secure.selected_alpn_protocol() == agreed
    off = start(https(origin, pair, listener={"http2": False}))
    with dial(off, authority, ("h2", "http/1.1")) as secure:
        assert secure.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_streams_and_large_bodies(start, serve, authority, pair, version):
    def handler(connection):
        for r in connection.requests():
            connection.send(say(body=r.target.encode() * (300_000 if r.target == "/b" else 1)))

    proxy = start(https(serve(handler), pair))
    with H2(sock=dial(proxy, authority, version=version)) as h2:
        h2.window(0, 64 * MIB)
        for i in range(50):
            stream = 1 + 2 * i
            h2.get(stream, "/b" if i % 10 == 0 else f"/{i}")
            h2.window(stream, 4 * MIB)
        for i in range(50):
            expected = b"/b" * 300_000 if i % 10 == 0 else f"/{i}".encode()
            assert h2.reply(1 + 2 * i).body == expected


def test_drain(start, serve, authority, pair):
    import signal

    gate = threading.Event()

    def handler(connection):
        for r in connection.requests():
            assert gate.wait(20)
            connection.send(say())

    back = serve(handler)
    proxy = start(https(back, pair))
    with H2(sock=dial(proxy, authority)) as h2:
        h2.get(1)
        eventually(lambda: len(back.heads) == 1, 5, "the request")
        proxy.signal(signal.SIGTERM)
        h2.until(lambda: h2.goaway == (1, NO_ERROR), "GOAWAY")
        gate.set()
        assert h2.reply(1).body == b"ok"
        h2.until_closed(5)
    assert proxy.wait() == 0


def test_h2load(start, origin, pair):
    proxy = start(https(origin, pair))
    target = "https://%s:%d/" % proxy.address
    done = run("h2load", "-n", "1000", "-c", "5", "-m", "20", target, timeout=120)
    assert re.search(r"1000 succeeded, 0 failed, 0 errored", done.stdout), done.stdout
    assert "h2" in done.stdout


def nginx(directory, pair, listen):
    inside = f"""
        ssl_certificate {pair['cert']}; ssl_certificate_key {pair['key']};
        location / {{ default_type text/plain; return 200 "$server_protocol $ssl_server_name\\n"; }}
        location /big {{ alias {directory}/big; }}
    """
    return Nginx(directory, inside, listen=listen)


@pytest.mark.parametrize("listen,protocol", [("ssl http2", "HTTP/2.0"), ("ssl", "HTTP/1.1")])
def test_servers_by_alpn(start, authority, pair, tmp_path, listen, protocol):
    body = bytes(range(256)) * 20_000
    with nginx(tmp_path / "nginx", pair, listen) as server:
        (tmp_path / "nginx" / "big").write_bytes(body)
        tls = {"ca": str(authority.cert), "server_name": "a.test"}
        proxy = start({**one(server, tls=tls, http2=True), "node": {"shards": 1}})
        for _ in range(5):
            assert get(proxy.address).body.decode() == f"{protocol} a.test\n"
        assert get(proxy.address, "/big").body == body
        proxy.await_equal("ringgate_server_connects_total", 1)


def test_grpc_over_tls(start, authority, pair):
    from concurrent import futures

    class Echo(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(lambda message, context: b"e:" + message)

    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    proxy = start(https(f"127.0.0.1:{port}", pair, http2=True))
    with open(authority.cert, "rb") as trusted:
        credentials = grpc.ssl_channel_credentials(trusted.read())
    options = [("grpc.ssl_target_name_override", "a.test")]
    with grpc.secure_channel("%s:%d" % proxy.address, credentials, options) as channel:
        assert channel.unary_unary("/t.T/Echo")(b"hi", timeout=10) == b"e:hi"
    server.stop(None)
