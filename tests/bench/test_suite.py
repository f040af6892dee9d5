"""bench/run: its statistics, its honesty about bottlenecks, its configurations, and whole runs in small."""

import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as tree
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.client import run as run_tool
from harness.proxy import ROOT

from .generator import background

sys.path.insert(0, str(ROOT / "bench"))

from suite import BenchError, bed, charts, cli, compare, contenders, crypto, distance, load, machine, measure, report, sizing, stats  # noqa: E402
from suite.scenarios import ALL, choose  # noqa: E402

BED = bed.Bed((0,), (1,), (1,), irq_time=False)


def test_the_readmes_measurements_can_be_run_as_they_stand():
    text = (ROOT / "README.md").read_text()
    commands = {ROOT / name for name in re.findall(r"(?:`|^ {4}|sudo |&& )(bench/\w+(?:\.py|\.sh)?)(?=[ `])", text, re.M)}
    assert {ROOT / "bench" / name for name in ("run", "guest.py", "combined.py")} <= commands
    assert [str(one) for one in commands if not os.access(one, os.X_OK)] == []
    figures = re.findall(r"\((bench/results/[^)]+)\)", text)
    assert figures and [name for name in figures if not (ROOT / name).is_file()] == []


# Statistics


def test_the_interval_of_a_median_is_that_of_order_statistics():
    # Of 20 values, the 6th and the 15th hold the median with 95.9 %: tables of the sign test.
    assert stats.median_interval(range(1, 21)) == (6, 15)
    assert stats.median_interval([3, 1, 2]) == (1, 3)
    assert stats.median_interval([7]) == (7, 7)


def test_ratios_are_taken_within_a_round():
    # The machine halves its speed after the first round; the ratio does not change.
    slices = [{"round": number, "contender": who, "us": us * slow}
              for number, slow in enumerate((1, 2, 2)) for who, us in (("a", 8), ("b", 10))]
    ratio = stats.ratio(slices, "a", "b", "us")
    assert (ratio["median"], ratio["min"], ratio["max"]) == (0.8, 0.8, 0.8)
    assert stats.ratio(slices, "a", "nobody", "us") is None


def compared(seed, slower, noise=0.04, pairs=80):
    """The verdict on two sides whose costs differ by a factor, under noise and drift."""
    dice = random.Random(seed)
    slices = []
    for number in range(pairs):
        drift = 1 + 0.3 * math.sin(number / 7)
        for label, cost in (("base", 10.0), ("ours", 10.0 * slower)):
            us = cost * drift * math.exp(dice.gauss(0, noise))
            one = {figure: 1.0 for figure in compare.FIGURES} | {"cpu_us_per_request": us}
            slices.append({"round": number, "contender": label, "disturbed": False, "errors": {}} | one)
    return compare.summarise(SimpleNamespace(name="x", title="x"), slices)["verdict"]


def test_a_regression_of_three_percent_is_seen_in_noise_that_is_larger():
    seen = [compared(seed, 1.03) for seed in range(40)]
    assert seen.count("slower") >= 36 and "faster" not in seen
    seen = [compared(seed, 1 / 1.03) for seed in range(40)]
    assert seen.count("faster") >= 36
    seen = [compared(seed, 1.0) for seed in range(40)]
    assert seen.count("no difference shown") >= 34


def test_ratios_are_those_of_slices_with_cpus_at_one_distance():
    slices = [{"round": number, "contender": who, "us": us, "cpus_apart_ns": ns} for number, row in enumerate((
        (("a", 8, 30.0), ("b", 16, 13.0)), (("a", 14, 160.0), ("b", 16, 30.0)), (("a", 14, 160.0), ("b", 20, 155.0))))
        for who, us, ns in row]
    assert stats.paired(slices, "a", "b", "us") == [0.5, 0.7]
    # With nothing else there, a pair is better than none; and of what was not measured nothing is said.
    assert stats.paired(slices[2:4], "a", "b", "us") == [0.875]
    assert stats.alike(None, 160.0) and not stats.alike(160.0, 40.0)
    moved = report.notes([{"title": "small", "paced": True, "rows": [], "failures": [], "slices": slices}])
    assert "small" in moved[-1] and "moved" in moved[-1]
    assert report.notes([{"title": "small", "paced": True, "rows": [], "failures": [], "slices": slices[:2]}]) == []


def test_a_slice_during_which_the_cpus_moved_is_disturbed(monkeypatch):
    seen = iter([31.0, 160.0, 160.0, 150.0])
    monkeypatch.setattr(distance, "one_way_ns", lambda _: next(seen))
    assert distance.Distance(BED).seen() == {"cpus_apart_ns": 160.0, "moved": True}
    assert distance.Distance(BED).seen() == {"cpus_apart_ns": 160.0, "moved": False}
    monkeypatch.undo()
    assert 1 < distance.one_way_ns(BED) < 100_000


def test_pairs_with_cpus_at_two_distances_are_left_out():
    slices = [{"round": number, "contender": label, "disturbed": False, "errors": {}, "cpus_apart_ns": 160.0 if far else 30.0}
              | {figure: 2.0 if far else 1.0 for figure in compare.FIGURES}
              for number in range(20) for label in ("base", "ours") for far in [number < 5 and label == "ours"]]
    one = compare.summarise(SimpleNamespace(name="x", title="x"), slices)
    assert (one["pairs"], one["disturbed"], one["ratios"]["cpu_us_per_request"]["max"]) == (15, 5, 1.0)


def test_disturbed_pairs_are_left_out_when_others_remain():
    def slices(pairs, disturbed):
        return [{"round": number, "contender": label, "disturbed": number < disturbed, "errors": {}}
                | {figure: 3.0 if number < disturbed and label == "ours" else 1.0 for figure in compare.FIGURES}
                for number in range(pairs) for label in ("base", "ours")]

    scenario = SimpleNamespace(name="x", title="x")
    one = compare.summarise(scenario, slices(30, 10))
    assert (one["pairs"], one["disturbed"], one["ratios"]["cpu_us_per_request"]["max"]) == (20, 10, 1.0)
    assert compare.summarise(scenario, slices(12, 8))["pairs"] == 12


@pytest.mark.parametrize(
    "idle, disturbed, apart, who",
    [
        ((0.01, 0.3, 0.3), False, False, "contender"),
        ((0.01, 0.3, 0.3), True, False, "others on the contender's CPU"),
        ((0.2, 0.01, 0.01), False, False, "load and origin"),
        ((0.2, 0.2, 0.2), False, False, "nobody"),
        ((0.2, 0.01, 0.4), False, True, "load"),
        ((0.2, 0.4, 0.01), True, True, "origin"),
    ],
)
def test_whose_cpu_was_full_is_named(idle, disturbed, apart, who):
    where = bed.Bed((0,), (1,), (2,), False) if apart else BED
    assert load.bottleneck(dict(zip(("contender", "load", "origin"), idle)), disturbed, where) == who


def test_short_slices_are_not_called_disturbed_for_the_rounding_of_ticks():
    tick = 1 / load.TICKS
    assert not load.is_disturbed(2 * tick / 0.25, 0.0, 0.25, BED)
    assert load.is_disturbed(0.05 + 3 * tick / 0.25, 0.0, 0.25, BED)
    assert not load.is_disturbed(0.06, 0.0, 1.0, BED) and load.is_disturbed(0.08, 0.0, 1.0, BED)
    assert load.is_disturbed(0.0, 0.08, 1.0, BED)


def test_a_whole_run_fits_into_a_quarter_of_an_hour():
    entered = [contenders.Contender(kind, kind, kind) for kind in contenders.NAMES]
    assert 600 < measure.plan_seconds(ALL, entered, cli.parse([])) < 890


def test_measurements_wait_for_each_other_whoever_runs_them(monkeypatch):
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o1777)
        monkeypatch.setattr(machine, "LOCK", Path(directory) / "lock")
        with machine.lock():
            with pytest.raises(BenchError, match="another benchmark is running"):
                machine.lock()
        was = os.geteuid()
        try:
            if was == 0:
                os.seteuid(65534)
            machine.lock().close()
        finally:
            os.seteuid(was)


# The bed


def test_cpus_are_written_as_the_kernel_reads_them():
    assert [bed.cpu_mask(cpus) for cpus in ((0,), (0, 1, 5), (31,), (32,), (0, 70))] == [
        "00000001", "00000023", "80000000", "00000001,00000000", "00000040,00000000,00000001"]


def test_namespaces_are_left_as_they_were_found():
    home, backlog = os.readlink("/proc/thread-self/ns/net"), bed.BACKLOG.read_text()
    files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ZeroDivisionError), bed.namespaces((0,), {1}) as network:
        assert os.readlink("/proc/thread-self/ns/net") not in (home, os.readlink(f"/proc/self/fd/{network.namespace}"))
        # Ours have what a new one has: nothing of this machine but two interfaces.
        assert run_tool("ip", "-br", "link").stdout.split()[::3][0] == "lo" and "load0" in run_tool("ip", "link").stdout
        raise ZeroDivisionError
    assert os.readlink("/proc/thread-self/ns/net") == home and bed.BACKLOG.read_text() == backlog
    assert len(os.listdir("/proc/self/fd")) == files and "load0" not in run_tool("ip", "link").stdout


def test_without_namespaces_there_is_loopback(monkeypatch):
    def refused(name, *_):
        if name == "unshare":
            raise PermissionError(1, "unshare: Operation not permitted")

    backlog = bed.BACKLOG.read_text()
    monkeypatch.setattr(bed, "system", refused)
    with pytest.raises(BenchError, match="not permitted.*--network loopback"), bed.namespaces((0,), {1}):
        pass
    assert bed.BACKLOG.read_text() == backlog


def test_in_namespaces_a_contender_pays_for_what_it_receives():
    """The relay's uploads: over loopback most of their cost is the sender's."""
    scenario = replace(choose(["keepalive-16"])[0], options=("--method", "POST", "--body", "65536"))
    slices = []
    for number in range(5):
        one = sent_to_the_relay(BED, scenario)
        with bed.namespaces(BED.contender_cpus, set(BED.load_cpus)) as network:
            apart = sent_to_the_relay(replace(BED, network=network), scenario)
        slices += [one | {"round": number, "contender": "one"}, apart | {"round": number, "contender": "apart"}]
    # Pairs with the CPUs at like distances, where there are any: that changes the cost more than this does.
    assert stats.ratio(slices, "apart", "one", "cpu_us_per_request")["median"] > 1.15, slices
    # Not only while its threads run; and a CPU is all there is.
    assert apart["requests_per_second"] * apart["cpu_us_per_request"] / 1e6 <= 1.02
    # What goes over the link: a body to the contender and one from it, each part counted on its way. On a machine that is
    # not left alone the counters' time and the generator's differ in how much was done.
    for seen in (one, apart):
        assert 1.7 * 65536 < seen["link_bytes_per_request"] < 2.6 * 65536
    assert apart["segments_per_request"] > 1.7 * 65536 / 1448 > one["segments_per_request"]


def sent_to_the_relay(where, scenario):
    """A slice of the byte relay."""
    origin = contenders.Origin(where, scenario.body)
    try:
        with measure.started(contenders.named("relay"), where, origin, scenario) as server:
            return measure.undisturbed(lambda: load.slice_of(server, scenario, where, 0.2, 0.5))
    finally:
        origin.stop()


def test_others_on_the_contenders_cpu_are_seen_in_namespaces():
    scenario = choose(["keepalive-16"])[0]
    with bed.namespaces(BED.contender_cpus, set(BED.load_cpus)) as network:
        where = replace(BED, network=network)
        origin = contenders.Origin(where, scenario.body)
        busy = subprocess.Popen(["taskset", "-c", "0", "sh", "-c", "while :; do :; done"])
        try:
            with measure.started(contenders.named("ringgate"), where, origin, scenario) as server:
                one = load.slice_of(server, scenario, where, 0.2, 1.0)
        finally:
            busy.kill()
            busy.wait()
            origin.stop()
    assert one["disturbed"] and one["foreign"] > 0.25 and not one["valid"]


# Charts and arithmetic


def spread(value):
    return {"median": value, "min": value, "max": value, "q1": value, "q3": value, "n": 1}


def test_sizing_is_the_arithmetic_that_it_shows():
    row = {"kind": "ringgate", "cpu_us_per_request": spread(10.0), "segments_per_request": spread(4.0),
           "link_bytes_per_request": spread(900.0)}
    one = {"name": "keepalive-256", "title": "small", "body": 128, "rows": [row]}
    need = sizing.needs(one, row, 1_000_000)
    assert need["cpu"] == 10.0  # a million times ten microseconds
    assert need["cores"] == math.ceil(10 * sizing.NETWORK / sizing.BUSY)
    assert need["nodes"] == math.ceil(need["cores"] / sizing.NODE_CORES) + 1
    assert need["gbit"] == pytest.approx((900 + 4 * sizing.FRAME_BYTES) * 8 / 1000)
    assert need["packets_a_core"] == pytest.approx(4e6 / need["cores"])
    page = "\n".join(sizing.page([one]))
    for part in ("**10.00 µs**", "1,000,000", "10,000,000", f"**{need['cores']} cores**", "extrapolated"):
        assert part in page, page
    # A large body is reckoned in packets of Ethernet, not in those of loopback.
    large = one | {"body": 16 * 1024}
    assert sizing.packets(large, row) >= 2 * 16 * 1024 / 1448
    assert sizing.page([]) == []


def test_sizing_takes_the_directors_cost_from_its_own_measurement(tmp_path):
    row = {"kind": "ringgate", "cpu_us_per_request": spread(10.0), "segments_per_request": spread(4.0),
           "link_bytes_per_request": spread(890.0)}
    one = {"name": "keepalive-256", "title": "small", "body": 128, "rows": [row]}
    assert sizing.director(tmp_path) == {"XDP": sizing.DIRECTOR_NS, "source": None}
    assert "is an assumption" in "\n".join(sizing.caveats(sizing.director(tmp_path)))
    rounds = [{"ringgate, XDP": {"ns_per_packet": ns}, "ringgate": {"ns_per_packet": 4000.0}} for ns in (300.0, 350.0, 900.0)]
    (tmp_path / "2026-11-22-l4.json").write_text(json.dumps({"forward": rounds}))
    measured = sizing.director(tmp_path)
    assert measured == {"XDP": 350.0, "packet sockets": 4000.0, "source": "2026-11-22-l4.json"}
    for one_round in rounds:
        one_round["ringgate"]["ns_flooded"] = 2000.0
    (tmp_path / "2026-11-23-l4.json").write_text(json.dumps({"forward": rounds}))
    assert sizing.director(tmp_path)["packet sockets"] == 2000.0
    assert sizing.needs(one, row, 10_000_000, measured)["director_cores"] == math.ceil(10e6 * 350e-9 / 0.7)
    page = "\n".join(sizing.ports([(one, row)], measured))
    # 10 Gbit/s of 84 bytes a frame; of 1,250 bytes a request, at 70 %.
    for part in ("14.88 million", f"{math.ceil(14.881e6 * 350e-9 / 0.7)} ", "148.81 million", "700,000"):
        assert part in page, page


def test_a_disturbed_slice_is_measured_once_more():
    quiet, busy = {"disturbed": False, "n": 1}, {"disturbed": True, "n": 2}
    take = lambda *slices: measure.undisturbed(lambda left=list(slices): left.pop(0))
    assert take(quiet) == quiet
    assert take(busy, quiet) == quiet | {"repeated": True}
    assert take(busy, busy | {"n": 3}) == busy | {"repeated": True}
    assert take({"rss_per_connection": 5}) == {"rss_per_connection": 5}


def test_the_share_of_cryptography_is_the_arithmetic_that_it_shows(monkeypatch):
    speed = {"version": "X", "small_record_us": 0.5, "full_record_us": 4.0, "sign_us": 20.0, "exchange_us": 30.0}
    assert crypto.cost(speed, 128) == 1.0
    assert crypto.cost(speed, 16 * 1024) == 4.5
    assert crypto.cost(speed, 2 ** 20) == 0.5 + 64 * 4
    assert crypto.cost(speed, 128, "resumed") == 61.0 and crypto.cost(speed, 128, "full") == 81.0
    row = {"contender": "ringgate", "cpu_us_per_request": spread(162.0)}
    page = "\n".join(report.crypto_table([{"name": "tls-full", "title": "full", "body": 128, "rows": [row]}], speed))
    assert "50%" in page and "81.0" in page
    # As openssl tells it: a signature costs less than an exchange, a large record more than a small one.
    monkeypatch.setattr(crypto, "TIMES", 1)
    seen = crypto.measure((0,))
    assert seen["version"].startswith("OpenSSL") and seen["small_record_us"] < seen["full_record_us"] < 1000
    assert 1 < seen["sign_us"] < 5000 and 1 < seen["exchange_us"] < 5000


def test_charts_bear_what_was_not_measured():
    nothing = [("small, 30 %", [("ringgate, 9/s", "ringgate", 0.0, 0.0, 0.0)])]
    for groups in (nothing, [*nothing, ("small, 70 %", [("ringgate, 9/s", "ringgate", 0.0, 20.0, 300.0)])]):
        assert charts.ranges("A title", "note", groups, [("ringgate", "ringgate")]).endswith("</svg>\n")
    assert charts.ticks(0.0)[0] == 0


def test_a_power_of_ten_is_as_far_from_the_next_wherever_it_stands():
    svg = charts.ranges("t", "n", [("g", [("a", "nginx", 160.0, 2e3, 3e4)])], [("nginx", "nginx")])
    grid = sorted(float(one.get("x1")) for one in tree.fromstring(svg).iter() if one.get("class") == "grid")
    steps = [after - before for before, after in zip(grid, grid[1:])]
    assert len(steps) == 3 and max(steps) - min(steps) < 0.5, grid


def every_chart():
    kinds = [("ringgate", "ringgate"), ("nginx", "nginx & co"), ("haproxy", "haproxy"), ("relay", "byte relay")]
    yield charts.lines("A <title>", "note", ["1", "16"], [(kind, label, [10.0, None]) for kind, label in kinds], "µs")
    yield charts.ratios("t", "n", [("row & row", {"nginx": (0.6, 0.5, 0.7), "haproxy": (4.0, 3.0, 9.0)})], kinds[1:3])
    yield charts.ratios("t", "n", [(one.title, {"nginx": (0.6, 0.5, 0.7)}) for one in ALL], kinds[1:3])
    yield charts.ratios("t", "n", [], kinds[1:3])
    yield charts.ranges("t", "n", [("group", [("a", "nginx", 10, 2e4, 3e6)])], kinds)
    yield charts.bars("t", "n", [(label, kind, number, "x") for number, (kind, label) in enumerate(kinds)], "bytes")


def test_charts_are_well_formed_and_readable_in_light_and_dark():
    for svg in every_chart():
        root = tree.fromstring(svg)
        style = next(root.iter("{http://www.w3.org/2000/svg}style")).text
        assert "@media (prefers-color-scheme: dark)" in style
        width, height = float(root.get("width")), float(root.get("height"))
        for shape in root.iter():
            for name in ("x", "x1", "x2", "cx"):
                assert -1 <= float(shape.get(name, 0)) <= width, tree.tostring(shape)
            for name in ("y", "y1", "y2", "cy"):
                assert -1 <= float(shape.get(name, 0)) <= height, tree.tostring(shape)
            if shape.get("text-anchor") == "end":
                assert float(shape.get("x")) > 6.8 * len(shape.text), f"cut off: {shape.text}"


def luminance(colour):
    parts = [int(colour[at:at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_stand_out_from_both_backgrounds():
    light, dark = charts.STYLE.split("@media")
    for style in (light, dark):
        page = luminance(re.search(r"\.page \{ fill: (#\w+)", style)[1])
        colours = re.findall(r"--c: (#\w+)", style) + re.findall(r"\.(?:ink|soft) \{ fill: (#\w+)", style)
        assert len(colours) == 6
        for colour in colours:
            high, low = sorted((page, luminance(colour)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, colour  # WCAG AA for text


# Configurations


@pytest.mark.parametrize("scenario", ALL, ids=lambda scenario: scenario.name)
def test_each_proxy_accepts_its_configuration(scenario, tmp_path):
    commands = {"ringgate": ("check",), "nginx": ("-t", "-p", tmp_path, "-e", "stderr", "-c"), "haproxy": ("-c", "-f")}
    for kind, options in commands.items():
        servers = [f"127.0.0.1:{port}" for port in range(9001, 9001 + scenario.servers)]
        config = contenders.write_config(kind, tmp_path, "127.0.0.1:8000", 1, servers, scenario, "127.0.0.1:9100")
        assert "@" not in re.sub(r"#.*", "", config.read_text())
        done = run_tool(contenders.named(kind).binary, *options, config, check=False)
        assert done.returncode == 0, f"{kind}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    "left_out, says",
    [
        ("proxy_set_header X-Request-Id $request_id;", "request_id"),
        ("keepalive 8192;", "not reused"),
        ("proxy_set_header X-Real-IP $remote_addr;", "real_ip"),
    ],
)
def test_a_contender_that_does_less_work_is_refused(left_out, says, tmp_path, monkeypatch):
    for template in contenders.PEERS.iterdir():
        text = template.read_text()
        if template.name == "nginx.conf":
            assert left_out in text
            text = text.replace(left_out, "")
        (tmp_path / template.name).write_text(text)
    monkeypatch.setattr(contenders, "PEERS", tmp_path)
    if "keepalive" in left_out:
        monkeypatch.setattr(contenders, "nginx_parts", without_pool(contenders.nginx_parts))
    scenario = choose(["keepalive-16"])[0]
    origin, echo = contenders.Origin(BED, scenario.body), contenders.start_echo(BED)
    try:
        with pytest.raises(BenchError, match=says):
            contenders.check_same_work(contenders.named("nginx"), BED, origin, scenario, echo)
        contenders.check_same_work(contenders.named("haproxy"), BED, origin, scenario, echo)
    finally:
        echo.stop()
        origin.stop()


@pytest.mark.parametrize(
    "instead, of, says",
    [
        ("", "ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;", "TLSv1.3: cipher"),
        ("ssl_ciphers ECDHE-ECDSA-AES256-GCM-SHA384;", "ssl_ciphers ECDHE-ECDSA-AES128-GCM-SHA256;", "TLSv1.2: cipher"),
        ("ssl_session_tickets off;", "ssl_session_tickets on;", "not resumed"),
        ("ssl_protocols TLSv1.3;", "ssl_protocols TLSv1.2 TLSv1.3;", "TLSv1.2: "),
    ],
)
def test_a_contender_with_other_tls_is_refused(instead, of, says, tmp_path, monkeypatch):
    for template in contenders.PEERS.iterdir():
        text = template.read_text()
        assert template.name != "nginx-tls.conf" or of in text
        (tmp_path / template.name).write_text(text.replace(of, instead))
    monkeypatch.setattr(contenders, "PEERS", tmp_path)
    with pytest.raises(BenchError, match=says):
        checked("nginx")


@pytest.mark.parametrize("kind", ["ringgate", "nginx", "haproxy"])
def test_contenders_do_the_same_work_and_agree_to_the_same_tls(kind):
    checked(kind)


def checked(kind):
    """The check that a run begins with, over TLS and HTTP/2."""
    measure.check([contenders.named(kind)], choose(["tls-64", "h2-1"]), BED)


@pytest.mark.parametrize("kind", ["nginx", "haproxy", "ringgate"])
def test_reloads_happen_under_load(kind, tmp_path):
    who, scenario = contenders.named(kind), choose(["reload"])[0]
    if not who.can_reload():
        assert kind == "ringgate"
        assert measure.run_all([who], [scenario], BED, cli.parse(["--no-syscalls"])) == []
        return
    with background(tmp_path / "origin", "serve") as origin:
        server = contenders.start(who, BED, served_by(origin), scenario)
        try:
            one = load.slice_of(server, scenario, BED, 0.2, 1.2)
        finally:
            server.stop()
    assert one["reloads"] >= 2 and one["requests"] > 20
    # What a reload closes is opened again: most requests are answered.
    assert sum(one["errors"].values()) < one["requests"]
    summary = measure.summarise([who], scenario, [{"round": 0} | one], [], {})
    assert not summary["failures"] and f" {one['reloads']} " in "\n".join(report.reload_table([summary]))


def served_by(origin):
    """What stands for an Origin."""
    return SimpleNamespace(servers=[f"127.0.0.1:{origin.address[1]}"])


def without_pool(parts):
    """nginx's fragments, the echo without its pool of connections."""
    def changed(*arguments):
        found = parts(*arguments)
        return found | {"ECHO": found["ECHO"].replace("keepalive 16;", "")}
    return changed


# Whole runs


def bench_run(*options, code=0, timeout=240):
    done = subprocess.run([str(ROOT / "bench/run"), *map(str, options)], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=timeout)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.parametrize(
    "only, missing",
    [([], "nginx, haproxy; apt-get install nginx-light haproxy$"), (["--only", "ringgate,relay"], "nginx; apt-get install nginx-light$")],
)
def test_what_is_missing_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch, only, missing):
    monkeypatch.setattr(cli.machine, "find", lambda tool: None if tool in ("nginx", "haproxy") else f"/usr/bin/{tool}")
    monkeypatch.setattr(cli, "make_bed", lambda settings: nullcontext(BED))  # which would keep this process to one CPU
    with pytest.raises(SystemExit, match=f"^bench/run: missing: {missing}"):
        cli.main(["--scenario", "keepalive-16", "--out", str(tmp_path / "out.json"), *only])


@pytest.mark.slow
def test_a_small_run_measures_everybody_and_writes_the_report(tmp_path):
    path = tmp_path / "out.json"
    done = bench_run("--quick", "--rounds", 1, "--latency-rounds", 1, "--idle", 300, "--out", path,
                     "--scenario", "keepalive-16", "--scenario", "keepalive-256", "--scenario", "idle-*")
    result = json.loads(path.read_text())
    small, larger, idle = result["scenarios"]
    rows = {row["contender"]: row for row in larger["rows"]}
    assert list(rows) == ["ringgate", "nginx", "haproxy", "byte relay"]
    for label, row in rows.items():
        per_second, cpu = row["requests_per_second"]["median"], row["cpu_us_per_request"]["median"]
        assert 1000 < per_second and 0 < per_second * cpu / 1e6 < 1.1, label  # a CPU at most
        # A request and its response on two connections, most acknowledgements with them; on a machine that is
        # not left alone the counters' time and the generator's differ in how much was done.
        assert 3 < row["segments_per_request"]["median"] < 12
        # A body of 128 bytes and a head, twice.
        assert 400 < row["link_bytes_per_request"]["median"] < 3000
        assert [level["percent"] for level in row["levels"]] == [30, 70, 100]
    # nginx reads, writes and waits; whatever the machine does.
    assert rows["nginx"]["syscalls_per_request"] > 2 > rows["ringgate"]["syscalls_per_request"]
    assert rows["ringgate"]["ratios"]["nginx"]["cpu_us_per_request"]["n"] == 1
    low = [one for one in larger["level_slices"] if one["percent"] == 30]
    assert low and all(one["rate"] * 0.7 < one["requests_per_second"] < one["rate"] * 1.3 for one in low)
    assert {row["contender"] for row in idle["rows"]} == {"ringgate", "nginx", "haproxy"}
    assert not small["failures"] and "ringgate / peer" in done.stdout
    page = path.with_suffix(".md").read_text()
    for part in ("## Small keep-alive requests", "## Latency at shares", "## Sizing", "300 idle connections"):
        assert part in page
    for name in re.findall(r"\]\(([^)]+\.svg)\)", page):
        tree.parse(tmp_path / name)
    assert len(list(tmp_path.glob("*.svg"))) == 5
    before = page
    bench_run("--report", path)
    assert path.with_suffix(".md").read_text() == before


def test_a_contender_that_had_time_left_is_marked(tmp_path):
    scenario = choose(["keepalive-16"])[0]
    with background(tmp_path / "origin", "serve") as origin:
        server = contenders.start(contenders.named("ringgate"), BED, served_by(origin), scenario)
        try:
            one = load.slice_of(server, scenario, BED, 0.2, 1.0, rate=200)
        finally:
            server.stop()
    assert one["bottleneck"] != "contender" and not one["valid"]
    assert one["idle"]["contender"] > load.IDLE_MAX or one["disturbed"]
    told = measure.told(one | {"rate": None}, scenario)
    assert "NOT SATURATED" in told
    summary = measure.summarise([contenders.named("ringgate")], scenario, [{"round": 0} | one], [], {})
    assert "\\*" in "\n".join(report.figures_table([summary]))
    assert "Not the contender's maximum" in "\n".join(report.notes([summary]))


def test_two_binaries_are_compared(tmp_path):
    path = tmp_path / "compare.json"
    binary = contenders.RINGGATE
    done = bench_run("--base", binary, "--ringgate", binary, "--pairs", 5, "--scenario", "keepalive-16", "--out", path)
    one = json.loads(path.read_text())["scenarios"][0]
    assert len(one["slices"]) == 10 and not one["failures"]
    # The same program: whatever the noise, the sides are not far apart.
    assert 0.5 < one["ratios"]["cpu_us_per_request"]["median"] < 2
    assert "CPU ours/base" in done.stdout and path.with_suffix(".md").exists()


CARGO = """#!/usr/bin/env python3
import os, pathlib, shutil, subprocess, sys
head = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()
with open({log!r}, "a") as log:
    print(os.getcwd(), head, *sys.argv[1:], file=log)
release = pathlib.Path(os.environ["CARGO_TARGET_DIR"]) / "release"
if release != pathlib.Path({release!r}):
    release.mkdir(parents=True, exist_ok=True)
    shutil.copy2({binary!r}, release / "ringgate")
"""


def test_a_revision_is_built_in_a_tree_of_its_own_and_compared(tmp_path, monkeypatch):
    # Compiling takes minutes: what stands for cargo hands out the program that is there.
    log, stand_in, bases = tmp_path / "log", tmp_path / "cargo", tmp_path / "bases"
    stand_in.write_text(CARGO.format(log=str(log), release=str(contenders.RELEASE), binary=str(contenders.RINGGATE)))
    stand_in.chmod(0o755)
    monkeypatch.setenv("CARGO", str(stand_in))
    monkeypatch.setenv("RINGGATE_BENCH_BASES", str(bases))
    revision = run_tool("git", "-C", ROOT, "rev-parse", "HEAD").stdout.strip()
    path = tmp_path / "compare.json"
    options = ("--base", "HEAD", "--pairs", 4, "--seconds", 0.5, "--no-pure", "--scenario", "keepalive-16", "--scenario", "keepalive-1", "--out", path)
    done = bench_run(*options)
    base, ours = log.read_text().splitlines()
    assert base.split()[0] != str(ROOT) and base.split()[1] == revision and ours.split()[0] == str(ROOT)
    assert "--release" in base and "--bin ringgate" in base
    result = json.loads(path.read_text())
    assert [one["name"] for one in result["scenarios"]] == ["keepalive-1", "keepalive-16"]
    for one in result["scenarios"]:
        assert len(one["slices"]) == 8 and not one["failures"]
        ratio = one["ratios"]["cpu_us_per_request"]
        assert ratio["low"] <= ratio["median"] <= ratio["high"] and 0.25 < ratio["median"] < 4
        assert one["verdict"] in ("slower", "faster", "no difference shown")
    assert result["contenders"]["base"]["binary"] == str(bases / revision / "ringgate")
    assert "CPU ours/base" in done.stdout and path.with_suffix(".md").exists()
    # The tree is gone, the program is kept: the next comparison builds no base.
    assert base.split()[0] not in run_tool("git", "-C", ROOT, "worktree", "list").stdout
    log.write_text("")
    bench_run("--base", revision[:12], "--pairs", 3, "--seconds", 0.5, "--no-pure", "--scenario", "keepalive-16", "--out", path)
    assert len(log.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "options, says",
    [
        (("--scenario", "nonsense"), "no such scenario"),
        (("--only", "apache"), "--only takes"),
        (("--contender-cpus", "0", "--load-cpus", "0"), "must not share"),
        (("--base", "no-such-revision"), "neither a revision nor a program"),
        (("--ringgate", "/nonexistent", "--scenario", "keepalive-1"), "no executable"),
    ],
)
def test_what_cannot_be_measured_is_explained(options, says):
    assert says in bench_run(*options, code=1).stderr
