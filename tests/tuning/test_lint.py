"""`tune lint` on the kind of file that is copied from page to page."""

import json

from harness.proxy import run_once

COPIED = """\
# high performance!!
net.ipv4.tcp_tw_recycle = 1
net.ipv4.tcp_tw_reuse = 1
net.ipv4.tcp_fin_timeout = 15
net.ipv4.ip_local_port_range = 1024 65535
net.core.somaxconn = 1024
net.core.somaxconn = 65535
net.ipv4.tcp_mem = 786432 1048576 1572864
net.ipv4.tcp_max_tw_buckets = 5000
oops
"""


def lint(*args):
    done = run_once("tune", "lint", *args, "--json")
    findings = {}
    for finding in json.loads(done.stdout)["findings"]:
        findings.setdefault(finding["line"], []).append(finding)
    return done.returncode, findings


def test_traps_are_explained_with_file_and_line(tmp_path):
    file = tmp_path / "99-fast.conf"
    file.write_text(COPIED)
    code, findings = lint(file)
    says = {line: " ".join(f["says"] for f in found) for line, found in findings.items()}
    assert code == 1
    assert "removed in Linux 4.12" in says[2]
    assert findings[3][0]["level"] == "note"
    assert "does not shorten TIME_WAIT" in says[4]
    assert "5432 (PostgreSQL)" in says[5] and "8080" in says[5]
    assert "overrides line 6" in says[7]
    assert "in pages, not bytes" in says[8]
    assert "TIME_WAIT sockets early" in says[9]
    assert "no assignment" in says[10]
    assert all(f["instead"] and f["source"] for found in findings.values() for f in found)
    text = run_once("tune", "lint", file).stdout
    assert f"{file}:2: trap: net.ipv4.tcp_tw_recycle = 1 removed in Linux 4.12" in text


def test_listeners_of_the_configuration_are_looked_at(tmp_path):
    site = tmp_path / "site.toml"
    site.write_text('[[listener]]\nbind = "0.0.0.0:40080"\n[[route]]\nrespond = {}\n')
    file = tmp_path / "ports.conf"
    file.write_text("net.ipv4.ip_local_port_range = 10240 65535\n")
    assert lint(file) == (0, {})
    code, findings = lint(file, "--config", site)
    assert code == 1 and "40080" in findings[1][0]["says"]
    file.write_text("net.ipv4.ip_local_reserved_ports = 9090,40080\n" + file.read_text())
    assert lint(file, "--config", site) == (0, {})


def test_good_files_pass_and_missing_ones_do_not(tmp_path):
    file = tmp_path / "good.conf"
    file.write_text("# fine\nnet.ipv4.tcp_syncookies = 1\n-net.core.somaxconn = 65535\n")
    done = run_once("tune", "lint", file)
    assert (done.returncode, done.stdout) == (0, "0 traps, 0 notes\n")
    done = run_once("tune", "lint", tmp_path / "missing")
    assert done.returncode == 2 and "cannot read" in done.stderr
