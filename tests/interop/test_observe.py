"""What the process shows: figures, their table, the dashboard and alerts, the page, `top`, traces."""

import json
import os
import re
import select
import shlex
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from harness import Client, eventually, get, names, respond, tool
from harness.client import message
from harness.proxy import ROOT, binary, one, parse_metrics, upstream
from harness.tls import Authority, TlsClient, context
from harness.tools import free_port

TABLE = ROOT / "deploy" / "metrics.md"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0"

# Counters that no test reads from /metrics, each with what is known of it.
NOBODY = {
    "ringgate_accept_errors_total": "needs a kernel out of memory",
    "ringgate_reports_dropped_total": "needs a control thread that does not read",
    "ringgate_ring_cq_overflows_total": "needs more completions at once than a test can make",
    "ringgate_http2_streams_refused_total": "needs streams that cross a GOAWAY; unit tests of l7::http2",
    "ringgate_client_untracked_total": "needs more addresses than the table; unit tests of l7::clients",
    "ringgate_vrrp_adverts_": "tests/ha counts them on the wire",
    "ringgate_vrrp_announcements_total": "tests/ha sees them on the wire",
    "ringgate_vrrp_foreign_": "tests/ha sees what is done about them",
    "ringgate_vrrp_late_wakeups_total": "needs a machine that does not schedule",
    "ringgate_vrrp_lease": "tests/ha sees leases on the interface; errors need a kernel that refuses",
    "ringgate_vrrp_send_errors_total": "needs a kernel that refuses",
    "ringgate_director_flows_": "unit tests of l4::director",
    "ringgate_director_stateless_packets_total": "unit tests of l4::director",
    "ringgate_director_unremembered_clients_total": "unit tests of l4::director",
    "ringgate_director_batches_total": "tests/l4 look at frames, not at how many came at a time",
    "ringgate_director_dropped_total": "tests/l4 see what does not arrive",
    "ringgate_director_released_total": "tests/l4/test_hostile.py adds them up",
    "ringgate_director_ring_errors_total": "tests/l4/test_end.py takes an interface away and sees what is done",
    "ringgate_director_send_errors_total": "tests/l4/test_hostile.py adds them up",
    "ringgate_virtual_server_dropped_total": "unit tests of l4::director",
}


def read_elsewhere():
    """Families that other tests read by their name."""
    ours = {Path(__file__).name, Path(names.__file__).name}
    texts = [p.read_text() for p in (ROOT / "tests").rglob("test_*.py") if p.name not in ours]
    found = {name for text in texts for name in re.findall(r"ringgate_[a-z0-9_]+", text)}
    used = {name for text in texts for name in re.findall(r"names\.([A-Z_]+)", text)}
    return found | {value for key, value in vars(names).items() if key in used}


def families(text):
    """Name -> (type, labels, help) of a page in Prometheus' format."""
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.M))
    kinds = dict(re.findall(r"^# TYPE (\S+) (.*)$", text, re.M))
    labels = {name: set() for name in kinds}
    for sample, found, _ in parse_metrics(text):
        base = sample if sample in kinds else re.sub(r"_(bucket|sum|count)\Z", "", sample)
        labels[base] |= set(found)
    return {name: (kinds[name], sorted(labels[name]), helps[name]) for name in kinds}


def scrape(proxy, accept=None):
    headers = {"Accept": accept} if accept else {}
    response = get(proxy.admin, "/metrics", headers=headers)
    assert response.status == 200
    return response, response.body.decode()


def in_source(known):
    """Families named in the code, with what stands beside the name in a tuple or call."""
    found = {}
    for path in (ROOT / "src").rglob("*.rs"):
        text = re.sub(r"\\\n\s*", "", path.read_text())
        literal, kind = r'"((?:[^"\\]|\\.)*)"', r'"(counter|gauge|histogram)"'
        # Names and texts that are bound first stand in their places; a name may be bound anew.
        bindings = list(re.finditer(rf"(?:const|let) (\w+)(?:: &str)? =\s*{literal};", text))
        whole = []
        for call in re.finditer(rf'(?:family|single)\(\s*("?\w+"?),\s*{kind},\s*(?:{literal}|(\w+))', text):
            bound = {one[1]: one[2] for one in bindings if one.start() < call.start()}
            name, what, said, word = call.groups()
            whole.append((bound.get(name, name).strip('"'), what, said or bound.get(word, "")))
        whole += re.findall(rf'"(ringgate_\w+)",\s*{kind},\s*{literal}', text)
        whole += [(name, "counter" if name.endswith("_total") else "gauge", said)
                  for name, said in re.findall(r'\(\s*"(ringgate_\w+)",\s*"([A-Z0-9][^"]*\.)"', text)]  # fmt: skip
        for name in re.findall(r'"(ringgate_[a-z0-9_]+)"', text):
            found.setdefault(name, ("", [], ""))
        found |= {name: (what, [], said) for name, what, said in whole if name in found}
    prefixes = {name for name, (what, _, _) in found.items() if not what and any(other.startswith(f"{name}_") for other in {*found, *known})}
    return {name: row for name, row in found.items() if name not in prefixes}


def rows(known):
    for name, (kind, labels, text) in sorted(known.items()):
        yield f"| `{name}` | {kind} | {', '.join(labels)} | {text} |"


@pytest.fixture
def everything(start, serve, tmp_path):
    """A process with what there is to configure without privileges, after some traffic."""
    good, bad = serve(respond()), f"127.0.0.1:{free_port()}"
    authority = Authority(tmp_path / "pki")
    pair = authority.issue("a.test", "a.test")
    config = {
        "listener": [{}, {"name": "tls", "certificates": [pair]}, {"name": "behind", "proxy_protocol_from": ["127.0.0.0/8"]}],
        "route": [
            {"path": "/bad", "upstream": "mixed"}, {"path": "/none", "upstream": "none"},
            {"path": "/spent", "upstream": "spent"}, {"upstream": "up"},
        ],
        "upstream": {
            "up": upstream(good), "mixed": upstream(bad, good),
            "none": upstream({"address": good, "down": True}),
            "spent": upstream(*({"address": f"127.0.0.1:{free_port()}", "max_fails": 0} for _ in range(2)),
                              retry={"budget_percent": 1}),
        },
        "tuning": {"profile": "minimal", "root": str(tmp_path / "root"), "interfaces": ["lo"]},
    }
    (tmp_path / "root").mkdir()
    proxy = start(config)
    with Client(proxy.address) as client:
        for _ in range(3):
            assert client.ask(message()).status == 200
    for _ in range(4):
        assert get(proxy.address, "/bad").status == 200
    assert get(proxy.address, "/none").status == 503
    for _ in range(30):
        assert get(proxy.address, "/spent").status == 502
    for address in (proxy.address, proxy.addresses["behind"]):
        with Client(address) as client:
            client.send(b"nonsense\r\n\r\n")
            client.read_until_eof()
    proxy.authority = authority
    return proxy


def test_the_table_has_every_family(everything):
    """`UPDATE=1` writes the table anew."""
    known = families(scrape(everything)[1])
    source = in_source(known)
    if os.environ.get("UPDATE"):
        other = {name: row for name, row in source.items() if name not in known}
        head = (
            "# Metrics\n\nEvery family on `/metrics`. Written by `UPDATE=1 python3 -m pytest "
            "interop/test_observe.py -k table` from a running process and the code;\na test holds it "
            "to both.\n\n| name | type | labels | meaning |\n|---|---|---|---|\n"
        )
        TABLE.write_text(head + "\n".join(rows({**other, **known})) + "\n")
    text = TABLE.read_text()
    missing = [row for row in rows(known) if row not in text.splitlines()]
    assert not missing, "UPDATE=1 writes these into deploy/metrics.md:\n" + "\n".join(missing)
    assert not [name for name, (kind, _, said) in source.items() if not (kind and said) and name not in known], "say what they are"
    unnamed = [name for name in source if f"| `{name}` |" not in text]
    assert not unnamed, f"UPDATE=1 writes these into deploy/metrics.md: {unnamed}"


def test_every_counter_moves_or_is_read_by_another_test(everything):
    moved_here = (
        "ringgate_requests_total",
        "ringgate_request_duration_seconds",
        "ringgate_upstream_request_duration_seconds",
        "ringgate_upstream_retries_total",
        "ringgate_server_connect_failures_total",
        "ringgate_server_reuses_total",
        "ringgate_requests_refused_total",
    )
    for name in moved_here:
        everything.await_metric(f"{name}_count" if name.endswith("_seconds") else name, 1)
    text = scrape(everything)[1]
    kinds = {name: kind for name, (kind, _, _) in families(text).items()}
    moved = {name for name, _, value in parse_metrics(text) if value > 0}
    moved |= {re.sub(r"_count\Z", "", name) for name in moved}
    still = {n for n, kind in kinds.items() if kind in ("counter", "histogram") and n not in moved}
    still -= read_elsewhere()
    unexplained = [n for n in sorted(still) if not any(n.startswith(p) for p in NOBODY)]
    assert not unexplained, f"move these here or in another test: {unexplained}"
    counters = re.findall(r"^\| `(ringgate_\w+)` \| (?:counter|histogram)", TABLE.read_text(), re.M)
    hidden = [n for n in counters if n not in kinds and n not in read_elsewhere()]
    hidden = [n for n in hidden if not any(n.startswith(p) for p in NOBODY)]
    assert not hidden, f"these are not even shown here, and no test reads them: {hidden}"
    assert moved >= set(moved_here)


def test_open_metrics(everything):
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    response, text = scrape(everything, f"{OPEN_METRICS},text/plain;q=0.5")
    assert response.header("content-type").startswith("application/openmetrics-text; version=1.0.0")
    assert text.endswith("\n# EOF\n")
    parsed = {family.name: family for family in text_string_to_metric_families(text)}
    assert parsed["ringgate_requests"].type == "counter"
    duration = parsed["ringgate_request_duration_seconds"]
    assert duration.type == "histogram" and any(s.labels.get("le") == "1.0" for s in duration.samples)
    for accept in (None, "*/*", "text/plain;version=0.0.4"):
        response, text = scrape(everything, accept)
        assert response.header("content-type").startswith("text/plain; version=0.0.4")
        assert "# EOF" not in text
        parse_metrics(text)


def named(text):
    return {re.sub(r"_(bucket|count|sum)\Z", "", n) for n in re.findall(r"ringgate_[a-z0-9_]+", text)}


def test_dashboard_and_alerts_name_what_there_is():
    known = set(re.findall(r"^\| `(ringgate_[a-z0-9_]+)` \|", TABLE.read_text(), re.M))
    dashboard = json.loads((ROOT / "deploy/grafana.json").read_text())
    expressions = [t["expr"] for p in dashboard["panels"] for t in p.get("targets", [])]
    assert len(expressions) >= 10
    for expression in expressions:
        assert named(expression) and named(expression) <= known, named(expression) - known
    alerts = (ROOT / "deploy/alerts.yml").read_text()
    expressions = re.findall(r"^\s+expr: (.*)$", alerts, re.M)
    assert len(expressions) >= 8 and alerts.count("- alert:") == len(expressions)
    for expression in expressions:
        assert named(expression) and named(expression) <= known, named(expression) - known


def browse(proxy, width=1280):
    """The page's document after its script has run."""
    argv = [
        "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},1500",
        "--virtual-time-budget=3000", "--dump-dom", f"http://127.0.0.1:{proxy.admin[1]}/",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [tool("chromium"), f"--user-data-dir={profile}", *argv],
            capture_output=True, text=True, timeout=150,
        )  # fmt: skip
    assert 'data-shown="yes"' in done.stdout, done.stderr[-2000:]
    return done.stdout


def test_the_page_shows_the_process_and_runs_nothing_else(start, serve, tmp_path):
    hostile = '<img id="evil" src="x">'
    directory = tmp_path / "pki"
    pair = Authority(directory).issue("a.test", "a.test")
    cert = directory / f"{hostile.replace('/', '')}.pem"
    cert.write_bytes(Path(pair["cert"]).read_bytes())
    back = serve(respond())
    config = one(back)
    config["listener"] = [{}, {"certificates": [{**pair, "cert": str(cert)}]}]
    proxy = start(config)
    for _ in range(5):
        get(proxy.address)
    response = get(proxy.admin, "/")
    policy = response.header("content-security-policy")
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert "unsafe" not in policy and response.header("x-content-type-options") == "nosniff"
    # Charts need two points.
    eventually(lambda: len(json.loads(get(proxy.admin, "/history").body)["requests"]) >= 2)
    dom = browse(proxy)
    for part in (back.text, "serving", "requests/s", "servers up", "Recent events", "generation 1"):
        assert part in dom, part
    assert 'id="evil" src="x"&gt;' in dom and not re.search(r'<img[^>]*id="evil"', dom)
    # Charts were drawn, and nothing was asked of others.
    assert dom.count("<path") >= 3 and "http://" not in re.sub(r"http://www.w3.org/2000/svg", "", dom)
    narrow = browse(proxy, 390)
    assert back.text in narrow


def test_rates_of_the_last_minutes(start, serve):
    proxy = start(one(serve(respond())))
    for _ in range(20):
        get(proxy.address)

    def history():
        return json.loads(get(proxy.admin, "/history").body)

    eventually(lambda: sum(history()["requests"]) >= 20)
    found = history()
    assert len({len(found[key]) for key in ("requests", "errors", "p50_ms", "p99_ms")}) == 1
    assert sum(found["errors"]) == 0 and any(value is not None for value in found["p99_ms"])
    eventually(lambda: get(proxy.address) and proxy.status()["rates"]["requests_per_second"] > 0)


class Screen:
    """A terminal of its own in tmux."""

    def __init__(self, width, height):
        self.directory = tempfile.mkdtemp(prefix="rg-top-", dir="/tmp")
        self.socket = f"{self.directory}/tmux"
        self.tmux("new-session", "-d", "-x", str(width), "-y", str(height), "sh")

    def tmux(self, *args):
        argv = [tool("tmux"), "-S", self.socket, *args]
        return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True).stdout

    def keys(self, *keys):
        self.tmux("send-keys", *keys)

    def text(self):
        return self.tmux("capture-pane", "-p")

    def awaits(self, *parts):
        eventually(lambda: all(part in self.text() for part in parts), 15, f"{parts}", every=0.1)

    def close(self):
        self.tmux("kill-server")


@pytest.fixture
def screen():
    open_ = []

    def begin(width, height):
        open_.append(Screen(width, height))
        return open_[-1]

    yield begin
    for one_ in open_:
        one_.close()


def test_top_in_a_terminal(start, serve, screen):
    socket = Path(tempfile.mkdtemp(prefix="rg-top-", dir="/tmp")) / "a.sock"
    back = serve(respond())
    proxy = start({**one(back), "admin": {"socket": str(socket)}})
    get(proxy.address)
    top = shlex.join([str(binary()), "top", "--socket", str(socket)])
    terminal = screen(100, 30)
    terminal.keys("echo before", "Enter", top, "Enter")
    terminal.awaits("Ringgate serving", "requests/s", back.text, "shard")
    terminal.tmux("resize-window", "-x", "40", "-y", "24")
    terminal.awaits("Ringgate serving", "upstream up")
    terminal.keys("q")
    # What is typed before it has ended is its own to read.
    eventually(lambda: "Ringgate serving" not in terminal.text(), 10, "the screen is given back")
    # The screen from before is back, and the shell takes lines again.
    terminal.keys("echo af''ter $?", "Enter")
    terminal.awaits("before", "after 0")
    eventually(lambda: "requests/s" not in terminal.text())
    terminal.keys(top, "Enter")
    terminal.awaits("Ringgate serving")
    pane = terminal.tmux("list-panes", "-F", "#{pane_pid}").strip()
    pgrep = lambda: subprocess.run(["pgrep", "-P", pane], capture_output=True, text=True).stdout.split()
    child = eventually(pgrep, 5, "a child of the shell")
    os.kill(int(child[0]), signal.SIGINT)
    eventually(lambda: "Ringgate serving" not in terminal.text(), 10, "the screen is given back")
    terminal.keys("echo sane $?", "Enter")
    terminal.awaits("sane 0")
    once = subprocess.run(
        [binary(), "top", "--socket", socket, "--once"], capture_output=True, text=True, timeout=20
    )
    assert once.returncode == 0 and back.text in once.stdout and "\x1b" not in once.stdout
    piped = subprocess.run(
        [binary(), "top", "--socket", f"{socket}.none"], capture_output=True, text=True, timeout=20
    )
    assert piped.returncode == 1 and "cannot reach" in piped.stderr


def test_top_ends_with_its_terminal(start, serve):
    """No signal tells it here: the terminal is not its controlling one."""
    socket = Path(tempfile.mkdtemp(prefix="rg-top-", dir="/tmp")) / "a.sock"
    start({**one(serve(respond())), "admin": {"socket": str(socket)}})
    ours, theirs = os.openpty()
    top = subprocess.Popen(
        [binary(), "top", "--socket", socket],
        stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    try:
        os.close(theirs)
        drawn = select.poll()  # select(2) knows no descriptor above 1023
        drawn.register(ours, select.POLLIN)
        assert drawn.poll(10_000), "it draws"
        assert os.read(ours, 4096)
        os.close(ours)
        top.wait(10)
    finally:
        top.kill()
        top.wait()


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


def sent_on(origin):
    fields = origin.requests[-1].fields
    values = [value for name, value in fields if name.lower() == "traceparent"]
    states = [value for name, value in fields if name.lower() == "tracestate"]
    return values, states


@pytest.mark.parametrize("how", [None, "continue", "start"])
def test_trace_context(start, serve, tmp_path, how):
    back, log = serve(respond()), tmp_path / "access.log"
    config = one(back, http={"trace_context": how} if how else None)
    proxy = start({**config, "log": {"access": "json", "access_file": str(log)}})
    get(proxy.address, headers={"traceparent": PARENT, "tracestate": "a=1"})
    (value,), states = sent_on(back)
    assert states == ["a=1"]
    if how is None:
        assert value == PARENT
    else:
        # The trace and the sampled flag stay, the span is ours.
        assert re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-01", value) and value != PARENT
    bad = {"traceparent": PARENT.upper(), "tracestate": "a=1"}
    get(proxy.address, headers=bad)
    values, states = sent_on(back)
    if how == "start":
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", values[0]) and TRACE not in values[0]
        assert len(values) == 1 and states == [], "the state of a trace that is not continued"
    else:
        assert values == [PARENT.upper()] and states == ["a=1"]
    get(proxy.address)
    values, _ = sent_on(back)
    assert len(values) == (1 if how == "start" else 0)
    eventually(lambda: len(log.read_text().splitlines()) >= 3)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    first = next(entry for entry in entries if entry["trace_id"] == TRACE)
    assert (first["span_id"] is None) == (how is None)
    if how:
        assert first["span_id"] == value.split("-")[2]


def test_tls_in_the_access_log(start, serve, tmp_path):
    log, authority = tmp_path / "access.log", Authority(tmp_path / "pki")
    config = one(serve(respond()))
    config["listener"] = [{}, {"certificates": [authority.issue("a.test", "a.test")]}]
    proxy = start({**config, "log": {"access": "json", "access_file": str(log)}})
    with TlsClient(proxy.addresses["web1"], context(authority)) as client:
        assert client.ask(message()).status == 200
    get(proxy.address)
    eventually(lambda: len(log.read_text().splitlines()) >= 2)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    inside = next(entry for entry in entries if entry["ssl_protocol"])
    assert inside["ssl_protocol"] == "TLSv1.3" and inside["ssl_cipher"].startswith("TLS_")
    assert inside["ssl_server_name"] == "a.test" and inside["ssl_session_reused"] == "."
    clear = next(entry for entry in entries if not entry["ssl_protocol"])
    assert clear["ssl_cipher"] is None
