"""When the kernel acknowledges what a client sends: with the response, or at once where the client waits for it (RFC 9293
section 3.8.6.3, RFC 1122 section 4.2.3.4)."""

import socket
import ssl
import struct
import time

import pytest

from harness import Client
from harness.client import message
from harness.http2 import PREFACE, SETTINGS
from harness.proxy import one
from harness.tls import Authority, TlsClient, context, raw

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
# struct tcp_info (tcp(7), linux/tcp.h): segments received so far, and those with data.
SEGS_IN, DATA_SEGS_IN = 140, 152
# The kernel delays no acknowledgement by less (TCP_DELACK_MIN).
SHORTEST_DELAY = 0.04
POST = b"POST /%s HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\n\r\n"


def received_segments(client, which=SEGS_IN):
    info = client.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return struct.unpack_from("I", info, which)[0]


def test_the_response_acknowledges_a_first_request(web):
    """So two segments come from the proxy: the handshake's answer, and the response."""
    proxy, _ = web()
    counts = []
    for _ in range(20):
        with Client(proxy.address) as client:
            assert client.ask(message("GET", "/")).status == 200
            counts.append(received_segments(client))
    # Where the machine stalls, the delay is over before the response is there.
    assert min(counts) == 2, counts


@pytest.mark.parametrize(
    "pieces",
    [
        (b"GET / HT", b"TP/1.1\r\nHost: a.example\r\n\r\n"),
        (POST % b"", b"body"),
        (POST % b"elsewhere", b"body"),
        (b"PR", b"OXY TCP4 192.0.2.1 192.0.2.2 5000 80\r\n", message("GET", "/")),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 80\r\n", message("GET", "/")),
    ],
    ids=["head", "body", "body nobody wants", "PROXY header", "request behind a PROXY header"],
)
def test_who_waits_for_an_acknowledgement_gets_it(start, origin, pieces):
    """A client with Nagle's algorithm sends the second piece when it knows that the first has arrived."""
    from_proxy = pieces[0].startswith(b"PR")
    proxy = start({
        "listener": [{"proxy_protocol_from": ["127.0.0.1"]} if from_proxy else {}],
        "route": [{"path": "/elsewhere", "redirect": {"to": "/"}}, {"upstream": "up"}],
        "upstream": {"up": {"servers": [{"address": origin.text}]}},
    })
    times = []
    for _ in range(20):
        with Client(proxy.address) as client:
            client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
            began = time.monotonic()
            for piece in pieces:
                client.send(piece)
            assert client.read_response().status in (200, 302)
            times.append(time.monotonic() - began)
    assert min(times) < SHORTEST_DELAY, times


def test_http2_begins_in_pieces(start, origin):
    proxy = start({**one(origin), "listener": [{"http2": True}]})
    times = []
    for _ in range(20):
        with Client(proxy.address) as client:
            client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
            began = time.monotonic()
            client.send(PREFACE[:2])
            client.send(PREFACE[2:] + bytes([0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]))
            assert client.sock.recv(9)[3] == SETTINGS
            times.append(time.monotonic() - began)
    assert min(times) < SHORTEST_DELAY, times


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def https(start, origin, authority):
    pair = authority.issue("a.test", "a.test")
    return start({**one(origin), "listener": [{"certificates": [pair]}]})


class CutTls:
    """A client's side of TLS on a socket with Nagle's algorithm. What it has to say goes out in two pieces."""

    def __init__(self, address, made, session):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = made.wrap_bio(self.incoming, self.outgoing, server_hostname="a.test", session=session)
        self.sock = raw(address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)

    def until(self, function, cut):
        """Calls a function of TLS until it has what it wants to read; the first piece has `cut` bytes."""
        while True:
            try:
                done = [function()]
            except ssl.SSLWantReadError:
                done = []
            flight = self.outgoing.read()
            for piece in filter(None, (flight[:cut], flight[cut:])):
                self.sock.sendall(piece)
            if done:
                return done[0]
            data = self.sock.recv(65536)
            assert data, "closed"
            self.incoming.write(data)

    def ask(self, cut):
        self.tls.write(message("GET", "/"))
        return self.until(lambda: self.tls.read(65536), cut)


@pytest.mark.parametrize("version", [V12, V13])
@pytest.mark.parametrize(
    ("resumed", "cut_handshake", "cut_request"),
    [(False, 30, 0), (True, 30, 0), (True, 0, 0), (False, 0, 10)],
    ids=["handshake", "resumed handshake", "request behind a handshake", "request"],
)
def test_tls_in_pieces(https, authority, version, resumed, cut_handshake, cut_request):
    made = context(authority, version=version)
    session, times = None, []
    if resumed:
        with TlsClient(https.address, made) as client:
            assert client.ask(message("GET", "/")).status == 200
            session = client.sock.session
    for _ in range(20):
        began = time.monotonic()
        client = CutTls(https.address, made, session)
        with client.sock:
            client.until(client.tls.do_handshake, cut_handshake)
            assert client.tls.session_reused == resumed
            assert client.ask(cut_request).startswith(b"HTTP/1.1 200 ")
            times.append(time.monotonic() - began)
    assert min(times) < SHORTEST_DELAY, times


@pytest.mark.parametrize("version", [V12, V13])
def test_answers_acknowledge_the_messages_of_a_handshake(https, authority, version):
    """So the one segment without data is the answer to the SYN."""
    made = context(authority, version=version)
    counts = []
    for _ in range(20):
        with TlsClient(https.address, made) as client:
            assert client.ask(message("GET", "/")).status == 200
            counts.append(received_segments(client) - received_segments(client, DATA_SEGS_IN))
    assert min(counts) == 1, counts
