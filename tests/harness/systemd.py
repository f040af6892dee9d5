"""systemd itself as the first process of namespaces of its own, with one unit: nothing of this machine's is seen or changed.

`with Systemd(directory, files) as machine: machine.ctl("start", "x")` has a /run, /etc, /dev, network and cgroup tree of
its own; what is outside of these is this machine's. All of it goes with the first process.
"""

import ctypes
import os
import signal
import subprocess
from pathlib import Path

from .client import tool
from .tools import eventually

# What /etc needs besides: names of users, and how the loader finds libraries.
ETC = ("passwd", "group", "nsswitch.conf", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ssl", "machine-id", "localtime")
DEVICES = ("null", "zero", "full", "random", "urandom")
# Targets that every unit is ordered by; those of this machine would bring up its services.
TARGETS = ("basic", "sysinit", "shutdown", "network-pre", "network-online", "multi-user")

# The first argument is the directory with what is to be there, the second the unit that is started.
BOOT = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/own/etc /run/own/dev
for name in %(etc)s; do [ ! -e /etc/$name ] || cp -a /etc/$name /run/own/etc/; done
echo "ringgate:x:990:990::/nonexistent:/usr/sbin/nologin" >>/run/own/etc/passwd
echo "ringgate:x:990:" >>/run/own/etc/group
cp -a "$1/etc/." /run/own/etc/
for name in %(devices)s; do : >/run/own/dev/$name; mount --bind /dev/$name /run/own/dev/$name; done
: >/run/own/dev/console
mount --bind "$1/console" /run/own/dev/console
mkdir /run/own/dev/shm
mount --rbind /run/own/dev /dev
mount --bind /run/own/etc /etc
for place in /var/lib /var/log /usr/local/bin /lib/systemd/system; do mount -t tmpfs -o mode=755 tmpfs $place; done
cp -a "$1/units/." /lib/systemd/system/
: >/usr/local/bin/ringgate
mount --bind "$1/ringgate" /usr/local/bin/ringgate
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
# Of the network namespace, so ours; nothing else of the kernel's can be set.
mount --bind /proc/sys/net /proc/sys/net
mount -o remount,ro,bind /proc/sys
mount -t sysfs -o ro sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
ip link add eth0 type veth peer name eth1
ip addr add 192.0.2.1/24 dev eth0
ip link set eth0 up
ip link set eth1 up
exec env -i container=ringgate-test PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \
    /lib/systemd/systemd --unit="$2" --log-target=console --show-status=no
"""


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def unified():
    """The cgroup below which ours is made: this process's own in the version 2 hierarchy."""
    [mounted] = {
        Path(line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines() if line.split()[2] == "cgroup2"
    }
    [own] = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    return mounted / own.lstrip("/")


class Systemd:
    """`files` are below /etc; `unit` and `more` are put where packages put theirs, `drop_in` beside the first. There is a
    link, eth0 to eth1."""

    def __init__(self, directory, binary, unit, files, drop_in, more=()):
        self.directory, self.name = Path(directory) / "machine", Path(unit).name
        self.cgroup = unified() / f"ringgate-test-{os.getpid()}"
        self.binary, self.process, self.first = binary, None, None
        units = {
            self.name: Path(unit).read_text(),
            f"{self.name}.d/test.conf": drop_in,
            **{Path(one).name: Path(one).read_text() for one in more},
            # Nothing of it by default: not what shuts a machine down, nor what mounts its disks.
            **{f"{name}.target": f"[Unit]\nDescription={name}\nDefaultDependencies=no\n" for name in TARGETS},
        }
        for below, texts in (("etc", files), ("units", units)):
            for name, text in texts.items():
                path = self.directory / below / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        (self.directory / "console").write_text("")
        (self.directory / "ringgate").symlink_to(Path(binary).resolve())

    def __enter__(self):
        self.cgroup.mkdir()
        try:
            self.boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def boot(self):
        script = BOOT % {"etc": " ".join(ETC), "devices": " ".join(DEVICES)}
        spaces = ("--pid", "--fork", "--kill-child", "--mount", "--cgroup", "--uts", "--ipc", "--net")
        # Of the cgroup before the namespace is made, so that this is its root.
        enter = 'echo $$ >"$0/cgroup.procs"; exec "$@"'
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", enter, self.cgroup, tool("unshare"), *spaces, "/bin/sh", "-c", script, "boot",
             self.directory, "basic.target"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=(self.directory / "boot.log").open("w"),
            preexec_fn=die_with_parent,
        )  # fmt: skip
        eventually(self.is_up, 20, self.said)

    def is_up(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"systemd has not started:\n{self.said()}")
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        if not children:
            return False
        self.first = int(children[0])
        return "=" in self.ctl("show", "--property=Version").stdout

    def said(self):
        return "".join((self.directory / name).read_text(errors="replace")[-4000:] for name in ("boot.log", "console"))

    def __exit__(self, *_):
        if self.process:
            # The kernel ends all processes of a PID namespace with the first, and mounts with the last.
            if self.first:
                os.kill(self.first, signal.SIGKILL)
            else:
                self.process.kill()
            self.process.wait(20)
        eventually(self.is_gone, 20, f"{self.cgroup} is gone")

    def is_gone(self):
        for place, _, _ in os.walk(self.cgroup, topdown=False):
            os.rmdir(place)
        return not self.cgroup.exists()

    def run(self, *argv, timeout=60):
        """A program in there, to its end."""
        spaces = [tool("nsenter"), "--target", str(self.first), "--pid", "--mount", "--cgroup", "--uts", "--ipc", "--net"]
        return subprocess.run(
            [*spaces, *map(str, argv)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )

    def ctl(self, *argv):
        return self.run("systemctl", "--no-pager", *argv)

    def show(self, *names):
        """Properties of the unit."""
        lines = self.ctl("show", self.name, f"--property={','.join(names)}").stdout.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def outside(self, pid):
        """This machine's number of one of its processes."""
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                numbers = next(line for line in status.read_text().splitlines() if line.startswith("NSpid:")).split()[1:]
            except (OSError, StopIteration):
                continue
            if numbers[1:] == [str(pid)] and os.readlink(status.with_name("ns") / "pid") == os.readlink(f"/proc/{self.first}/ns/pid"):
                return int(numbers[0])
        raise AssertionError(f"no process {pid} in there")
