"""1xx responses, `Expect: 100-continue`, and final responses that come before the request is complete."""

import threading

import pytest

from harness import Client, curl, get, request, say
from harness.client import url

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
MIB = 1 << 20


def test_interim_responses_pass(web):
    def handler(connection):
        for _ in connection.requests():
            connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n")
            connection.send(b"HTTP/1.1 102 Processing\r\n\r\n")
            connection.send(say())

    proxy, _ = web(handler)
    with Client(proxy.address) as client:
        for _ in range(2):
            answer = client.ask(GET)
            assert answer.status == 200 and [i.status for i in answer.interim] == [103, 102]
            assert answer.interim[0].header("link") == "</a.css>; rel=preload"


def test_interim_responses_do_not_reach_http10(web):
    def handler(connection):
        for _ in connection.requests():
            connection.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" + say())

    proxy, _ = web(handler)
    answer = request(proxy.address, version="HTTP/1.0")
    assert answer.status == 200 and answer.interim == []


@pytest.mark.parametrize("count, status", [(16, 200), (17, 502)])
def test_interim_responses_are_bounded(web, count, status):
    def handler(connection):
        for _ in connection.requests():
            connection.send(b"HTTP/1.1 102 Processing\r\n\r\n" * count + say())

    proxy, _ = web(handler, retry={"tries": 1})
    answer = get(proxy.address)
    assert answer.status == status and len(answer.interim) == 16


def test_endless_interim_responses(web):
    """They end the attempt, however many more the origin would send."""

    def handler(connection):
        connection.read_request()
        try:
            for _ in range(200000):
                connection.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        except OSError:
            pass

    proxy, _ = web(handler, retry={"tries": 1}, read_timeout="2s")
    assert get(proxy.address).status == 502


EXPECT = b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"


def test_expect_continue_honoured(web):
    """The body is sent only after the 100; the 100 comes from the proxy or the origin, once."""

    def handler(connection):
        while True:
            r = connection.read_head()
            if "100-continue" in r.all("expect"):
                connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            connection.read_body(r)
            connection.origin.note(r)
            connection.send(say(200, r.body))

    proxy, _ = web(handler)
    with Client(proxy.address) as client:
        for _ in range(2):
            client.send(EXPECT)
            assert client.read_head().status == 100
            client.send(b"hello")
            answer = client.read_response()
            assert (answer.status, answer.body, answer.interim) == (200, b"hello", [])


def test_expect_continue_early_final_response(web):
    """A final status instead of 100: it is passed on, and no body is taken for a request after it."""

    def handler(connection):
        connection.read_head()
        connection.send(say(401, b"no", {"Connection": "close"}))
        connection.stall(5)

    proxy, _ = web(handler)
    with Client(proxy.address) as client:
        client.send(EXPECT)
        answer = client.read_response()
        if answer.interim:
            client.send(b"hello")
        assert answer.status == 401 and answer.body == b"no"


def test_expect_continue_body_comes_at_once(web):
    proxy, origin = web()
    with Client(proxy.address) as client:
        assert client.ask(EXPECT + b"hello").status == 200
        assert client.ask(GET).status == 200
    assert origin.requests[0].body == b"hello"


def test_expect_continue_with_curl(web, tmp_path):
    proxy, origin = web(http={"client_max_body_size": "8m"})
    (tmp_path / "body").write_bytes(b"z" * 3 * MIB)
    curl("-H", "Expect: 100-continue", "--data-binary", f"@{tmp_path}/body", url(proxy.address))
    assert origin.request.body == b"z" * 3 * MIB


def test_early_response_while_the_body_is_sent(web):
    """The answer reaches the client before the request is complete."""

    def handler(connection):
        connection.read_head()
        connection.send(say(403, b"enough", {"Connection": "close"}))
        connection.stall(10)

    proxy, _ = web(handler, http={"client_max_body_size": 0})
    with Client(proxy.address) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 100000000\r\n\r\nabc")
        answer = client.read_response()
        assert (answer.status, answer.body) == (403, b"enough")


def test_early_response_to_a_sending_client(web):
    """The client never stops to listen: the answer is still there when it looks."""

    def handler(connection):
        connection.read_head()
        connection.send(say(413, b"too much", {"Connection": "close"}))
        connection.stall(10)

    proxy, _ = web(handler, http={"client_max_body_size": 0})
    with Client(proxy.address, 10) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4000000\r\n\r\n")

        def push():
            try:
                for _ in range(60):
                    client.send(b"x" * 65536)
            except OSError:
                pass

        pusher = threading.Thread(target=push)
        pusher.start()
        assert client.read_response().status == 413
        pusher.join(15)


def test_local_response_ends_a_connection_with_expect(start):
    """Whether the body comes is the client's choice after a final status, so nothing is read as a request."""
    proxy = start({"route": [{"respond": {"status": 200, "body": "own"}}]})
    with Client(proxy.address) as client:
        answer = client.ask(EXPECT)
        assert (answer.status, answer.body, answer.interim) == (200, b"own", [])
        assert answer.header("connection") == "close"
        client.send(GET)
        assert client.read_until_eof() == b""


def test_too_large_with_expect_is_refused_before_the_body(web):
    proxy, origin = web(http={"client_max_body_size": 4})
    with Client(proxy.address) as client:
        answer = client.ask(EXPECT)
        assert (answer.status, answer.interim) == (413, []) and answer.header("connection") == "close"
        assert client.closed()
    assert origin.heads == []


def test_unknown_expectation(web):
    proxy, origin = web()
    with Client(proxy.address) as client:
        assert client.ask(EXPECT.replace(b"100-continue", b"the-best")).status == 417
        assert client.closed()
    assert origin.heads == []
