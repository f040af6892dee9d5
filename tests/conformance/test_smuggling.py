"""Every case of the corpus, through Ringgate to a recording origin."""

import pytest

from conformance.corpus import CASES
from conformance.judge import complaints, send
from harness import Origin
from harness.proxy import one
from harness.standin import proxy_kind

HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n"


@pytest.fixture(scope="module")
def origin():
    with Origin(timeout=120) as recording:
        yield recording


@pytest.fixture(scope="module")
def proxy(origin, tmp_path_factory):
    config = one({"address": origin, "max_fails": 0})
    with proxy_kind()(config, tmp_path_factory.mktemp("smuggling")) as running:
        yield running


def test_the_corpus_is_large_enough():
    assert len(CASES) >= 130


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_case(case, proxy, origin):
    outcome = send(proxy.address, origin, case)
    found = complaints(case, outcome)
    assert not found, f"{case.note}\nsent {case.raw[:300]!r}\n- " + "\n- ".join(found)


REFUSED = [case for case in CASES if case.ours != 200]


@pytest.mark.parametrize("case", REFUSED, ids=[case.id for case in REFUSED])
def test_nothing_behind_a_refused_request_is_served(case, proxy, origin):
    outcome = send(proxy.address, origin, case, suffix=HIDDEN)
    found = complaints(case, outcome)
    assert not found, f"{case.note}\nwith a request behind it\n- " + "\n- ".join(found)
    assert len(outcome.statuses) <= 1
