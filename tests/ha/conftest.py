"""A pair of Ringgates on a switch, and who is told."""

import http.server
import json
import ssl
import threading

import pytest

from harness.lan import Lan, Ringgate, in_namespace
from harness.tls import Authority

from .common import vrrp

@pytest.fixture
def lan():
    with Lan() as one:
        yield one


@pytest.fixture
def pair(lan, tmp_path):
    """`pair(**keys)` gives two running nodes, the first one active, and a client."""
    started = []

    def begin(first=200, second=100, **keys):
        a = Ringgate(lan.host(), tmp_path, "a", vrrp(first, **keys))
        b = Ringgate(lan.host(), tmp_path, "b", vrrp(second, **keys))
        client = lan.host()
        for node in (a, b):
            started.append(node)
            node.start()
        a.await_role("active")
        b.await_role("backup")
        return a, b, client

    yield begin
    for node in started:
        node.stop()


@pytest.fixture
def hook(lan, tmp_path):
    """A host with two servers that keep what is posted to them, over HTTP and over HTTPS with a certificate of an
    authority of ours."""
    host, ready = lan.host(), [threading.Event(), threading.Event()]
    posted, secured = [], []
    authority = Authority(tmp_path / "ca")
    pair = authority.issue("hook", host.address)

    def handler(kept):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                kept.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        return Handler

    def serve(kept, port, event, context):
        server = http.server.ThreadingHTTPServer((host.address, port), handler(kept))
        server.daemon_threads = True
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        event.set()
        server.serve_forever()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair["cert"], pair["key"])
    in_namespace(host.name, lambda: serve(posted, 8080, ready[0], None))
    in_namespace(host.name, lambda: serve(secured, 8443, ready[1], context))
    assert all(event.wait(5) for event in ready)
    return host, posted, secured, authority
