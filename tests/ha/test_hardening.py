"""VRRP without root: the capabilities it needs, its scripts, and an upgrade."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from harness import binary
from harness.lan import Load, Ringgate
from harness.tls import Authority
from harness.tools import eventually

from .common import VIP, holds, vrrp
from .test_upgrade import Line

NOBODY = 65534


@pytest.fixture
def place(monkeypatch):
    path = Path(tempfile.mkdtemp(prefix="ringgate-hardening-"))
    path.chmod(0o777)
    shutil.copy(binary(), path / "ringgate")
    monkeypatch.setenv("RINGGATE_BIN", str(path / "ringgate"))
    old = os.umask(0)
    yield path
    os.umask(old)
    shutil.rmtree(path)


def test_vrrp_scripts_and_upgrade_without_root(lan, place):
    told = place / "told"
    told.mkdir(0o777)
    notify = place / "notify"
    notify.write_text(f"#!/bin/sh\nid -u > {told}/$3; grep CapEff /proc/self/status >> {told}/$3\n")
    check = place / "check"
    check.write_text("#!/bin/sh\ntest -r /etc/passwd && echo x | grep -q x\n")
    for path in (notify, check):
        path.chmod(0o755)
    more = f'notify = ["{notify}"]\ntrack_script = ["ok"]\n[vrrp_script.ok]\nscript = ["{check}"]\ninterval = "200ms"'
    node = Ringgate(
        lan.host(), place, "a", vrrp(200, more=more),
        node=f'user = "nobody"\nwritable = ["{told}"]\nupgrade_drain_timeout = "2s"\ndrain_timeout = "1s"',
    )  # fmt: skip
    client = lan.host()
    with node:
        node.await_role("active")
        eventually(lambda: "CapEff" in (told / "MASTER").read_text(), 10, "the script was run")
        words = (told / "MASTER").read_text().split()
        assert words[0] == str(NOBODY) and int(words[2], 16) == 0, "scripts have no capabilities"
        status = Path(f"/proc/{node.pid}/status").read_text()
        effective = int(status.split("CapEff:")[1].split()[0], 16)
        names = {10: "bind", 12: "net_admin", 13: "net_raw", 14: "ipc_lock", 23: "sys_nice"}
        assert effective == sum(1 << bit for bit in names), hex(effective)
        line = Line(node)
        with Load(client, VIP) as load:
            load.await_from("a")
            line.upgrade()
            load.await_from("a")
            assert holds(node) and node.instance()["role"] == "active"
        assert not load.failures
        line.stop()
        assert not holds(node)


def test_a_webhooks_authorities_are_read_anew(lan, place, hook):
    """By a reload that only finds another content in their file, without root and with files restricted; the role stays."""
    host, _, secured, authority = hook
    outside, drain = Path(tempfile.mkdtemp(prefix="ringgate-authorities-")), place / "drain"
    try:
        outside.chmod(0o755)
        ca = outside / "ca.pem"
        shutil.copy(Authority(outside / "other", "stranger").cert, ca)
        more = (
            f'notify_webhook = "https://{host.address}:8443/vip"\nnotify_webhook_ca = "{ca}"\n'
            f'track_file = ["{drain} weight -50"]'
        )
        with Ringgate(lan.host(), place, "a", vrrp(200, more=more), node='user = "nobody"') as node:
            node.await_role("active")
            eventually(lambda: "the notification to" in node.log(), 10)
            assert not secured and "landlock=\"in force" in node.log(), node.log()
            shutil.copy(authority.cert, ca)
            os.kill(node.pid, signal.SIGHUP)
            eventually(lambda: "VI_1: file of notify_webhook_ca has changed" in node.log(), 10)
            eventually(lambda: "reloaded" in node.log(), 10)
            assert node.log().count("to=active") == 1, "it did not begin anew"
            with Ringgate(lan.host(), place, "b", vrrp(180)) as peer:
                peer.await_role("backup")
                drain.write_text("1\n")
                node.await_role("backup")
                eventually(lambda: any(told["to"] == "backup" for told in secured), 10)
    finally:
        shutil.rmtree(outside)
