"""Header rules: hop-by-hop, forwarding fields, edits, variables, request id, PROXY protocol."""

import re
import socket
import struct

import pytest

from harness import Client, Deadline, free_port, get, say
from harness.client import message
from harness.proxy import one, upstream


def routed(origin, http=None, listener=None, up=None, **route):
    return {
        "http": http or {},
        "listener": [listener or {}],
        "route": [{"upstream": "up", **route}],
        "upstream": {"up": upstream(origin, **(up or {}))},
    }


def test_hop_by_hop_fields_are_removed_both_ways(web):
    def handler(connection):
        for _ in connection.requests():
            connection.send(
                say(200, b"ok", [("Connection", "X-Hop, keep-alive"), ("X-Hop", "1"), ("X-End", "2"),
                                 ("Keep-Alive", "timeout=9"), ("Proxy-Connection", "x")])
            )

    proxy, origin = web(handler)
    answer = get(proxy.address, headers=[("Connection", "X-Mine, keep-alive"), ("X-Mine", "1"),
                                         ("Keep-Alive", "1"), ("Proxy-Connection", "x"), ("X-Far", "2")])
    for name in ("x-hop", "keep-alive", "proxy-connection"):
        assert answer.header(name) is None
    assert answer.header("x-end") == "2"
    for name in ("connection", "x-mine", "keep-alive", "proxy-connection"):
        assert origin.request.header(name) is None
    assert origin.request.header("x-far") == "2"


def test_order_duplicates_and_case_are_kept(web):
    def handler(connection):
        for _ in connection.requests():
            connection.send(say(200, b"", [("Set-Cookie", "a=1"), ("X-B", "1"), ("Set-Cookie", "b=2")]))

    proxy, origin = web(handler)
    answer = get(proxy.address, headers=[("Cookie", "a=1"), ("X-Many", "1"), ("X-Many", "2")])
    assert answer.all("set-cookie") == ["a=1", "b=2"]
    assert origin.request.all("x-many") == ["1", "2"] and origin.request.header("cookie") == "a=1"


ODD_REQUESTS = [
    # What came, and how what goes upstream begins.
    (b"GET /a?b HTTP/1.1\r\nX-A: 1\r\nhost: a.example:8080\r\nX-B: 2\r\n\r\n",
     b"GET /a?b HTTP/1.1\r\nX-A: 1\r\nhost: a.example:8080\r\nX-B: 2\r\nX-Real-IP: "),
    (b"\r\nGET /a HTTP/1.1\r\nHost:a.example\r\nX-A:\t1 \r\n\r\n",
     b"GET /a HTTP/1.1\r\nHost: a.example\r\nX-A: 1\r\nX-Real-IP: "),
    (b"GET //a/./b/%41?c HTTP/1.1\r\nHost: a.example\r\n\r\n",
     b"GET /a/b/A?c HTTP/1.1\r\nHost: a.example\r\nX-Real-IP: "),
    (b"GET http://b.example:81/c HTTP/1.1\r\nX-A: 1\r\nHost: a.example\r\n\r\n",
     b"GET /c HTTP/1.1\r\nHost: b.example:81\r\nX-A: 1\r\nX-Real-IP: "),
    (b"GET /a HTTP/1.0\r\nX-A: 1\r\n\r\n", b"GET /a HTTP/1.1\r\nHost: up\r\nX-A: 1\r\nX-Real-IP: "),
    (b"POST /a HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\nX-A: 1\r\n\r\nok",
     b"POST /a HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\nX-A: 1\r\nX-Real-IP: "),
    (b"POST /a HTTP/1.1\r\nHost: a.example\r\nContent-Length: 002\r\nX-A: 1\r\n\r\nok",
     b"POST /a HTTP/1.1\r\nHost: a.example\r\nX-A: 1\r\nX-Real-IP: "),
]


@pytest.mark.parametrize(("received", "forwarded"), ODD_REQUESTS)
def test_a_request_goes_on_in_the_one_form_whatever_form_it_came_in(web, received, forwarded):
    proxy, origin = web()
    with Client(proxy.address) as client:
        assert client.ask(received).status == 200
    assert origin.request.raw.startswith(forwarded), origin.request.raw
    hosts, lengths = origin.request.all("host"), origin.request.all("content-length")
    assert len(hosts) == 1 and lengths == (["2"] if b"POST" in received else [])
    assert origin.request.header("x-forwarded-host") == hosts[0]


ODD_RESPONSES = [
    (b"HTTP/1.1 200 Very  Fine\r\nDate: x\r\nContent-Length: 2\r\nX-A: 1\r\n\r\nok",
     b"HTTP/1.1 200 Very  Fine\r\nDate: x\r\nContent-Length: 2\r\nX-A: 1\r\n\r\nok"),
    (b"HTTP/1.1 200 \r\nDate:x\r\nContent-Length: 002\r\nX-A:\t1 \r\n\r\nok",
     b"HTTP/1.1 200 \r\nDate: x\r\nX-A: 1\r\nContent-Length: 2\r\n\r\nok"),
    (b"HTTP/1.0 201 Made\r\nContent-Length: 2\r\nConnection: keep-alive\r\nDate: x\r\n\r\nok",
     b"HTTP/1.1 201 Made\r\nContent-Length: 2\r\nDate: x\r\n\r\nok"),
]


@pytest.mark.parametrize(("received", "forwarded"), ODD_RESPONSES)
def test_a_response_goes_on_in_the_one_form_whatever_form_it_came_in(web, received, forwarded):
    def handler(connection):
        for _ in connection.requests():
            connection.send(received)

    proxy, _ = web(handler)
    with Client(proxy.address) as client:
        for _ in range(2):
            client.ask(message())
        assert bytes(client.stream.received) == 2 * forwarded


def test_host_is_kept(web):
    proxy, origin = web()
    get(proxy.address, host="Shop.Example:8080")
    assert origin.request.header("host").lower() == "shop.example:8080"


def test_host_can_be_set(start, origin):
    proxy = start(routed(origin, request_headers={"set": {"Host": "inner.example"}}))
    get(proxy.address)
    assert origin.request.all("host") == ["inner.example"]


def test_forwarding_fields_from_an_untrusted_client(web):
    proxy, origin = web()
    spoof = {"X-Forwarded-For": "6.6.6.6", "X-Real-IP": "6.6.6.6", "X-Forwarded-Proto": "https",
             "X-Forwarded-Host": "evil.example", "X-Request-Id": "spoofed"}
    get(proxy.address, headers=spoof, host="a.example")
    r = origin.request
    assert r.header("x-forwarded-for") == "127.0.0.1" and r.header("x-real-ip") == "127.0.0.1"
    assert r.header("x-forwarded-proto") == "http" and r.header("x-forwarded-host") == "a.example"
    assert re.fullmatch("[0-9a-f]{32}", r.header("x-request-id"))


def test_forwarding_fields_from_a_trusted_client(start, origin):
    proxy = start(one(origin, http={"trusted_proxies": ["127.0.0.0/8", "10.0.0.0/8"]}))
    given = {"X-Forwarded-For": "203.0.113.9, 10.0.0.7", "X-Forwarded-Proto": "https",
             "X-Forwarded-Host": "public.example", "X-Request-Id": "ab" * 16}
    get(proxy.address, headers=given)
    r = origin.request
    assert r.header("x-forwarded-for") == "203.0.113.9, 10.0.0.7, 127.0.0.1"
    assert r.header("x-real-ip") == "203.0.113.9", "the last address that is no trusted proxy"
    assert r.header("x-forwarded-proto") == "https"
    assert r.header("x-forwarded-host") == "public.example"
    assert r.header("x-request-id") == "ab" * 16


def test_several_forwarded_for_lines_count_as_one(start, origin):
    proxy = start(one(origin, http={"trusted_proxies": ["127.0.0.1/32"]}))
    get(proxy.address, headers=[("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-For", "198.51.100.1")])
    values = ", ".join(origin.request.all("x-forwarded-for"))
    assert values == "203.0.113.9, 198.51.100.1, 127.0.0.1"
    assert origin.request.header("x-real-ip") == "198.51.100.1"


def test_request_id_is_unique(web):
    proxy, origin = web()
    with Client(proxy.address) as client:
        for _ in range(200):
            client.ask(message())
    assert len({r.header("x-request-id") for r in origin.requests}) == 200


def test_edits_with_variables(start, origin):
    proxy = start(
        routed(
            origin,
            request_headers={
                "remove": ["X-Debug", "User-Agent"],
                "set": {"X-Scheme": "$scheme", "X-Where": "${host}|$request_uri|$uri|$query_string",
                        "X-Who": "$remote_addr", "X-Method": "$request_method", "X-Dollar": "$$5",
                        "X-Copy": "$http_x_source", "X-Id": "$request_id", "X-Port": "$server_port",
                        "X-Host-As-Sent": "$http_host"},
                "add": {"X-Many": "two"},
            },
            response_headers={"remove": ["Server"], "set": {"X-Served": "$upstream_addr"}, "add": {"Via": "1.1 x"}},
        )
    )
    origin.handler = lambda c: [c.send(say(200, b"", {"Server": "s", "Via": "1.0 y"})) for _ in c.requests()]
    answer = get(proxy.address, "/a/../b?c=d", host="A.Example:81",
                 headers=[("X-Debug", "1"), ("User-Agent", "u"), ("X-Scheme", "spoof"), ("X-Many", "one"),
                          ("X-Source", "s p")])
    r = origin.request
    assert r.header("x-debug") is None and r.header("user-agent") is None
    assert r.header("x-scheme") == "http"
    assert r.header("x-where") == "a.example|/b?c=d|/b|c=d"
    assert r.header("x-who") == "127.0.0.1" and r.header("x-method") == "GET"
    assert r.header("x-dollar") == "$5" and r.header("x-copy") == "s p"
    assert r.header("x-id") == r.header("x-request-id")
    assert r.header("x-port") == str(proxy.address[1]) and r.header("x-host-as-sent") == "A.Example:81"
    assert r.all("x-many") == ["one", "two"]
    assert answer.header("server") is None and answer.header("x-served") == origin.text
    assert answer.all("via") == ["1.0 y", "1.1 x"]


def test_edits_of_responses_made_here(start):
    """They replace what Ringgate would say itself, as on a response passed on."""
    edits = {"set": {"Content-Type": "a/b", "X-Where": "$host$uri"}, "remove": ["Date"], "add": {"Via": "1.1 x"}}
    proxy = start({"route": [
        {"path": {"exact": "/own"}, "respond": {"status": 200, "body": "x"}, "response_headers": edits},
        {"path": {"exact": "/away"}, "redirect": {"status": 302, "to": "/y"},
         "response_headers": {"set": {"Location": "/z"}}},
    ]})
    answer = get(proxy.address, "/own")
    assert answer.header("content-type") == "a/b" and answer.header("x-where") == "a.example/own"
    assert answer.header("date") is None and answer.header("via") == "1.1 x"
    assert get(proxy.address, "/away").header("location") == "/z"


def test_edits_of_errors_made_here(start):
    """A route's fields come with its 502 too (CORS, HSTS), unlike nginx's add_header without `always`."""
    gone = {"address": f"127.0.0.1:{free_port()}"}
    proxy = start(routed(gone, response_headers={"set": {"X-Frame-Options": "DENY", "Content-Type": "a/b"}}))
    answer = get(proxy.address)
    assert (answer.status, answer.header("x-frame-options"), answer.header("content-type")) == (502, "DENY", "a/b")


def test_underscores_can_be_allowed(start, origin):
    proxy = start(one(origin, http={"underscores_in_headers": True}))
    get(proxy.address, headers={"X_Under": "1"})
    assert origin.request.header("x_under") == "1"


def test_te_reaches_the_origin_only_as_trailers(web):
    proxy, origin = web()
    get(proxy.address, headers={"TE": "gzip, trailers", "Connection": "TE"})
    assert origin.request.all("te") in ([], ["trailers"])


SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(source, target, port, target_port, command=0x21, tlvs=b""):
    family = 0x21 if ":" in source else 0x11
    kind = socket.AF_INET6 if ":" in source else socket.AF_INET
    body = socket.inet_pton(kind, source) + socket.inet_pton(kind, target)
    body += struct.pack("!HH", port, target_port) + tlvs
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", len(body)) + body


ACCEPTED = {
    "v1": (b"PROXY TCP4 203.0.113.7 198.51.100.1 1234 80\r\n", "203.0.113.7"),
    "v1-ipv6": (b"PROXY TCP6 2001:db8::7 2001:db8::1 1234 80\r\n", "2001:db8::7"),
    "v1-unknown": (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
    "v2": (v2("203.0.113.7", "198.51.100.1", 1234, 80), "203.0.113.7"),
    "v2-ipv6": (v2("2001:db8::7", "2001:db8::1", 1234, 80), "2001:db8::7"),
    "v2-tlvs": (v2("203.0.113.7", "198.51.100.1", 1, 2, tlvs=b"\x04\0\x03abc"), "203.0.113.7"),
    "v2-local": (SIGNATURE + b"\x20\0\0\0", "127.0.0.1"),
}


@pytest.fixture
def proxied(start, origin):
    return start(routed(origin, listener={"proxy_protocol_from": ["127.0.0.0/8"]}))


@pytest.mark.parametrize("kind", ACCEPTED)
def test_proxy_protocol_accepted(proxied, origin, kind):
    header, address = ACCEPTED[kind]
    for pieces in ([header + message()], [bytes([b]) for b in header] + [message()]):
        origin.clear()
        with Client(proxied.address) as client:
            client.send_pieces(pieces)
            assert client.read_response().status == 200
            assert client.ask(message()).status == 200, "the header comes once a connection"
        assert origin.requests[0].header("x-real-ip") == address
        assert origin.requests[0].header("x-forwarded-for") == address


@pytest.mark.parametrize(
    "header",
    [b"", b"PROXY TCP4 203.0.113.7 198.51.100.1 1234\r\n", b"PROXY TCP4 1.2.3.4 1.2.3.4 99999 80\r\n",
     b"PROXY TCP4 203.0.113.7 198.51.100.1 1234 80\n", b"PROXY TCP4 " + b"1" * 120 + b"\r\n",
     SIGNATURE + b"\x31\x11\0\x0c" + b"\0" * 12, SIGNATURE + b"\x21\x11\0\x04" + b"\0" * 4],
    ids=["none", "short", "port", "lf", "long", "version", "length"],
)
def test_proxy_protocol_malformed_is_closed(proxied, origin, header):
    with Client(proxied.address) as client:
        client.send(header + message())
        rest = client.read_until_eof()
        assert rest == b"" or rest.startswith(b"HTTP/1.1 400")
    assert origin.requests == []


def test_proxy_protocol_from_others_is_refused(start, origin):
    proxy = start(routed(origin, listener={"proxy_protocol_from": ["10.0.0.0/8"]}))
    with Client(proxy.address) as client:
        client.send(ACCEPTED["v1"][0] + message())
        assert client.read_response().status == 400
    assert get(proxy.address).status == 200, "peers outside the list speak plain HTTP"
    assert len(origin.requests) == 1


def read_proxy_header(connection, version):
    """The source (address, port) in the header of this version that opens a connection."""
    deadline = Deadline(5)
    if version == "v1":
        line = connection.stream.until(b"\r\n", 107, deadline, "PROXY line").decode().split()
        assert line[:2] == ["PROXY", "TCP4"]
        return line[2], int(line[4])
    head = connection.stream.exactly(16, deadline, "PROXY v2")
    assert head[:12] == SIGNATURE and head[12:14] == b"\x21\x11"
    body = connection.stream.exactly(struct.unpack("!H", head[14:])[0], deadline, "addresses")
    return socket.inet_ntoa(body[:4]), struct.unpack("!H", body[8:10])[0]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_proxy_protocol_sent(start, serve, version):
    """No request may travel on a connection whose header names another client."""
    seen = []

    def handler(connection):
        announced = read_proxy_header(connection, version)
        for r in connection.requests():
            seen.append((announced, ("127.0.0.1", int(r.header("x-port")))))
            connection.send(say())

    proxy = start(routed(serve(handler), up={"proxy_protocol": version}))
    clients = [Client(proxy.address) for _ in range(3)]
    ports = [client.sock.getsockname()[1] for client in clients]
    for client, port in list(zip(clients, ports)) * 3:
        assert client.ask(message(headers={"X-Port": port})).status == 200
    assert len(seen) == 9 and all(announced == sent for announced, sent in seen), seen
    for client in clients:
        client.close()
