"""What is left of root once it serves: a user, the capabilities the file needs, restricted files and calls."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from harness import binary, eventually, free_port, get
from harness.client import run
from harness.proxy import ROOT, one, run_once
from harness.tls import Authority

from .test_health import await_state, server
from .test_tls_upstream import nginx
from .test_tracing import SPANS, Secured
from .test_upgrade import Line, script

NOBODY = 65534
BIND_SERVICE = 1 << 10


@pytest.fixture
def place(monkeypatch):
    """A directory that `nobody` can use, with a copy of the program in it."""
    path = Path(tempfile.mkdtemp(prefix="ringgate-hardening-"))
    path.chmod(0o755)
    os.chown(path, NOBODY, NOBODY)
    shutil.copy(binary(), path / "ringgate")
    monkeypatch.setenv("RINGGATE_BIN", str(path / "ringgate"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def line(place):
    lines = []

    def make(config, **more):
        directory = place / f"line{len(lines)}"
        directory.mkdir()
        os.chown(directory, NOBODY, NOBODY)
        config["node"] = {"user": "nobody", "group": "nogroup", **config.get("node", {})}
        lines.append(Line(config, directory, **more))
        return lines[-1].start()

    yield make
    for one_line in lines:
        one_line.kill()


def low_port():
    """A free port below 1024 on loopback."""
    for port in range(700, 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise AssertionError("no free port")


def threads(pid):
    """What the kernel says of each thread."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        text = (task / "status").read_text()
        yield dict(row.split(":\t", 1) for row in text.splitlines() if ":\t" in row)


def assert_confined(pid, capabilities):
    for thread in threads(pid):
        assert thread["Uid"].split() == [str(NOBODY)] * 4, thread
        assert thread["Gid"].split() == [str(NOBODY)] * 4 and thread["Groups"].split() == [str(NOBODY)]
        assert int(thread["CapEff"], 16) == int(thread["CapPrm"], 16) == capabilities, thread
        assert int(thread["CapBnd"], 16) & ~capabilities == 0, thread
        assert thread["NoNewPrivs"] == "1" and thread["Seccomp"] == "2", thread


def test_everything_works_without_root(line, origin, place):
    authority = Authority(place / "ca")
    pair = authority.issue("a", "a.example")

    def give(pair):
        for path in pair.values():
            os.chown(path, 0, NOBODY)
            os.chmod(path, 0o640)

    give(pair)
    os.chmod(place / "ca", 0o755)
    low = low_port()
    proxy = line({
        **one(origin),
        "listener": [{"bind": f"127.0.0.1:{low}"}, {"certificates": [pair]}],
        "log": {"access": "combined", "access_file": str(place / "line0" / "access.log")},
        "tls": {"reload_interval": "200ms"},
    })
    assert_confined(proxy.pid, BIND_SERVICE)
    status = proxy.status()["hardening"]
    assert status["user"] == "nobody" and status["capabilities"] == ["net_bind_service"]
    assert status["no_new_privileges"] and not status["dumpable"]
    assert status["landlock"].startswith("in force") and status["seccomp"] == "in force", status
    assert "capabilities net_bind_service, landlock in force" in proxy.ctl("status").stdout
    assert get(proxy.address).status == 200

    # Certificates are replaced by files that the group may read, and refused when it may not.
    renewed = authority.issue("a", "a.example", days=20)
    os.chmod(renewed["key"], 0o600)
    eventually(lambda: "refused" in proxy.log(), 10, "an unreadable key is told of")
    give(renewed)
    eventually(lambda: "certificates replaced" in proxy.log(), 10)

    # The log is reopened, low ports are bound by a reload, and a successor is as confined.
    log = place / "line0" / "access.log"
    log.rename(place / "line0" / "access.old")
    proxy.signal(signal.SIGUSR1)
    eventually(lambda: get(proxy.address).status == 200 and log.exists() and "GET /" in log.read_text(), 5)
    other = low_port()
    proxy.write(lambda text: text + f'\n[[listener]]\nname = "low"\nbind = "127.0.0.1:{other}"\n')
    proxy.ctl("reload")
    assert get(("127.0.0.1", other)).status == 200
    for _ in range(2):
        proxy.upgrade()
        assert_confined(proxy.newest, BIND_SERVICE)
        assert get(proxy.address).status == 200 and get(("127.0.0.1", other)).status == 200
    third = low_port()
    proxy.write(lambda text: text + f'\n[[listener]]\nname = "low2"\nbind = "127.0.0.1:{third}"\n')
    proxy.upgrade()
    assert get(("127.0.0.1", third)).status == 200
    proxy.stop()


def test_files_outside_are_out_of_reach(line, origin, place):
    """Landlock: a program that anybody may run is not run from a place that nobody named."""
    outside = Path(tempfile.mkdtemp(prefix="ringgate-outside-"))
    try:
        outside.chmod(0o755)
        program = script(outside / "ringgate", "exit 3")
        program.chmod(0o755)
        proxy = line(one(origin))
        done = proxy.ctl("upgrade", "--binary", program, check=False)
        assert "Permission denied" in done.stderr, done.stderr
        free = line({**one(origin), "node": {"sandbox": "off"}})
        assert free.status()["hardening"]["landlock"].startswith("off")
        assert {thread["Seccomp"] for thread in threads(free.pid)} == {"0"}
        done = free.ctl("upgrade", "--binary", program, check=False)
        assert "exit code 3" in done.stderr, done.stderr
        proxy.stop()
        free.stop()
    finally:
        shutil.rmtree(outside)


@pytest.fixture
def outside():
    """Makes directories that everybody may read and no list of the program's has."""
    made = []

    def make():
        made.append(Path(tempfile.mkdtemp(prefix="ringgate-authorities-")))
        made[-1].chmod(0o755)
        return made[-1]

    yield make
    for path in made:
        shutil.rmtree(path)


def test_authorities_are_read_after_privileges_are_given_up(line, serve, outside, tmp_path):
    """Files of `ca` lie where nothing else of the configuration does; a reload finds another content in them, and is refused one
    in a place that was not named at the start."""
    ours, stranger = Authority(tmp_path / "ours"), Authority(tmp_path / "other", "stranger")
    files = {name: outside() / "ca.pem" for name in ("upstream", "tracing", "elsewhere")}

    def write(authority):
        for file in files.values():
            shutil.copy(authority.cert, file)
            file.chmod(0o644)

    write(stranger)
    spans = Secured(ours.issue("collector", "127.0.0.1"))
    with nginx(tmp_path / "nginx", ours.issue("app", "127.0.0.1")) as behind:
        proxy = line({
            **one(behind, tls={"ca": str(files["upstream"])}, retry={"tries": 1}),
            "tracing": {"endpoint": f"https://{serve(spans).text}", "ca": str(files["tracing"])},
            "tls": {"reload_interval": "1h"},
        })  # fmt: skip
        assert proxy.status()["hardening"]["landlock"].startswith("in force")
        assert get(proxy.address).status == 502
        proxy.await_equal(SPANS, 1, outcome="failed")
        write(ours)
        said = proxy.ctl("reload").stdout
        assert "tracing.ca has changed" in said and f"{files['upstream']} has changed" in said, said
        assert get(proxy.address, "/trusted").status == 200
        eventually(lambda: spans.of("/trusted"), 10)
        for name in ("upstream", "tracing"):
            text = proxy.file.read_text()
            proxy.write(lambda text: text.replace(str(files[name]), str(files["elsewhere"])))
            refused = proxy.ctl("reload", check=False)
            assert refused.returncode and "Permission denied" in refused.stderr + refused.stdout, refused
            proxy.file.write_text(text)
        assert get(proxy.address).status == 200
        proxy.stop()


def test_shards_may_do_less_than_the_process(line, origin):
    """What a filter of theirs forbids is in a unit test of `sys::seccomp`; here: that they have it, a successor's too."""
    proxy = line({**one(origin), "node": {"shards": 2}})
    for pid in (proxy.pid, None):
        if not pid:
            pid = proxy.upgrade() and proxy.newest
        filters = {}
        for thread in threads(pid):
            filters.setdefault(thread["Name"], set()).add(int(thread["Seccomp_filters"]))
        # A shard's helper, which has its name, comes before the filter.
        assert 2 in filters["shard-0"] and 2 in filters["shard-1"], filters
        assert filters["ringgate"] == filters["resolver"] == {1}, filters
        assert all(shard["confined"] for shard in proxy.status()["shards"])
        assert get(proxy.address).status == 200
    proxy.stop()


def test_exec_checks_in_the_sandbox(line, origin, place):
    """They run as the user, without its capabilities; what cannot be run says so."""
    outside = Path(tempfile.mkdtemp(prefix="ringgate-outside-"))
    try:
        outside.chmod(0o755)
        seen = place / "seen"
        seen.mkdir(mode=0o777)
        seen.chmod(0o777)
        program = script(outside / "check", f"cd {seen}; (id -u; grep -E 'CapEff|NoNewPrivs' /proc/self/status) > new && mv new seen")
        program.chmod(0o755)
        fast = {"interval": "100ms", "timeout": "5s", "rise": 1, "fall": 1}
        config = one(origin, check={"exec": [str(program)], **fast})
        config["node"] = {"writable": [str(seen)]}
        proxy = line(config)
        await_state(proxy, origin.text, "up")
        words = (seen / "seen").read_text().split()
        assert words == [str(NOBODY), "CapEff:", "0" * 16, "NoNewPrivs:", "1"], words
        # With no program at the start, files are restricted more: a reload cannot widen that, and it shows.
        plain = line({**one(origin), "node": {"user": "nobody"}})
        plain.write(lambda text: text.replace('[upstream.up]', f'[upstream.up]\ncheck = {{ exec = ["{program}"], interval = "100ms", timeout = "5s", fall = 1 }}'))
        plain.ctl("reload")
        eventually(lambda: "Permission denied" in str(server(plain, origin.text)["check"]), 10)
        # The successor of a process with it is as restricted; a new start may run it.
        plain.stop()
        proxy.stop()
    finally:
        shutil.rmtree(outside)


def test_only_root_can_become_somebody(place):
    file = place / "ringgate.toml"
    file.write_text('[node]\nuser = "daemon"\n[[listener]]\nbind = "127.0.0.1:%d"\n[[route]]\nrespond = {}\n' % free_port())
    os.chmod(file, 0o644)
    done = subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", "--clear-groups", str(place / "ringgate"), "run", str(file)],
        capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert done.returncode == 1 and "cannot become daemon (node.user): only root can" in done.stderr
    done = run_once("check", file)
    assert done.returncode == 0
    file.write_text(file.read_text().replace("daemon", "no-such-user"))
    done = run_once("check", file)
    assert done.returncode == 2 and "`node.user` is \"no-such-user\"" in done.stderr


@pytest.mark.parametrize("name", ["ringgate", "ringgate-tune"])
def test_units_are_valid_and_closed(tmp_path, name):
    """What systemd itself says of the unit files; for that it does not have to run."""
    unit = tmp_path / f"{name}.service"
    installed, text = "/usr/local/bin/ringgate", (ROOT / "deploy" / unit.name).read_text()
    assert f"\nExecStart={installed} " in text
    unit.write_text(text.replace(installed, str(binary())))
    done = run("systemd-analyze", "verify", "--man=no", unit)
    assert (done.stdout, done.stderr) == ("", ""), "no unknown key, no bad value"
    # What a service needs that forwards packets and becomes another user keeps it from "SAFE".
    done = run("systemd-analyze", "security", "--offline=true", "--no-pager", unit)
    [verdict] = [line for line in done.stdout.splitlines() if "Overall exposure level" in line]
    assert verdict.split(":")[1].split()[1] in ("OK", "SAFE", "PERFECT"), done.stdout
    # It does find mistakes.
    unit.write_text(unit.read_text() + "\n[Service]\nNoSuchKey=1\n")
    assert "NoSuchKey" in run("systemd-analyze", "verify", "--man=no", unit, check=False).stderr
