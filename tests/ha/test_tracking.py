"""What a priority depends on: scripts, files, interfaces, usable servers; and who is told."""

from harness.lan import Load, Ringgate
from harness.proxy import parse_metrics
from harness.tls import Authority
from harness.tools import eventually

from .common import VIP, holds, vrrp


def test_a_failing_script_resigns_whatever_preempt_says(pair, tmp_path):
    flag = tmp_path / "good"
    flag.touch()
    script = (
        f'[vrrp_script.s]\nscript = ["/bin/sh", "-c", "test -e {flag} && hostname"]\n'
        'interval = "50ms"\ntimeout = "20s"\nfall = 2\nrise = 2\nuser = "nobody"\n'
    )
    tmp_path.chmod(0o755)
    for parent in (tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o755)
    a, b, client = pair(more='preempt = false\ntrack_script = ["s"]\n' + script)
    # Both look at the same file: only the first is to fail, so the second gets its own answer.
    text = b.file.read_text().replace("test -e", "true ||")
    b.stop()
    b.file.write_text(text)
    b.start()
    b.await_role("backup")
    with Load(client, VIP) as load:
        load.await_from("a")
        flag.unlink()
        load.await_from("b")
    status = a.await_role("initialize")
    assert status["why"] == ["script s is down"] and not status["healthy"]
    assert not holds(a)
    flag.touch()
    a.await_role("backup")
    assert b.instance()["role"] == "active", "preempt = false"
    eventually(lambda: a.vrrp()["scripts"][0]["state"] == "up", 5)


def test_weights_of_a_file_and_an_interface(lan, tmp_path):
    file = tmp_path / "drain"
    more = f'track_file = ["{file} weight -60"]\ntrack_interface = ["eth1 weight -70"]'
    a = Ringgate(lan.host(("eth0", "eth1")), tmp_path, "a", vrrp(150, more=more))
    b = Ringgate(lan.host(), tmp_path, "b", vrrp(100))
    with a, b:
        a.await_role("active")
        file.write_text("1\n")
        a.await_role("backup")
        status = a.instance()
        assert status["priority"] == 90 and "-60" in status["why"][0]
        file.unlink()
        a.await_role("active")
        a.host.plug("eth1", False)
        a.await_role("backup")
        assert a.instance()["priority"] == 80
        a.host.plug("eth1", True)
        a.await_role("active")


def test_a_lost_quorum_resigns_and_the_last_man_stays(lan, tmp_path):
    more = 'nofail = true\ntrack_upstream = ["api quorum 1"]'
    upstream = '[upstream.api]\nservers = [{ address = "127.0.0.1:1", down = true }]\n'
    client = lan.host()
    a = Ringgate(lan.host(), tmp_path, "a", vrrp(200, more=more), more=upstream)
    with a:
        status = a.await_role("active")
        assert status["priority"] == 1 and "upstream api with 0 of 1 is down" in status["why"]
        with Load(client, VIP) as load:
            load.await_from("a")
        b = Ringgate(lan.host(), tmp_path, "b", vrrp(100, more="preempt = false"))
        with b:
            b.await_role("active")
            a.await_role("backup")
        a.await_role("active")


def test_a_node_that_cannot_serve_does_not_join(lan, tmp_path):
    upstream = '[upstream.api]\nservers = [{ address = "127.0.0.1:1", down = true }]\n'
    more = 'track_upstream = ["api"]'
    with Ringgate(lan.host(), tmp_path, "a", vrrp(200, more=more), more=upstream) as a:
        eventually(lambda: a.instance()["why"], 5)
        assert a.instance()["role"] == "initialize"
        assert "to=active" not in a.log() and not holds(a)


def test_transitions_are_told(lan, tmp_path, hook):
    host, posted, secured, authority = hook
    told = tmp_path / "told"
    more = (
        f'notify = ["/bin/sh", "-c", "echo $0 $1 $2 $3 >> {told}"]\n'
        f'notify_webhook = "http://{host.address}:8080/vip"'
    )
    with Ringgate(lan.host(), tmp_path, "a", vrrp(100, more=more)) as a:
        a.await_role("active")
        eventually(lambda: "INSTANCE VI_1 MASTER 100" in told.read_text(), 5)
        eventually(lambda: any(p["to"] == "active" for p in posted), 5)
        assert {"instance": "VI_1", "priority": 100}.items() <= posted[-1].items()
        answer = a.host.run("curl", "-s", "http://127.0.0.1:9090/metrics").stdout
        samples = {(n, tuple(sorted(l.items()))): v for n, l, v in parse_metrics(answer)}
        state = (("instance", "VI_1"), ("state", "active"))
        assert samples[("ringgate_vrrp_state", state)] == 1
        assert samples[("ringgate_vrrp_addresses_held", (("instance", "VI_1"),))] == 1
        assert samples[("ringgate_vrrp_notifications_total", (("result", "failed"),))] == 0


def test_webhooks_over_tls_verify_the_server(lan, tmp_path, hook):
    host, _, secured, authority = hook
    more = f'notify_webhook = "https://{host.address}:8443/vip"\n'
    stranger = Authority(tmp_path / "other")
    with Ringgate(lan.host(), tmp_path, "a", vrrp(100, more=more + f'notify_webhook_ca = "{authority.cert}"')) as a:
        a.await_role("active")
        eventually(lambda: any(p["to"] == "active" for p in secured), 5)
    before = len(secured)
    with Ringgate(lan.host(), tmp_path, "b", vrrp(100, more=more + f'notify_webhook_ca = "{stranger.cert}"')) as b:
        b.await_role("active")
        eventually(lambda: f"the notification to {host.address}:8443 failed" in b.log(), 5)
        assert "certificate" in next(line for line in b.log().splitlines() if "the notification to" in line)
    assert len(secured) == before, "nothing is told to a server that is not verified"
