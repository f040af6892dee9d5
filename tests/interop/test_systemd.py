"""deploy/ringgate.service under a running systemd: told when it serves, reloaded, upgraded, watched, stopped."""

from harness import binary, eventually
from harness.proxy import ROOT
from harness.systemd import Systemd

UNIT = ROOT / "deploy" / "ringgate.service"
TUNE = ROOT / "deploy" / "ringgate-tune.service"
FILE = "/etc/ringgate/ringgate.toml"
ADDRESS = "192.0.2.80"
CONFIG = """
[node]
user = "ringgate"
shards = 2
drain_timeout = "1s"
[admin]
bind = "127.0.0.1:9090"
[[listener]]
bind = "0.0.0.0:80"
[[route]]
respond = { body = "one" }
[vrrp.v]
interface = "eth0"
virtual_router_id = 51
priority = 200
advertise = "100ms"
addresses = ["192.0.2.80/24"]
"""
# Nobody here reads the journal. The watchdog of the unit waits until the test comes to it.
OUTPUT = "[Service]\nStandardOutput=append:{log}\nStandardError=inherit\n"
PATIENT = OUTPUT + "WatchdogSec=120s\n"


def page(machine):
    return machine.run("curl", "-sS", "--max-time", "10", "http://127.0.0.1/").stdout


def await_page(machine, text):
    eventually(lambda: page(machine) == text, 10, lambda: f"{text}: {machine.show('ActiveState', 'StatusText')}")


def main_pid(machine, other_than=0):
    """The main process once the unit is active, and it is another one."""

    def found():
        shown = machine.show("ActiveState", "SubState", "MainPID")
        assert (shown["ActiveState"], shown["SubState"]) == ("active", "running"), shown
        return (pid := int(shown["MainPID"])) not in (0, other_than) and pid

    return eventually(found, 20, lambda: machine.ctl("status", UNIT.name).stdout)


def put(machine, where, text):
    done = machine.run("sh", "-c", 'printf %s "$1" >"$0"', where, text)
    assert done.returncode == 0, done.stderr


def reload(machine, old, new):
    put(machine, FILE, CONFIG.replace(old, new))
    done = machine.ctl("reload", UNIT.name)
    assert done.returncode == 0, done.stderr
    await_page(machine, new)


def has_address(machine):
    return f"inet {ADDRESS}/24" in machine.run("ip", "-4", "addr", "show", "dev", "eth0").stdout


def test_the_unit_from_its_start_to_its_end(tmp_path):
    log = tmp_path / "ringgate.log"
    with Systemd(tmp_path, binary(), UNIT, {"ringgate/ringgate.toml": CONFIG}, PATIENT.format(log=log), [TUNE]) as machine:
        said = lambda: f"{machine.ctl('status', UNIT.name).stdout}\n{machine.said()}\n{log.read_text()[-4000:] if log.exists() else ''}"  # noqa: E731
        done = machine.ctl("start", UNIT.name)
        assert done.returncode == 0, said()  # with Type=notify only once it has said so
        shown = machine.show("Type", "StatusText", "NRestarts", "WatchdogUSec")
        assert shown == {"Type": "notify", "StatusText": "serving", "NRestarts": "0", "WatchdogUSec": "2min"}
        first = main_pid(machine)
        assert page(machine) == "one", said()
        eventually(lambda: has_address(machine), 10, said)
        # What the unit restricts holds, and leaves room for what Ringgate restricts itself.
        eventually(lambda: 'landlock="in force' in log.read_text() and 'seccomp="in force' in log.read_text(), 10, said)
        status = machine.run("cat", f"/proc/{first}/status").stdout
        assert "\nUid:\t990\t990\t990\t990\n" in status and "\nNoNewPrivs:\t1\n" in status
        root = [line for line in machine.run("cat", f"/proc/{first}/mountinfo").stdout.splitlines() if line.split()[4] == "/"]
        assert root[-1].split()[5].startswith("ro"), "ProtectSystem=strict"

        reload(machine, "one", "two")
        assert main_pid(machine) == first
        good = machine.run("cat", FILE).stdout
        put(machine, FILE, good + "[nonsense]\n")
        assert machine.ctl("reload", UNIT.name).returncode == 1, "a bad file is refused, and it shows"
        assert page(machine) == "two" and "unknown key `nonsense`" in log.read_text()
        put(machine, FILE, good)
        for _ in range(2):
            before = main_pid(machine)
            done = machine.run("/usr/local/bin/ringgate", "ctl", "upgrade")
            assert done.returncode == 0, done.stdout + done.stderr
            main_pid(machine, other_than=before)
            assert page(machine) == "two" and has_address(machine)
        reload(machine, "one", "three")
        assert machine.show("NRestarts") == {"NRestarts": "0"}

        # With the unit's own watchdog, and a process that does nothing any more from its start on.
        put(machine, f"/lib/systemd/system/{UNIT.name}.d/test.conf", OUTPUT.format(log=log))
        assert machine.ctl("daemon-reload").returncode == 0
        assert machine.ctl("restart", UNIT.name).returncode == 0, said()
        hung = main_pid(machine)
        machine.run("kill", "-STOP", hung)
        main_pid(machine, other_than=hung)
        await_page(machine, "three")
        assert int(machine.show("NRestarts")["NRestarts"]) >= 1
        assert machine.show("WatchdogUSec") == {"WatchdogUSec": "10s"}

        assert machine.ctl("stop", UNIT.name).returncode == 0, said()
        shown = machine.show("ActiveState", "Result", "ExecMainStatus")
        assert shown == {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"}, said()
        assert not has_address(machine)

        a_real_server(machine, said)
        a_virtual_mac(machine, said, OUTPUT.format(log=log))


def setting(machine, interface, key):
    return machine.run("cat", f"/proc/sys/net/ipv4/conf/{interface}/{key}").stdout.strip()


def a_real_server(machine, said):
    """Settings by ringgate-tune.service, which writes them and takes them back; the address on lo by the other one."""
    role = f'[tuning]\nprofile = "real-server"\n[real_server]\naddresses = ["{ADDRESS}"]\n'
    put(machine, FILE, CONFIG.partition("[vrrp.v]")[0] + role)
    before = [setting(machine, "all", key) for key in ("arp_ignore", "arp_announce")]
    assert before == ["0", "0"]
    done = machine.ctl("start", TUNE.name)
    assert done.returncode == 0, machine.ctl("status", TUNE.name).stdout
    assert [setting(machine, "all", key) for key in ("arp_ignore", "arp_announce")] == ["1", "2"]
    verified = machine.run("/usr/local/bin/ringgate", "tune", "verify", FILE)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert machine.ctl("start", UNIT.name).returncode == 0, said()
    on_lo = lambda: f"inet {ADDRESS}/32" in machine.run("ip", "-4", "addr", "show", "dev", "lo").stdout  # noqa: E731
    eventually(on_lo, 10, said)
    await_page(machine, "one")
    assert machine.ctl("stop", UNIT.name).returncode == 0, said()
    assert not on_lo(), "nothing is left behind"
    assert setting(machine, "all", "arp_ignore") == "1", "the settings are the other unit's"
    assert machine.ctl("stop", TUNE.name).returncode == 0, machine.ctl("status", TUNE.name).stdout
    assert [setting(machine, "all", key) for key in ("arp_ignore", "arp_announce")] == before


def a_virtual_mac(machine, said, drop_in):
    """With the line removed from the unit that its comment names."""
    put(machine, f"/lib/systemd/system/{UNIT.name}.d/test.conf", drop_in + "ProtectKernelTunables=no\n")
    assert machine.ctl("daemon-reload").returncode == 0
    put(machine, FILE, CONFIG + "use_vmac = true\n")
    assert machine.ctl("start", UNIT.name).returncode == 0, said()
    shown = lambda: machine.run("ip", "addr", "show").stdout  # noqa: E731
    eventually(lambda: "00:00:5e:00:01:33" in shown() and f"inet {ADDRESS}/32" in shown(), 10, lambda: shown() + said())
    assert not has_address(machine) and setting(machine, "eth0", "arp_ignore") == "1"
    assert machine.ctl("stop", UNIT.name).returncode == 0, said()
    assert "vrrp4.51" not in shown() and ADDRESS not in shown(), "nothing is left behind"
    assert setting(machine, "eth0", "arp_ignore") == "0"
