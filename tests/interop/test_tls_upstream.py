"""TLS to servers: who is trusted, what is shown them, sessions, and bodies cut short."""

import re
import ssl

import pytest

from harness import Client, Nginx, get, request, say
from harness.client import message
from harness.proxy import one
from harness.tls import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def pair(authority):
    return authority.issue("app.test", "app.test", "127.0.0.1")


def nginx(directory, pair, server="ssl_protocols TLSv1.2 TLSv1.3;", listen="ssl"):
    inside = f"""
        ssl_certificate {pair['cert']}; ssl_certificate_key {pair['key']};
        location / {{ default_type text/plain;
            return 200 "$ssl_protocol $ssl_server_name $ssl_session_reused $ssl_client_s_dn\\n"; }}
        location /big {{ alias {directory}/big; }}
        {server}
    """
    return Nginx(directory, inside, listen=listen)


def to(server, tls, **more):
    return one(server, tls=tls, retry={"tries": 1}, **more)


def test_a_verified_server_serves(start, authority, pair, tmp_path):
    body = bytes(range(256)) * 20000
    with nginx(tmp_path / "nginx", pair) as server:
        (tmp_path / "nginx" / "big").write_bytes(body)
        for tls, name in (({"server_name": "app.test"}, "app.test"), ({}, "")):
            config = to(server, {"ca": str(authority.cert), **tls})
            proxy = start({**config, "node": {"shards": 1}})
            assert get(proxy.address).body.decode() == f"TLSv1.3 {name} . \n"
            assert get(proxy.address, "/big").body == body
            # One connection, kept, although tickets came on it after the first answer.
            proxy.await_equal("ringgate_server_connects_total", 1)
            proxy.await_equal("ringgate_upstream_tls_handshakes_total", 1, version="1.3")
            proxy.stop()


def test_sessions_with_servers_resume(start, authority, pair, tmp_path):
    for protocol in ("TLSv1.2", "TLSv1.3"):
        server = nginx(tmp_path / protocol, pair, f"ssl_protocols {protocol}; keepalive_timeout 0;")
        with server:
            config = to(server, {"ca": str(authority.cert), "server_name": "app.test"})
            config["node"] = {"shards": 1}
            proxy = start(config)
            said = [get(proxy.address).body.decode() for _ in range(4)]
            assert said == [f"{protocol} app.test . \n"] + [f"{protocol} app.test r \n"] * 3
            resumed = "ringgate_upstream_tls_handshakes_total"
            proxy.await_equal(resumed, 3, version=protocol[4:], resumed="true")


@pytest.mark.parametrize("case", ["authority", "name", "expired", "system"])
def test_an_unverified_server_is_a_502(start, authority, tmp_path, case):
    stranger = Authority(tmp_path / "stranger", "stranger")
    issuer = stranger if case == "authority" else authority
    pair = issuer.issue(f"{case}.test", "app.test", days=-1 if case == "expired" else 30)
    tls = {"server_name": "other.test" if case == "name" else "app.test"}
    if case != "system":
        tls["ca"] = str(authority.cert)
    with nginx(tmp_path / "nginx", pair) as server:
        proxy = start({**to(server, tls), "node": {"shards": 1}})
        assert [get(proxy.address).status for _ in range(3)] == [502] * 3
        proxy.await_equal("ringgate_upstream_tls_handshake_failures_total", 3, reason="certificate")
        proxy.await_equal("ringgate_server_connect_failures_total", 3)
        proxy.await_log("no TLS with a server")
        assert len(re.findall("no TLS with a server", proxy.log())) == 1, "one line in ten seconds"
        assert "certificate" in proxy.log()
        trusting = start(to(server, {"verify": False, "server_name": "app.test"}))
        assert get(trusting.address).status == 200
        assert "verify` is false" in trusting.log()


def test_another_server_is_tried(start, authority, pair, serve, tmp_path):
    plain = serve()
    with nginx(tmp_path / "nginx", pair) as server:
        config = one(plain, server, tls={"ca": str(authority.cert)}, retry={"tries": 2},
                     connect_timeout="500ms")
        config["upstream"]["up"]["servers"][0]["weight"] = 50
        proxy = start(config)
        assert [get(proxy.address).status for _ in range(4)] == [200] * 4
    assert plain.requests == [], "nothing goes out in the clear"


def test_our_certificate_is_shown(start, authority, pair, tmp_path):
    edge = authority.issue("edge", client=True)
    asks = f"ssl_client_certificate {authority.cert}; ssl_verify_client on;"
    with nginx(tmp_path / "nginx", pair, asks) as server:
        tls = {"ca": str(authority.cert)}
        proxy = start(to(server, {**tls, **edge}))
        assert get(proxy.address).body.endswith(b"CN=edge\n")
        assert get(start(to(server, tls)).address).status in (400, 502)


def tls_origin(serve, authority, pair, handler):
    """An origin that speaks TLS from Python, so that it can end without close_notify."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pair["cert"], pair["key"])

    def wrapped(connection):
        connection.sock.settimeout(5)
        tls = made.wrap_socket(connection.sock, server_side=True)
        connection.sock = tls
        data = b""
        while b"\r\n\r\n" not in data:
            piece = tls.recv(65536)
            if not piece:
                return
            data += piece
        handler(tls)

    return serve(wrapped, lenient=True)


def test_a_body_until_the_end_is_whole_only_with_an_end(start, serve, authority, pair):
    def whole(tls):
        tls.sendall(b"HTTP/1.1 200 X\r\n\r\n" + b"x" * 50000)
        tls.unwrap()

    def cut(tls):
        tls.sendall(b"HTTP/1.1 200 X\r\n\r\n" + b"x" * 50000)

    tls = {"ca": str(authority.cert)}
    good = start(to(tls_origin(serve, authority, pair, whole), tls))
    assert get(good.address).body == b"x" * 50000
    bad = start(to(tls_origin(serve, authority, pair, cut), tls))
    with Client(bad.address) as client:
        client.send(message())
        response = client.read_head()
        assert response.status == 200
        rest = client.read_until_eof()
    assert not rest.endswith(b"0\r\n\r\n"), "a cut body must not pass for a whole one"
    bad.await_metric("ringgate_responses_cut_total", 1)
    # HTTP/1.0 knows no chunks: the client is reset.
    with Client(bad.address) as client:
        client.send(message(version="HTTP/1.0"))
        with pytest.raises(ConnectionResetError):
            while client.sock.recv(65536):
                pass


def test_large_bodies_go_up(start, serve, authority, pair):
    got = []

    def handler(tls):
        tls.sendall(b"HTTP/1.1 100 X\r\n\r\n")
        want = 3 << 20
        while want:
            want -= len(tls.recv(min(65536, want)))
        got.append(True)
        tls.sendall(say(200, b"ok"))

    proxy = start(to(tls_origin(serve, authority, pair, handler), {"ca": str(authority.cert)},
                     http={"client_max_body_size": 0}))
    assert request(proxy.address, "POST", body=b"z" * (3 << 20), headers={"Expect": "100-continue"}).status == 200
    assert got == [True]


def test_a_silent_server_is_a_504(start, serve, authority):
    silent = serve(lambda connection: connection.stall())
    proxy = start(to(silent, {"ca": str(authority.cert)}, connect_timeout="300ms"))
    assert get(proxy.address).status == 504
    proxy.await_equal("ringgate_upstream_tls_handshake_failures_total", 1, reason="timeout")
