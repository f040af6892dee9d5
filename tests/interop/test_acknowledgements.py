"""When the kernel acknowledges what a client sends: with the response, or at once where the client waits for it (RFC 9293
section 3.8.6.3, RFC 1122 section 4.2.3.4)."""

import socket
import struct
import time

import pytest

from harness import Client
from harness.client import message

# struct tcp_info (tcp(7), linux/tcp.h): segments received so far.
SEGS_IN = 140
# The kernel delays no acknowledgement by less (TCP_DELACK_MIN).
SHORTEST_DELAY = 0.04
POST = b"POST /%s HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\n\r\n"


def received_segments(client):
    info = client.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return struct.unpack_from("I", info, SEGS_IN)[0]


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
