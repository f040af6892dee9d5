"""Requests torn into single bytes and at every place: the same answer as in one piece."""

import pytest

from conformance.corpus import BY_ID
from conformance.judge import complaints, send
from harness import Client, Origin
from harness.proxy import one
from harness.standin import proxy_kind

IDS = [
    "line/plain",
    "line/leading-crlf",
    "line/bare-cr",
    "line/http-2.0",
    "line/no-version",
    "target/dot-encoded",
    "host/twice",
    "field/fold-space",
    "field/value-bare-lf",
    "length/plain",
    "length/and-te",
    "te/chunked-chunked",
    "chunked/several",
    "chunked/extension-quoted",
    "chunked/trailer",
    "chunked/size-minus",
    "chunked/data-no-crlf",
    "chunked/trailer-no-colon",
    "connection/pipeline-post-get",
    "connection/http-1.0-keep-alive",
]
SPLITS_MAX = 400  # per case; longer inputs are split at evenly spaced places


@pytest.fixture(scope="module")
def origin():
    with Origin(timeout=120) as recording:
        yield recording


@pytest.fixture(scope="module")
def proxy(origin, tmp_path_factory):
    config = one({"address": origin, "max_fails": 0})
    with proxy_kind()(config, tmp_path_factory.mktemp("torn")) as running:
        yield running


@pytest.mark.parametrize("id", IDS)
def test_one_byte_at_a_time(id, proxy, origin):
    case = BY_ID[id]
    pieces = [case.raw[i : i + 1] for i in range(len(case.raw))]
    found = complaints(case, send(proxy.address, origin, case, pieces=pieces))
    assert not found, found


@pytest.mark.parametrize("id", IDS)
def test_every_split_in_two(id, proxy, origin):
    case = BY_ID[id]
    whole = send(proxy.address, origin, case)
    bodies = [(r.target, r.body) for r in whole.complete]
    for at in splits(len(case.raw)):
        outcome = send(proxy.address, origin, case, pieces=[case.raw[:at], case.raw[at:]])
        found = complaints(case, outcome)
        assert not found, f"split at {at}: {found}"
        assert outcome.statuses == whole.statuses, f"split at {at}"
        assert [(r.target, r.body) for r in outcome.complete] == bodies, f"split at {at}"


def splits(length):
    step = max(1, length // SPLITS_MAX)
    return range(1, length, step)


def test_a_torn_response_is_passed_on_whole(tmp_path):
    raw = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n"
        b"3\r\nabc\r\n2;x\r\nde\r\n0\r\nX-T: 1\r\n\r\n"
    )
    place = {"at": 0}

    def handler(connection):
        for _ in connection.requests():
            at = place["at"]
            connection.send(raw[:at])
            connection.origin.stopping.wait(0.001)
            connection.send(raw[at:])

    with Origin(handler, timeout=60) as back, proxy_kind()(one(back), tmp_path) as proxy:
        with Client(proxy.address) as client:
            for place["at"] in range(1, len(raw)):
                answer = client.ask(b"GET / HTTP/1.1\r\nHost: a.example\r\nTE: trailers\r\n\r\n")
                assert (answer.status, answer.body) == (200, b"abcde"), place
                assert answer.header("x-a") == "b"
