"""Choosing, trying and pooling servers."""

import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness import Client, eventually, free_port, get, request, say
from harness import names
from harness.client import message
from harness.proxy import one


def named(serve, count, **options):
    """Origins that answer their own number."""
    def handler(n):
        def run(connection):
            for _ in connection.requests():
                connection.send(say(200, str(n).encode()))
        return run

    return [serve(handler(n), **options) for n in range(count)]


def spread(proxy, count, **more):
    """How often each server answered, in order of server name."""
    with Client(proxy.address) as client:
        return Counter(client.ask(message(**more)).body.decode() for _ in range(count))


SINGLE = {"shards": 1, "pin": False, "drain_timeout": "5s"}  # exact sequences need one shard


def test_smooth_weighted_round_robin(start, serve):
    a, b, c = named(serve, 3)
    config = one({"address": a, "weight": 5}, {"address": b, "weight": 1}, {"address": c, "weight": 1})
    proxy = start({**config, "node": SINGLE})
    with Client(proxy.address) as client:
        order = "".join(client.ask(message()).body.decode() for _ in range(70))
    assert Counter(order) == {"0": 50, "1": 10, "2": 10}
    assert "1" * 2 not in order and "2" * 2 not in order and "0" * 6 not in order, "not smooth"


def test_weights_over_several_shards(start, serve):
    a, b = named(serve, 2)
    proxy = start(one({"address": a, "weight": 3}, {"address": b, "weight": 1}))
    counts = Counter()
    for _ in range(40):
        counts += spread(proxy, 10)
    assert 270 <= counts["0"] <= 330, counts


def test_least_conn(start, serve):
    """A server that holds a request gets no other while one is free."""
    release = threading.Event()

    def slow(connection):
        for _ in connection.requests():
            release.wait(10)
            connection.send(say(200, b"slow"))

    busy, free = serve(slow), serve()
    proxy = start(one(busy, free, balance="least_conn"))
    with Client(proxy.address) as first, Client(proxy.address) as second:
        first.send(message())
        eventually(lambda: busy.heads or free.requests)
        if not busy.heads:
            first.read_response()
            first.send(message())
            eventually(lambda: busy.heads)
        assert [second.ask(message()).body for _ in range(10)] == [b"ok"] * 10
        release.set()
        assert first.read_response().body == b"slow"


def test_random_two_prefers_the_idle_server(start, serve):
    counts = spread(start(one(*named(serve, 4), balance="random_two")), 400)
    assert len(counts) == 4 and min(counts.values()) >= 50, counts


def test_ip_hash(start, serve):
    proxy = start(one(*named(serve, 4), balance="ip_hash", http={"trusted_proxies": ["127.0.0.1/32"]}))
    chosen = {}
    for n in range(64):
        answers = {
            get(proxy.address, headers={"X-Forwarded-For": f"203.{n}.113.9"}).body for _ in range(3)
        }
        assert len(answers) == 1, "one client, one server"
        chosen[n] = answers.pop()
    assert len(set(chosen.values())) == 4


def test_maglev_moves_few_keys_when_a_server_goes(start, serve):
    origins = named(serve, 4)
    proxy = start(one(*[{"address": o, "fail_timeout": "60s"} for o in origins], balance="maglev", hash_key="$request_uri"))

    def where():
        with Client(proxy.address) as client:
            return {n: client.ask(message("GET", f"/{n}")).body for n in range(200)}

    before = where()
    assert before == where() and len(set(before.values())) == 4
    origins[3].refuse()
    origins[3].drop_connections()
    where()
    after = where()
    kept = [n for n in before if before[n] != b"3"]
    moved = sum(before[n] != after[n] for n in kept)
    assert b"3" not in after.values() and moved <= len(kept) // 5, moved


def test_backup_only_when_no_other(start, serve):
    a, b = named(serve, 2)
    proxy = start(one({"address": a, "fail_timeout": "300ms"}, {"address": b, "backup": True}))
    assert set(spread(proxy, 20)) == {"0"}
    a.refuse()
    a.drop_connections()
    assert set(spread(proxy, 20)) == {"1"}
    a.listen()
    eventually(lambda: set(spread(proxy, 5)) == {"0"}, 5)


def test_down_gets_nothing(start, serve):
    a, b = named(serve, 2)
    proxy = start(one(a, {"address": b, "down": True}))
    assert spread(proxy, 20) == {"0": 20}


def test_max_fails_takes_a_server_out_and_lets_it_back(start, serve):
    a, b = named(serve, 2)
    a.refuse()
    proxy = start(one(*[{"address": o, "max_fails": 2, "fail_timeout": "1s"} for o in (a, b)]))
    began = time.monotonic()
    assert spread(proxy, 20) == {"1": 20}, "connect failures are retried on the next server"
    proxy.await_metric(names.SERVER_CONNECT_FAILURES, 2, server=a.text)
    assert proxy.metric(names.SERVER_CONNECT_FAILURES, server=a.text) <= 4 + 2 * int(time.monotonic() - began)
    a.listen()
    eventually(lambda: "0" in spread(proxy, 4), 5)


def test_max_fails_zero_never_takes_out(start, serve):
    (a,) = named(serve, 1)
    proxy = start(one({"address": a, "max_fails": 0, "fail_timeout": "60s"}))
    a.refuse()
    assert {get(proxy.address).status for _ in range(5)} == {502}
    a.listen()
    assert get(proxy.address).status == 200


def test_nobody_available_is_503_or_502(start, serve):
    """While attempts are made and fail: 502. When none may be made: 503."""
    a, b = named(serve, 2)
    proxy = start(one(*[{"address": o, "fail_timeout": "60s"} for o in (a, b)]))
    a.refuse()
    b.refuse()
    statuses = [get(proxy.address).status for _ in range(6)]
    assert statuses[0] == 502 and set(statuses[2:]) == {503}, statuses


def test_all_servers_down_by_hand_is_503(start, origin):
    assert get(start(one({"address": origin, "down": True})).address).status == 503


def test_max_conns(start, serve):
    release, inside, peak = threading.Event(), Counter(), Counter()
    lock = threading.Lock()

    def handler(connection):
        for _ in connection.requests():
            with lock:
                inside["now"] += 1
                peak["max"] = max(peak["max"], inside["now"])
            release.wait(10)
            with lock:
                inside["now"] -= 1
            connection.send(say())

    back = serve(handler)
    proxy = start(one({"address": back, "max_conns": 3, "max_fails": 0}))
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(lambda: get(proxy.address).status) for _ in range(12)]
        eventually(lambda: sum(a.done() for a in asked) == 9)
        release.set()
        statuses = Counter(a.result() for a in asked)
    assert statuses == {200: 3, 503: 9} and peak["max"] == 3


def once(first):
    """The first request of each origin's life runs `first`; later ones are answered."""
    state = {"calls": 0}

    def handler(connection):
        while True:
            r = next(connection.requests(), None)
            if r is None:
                return
            state["calls"] += 1
            if state["calls"] == 1:
                return first(connection)
            connection.send(say(200, b"second try"))

    return handler


def reset(connection):
    connection.reset()


def both(serve, handler):
    return serve(handler), serve(handler)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_idempotent_requests_are_retried_after_a_reset(start, serve, method):
    a, b = both(serve, once(reset))
    proxy = start(one(a, b))
    body = b"abc" if method == "PUT" else None
    answer = request(proxy.address, method, body=body)
    assert answer.status == 200
    proxy.await_equal(names.RETRIES, 1)


@pytest.mark.parametrize("method", ["POST", "PATCH", "LOCK"])
def test_others_are_not_retried_once_sent(start, serve, method):
    a, b = both(serve, once(reset))
    proxy = start(one(a, b))
    assert request(proxy.address, method, body=b"abc").status == 502
    assert len(a.requests) + len(b.requests) == 1


def test_others_are_retried_when_configured(start, serve):
    a, b = both(serve, once(reset))
    proxy = start(one(a, b, retry={"non_idempotent": True}))
    assert request(proxy.address, "POST", body=b"abc").status == 200
    assert [r.body for r in a.requests + b.requests] == [b"abc", b"abc"]


def test_a_chunked_body_with_trailers_is_repeated_whole(start, serve):
    a, b = both(serve, once(reset))
    proxy = start(one(a, b))
    with Client(proxy.address) as client:
        client.send(b"PUT / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.send_pieces([b"3\r\nabc\r\n", b"4\r\ndefg\r\n", b"0\r\nX-End: 1\r\n\r\n"])
        assert client.read_response().status == 200
    assert [(r.body, r.trailers) for r in a.requests + b.requests] == [
        (b"abcdefg", [("X-End", "1")])
    ] * 2


def test_a_long_body_is_not_repeated(start, serve):
    """Only so much is kept (64 KiB); what is lost cannot be sent again."""
    a, b = both(serve, once(reset))
    proxy = start(one(a, b))
    assert request(proxy.address, "PUT", body=b"x" * 100_000).status == 502
    assert len(a.requests) + len(b.requests) == 1


def test_post_is_retried_when_the_connect_failed(start, serve):
    a, b = named(serve, 2)
    a.refuse()
    proxy = start(one(a, b))
    assert [request(proxy.address, "POST", body=b"x").status for _ in range(3)] == [200] * 3


def test_no_retry_after_the_response_began(start, serve):
    def half(connection):
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        connection.reset()

    a, b = both(serve, once(half))
    proxy = start(one(a, b))
    with Client(proxy.address) as client:
        client.send(message())
        assert client.read_head().status == 200
        assert client.read_until_eof() == b"half", "the client must see that the body is short"
    assert len(a.requests) + len(b.requests) == 1


def test_tries_limit(start, serve):
    origins = [serve(lambda c: c.read_request() and c.reset()) for _ in range(5)]
    proxy = start(one(*origins, retry={"tries": 3, "budget_percent": 100}))
    assert get(proxy.address).status == 502
    assert sum(len(o.requests) for o in origins) == 3


def test_tries_1_means_no_retry(start, serve):
    a, b = both(serve, once(reset))
    assert get(start(one(a, b, retry={"tries": 1})).address).status == 502


@pytest.mark.parametrize("status, expected", [(503, 200), (500, 500)])
def test_on_status(start, serve, status, expected):
    a, b = both(serve, once(lambda c: c.send(say(status, b"first", {"Connection": "close"}))))
    proxy = start(one(a, b, retry={"on_status": [503]}))
    assert get(proxy.address).status == expected


@pytest.mark.parametrize("on_timeout, expected", [(True, 200), (False, 504)])
def test_on_timeout(start, serve, on_timeout, expected):
    a, b = both(serve, once(lambda c: c.stall(3)))
    proxy = start(one(a, b, read_timeout="1s", retry={"on_timeout": on_timeout}))
    assert get(proxy.address).status == expected


def test_retry_timeout(start, serve):
    def late_reset(connection):
        connection.read_request()
        time.sleep(0.4)
        connection.reset()

    origins = [serve(late_reset) for _ in range(4)]
    proxy = start(one(*origins, retry={"tries": 4, "timeout": "200ms"}))
    assert get(proxy.address).status == 502
    assert sum(len(o.requests) for o in origins) == 1


def test_retry_budget(start, serve):
    """Every attempt fails: the budget keeps attempts near 120 % of the requests."""
    origins = [serve(lambda c: c.read_request() and c.reset()) for _ in range(3)]
    servers = [{"address": o, "max_fails": 0} for o in origins]
    proxy = start(one(*servers, retry={"tries": 3, "budget_percent": 20}))
    for _ in range(200):
        assert get(proxy.address).status == 502
    attempts = sum(len(o.requests) for o in origins)
    assert 200 <= attempts <= 200 * 1.2 + 25, attempts


def test_stale_pooled_connection_is_replaced(start, serve):
    """The origin closes idle connections; no request may notice, POST included."""

    def handler(connection):
        connection.read_request()
        connection.send(say())

    back = serve(handler)
    proxy = start(one({"address": back, "max_fails": 1, "fail_timeout": "60s"}))
    with Client(proxy.address) as client:
        for n in range(20):
            assert client.ask(message("POST" if n % 2 else "GET", f"/{n}", body=b"x")).status == 200
            eventually(lambda: back.open_connections() == 0)
    assert [r.target for r in back.requests] == [f"/{n}" for n in range(20)]


def test_stale_connection_closed_as_the_request_arrives(start, serve):
    """The close crosses the request: a GET is repeated and nothing counts as a failure."""

    def handler(connection):
        if connection.number % 2 == 0:
            connection.read_request()
            connection.send(say())
            connection.read_head()
            connection.close()
            return
        for _ in connection.requests():
            connection.send(say(200, b"fresh"))

    back = serve(handler)
    proxy = start({**one({"address": back, "max_fails": 1, "fail_timeout": "60s"}), "node": SINGLE})
    with Client(proxy.address) as client:
        assert client.ask(message()).body == b"ok"
        assert client.ask(message()).body == b"fresh"
        assert client.ask(message()).body == b"fresh"


def test_origin_connection_close_is_honoured(start, serve):
    def handler(connection):
        for _ in connection.requests():
            connection.send(say(200, b"ok", {"Connection": "close"}))

    back = serve(handler)
    proxy = start(one(back))
    with Client(proxy.address) as client:
        for _ in range(5):
            assert client.ask(message()).header("connection") != "close", "hop by hop"
    assert [len([r for r in back.requests if r.connection is c]) for c in back.connections] == [1] * 5


def test_surplus_bytes_on_an_idle_connection_poison_it(start, serve):
    """A response nobody asked for must not become the next request's (CVE-2025-4366 class)."""

    def handler(connection):
        for r in connection.requests():
            connection.send(say(200, r.target.encode()))
            if r.target == "/first":
                connection.send(say(200, b"poison"))

    back = serve(handler)
    proxy = start({**one(back), "node": SINGLE})
    with Client(proxy.address) as client:
        assert client.ask(message("GET", "/first")).body == b"/first"
        # Before that nobody can tell it from the answer to what is asked next.
        eventually(lambda: back.connections[0].done.is_set(), 5, "the connection is closed")
        assert client.ask(message("GET", "/second")).body == b"/second"


@pytest.mark.parametrize(
    "keys", [{"keepalive_requests": 4}, {"keepalive_time": "1ms"}, {"keepalive": 0}], ids=str
)
def test_pool_limits(start, serve, keys):
    back = serve()
    proxy = start({**one(back, **keys), "node": SINGLE})
    with Client(proxy.address) as client:
        for _ in range(12):
            assert client.ask(message()).status == 200
            time.sleep(0.002)
    expected = 3 if "keepalive_requests" in keys else 12
    assert len(back.connections) == expected


def test_pool_keepalive_timeout(start, serve):
    back = serve()
    proxy = start(one(back, keepalive_timeout="200ms"))
    assert get(proxy.address).status == 200
    eventually(lambda: back.open_connections() == 0, 5)


def test_pool_size_is_global(start, serve):
    back = serve()
    proxy = start(one(back, keepalive=4))
    clients = [Client(proxy.address) for _ in range(16)]
    for client in clients:
        client.send(message())
    for client in clients:
        assert client.read_response().status == 200
    eventually(lambda: back.open_connections() <= 4, 5)


def test_read_timeout_is_504(web):
    proxy, _ = web(lambda c: c.read_request() and c.stall(5), read_timeout="300ms")
    assert get(proxy.address).status == 504


def test_read_timeout_within_a_body_cuts_it(web):
    def handler(connection):
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        connection.stall(5)

    proxy, _ = web(handler, read_timeout="300ms")
    with Client(proxy.address) as client:
        client.send(message())
        assert client.read_head().status == 200
        assert client.read_until_eof(5) == b"half"


def test_connect_timeout_is_504(start):
    """A full accept queue: SYNs are dropped, so the handshake never ends."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", free_port()))
        full.listen(0)
        address = full.getsockname()
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            fillers.append(filler)
        proxy = start(one(f"{address[0]}:{address[1]}", connect_timeout="300ms"))
        assert get(proxy.address).status == 504
        for filler in fillers:
            filler.close()


def test_send_timeout(web):
    """The origin stops reading: the upload ends with 504 (or the connection)."""
    def handler(connection):
        connection.read_head()
        connection.origin.stopping.wait(15)

    proxy, _ = web(handler, http={"client_max_body_size": 0}, send_timeout="500ms", retry={"tries": 1})
    with Client(proxy.address, 15) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 100000000\r\n\r\n")

        def push():
            try:
                for _ in range(1500):
                    client.send(b"x" * 65536)
            except OSError:
                pass

        pusher = threading.Thread(target=push, daemon=True)
        pusher.start()
        assert client.read_response().status == 504
        pusher.join(20)


BAD_RESPONSES = {
    "garbage": b"garbage\r\n\r\n",
    "empty": b"",
    "no-version": b"200 OK\r\n\r\n",
    "http-2": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "status-letters": b"HTTP/1.1 2xx OK\r\nContent-Length: 0\r\n\r\n",
    "status-099": b"HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n",
    "status-4-digits": b"HTTP/1.1 2000 X\r\nContent-Length: 0\r\n\r\n",
    "bare-lf": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "bare-cr": b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
    "nul": b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
    "space-before-colon": b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
    "two-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n",
    "length-letters": b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
    "length-negative": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "length-and-te": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "te-gzip": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "te-in-1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "head-cut": b"HTTP/1.1 200 OK\r\nContent-Le",
    "head-too-large": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70000 + b"\r\n\r\n",
    "too-many-fields": b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 3000 + b"\r\n",
}


@pytest.mark.parametrize("kind", BAD_RESPONSES)
def test_bad_responses_are_502(web, kind):
    def handler(connection):
        connection.read_request()
        connection.send(BAD_RESPONSES[kind])

    proxy, _ = web(handler, retry={"tries": 1})
    assert get(proxy.address).status == 502


def test_folded_response_field_is_refused_or_unfolded(web):
    """RFC 9112 5.2 lets a gateway replace the fold by spaces, or answer 502."""
    def handler(connection):
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 0\r\n\r\n")

    proxy, _ = web(handler, retry={"tries": 1})
    answer = get(proxy.address)
    assert answer.status == 502 or answer.header("x-a").split() == ["b", "c"]


@pytest.mark.parametrize("wire", [b"x\r\nabc\r\n", b"3\nabc\r\n0\r\n\r\n", b"fffffffffffffffff\r\n"])
def test_response_chunks_bad_from_the_start_are_502(web, wire):
    """The client has nothing of the response yet, so it can still be told."""
    def handler(connection):
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + wire)

    proxy, origin = web(handler, retry={"tries": 3})
    assert get(proxy.address).status == 502
    assert len(origin.requests) == 1, "a malformed response is not asked for again"


def test_bad_response_chunks_cut_the_response(web):
    """The head is gone already: the client must not see a complete body."""
    def handler(connection):
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX\r\n")

    proxy, _ = web(handler, retry={"tries": 1})
    with Client(proxy.address) as client:
        client.send(message())
        assert client.read_head().status == 200
        assert not client.read_until_eof().endswith(b"0\r\n\r\n")


def test_short_close_within_content_length_cuts_the_response(web):
    def handler(connection):
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    proxy, _ = web(handler)
    with Client(proxy.address) as client:
        client.send(message())
        client.read_head()
        assert client.read_until_eof() == b"half"


def test_host_names(start, serve):
    back = serve()
    assert get(start(one(f"localhost:{back.port}")).address).status == 200


def test_unresolvable_names_do_not_keep_it_from_starting(start, serve):
    back = serve()
    proxy = start(one("does-not-exist.invalid:80", back))
    assert [get(proxy.address).status for _ in range(4)] == [200] * 4


def test_only_an_unresolvable_name_is_503(start):
    proxy = start(one("does-not-exist.invalid:80"))
    assert get(proxy.address).status in (502, 503)


def test_ipv6_server(start, serve):
    back = serve(host="::1")
    assert get(start(one(back)).address).status == 200
