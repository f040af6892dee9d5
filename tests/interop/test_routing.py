"""Which route takes a request, and what its action does."""

import time

import pytest

from harness import Client, get, request
from harness.client import message
from harness.proxy import upstream


def table(*routes, **more):
    """Routes whose answer is their own name: [(name, conditions)]."""
    return {
        "route": [{"respond": {"status": 200, "body": name}, **conditions} for name, conditions in routes],
        **more,
    }


def name_of(proxy, target="/", method="GET", **more):
    answer = request(proxy.address, method, target, **more)
    return answer.body.decode() if answer.status == 200 else answer.status


def test_hosts(start):
    proxy = start(table(
        ("exact", {"host": "shop.example"}),
        ("deep", {"host": ["*.a.shop.example"]}),
        ("wild", {"host": ["*.shop.example", "other.example"]}),
        ("default", {}),
    ))
    for host, expected in {
        "shop.example": "exact", "SHOP.example:8080": "exact", "x.shop.example": "wild",
        "x.y.shop.example": "wild", "b.a.shop.example": "deep", "other.example": "wild",
        "notshop.example": "default", "xshop.example": "default", "127.0.0.1": "default", "[::1]": "default",
    }.items():
        assert name_of(proxy, host=host) == expected, host


def test_paths(start):
    proxy = start(table(
        ("root", {}),
        ("prefix", {"path": "/api/"}),
        ("longer", {"path": "/api/v2/"}),
        ("exact", {"path": {"exact": "/api/v2/x"}}),
        ("first", {"path": {"regex": "^/[0-9]+$"}}),
        ("second", {"path": {"regex": "^/1"}}),
        ("image", {"path": {"regex": r"\.(png|jpg)$"}}),
    ))
    for target, expected in {
        "/": "root", "/api": "root", "/api/": "prefix", "/api/v1": "prefix", "/api/v2/": "longer",
        "/api/v2/x": "exact", "/api/v2/x?y": "exact", "/api/v2/xy": "longer", "/123": "first",
        "/1a": "second", "/api/v2/a.png": "image", "/a.png/b": "root", "/a?b.png": "root",
    }.items():
        assert name_of(proxy, target) == expected, target


def test_routing_uses_the_normalised_path(start, origin):
    config = table(("admin", {"path": "/admin/"}))
    config["route"].append({"upstream": "up"})
    config["upstream"] = {"up": upstream(origin)}
    proxy = start(config)
    for target in ("/admin/x", "/x/../admin/x", "//admin//x", "/%61dmin/x", "/x/%2e%2e/admin/", "/./admin/x"):
        assert name_of(proxy, target) == "admin", target
    assert origin.requests == []
    get(proxy.address, "/a/./%7eb/../c?q=%2F")
    assert origin.request.target == "/a/c?q=%2F"


def test_methods_and_headers(start):
    proxy = start(table(
        ("write", {"methods": ["POST", "PUT"]}),
        ("beta", {"headers": {"X-Beta": "1", "X-Any": {"present": True}}}),
        ("json", {"headers": {"Accept": {"regex": "json"}}}),
        ("rest", {}),
    ))
    assert name_of(proxy, method="PUT", body=b"") == "write"
    assert name_of(proxy, headers={"X-Beta": "1", "X-Any": ""}) == "beta"
    assert name_of(proxy, headers={"x-beta": "1"}) == "rest"
    assert name_of(proxy, headers={"X-Beta": "2", "X-Any": ""}) == "rest"
    assert name_of(proxy, headers=[("X-Beta", "0"), ("X-Beta", "1"), ("X-Any", "")]) == "beta"
    assert name_of(proxy, headers={"Accept": "application/json"}) == "json"
    assert name_of(proxy) == "rest"


def test_listeners(start):
    proxy = start(table(
        ("inner", {"listeners": ["web1"]}), ("both", {}), listener=[{"name": "web"}, {"name": "web1"}],
    ))
    assert get(proxy.addresses["web"]).body == b"both"
    assert get(proxy.addresses["web1"]).body == b"inner"


def test_no_route_is_404(start):
    proxy = start(table(("only", {"path": "/only/"})))
    with Client(proxy.address) as client:
        assert client.ask(message("GET", "/else")).status == 404
        assert client.ask(message("GET", "/only/")).status == 200


def test_respond(start):
    proxy = start({"route": [
        {"path": {"exact": "/ping"}, "respond": {"status": 200, "body": "pong\n", "content_type": "text/x"}},
        {"path": {"exact": "/none"}, "respond": {"status": 204}},
        {"respond": {"status": 503, "body": "later"}},
    ]})
    with Client(proxy.address) as client:
        answer = client.ask(message("GET", "/ping"))
        assert (answer.body, answer.header("content-type")) == (b"pong\n", "text/x")
        head = client.ask(message("HEAD", "/ping"), "HEAD")
        assert head.header("content-length") == "5" and head.body == b""
        answer = client.ask(message("GET", "/none"))
        assert answer.status == 204 and answer.header("content-length") is None
        assert client.ask(message("POST", "/x", body=b"unread")).body == b"later"
        assert client.ask(message("GET", "/ping")).status == 200, "the unread body is no request"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect(start, status):
    proxy = start({"route": [{"redirect": {"status": status, "to": "https://new.example$request_uri"}}]})
    answer = get(proxy.address, "/a/../b?c=d", host="old.example")
    assert (answer.status, answer.header("location")) == (status, "https://new.example/b?c=d")


def test_redirect_cannot_be_split(start):
    proxy = start({"route": [{"redirect": {"status": 302, "to": "/x?$query_string"}}]})
    answer = get(proxy.address, "/?%0d%0aSet-Cookie:%20a=b")
    assert answer.status in (302, 400) and answer.all("set-cookie") == []


def test_strip_prefix_and_rewrite(start, origin):
    proxy = start({
        "route": [
            {"path": "/api/", "upstream": "up", "strip_prefix": "/api"},
            {"path": "/bare", "upstream": "up", "strip_prefix": "/bare"},
            {"path": "/old/", "upstream": "up", "rewrite": {"regex": "^/old/([a-z]+)/(.*)", "to": "/new/$2/$1"}},
            {"upstream": "up"},
        ],
        "upstream": {"up": upstream(origin)},
    })
    for target, forwarded in {
        "/api/x?y": "/x?y", "/api/": "/", "/bare": "/", "/bare/x": "/x", "/old/ab/cd?e": "/new/cd/ab?e",
        "/old/12/3": "/old/12/3", "/else": "/else",
    }.items():
        origin.clear()
        assert get(proxy.address, target).status == 200
        assert origin.request.target == forwarded, target


def test_route_body_limit(start, origin):
    proxy = start({
        "http": {"client_max_body_size": "1k"},
        "route": [{"path": "/big/", "upstream": "up", "client_max_body_size": "1m"}, {"upstream": "up"}],
        "upstream": {"up": upstream(origin)},
    })
    assert request(proxy.address, "POST", "/big/", body=b"x" * 100000).status == 200
    assert request(proxy.address, "POST", "/", body=b"x" * 1024).status == 200
    assert request(proxy.address, "POST", "/", body=b"x" * 1025).status == 413


def test_the_answer_to_a_refused_upload_survives_it(start, origin):
    """What comes after the refusal is read and thrown away, however much: a reset would destroy the answer."""
    proxy = start({"http": {"client_max_body_size": "1k"}, "route": [{"upstream": "up"}], "upstream": {"up": upstream(origin)}})
    with Client(proxy.address) as client:
        client.send(message("POST", "/", headers={"Content-Length": str(1 << 25)}))
        for _ in range(32):
            client.send(b"x" * (1 << 20))
        assert client.read_response().status == 413


def test_thousands_of_routes_cost_what_ten_cost(start):
    """Proxy CPU per request with 10 and with 5000 routes, in turns; half as much again is allowed."""

    class Site:
        def __init__(self, count):
            routes = [(f"r{n}", {"host": f"h{n}.example", "path": f"/p{n}/"}) for n in range(count)]
            self.proxy = start(table(*routes, http={"keepalive_requests": 10_000_000}))
            self.raw = message("GET", f"/p{count - 1}/x", host=f"h{count - 1}.example") * 50
            self.body, self.client = b"r%d" % (count - 1), Client(self.proxy.address)
            self.cost(0.1)

        def cost(self, seconds):
            before, done, end = self.proxy.cpu(), 0, time.monotonic() + seconds
            while time.monotonic() < end:
                self.client.send(self.raw)
                for _ in range(50):
                    assert self.client.read_response().body == self.body
                done += 50
            return (self.proxy.cpu() - before) / done

    few, many = Site(10), Site(5000)
    # Paired, since the machine's speed changes with what else it does.
    pairs = [(few.cost(0.4), many.cost(0.4)) for _ in range(7)]
    a, b = (sum(costs) / len(pairs) for costs in zip(*sorted(pairs, key=lambda pair: pair[1] - pair[0])[1:-1]))
    assert b < 1.5 * a + 2e-6, f"{a * 1e6:.1f} and {b * 1e6:.1f} µs per request: {pairs}"
    for site in (few, many):
        site.client.close()
