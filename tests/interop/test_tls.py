"""HTTPS towards clients: versions, certificates, client certificates, policies, bodies, abuse."""

import fcntl
import re
import signal
import ssl
import struct
import sys
import termios
import threading
import time

import pytest

from harness import Client, curl, eventually, get, say
from harness.client import message, run
from harness.proxy import one, run_once
from harness.tls import Authority, TlsClient, context, openssl, raw, s_client

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="session")
def pair(authority):
    return authority.issue("a.test", "a.test", "127.0.0.1")


def https(origin, *certificates, listener=None, tls=None, **more):
    """One HTTPS listener before one origin."""
    config = one(origin, **more)
    config["listener"] = [{"certificates": list(certificates), **(listener or {})}]
    config["tls"] = tls or {}
    return config


SHOW = {"request_headers": {"set": {
    "X-Tls": "$scheme $ssl_protocol $ssl_cipher $ssl_server_name $ssl_session_reused",
    "X-Subject": "$ssl_client_s_dn",
}}}


def shows(config):
    config["route"][0].update(SHOW)
    return config


def test_curl_over_both_versions(start, origin, authority, pair):
    proxy = start(shows(https(origin, pair)))
    host, port = proxy.address
    for version, cipher in (("1.2", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
                            ("1.3", "TLS_AES_128_GCM_SHA256")):
        done = curl("--cacert", authority.cert, "--resolve", f"a.test:{port}:{host}",
                    "--tls-max", version, "-d", "x" * 40000, "-o", "-", "-w", "%{http_code}",
                    f"https://a.test:{port}/p")
        assert done.stdout == "ok200"
        asked = origin.requests[-1]
        assert asked.header("x-forwarded-proto") == "https"
        assert asked.header("x-tls") == f"https TLSv{version} {cipher} a.test ."
        assert asked.header("x-subject") is None and len(asked.body) == 40000
        proxy.await_equal("ringgate_tls_handshakes_total", 1, version=version, resumed="false")


@pytest.mark.parametrize("version", [V12, V13])
@pytest.mark.parametrize("cipher", ["ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"])
def test_keep_alive_and_large_bodies(start, serve, authority, pair, version, cipher):
    big = bytes(range(256)) * 12000  # 3 MiB

    def handler(connection):
        for asked in connection.requests():
            if asked.target == "/chunked":
                connection.send(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n")
                for at in range(0, len(big), 99991):
                    piece = big[at:at + 99991]
                    connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
                connection.send(b"0\r\n\r\n")
            else:
                connection.send(say(200, asked.body or big))

    proxy = start(https(serve(handler), pair, http={"client_max_body_size": "8m"}))
    made = context(authority, version=version)
    made.set_ciphers(cipher)
    with TlsClient(proxy.address, made) as client:
        for _ in range(2):
            assert client.ask(message(target="/")).body == big
            assert client.ask(message(target="/chunked")).body == big
            assert client.ask(message("POST", body=big)).body == big
        for size in (0, 1, 16383, 16384, 16385, 40000):
            assert client.ask(message("POST", body=big[:size] or b"-")).body == (big[:size] or b"-")
    proxy.await_equal("ringgate_tls_handshakes_total", 1)


def test_the_name_chooses_the_certificate(start, origin, authority):
    exact = authority.issue("x.w.test", "x.w.test")
    wild = authority.issue("wild", "*.w.test")
    rsa = authority.issue("r.test", "r.test", rsa=True)
    ecdsa = authority.issue("r.test-ec", "r.test")
    proxy = start(https(origin, rsa, ecdsa, wild, exact))

    def shown(name, *args):
        text = s_client(proxy.address, *args, name=name)
        key = re.search(r"Peer signature type: (\S+)", text)
        return re.search(r"subject=CN = (\S+)", text)[1], key[1]

    assert shown("x.w.test")[0] == "x.w.test"
    assert shown("X.W.Test")[0] == "x.w.test"
    assert shown("y.w.test")[0] == "wild"
    assert shown("r.test") == ("r.test-ec", "ECDSA")
    assert shown("r.test", "-sigalgs", "RSA-PSS+SHA256:RSA+SHA256") == ("r.test", "RSA-PSS")
    assert shown("r.test", "-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256")[0] == "r.test"
    # A wildcard is one label, and who asks for nothing known gets the first.
    for name in ("z.y.w.test", "other.test", None):
        assert shown(name)[0] == "r.test-ec"
    assert shown(None, "-sigalgs", "RSA-PSS+SHA256")[0] == "r.test"


def test_policies(start, origin, authority, pair):
    config = https(origin, pair, listener={"name": "new", "tls_policy": "modern"})
    config["listener"].append({"name": "both", "certificates": [pair]})
    proxy = start(config)
    new, both = proxy.addresses["new"], proxy.addresses["both"]
    assert "TLSv1.3" in s_client(new, name="a.test")
    assert "protocol version" in s_client(new, "-tls1_2", name="a.test")
    assert "TLSv1.2" in s_client(both, "-tls1_2", name="a.test")
    for old in ("-tls1_1", "-tls1"):
        text = s_client(both, old, "-cipher", "ALL:@SECLEVEL=0", name="a.test")
        assert "Cipher is (NONE)" in text, text
    weak = s_client(both, "-tls1_2", "-cipher", "AES128-SHA:ECDHE-ECDSA-AES128-SHA", name="a.test")
    assert "handshake failure" in weak, weak
    name = "ringgate_tls_handshake_failures_total"
    proxy.await_metric(name, 1, listener="new", reason="incompatible")
    proxy.await_metric(name, 3, listener="both", reason="incompatible")
    done = s_client(both, "-alpn", "spdy/1", name="a.test")
    assert "no application protocol" in done
    assert "ALPN protocol: http/1.1" in s_client(both, "-alpn", "h9,http/1.1", name="a.test")


def test_ocsp_response_is_stapled(start, origin, authority, pair):
    staple = authority.ocsp(pair)
    proxy = start(https(origin, {**pair, "ocsp": staple}))
    for version in ("-tls1_2", "-tls1_3"):
        text = s_client(proxy.address, "-status", "-CAfile", authority.cert, version, name="a.test")
        assert "OCSP Response Status: successful" in text and "Cert Status: good" in text


def test_client_certificates(start, origin, authority, tmp_path):
    clients = Authority(tmp_path / "clients", "clients")
    good = clients.issue("carol", client=True, subject="/C=SE/O=Firm, Inc/CN=carol")
    stranger = Authority(tmp_path / "others", "others").issue("mallory", client=True)
    asked = {"client_ca": str(clients.cert)}
    entries = [
        authority.issue("open.test", "open.test"),
        {**authority.issue("ask.test", "ask.test"), **asked, "client_auth": "optional"},
        {**authority.issue("must.test", "must.test"), **asked, "client_auth": "required"},
    ]
    proxy = start(shows(https(origin, *entries)))

    def ask(name, pair=None, host=None, version=V13):
        with TlsClient(proxy.address, context(authority, pair, version), name) as client:
            # A header of the client's own never gets through.
            lines = {"X-Subject": "CN=root"}
            status = client.ask(message(host=host or name, headers=lines)).status
            return status, origin.requests[-1].header("x-subject") if status == 200 else None

    subject = "CN=carol,O=Firm\\, Inc,C=SE"
    for version in (V12, V13):
        assert ask("open.test", version=version) == (200, None)
        assert ask("open.test", good, version=version) == (200, None)
        assert ask("ask.test", version=version) == (200, None)
        assert ask("ask.test", good, version=version) == (200, subject)
        assert ask("must.test", good, version=version) == (200, subject)
        for name, pair in (("must.test", None), ("must.test", stranger), ("ask.test", stranger)):
            with pytest.raises((ssl.SSLError, ConnectionError, OSError)):
                ask(name, pair, version=version)
    proxy.await_metric("ringgate_tls_handshake_failures_total", 6, reason="certificate")
    # The name in the handshake does not open another host's door.
    assert ask("open.test", host="must.test") == (421, None)
    assert ask("ask.test", good, host="must.test") == (421, None)
    assert ask("must.test", good, host="open.test") == (421, None)
    assert ask("open.test", host="unknown.test") == (200, None)


def test_what_is_asked_of_clients_holds_as_deep_as_routes_do(start, origin, authority, tmp_path):
    clients = Authority(tmp_path / "clients", "clients")
    carol = clients.issue("carol", client=True)
    must = {"client_ca": str(clients.cert), "client_auth": "required"}
    config = https(origin, authority.issue("open.test", "open.test"),
                   {**authority.issue("wild.test", "*.must.test"), **must})
    route = config["route"][0]
    config["route"] = [{**route, "host": ["*.must.test", "open.test", "*.open.test", "far.test"]}]
    proxy = start(config)

    def ask(name, host, pair=None):
        made = context(authority, pair)
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
        with TlsClient(proxy.address, made, name) as client:
            return client.ask(message(host=host)).status

    # Deeper than the certificate fits: nobody gets there without one of their own.
    for host in ("a.must.test", "b.a.must.test", "c.b.a.must.test", "B.A.must.test"):
        assert ask("open.test", host) == 421
        assert ask(None, host) == 421
        with pytest.raises((ssl.SSLError, ConnectionError, OSError)):
            ask(host, host)
        assert ask(host, host, carol) == 200
    assert ask("open.test", "open.test") == 200
    # What no certificate decides on is said, with its place.
    warned = re.search(r"toml:(\d+):(\d+): warning: (.*)", proxy.log())
    assert warned, proxy.log()
    assert "is for *.open.test, far.test, which" in warned[3]
    line = proxy.file.read_text().splitlines()[int(warned[1]) - 1]
    assert "open.test.pem" in line[int(warned[2]) - 1:]


def test_a_name_with_a_final_dot_is_the_same_name(start, origin, authority):
    other = authority.issue("other.test", "other.test")
    proxy = start(https(origin, authority.issue("a.test", "a.test"), other))
    text = s_client(proxy.address, name="other.test.")
    assert re.search("subject=.*other.test", text), text


def test_empty_handshake_records_are_refused(start, origin, authority, pair):
    proxy = start(https(origin, pair))
    hello = client_hello("a.test")
    with raw(proxy.address) as sock:
        sock.sendall(b"\x16\x03\x01\x00\x01" + hello[5:6] + b"\x16\x03\x01\x00\x00")
        try:
            assert sock.recv(10) == b""
        except ConnectionResetError:
            pass
    proxy.await_metric("ringgate_tls_handshake_failures_total", 1, reason="malformed")


def test_plain_http_garbage_and_torn_handshakes(start, origin, authority, pair):
    proxy = start(https(origin, pair, tls={"handshake_timeout": "1s"}))
    with Client(proxy.address) as client:
        answer = client.ask(message())
        assert answer.status == 400 and b"HTTPS port" in answer.body and client.closed()
    name = "ringgate_tls_handshake_failures_total"
    proxy.await_equal(name, 1, reason="plain_http")
    with raw(proxy.address) as sock:
        sock.sendall(b"\x80\x2e\x01\x00\x02")
        assert sock.recv(10) == b""
    hello = client_hello("a.test")
    # However it is cut into segments and records, it is understood.
    for cut in (1, 3, 5, 6, 9, 50, len(hello) - 1):
        with raw(proxy.address) as sock:
            sock.sendall(hello[:cut])
            time.sleep(0.01)
            sock.sendall(hello[cut:])
            assert sock.recv(5)[0] == 22, cut
    body = hello[5:]
    with raw(proxy.address) as sock:
        for at in range(0, len(body), 40):
            piece = body[at:at + 40]
            sock.sendall(b"\x16\x03\x01" + struct.pack(">H", len(piece)) + piece)
        assert sock.recv(5)[0] == 22
    with raw(proxy.address) as sock:
        sock.sendall(b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x00\x00")
        assert sock.recv(5)[0] == 21  # an alert
    with raw(proxy.address) as sock:
        sock.sendall(hello[:60])
    proxy.await_metric(name, 1, reason="not_tls")
    proxy.await_metric(name, 1, reason="malformed")
    proxy.await_metric(name, 2, reason="closed")
    # Whoever begins and does not go on is let go.
    begun = time.monotonic()
    with raw(proxy.address) as sock:
        sock.sendall(hello[:100])
        try:
            assert sock.recv(10) == b""
        except ConnectionResetError:
            pass
    assert 0.5 < time.monotonic() - begun < 60
    proxy.await_metric(name, 1, reason="timeout")
    with TlsClient(proxy.address, context(authority)) as client:
        assert client.ask(message()).status == 200


def client_hello(name):
    """The bytes openssl would send."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(ssl.SSLWantReadError):
        made.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def test_a_damaged_record_ends_the_connection(start, origin, authority, pair):
    proxy = start(https(origin, pair))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context(authority).wrap_bio(incoming, outgoing, server_hostname="a.test")
    with raw(proxy.address) as sock:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
        tls.write(message())
        record = bytearray(outgoing.read())
        record[-1] ^= 1
        sock.sendall(record)
        with pytest.raises(ssl.SSLError, match="(?i)bad.record.mac"):
            while True:
                try:
                    tls.read(100)
                except ssl.SSLWantReadError:
                    data = sock.recv(65536)
                    assert data, "closed without an alert"
                    incoming.write(data)
    assert origin.requests == []
    proxy.await_metric("ringgate_tls_broken_connections_total", 1)


def test_key_update(start, origin, authority, pair):
    proxy = start(https(origin, pair))
    # K asks for new keys in return, k does not; each line before is part of a request.
    text = "GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\n"
    import subprocess

    from harness.client import tool

    host, port = proxy.address
    client = subprocess.Popen(
        [tool("openssl"), "s_client", "-connect", f"{host}:{port}", "-servername", "a.test",
         "-tls1_3", "-crlf", "-msg"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)

    output = bytearray()
    reader = threading.Thread(target=lambda: [output.extend(piece) for piece in iter(lambda: client.stdout.read(4096), b"")])
    reader.start()

    def taken():
        """It takes a command only at the start of what it reads, which is what there is."""
        left = lambda: int.from_bytes(fcntl.ioctl(client.stdin, termios.FIONREAD, bytes(4)), sys.byteorder)
        eventually(lambda: left() == 0, 5, "openssl has read")
        time.sleep(0.05)

    try:
        for step, before in enumerate(("", "K\n", "k\n", "K\n", "KKK"), 1):
            for command in before.strip():
                client.stdin.write(f"{command}\n".encode())
                taken()
            client.stdin.write(text.replace("\r", "").encode())
            eventually(lambda: len(origin.requests) == step, 5, f"request {step}")
            # New keys come in front of the response.
            eventually(lambda: output.count(b"HTTP/1.1 200 ") == step, 5, f"response {step}")
    finally:
        client.kill()
        client.wait(timeout=5)
        reader.join(5)
        text = output.decode(errors="replace")
    # Whatever was asked since is one change, in front of what is sent next.
    assert len(re.findall("<<< .*KeyUpdate", text)) == 3, text
    assert len(re.findall(">>> .*KeyUpdate", text)) == 6, text


def test_renegotiation_is_refused(start, origin, authority, pair, tmp_path):
    import subprocess

    from harness.client import tool

    host, port = start(https(origin, pair)).address
    said = tmp_path / "said"
    with said.open("wb") as out, subprocess.Popen(
        [tool("openssl"), "s_client", "-connect", f"{host}:{port}", "-servername", "a.test", "-tls1_2"],
        stdin=subprocess.PIPE, stdout=out, stderr=out, bufsize=0,
    ) as client:
        try:
            # Its input stays open: at its end it would go without an answer.
            eventually(lambda: "Verify return code" in said.read_text(errors="replace"), 5, "a handshake")
            client.stdin.write(b"R\n")
            refusal = re.compile("no renegotiation|renegotiation is not|unexpected message|closed")
            eventually(lambda: refusal.search(said.read_text(errors="replace")), 5, lambda: said.read_text(errors="replace"))
        finally:
            client.kill()
    assert origin.requests == []


def test_hsts_and_redirect(start, origin, authority, pair):
    config = https(origin, pair, listener={"name": "tls", "hsts": "max-age=60"})
    config["listener"].append({"name": "plain", "redirect_https": 8443})
    config["route"].insert(0, {"path": "/.well-known/acme-challenge/", "listeners": ["plain"],
                               "respond": {"body": "token"}})
    config["route"].insert(1, {"path": "/own", "respond": {},
                               "response_headers": {"set": {"Strict-Transport-Security": "max-age=1"}}})
    proxy = start(config)
    with TlsClient(proxy.addresses["tls"], context(authority)) as client:
        assert client.ask(message()).all("strict-transport-security") == ["max-age=60"]
        own = client.ask(message(target="/own"))
        assert own.all("strict-transport-security") == ["max-age=1"]
    plain = proxy.addresses["plain"]
    moved = get(plain, "/x?y", host="a.test:8080")
    assert moved.status == 308 and moved.header("location") == "https://a.test:8443/x?y"
    assert moved.header("strict-transport-security") is None
    assert get(plain, "/.well-known/acme-challenge/1").body == b"token"


def test_proxy_protocol_comes_before_tls(start, origin, authority, pair):
    proxy = start(https(origin, pair, listener={"proxy_protocol_from": ["127.0.0.1/32"]}))
    sock = raw(proxy.address)
    sock.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 1234 443\r\n")
    with context(authority).wrap_socket(sock, server_hostname="a.test") as tls:
        tls.sendall(message())
        assert tls.recv(1000).startswith(b"HTTP/1.1 200")
    assert origin.requests[-1].header("x-real-ip") == "192.0.2.7"


def test_websocket_through_tls(start, serve, authority, pair):
    def echo(connection):
        connection.read_head()
        connection.send(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi")
        connection.sock.settimeout(5)
        while data := connection.sock.recv(65536):
            connection.sock.sendall(data)

    proxy = start(https(serve(echo, lenient=True), pair))
    with TlsClient(proxy.address, context(authority)) as client:
        lines = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                 "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
        client.send(message(headers=lines))
        assert client.read_head().status == 101
        client.send(b"x" * 100000)
        from harness.message import deadline_of

        assert client.stream.exactly(100002, deadline_of(5, client.stream), "a tunnel") == b"hi" + b"x" * 100000


def test_drain_over_tls(start, serve, authority, pair):
    release = threading.Event()

    def handler(connection):
        for _ in connection.requests():
            release.wait(10)
            connection.send(say(200, b"late"))

    proxy = start(https(serve(handler), pair))
    idle = TlsClient(proxy.address, context(authority))
    busy = TlsClient(proxy.address, context(authority))
    begun = raw(proxy.address)  # in its handshake
    begun.sendall(client_hello("a.test")[:50])
    busy.send(message())
    eventually(lambda: proxy.metric("ringgate_server_in_flight") == 1)
    proxy.signal(signal.SIGTERM)
    # The idle client gets an end in order, close_notify included: no SSLEOFError.
    assert idle.sock.recv(10) == b""
    release.set()
    answer = busy.read_response()
    assert answer.body == b"late" and answer.header("connection") == "close"
    assert busy.sock.recv(10) == b""
    for client in (idle, busy, begun):
        client.close()
    assert proxy.wait() == 0


def test_a_slow_reader_holds_little(start, serve, authority, pair):
    total = 64 << 20

    def handler(connection):
        connection.read_request()
        connection.send(b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n" % total)
        try:
            for _ in range(total >> 16):
                connection.send(b"x" * 65536)
        except OSError:
            pass

    # Buffers that the kernel fills before a busy shard comes to it are bounded by this, and not what is counted here.
    proxy = start({**https(serve(handler), pair), "node": {"buffer_memory": "8m"}})
    with TlsClient(proxy.address, context(authority), rcvbuf=4096) as warm:
        warm.send(message())
        warm.read_head()
    before = proxy.rss()
    slow = [TlsClient(proxy.address, context(authority), rcvbuf=4096) for _ in range(20)]
    for client in slow:
        client.send(message())
        client.read_head()
    eventually(lambda: proxy.metric("ringgate_server_in_flight") == 20)
    time.sleep(0.5)
    assert proxy.rss() - before < 24 << 20, "20 readers hold 128 KiB of records each, and buffers"
    for client in slow:
        client.close()


BAD_FILES = [
    ({"cert": "missing.pem"}, r"certificates\[0\].cert`: \S+missing.pem cannot be read: No such file"),
    ({"cert": "empty.pem"}, "has no `-----BEGIN CERTIFICATE-----`"),
    ({"key": "other.key"}, "is not the key of"),
    ({"key": "empty.pem"}, "has no private key in PEM"),
    ({"ocsp": "empty.pem"}, "is no successful OCSP response"),
    ({"client_auth": "required", "client_ca": "empty.pem"}, "has no `-----BEGIN CERTIFICATE"),
]


@pytest.mark.parametrize("change,says", BAD_FILES)
def test_bad_files_are_named_with_their_place(authority, pair, tmp_path, change, says):
    (tmp_path / "empty.pem").write_text("\n")
    other = authority.issue("other", "other.test")
    (tmp_path / "other.key").write_bytes(open(other["key"], "rb").read())
    entry = {**pair, **change}
    keys = ", ".join(f'{k} = "{v}"' for k, v in entry.items())
    file = tmp_path / "c.toml"
    file.write_text(f'[[listener]]\nbind = "127.0.0.1:1"\ncertificates = [{{ {keys} }}]\n'
                    "[[route]]\nrespond = {}\n")
    done = run_once("check", file)
    assert done.returncode == 2 and "c.toml:3:" in done.stderr, done
    assert re.search(says, done.stderr), done.stderr


def test_keys_are_never_shown(start, origin, authority, pair, tmp_path):
    secret = "".join(line for line in open(pair["key"]) if "-" not in line).strip()
    tickets = tmp_path / "tickets.key"
    tickets.write_text("0123456789abcdefSECRET0123456789abcdef\n")
    proxy = start(https(origin, pair, tls={"ticket_keys": str(tickets)}))
    get(proxy.admin, "/status")
    shown = proxy.log() + str(proxy.status()) + get(proxy.admin, "/metrics").body.decode()
    assert secret[:20] not in shown and "SECRET" not in shown


def test_certificate_metrics_and_status(start, origin, authority, pair):
    proxy = start(https(origin, pair))
    expiry = proxy.metric("ringgate_tls_certificate_expiry_timestamp_seconds", listener="web")
    said = openssl("x509", "-in", pair["cert"], "-noout", "-enddate").stdout.strip().split("=")[1]
    assert expiry == ssl.cert_time_to_seconds(said)
    [certificate] = proxy.status()["certificates"]
    assert certificate["names"] == ["a.test"] and certificate["not_after"] == expiry
    assert "expired" not in proxy.log()
    old = start(https(origin, authority.issue("old.test", "old.test", days=-1)))
    assert "certificate has expired" in old.log()


def test_testssl_finds_nothing(start, origin, authority, pair, tmp_path):
    import json

    rsa = authority.issue("rsa.test", "a.test", "127.0.0.1", rsa=True)
    proxy = start(https(origin, pair, rsa, listener={"hsts": "max-age=31536000"}))
    host, port = proxy.address
    report = tmp_path / "testssl.json"
    run("testssl", "--quiet", "--warnings", "off", "--color", "0", "--ip", host, "--sneaky",
        "-p", "-s", "-f", "-U", "--jsonfile", report, f"a.test:{port}", timeout=200, check=False)
    found = json.loads(report.read_text())
    assert len(found) > 30, found
    bad = [item for item in found if item["severity"] in ("MEDIUM", "HIGH", "CRITICAL", "FATAL")]
    assert not bad, bad
