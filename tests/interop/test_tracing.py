"""`[tracing]`: sampled requests arrive at an OpenTelemetry collector, and a collector that is dead disturbs nobody."""

import re
import shutil
import ssl
import threading

import pytest

from harness import Client, Origin, eventually, free_port, get, say
from harness.message import Stream
from harness.proxy import complete, one, run_once
from harness.tls import Authority
from harness.tools import toml

SPANS = "ringgate_trace_spans_total"
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0"


def fields(data):
    """Protocol Buffers' wire format: (number, value) of each field."""
    found, at = [], 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        kind, number = key & 7, key >> 3
        if kind == 0:
            value = varint()
        else:
            length = {1: 8, 5: 4}.get(kind) or varint()
            value, at = data[at : at + length], at + length
            assert len(value) == length and kind in (1, 2, 5), "not what OTLP has"
            value = int.from_bytes(value, "little") if kind != 2 else value
        found.append((number, value))
    return found


def every(data, *path):
    """The values at the end of a path of field numbers."""
    values = [data]
    for number in path:
        values = [value for one_value in values for at, value in fields(one_value) if at == number]
    return values


def attributes(data, number):
    """Key and value of each KeyValue."""
    pairs = {}
    for pair in every(data, number):
        (key,), (value,) = every(pair, 1), every(pair, 2)
        ((kind, content),) = fields(value)
        pairs[key.decode()] = content.decode() if kind == 1 else content
    return pairs


class Collector:
    """An OTLP/HTTP receiver: what it was sent, taken apart by opentelemetry-proto's numbers."""

    def __init__(self, answer=say(200, b"")):
        self.answer = answer
        self.spans, self.services, self.heads = [], set(), []
        self.lock = threading.Lock()

    def __call__(self, connection):
        for request in connection.requests():
            with self.lock:
                self.heads.append(request)
                for resource in every(request.body, 1):
                    self.services |= {attributes(one_resource, 1)["service.name"] for one_resource in every(resource, 1)}
                    self.spans += [self.span(span) for span in every(resource, 2, 2)]
            connection.send(self.answer)

    @staticmethod
    def span(data):
        known = dict(fields(data))
        return {
            "trace": known[1].hex(), "span": known[2].hex(), "parent": known.get(4, b"").hex(), "name": known[5].decode(),
            "kind": known[6], "start": known[7], "end": known[8], "failed": bool(every(data, 15, 3)), **attributes(data, 9),
        }  # fmt: skip

    def of(self, path):
        with self.lock:
            return [span for span in self.spans if span["url.path"] == path]


@pytest.fixture
def collector(serve):
    spans = Collector()
    spans.address = serve(spans)
    return spans


def traced(origin, address, **more):
    return {**one(origin), "tracing": {"endpoint": f"http://{address.text}/v1/traces", **more}}


def test_spans_arrive(start, origin, collector):
    proxy = start(traced(origin, collector.address, service_name="edge", headers={"Authorization": "Bearer x"}))
    assert get(proxy.address, "/a?b=c").status == 200
    (span,) = eventually(lambda: collector.of("/a"), 10)
    sent = origin.requests[-1].header("traceparent")
    assert sent == f"00-{span['trace']}-{span['span']}-01", "the server's parent is this very span"
    assert (span["parent"], span["name"], span["kind"], span["failed"]) == ("", "GET", 2, False)
    assert (span["url.query"], span["http.response.status_code"], span["url.scheme"]) == ("b=c", 200, "http")
    assert (span["client.address"], span["ringgate.server"]) == ("127.0.0.1", origin.text)
    assert span["start"] <= span["end"]
    assert collector.services == {"edge"}
    head = collector.heads[0]
    assert (head.target, head.header("authorization")) == ("/v1/traces", "Bearer x")
    assert head.header("content-type") == "application/x-protobuf"
    proxy.await_equal(SPANS, 1, outcome="exported")
    assert proxy.status()["tracing"]["problem"] is None


def test_an_answer_in_chunks_is_read(start, origin, serve):
    """It says that spans were rejected (`partial_success`), and the collector keeps the connection open behind it."""
    why = b"enough"
    partial = b"\x08\x01\x12" + bytes([len(why)]) + why
    body = b"\x0a" + bytes([len(partial)]) + partial
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[:3], body[3:])) + b"0\r\n\r\n"
    spans = Collector(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    proxy = start(traced(origin, serve(spans)))
    assert get(proxy.address, "/a").status == 200
    proxy.await_log("traces cannot be exported", "1 spans rejected: enough")
    proxy.await_equal(SPANS, 1, outcome="failed")
    proxy.await_equal(SPANS, 0, outcome="exported")


def test_who_begins_a_trace_decides(start, origin, collector):
    """A trace that a client brings keeps its flag, whatever the share of our own is."""
    proxy = start(traced(origin, collector.address, sample_ratio=0.0))
    with Client(proxy.address) as client:
        for path, extra in (("/none", ""), ("/no", f"traceparent: {PARENT}0\r\n"), ("/yes", f"traceparent: {PARENT}1\r\n")):
            answer = client.ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n{extra}\r\n".encode())
            assert answer.status == 200
    (span,) = eventually(lambda: collector.of("/yes"), 10)
    assert (span["trace"], span["parent"]) == (PARENT[3:35], PARENT[36:52])
    flags = [request.header("traceparent")[-2:] for request in origin.requests]
    assert flags == ["00", "00", "01"]
    proxy.await_equal(SPANS, 1, outcome="exported")
    assert len(collector.spans) == 1


def test_a_dead_collector_disturbs_nobody(start, origin):
    """Nor does a reload that names a living one, which is used from then on."""
    spans = Collector()
    with Origin(spans) as living:
        config = {**one(origin), "tracing": {"endpoint": f"http://127.0.0.1:{free_port()}"}}
        proxy = start(config)
        with Client(proxy.address) as client:
            for _ in range(50):
                assert client.ask(b"GET /dead HTTP/1.1\r\nHost: x\r\n\r\n").status == 200
        proxy.await_log("traces cannot be exported")
        proxy.await_equal(SPANS, 50, outcome="failed")
        assert "refused" in proxy.status()["tracing"]["problem"]
        text = proxy.file.read_text()
        proxy.file.write_text(re.sub(r'endpoint = "[^"]*"', f'endpoint = "http://{living.text}"', text))
        proxy.signal(1)
        proxy.await_log("reloaded")
        assert get(proxy.address, "/alive").status == 200
        eventually(lambda: spans.of("/alive"), 10)
        proxy.await_equal(SPANS, 1, outcome="exported")
        proxy.file.write_text(re.sub(r"\[tracing\][^\[]*", "", text))
        proxy.signal(1)
        eventually(lambda: proxy.status()["tracing"] is None, 10)
        assert get(proxy.address, "/off").status == 200
        assert origin.requests[-1].header("traceparent") is None


class Secured(Collector):
    """The same over TLS."""

    def __init__(self, pair):
        super().__init__()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(pair["cert"], pair["key"])

    def __call__(self, connection):
        # Who breaks the handshake off (SSLError) has sent nothing.
        connection.sock = self.context.wrap_socket(connection.sock, server_side=True)
        connection.stream = Stream(connection.sock, connection.origin.timeout)
        super().__call__(connection)


def test_a_collector_over_tls_is_verified(start, origin, serve, tmp_path):
    """It gets nothing from who does not trust it, and the spans from who does: from a reload on that only finds another file."""
    authority, stranger = Authority(tmp_path / "ours"), Authority(tmp_path / "other", name="stranger")
    spans = Secured(authority.issue("collector", "127.0.0.1", "collector.test"))
    address, ca = serve(spans), tmp_path / "ca.pem"
    shutil.copy(stranger.cert, ca)
    endpoint = f"https://{address.text}/v1/traces"
    proxy = start({**one(origin), "tracing": {"endpoint": endpoint, "ca": str(ca)}})
    assert get(proxy.address, "/untrusted").status == 200
    proxy.await_log("traces cannot be exported", "certificate", timeout=15)
    proxy.await_equal(SPANS, 1, outcome="failed")
    shutil.copy(authority.cert, ca)
    proxy.signal(1)
    proxy.await_log("tracing.ca has changed", "reloaded")
    assert get(proxy.address, "/trusted").status == 200
    (span,) = eventually(lambda: spans.of("/trusted"), 10)
    assert span["http.response.status_code"] == 200 and not spans.of("/untrusted")
    assert spans.heads[0].header("content-type") == "application/x-protobuf"
    proxy.await_equal(SPANS, 1, outcome="exported")
    proxy.await_log("traces are exported again")


def test_a_collector_of_another_name_gets_nothing(start, origin, serve, tmp_path):
    authority = Authority(tmp_path / "ours")
    spans = Secured(authority.issue("collector", "other.test"))
    proxy = start({**one(origin), "tracing": {"endpoint": f"https://{serve(spans).text}", "ca": str(authority.cert)}})
    assert get(proxy.address, "/a").status == 200
    proxy.await_log("traces cannot be exported", "not valid for name", timeout=15)
    assert not spans.heads


@pytest.mark.parametrize("content,why", [(None, "cannot be read"), ("text", "has no `-----BEGIN CERTIFICATE-----`")])
def test_a_file_of_authorities_that_is_none(origin, tmp_path, content, why):
    """`check` says it with file, line and column."""
    if content:
        (tmp_path / "ca.pem").write_text(content)
    file = tmp_path / "ringgate.toml"
    file.write_text(toml(complete({**one(origin), "tracing": {"endpoint": "https://127.0.0.1:1", "ca": "ca.pem"}})))
    done = run_once("check", file)
    assert done.returncode == 2
    line = next(at for at, text in enumerate(file.read_text().splitlines(), 1) if text.startswith("ca = "))
    assert f"{file}:{line}:6:" in done.stderr and "`tracing.ca`" in done.stderr and why in done.stderr, done.stderr
