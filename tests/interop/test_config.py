"""`ringgate check`: 0 for a good file, 2 and file:line:column with key and fix for a bad one."""

import re
import socket

import pytest

from harness.proxy import ROOT, run_once

GOOD = """[[listener]]
bind = "127.0.0.1:8081"

[[route]]
upstream = "api"

[upstream.api]
servers = [{ address = "127.0.0.1:9001" }]
"""


def check(tmp_path, text):
    path = tmp_path / "ringgate.toml"
    path.write_text(text)
    return path, run_once("check", path)


def test_good_file(tmp_path):
    _, done = check(tmp_path, GOOD)
    assert done.returncode == 0, done.stderr


def test_the_sample_with_every_default(tmp_path):
    done = run_once("check", ROOT / "deploy/ringgate.toml")
    assert done.returncode == 0, done.stderr


# (what, replace this, by that, line, words the message must have)
BAD = [
    ("syntax", 'bind = "127', "bind = 127", 2, []),
    ("unknown key", 'upstream = "api"', 'upstraem = "api"', 5, ["upstraem", "upstream"]),
    ("unknown table", "[upstream.api]", "[upstreams.api]", 7, ["upstreams"]),
    ("unknown server key", 'address = "127.0.0.1:9001"', 'address = "127.0.0.1:9001", wieght = 2', 8, ["wieght", "weight"]),
    ("wrong type", 'bind = "127.0.0.1:8081"', "bind = 8081", 2, ["bind"]),
    ("bad address", '"127.0.0.1:8081"', '"127.0.0.1"', 2, ["bind"]),
    ("bad port", '"127.0.0.1:9001"', '"127.0.0.1:99999"', 8, ["address"]),
    ("missing upstream", 'upstream = "api"', 'upstream = "apx"', 5, ["apx"]),
    ("no action", 'upstream = "api"', 'path = "/"', 4, []),
    ("two actions", 'upstream = "api"', 'upstream = "api"\nrespond = { status = 200 }', None, []),
    ("bad regex", 'upstream = "api"', 'upstream = "api"\npath = { regex = "(" }', 6, ["regex"]),
    ("bad duration", "[upstream.api]", '[upstream.api]\nread_timeout = "5 parsecs"', 8, ["read_timeout"]),
    ("bad size", "[[listener]]", '[http]\nmax_head_size = "1q"\n[[listener]]', 2, ["max_head_size"]),
    ("bad cidr", "[[listener]]", '[http]\ntrusted_proxies = ["10.0.0.0/99"]\n[[listener]]', 2, ["trusted_proxies"]),
    ("bad balance", "[upstream.api]", '[upstream.api]\nbalance = "fastest"', 8, ["balance", "round_robin"]),
    ("no servers", '{ address = "127.0.0.1:9001" }', "", 8, ["servers"]),
    ("weight zero", '"127.0.0.1:9001"', '"127.0.0.1:9001", weight = 0', 8, ["weight"]),
    ("bad status", 'upstream = "api"', "respond = { status = 99 }", 5, ["status"]),
    ("bad redirect", 'upstream = "api"', 'redirect = { status = 200, to = "/" }', 5, ["status"]),
    ("unknown variable", 'upstream = "api"', 'upstream = "api"\nrequest_headers = { set = { "X-A" = "$nonsense" } }', 6, ["nonsense"]),
    ("bad header name", 'upstream = "api"', 'upstream = "api"\nrequest_headers = { set = { "X A" = "b" } }', 6, ["X A"]),
    ("header with CR", 'upstream = "api"', 'upstream = "api"\nrequest_headers = { set = { "X-A" = "a\\r\\nb" } }', 6, ["X-A"]),
    ("tries zero", "[upstream.api]", "[upstream.api]\nretry = { tries = 0 }", 8, ["tries"]),
    ("same bind twice", "[[route]]", '[[listener]]\nbind = "127.0.0.1:8081"\n[[route]]', None, ["8081"]),
    ("unknown listener", 'upstream = "api"', 'upstream = "api"\nlisteners = ["nope"]', 6, ["nope"]),
    ("bad shards", "[[listener]]", '[node]\nshards = "0-"\n[[listener]]', 2, ["shards"]),
    ("odd buffers", "[[listener]]", "[node]\nreceive_buffers = 500\n[[listener]]", 2, ["receive_buffers"]),
    ("bad log level", "[[listener]]", '[log]\nlevel = "loud"\n[[listener]]', 2, ["level"]),
]


@pytest.mark.parametrize("old, new, line, words", [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_file(tmp_path, old, new, line, words):
    assert old in GOOD
    path, done = check(tmp_path, GOOD.replace(old, new, 1))
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    place = re.search(re.escape(str(path)) + r":(\d+):(\d+)", done.stderr)
    assert place, f"no file:line:column in {done.stderr!r}"
    assert line is None or int(place[1]) == line, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert "panicked" not in done.stderr


def test_every_problem_is_reported_at_once(tmp_path):
    text = GOOD.replace('upstream = "api"', 'upstream = "apx"').replace("8081", "99999") + "wieght = 1\n"
    path, done = check(tmp_path, text)
    places = re.findall(re.escape(str(path)) + r":(\d+):\d+: ", done.stderr)
    assert done.returncode == 2 and sorted(places, key=int) == ["2", "5", "9"], done.stderr


def test_a_warning_is_no_error(tmp_path):
    path, done = check(tmp_path, GOOD + '[upstream.spare]\nservers = [{ address = "127.0.0.1:1" }]\n')
    assert done.returncode == 0 and f"{path}:9:" in done.stderr and "warning" in done.stderr


@pytest.mark.parametrize("name", [
    "Connection", "Content-Length", "Keep-Alive", "Proxy-Connection", "TE", "Trailer", "Transfer-Encoding", "Upgrade",
])
def test_framing_fields_cannot_be_edited(tmp_path, name):
    for edit in (f'remove = ["{name}"]', f'set = {{ "{name}" = "x" }}', f'add = {{ "{name.lower()}" = "x" }}'):
        for side in ("request_headers", "response_headers"):
            _, done = check(tmp_path, GOOD.replace('upstream = "api"', f'upstream = "api"\n{side} = {{ {edit} }}'))
            assert done.returncode == 2 and name.lower() in done.stderr.lower(), done.stderr


def test_missing_file(tmp_path):
    done = run_once("check", tmp_path / "none.toml")
    assert done.returncode == 2 and "none.toml" in done.stderr


def test_run_refuses_a_bad_file(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(GOOD.replace("upstream = ", "upstraem = "))
    done = run_once("run", path)
    assert done.returncode == 2 and f"{path}:5:" in done.stderr


def test_run_names_an_address_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        path = tmp_path / "ringgate.toml"
        path.write_text('[admin]\nbind = "off"\n' + GOOD.replace("8081", str(port)))
        done = run_once("run", path)
    assert done.returncode == 1 and str(port) in done.stderr, (done.returncode, done.stderr)
