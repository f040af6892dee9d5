"""bench/l4.py: its arithmetic, and that what it means to measure is what happens."""

import json
import subprocess
import sys

import pytest

from harness.client import tool
from harness.proxy import ROOT, binary

from .generator import bench

sys.path.insert(0, str(ROOT / "bench"))

import l4_report  # noqa: E402


def case(ns, **more):
    """Figures of so many nanoseconds a packet, whatever the rate."""
    return {"ns_per_packet": ns, "ns_flooded": ns, "arrived_of_sent": 1.0, "packets_per_second": 1e9 / ns, **more}


def director(ns, known, **more):
    given = {"known": known, "by_program": 0, "passed_up": 0, "account_ms": 1.0, "own_bytes": 5000 + 60 * known, "map_bytes": 0.0}
    return case(ns, **given | more)


def rows(page, first):
    """Cells of the table rows that begin with a word."""
    lines = (line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith(f"| {first} |"))
    return [[cell.strip() for cell in line] for line in lines]


def test_costs_are_compared_with_those_of_few_flows_in_the_same_round():
    """The machine is twice as slow in one of three rounds: the ratios do not move."""
    rounds = []
    for slow in (1, 2, 1):
        program = {"by_program": 99, "passed_up": 1, "map_bytes": 96.0}
        rounds.append({
            "dropped": {"1000": case(1000 * slow), "100000": case(1000 * slow)},
            "packet sockets": {"1000": director(3000 * slow, 1000), "100000": director(3500 * slow, 100_000)},
            "XDP": {"1000": director(1400 * slow, 1000, **program), "100000": director(1500 * slow, 100_000, **program)},
        })  # fmt: skip
    page = "\n".join(l4_report.by_flows(rounds, 100_000))
    flooded, paced, beside = rows(page, "XDP")[1::2]
    assert flooded == ["XDP", "100,000", "1,500", "1,500 – 3,000", "1.07", "500", "500 – 1,000", "1.25", "666,667"]
    assert paced == flooded[:-1]
    assert beside == ["XDP", "100,000", "100,000", "99.00%", "1", "96.0", "60.0"]
    assert rows(page, "dropped")[1][:5] == ["dropped", "100,000", "1,000", "1,000 – 2,000", "1.00"]
    sockets = rows(page, "packet sockets")[1]
    assert (sockets[4], sockets[7]) == ("1.17", "1.25")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A run that is as short as one can be."""
    tool("nft")
    file = tmp_path_factory.mktemp("l4") / "result.json"
    argv = [sys.executable, ROOT / "bench/l4.py", "--part", "flows", "latency", "--rounds", 1, "--seconds", 0.3, "--rate", 5000,
            "--flows", 20_000, "--flows-max", 1 << 17, "--ringgate", binary(), "--generator", bench(), "--json", file]  # fmt: skip
    done = subprocess.run([str(arg) for arg in argv], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text()) | {"page": done.stdout}


def test_flows_are_known_before_their_packets_are_counted(result):
    (one,) = result["flows"]
    assert set(one) == {"dropped", "packet sockets", "XDP"}
    for name in ("packet sockets", "XDP"):
        figures = one[name]["20000"]
        assert 19_800 <= figures["known"] <= 20_000 and figures["arrived_of_sent"] > 0.9, figures
    by_program, by_sockets = one["XDP"]["20000"], one["packet sockets"]["20000"]
    # At least what was paced; none of it came up.
    assert by_program["by_program"] > 1000 and by_program["passed_up"] < 0.01 * by_program["by_program"], by_program
    assert (by_sockets["by_program"], by_sockets["map_bytes"]) == (0, 0)
    assert 16 <= by_program["map_bytes"] <= 1024, by_program
    assert rows(result["page"], "XDP")[0][:2] == ["XDP", "20,000"]


def test_round_trips_by_all_ways_are_shown(result):
    ways = result["latency"]
    assert set(ways) == {"straight", "ringgate", "ringgate, XDP", "kernel IP forwarding"}
    assert all(0 < way["p50"] <= way["p99"] for way in ways.values()), ways
    assert ways["straight"]["added_p50"] == 0
    shown = rows(result["page"], "ringgate, XDP")[-1]
    assert [float(cell) for cell in shown[1:]] == pytest.approx([ways["ringgate, XDP"][key] for key in ("p50", "p99", "added_p50", "added_p99")], abs=0.06)
