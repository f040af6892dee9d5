"""nginx and HAProxy on the same corpus: every difference is known and has a reason."""

import pytest

from conformance.compare import answers, difference, listed
from conformance.corpus import BY_ID, CASES


@pytest.fixture(scope="module", params=["nginx", "haproxy"])
def compared(request, tmp_path_factory):
    """(peer, differences found now, differences listed)."""
    found = answers(request.param, tmp_path_factory.mktemp(request.param))
    differences = {case.id: difference(case, found[case.id]) for case in CASES}
    return request.param, {k: v for k, v in differences.items() if v}, listed()[0][request.param]


def test_no_unlisted_difference(compared):
    peer, found, known = compared
    new = {k: v for k, v in found.items() if k not in known}
    assert not new, f"{peer}: differences without a reason: {new}"


def test_no_stale_difference(compared):
    peer, found, known = compared
    stale = [k for k, entry in known.items() if k not in found and not entry.get("varies")]
    assert not stale, f"{peer}: listed, but the peer does as expected: {stale}"


def test_listed_differences_are_as_listed(compared):
    peer, found, known = compared
    fields = ("status", "forwarded")
    changed = {
        k: (found[k], entry)
        for k, entry in known.items()
        if k in found and any(found[k][f] != entry[f] for f in fields)
    }
    assert not changed, f"{peer}: found, listed: {changed}"


def test_every_entry_names_a_case_and_a_reason():
    peers, reasons = listed()
    used = {entry["reason"] for entries in peers.values() for entry in entries.values()}
    for entries in peers.values():
        assert set(entries) <= set(BY_ID)
    assert used == set(reasons), "reasons without use, or uses without reason"
