"""A network namespace joined to this one by a veth pair; removed on exit."""

import itertools
import os
import subprocess

from .client import tool

_numbers = itertools.count()
_SUDO = [] if os.geteuid() == 0 else ["sudo", "-n"]


class NetNs:
    """`with NetNs() as ns:` gives `ns.outside` and `ns.inside`, two addresses of a /30 between them."""

    def __init__(self):
        number = (os.getpid() * 16 + next(_numbers)) % 16384
        self.name = f"rg{os.getpid()}x{number}"
        self.link_outside, self.link_inside = f"rgo{number}", f"rgi{number}"
        base = f"10.231.{number // 64}.{number % 64 * 4}"
        head, last = base.rsplit(".", 1)
        self.outside, self.inside = f"{head}.{int(last) + 1}", f"{head}.{int(last) + 2}"

    def __enter__(self):
        try:
            _ip("netns", "add", self.name)
            _ip("link", "add", self.link_outside, "type", "veth", "peer", "name", self.link_inside)
            _ip("link", "set", self.link_inside, "netns", self.name)
            _ip("addr", "add", f"{self.outside}/30", "dev", self.link_outside)
            _ip("link", "set", self.link_outside, "up")
            self.ip("addr", "add", f"{self.inside}/30", "dev", self.link_inside)
            self.ip("link", "set", self.link_inside, "up")
            self.ip("link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for args in (("link", "del", self.link_outside), ("netns", "del", self.name)):
            subprocess.run([*_SUDO, tool("ip"), *args], capture_output=True, timeout=10, check=False)

    def ip(self, *args):
        """An `ip` command inside the namespace."""
        _ip("-n", self.name, *args)

    def argv(self, *args):
        """A command line that runs inside the namespace."""
        return [*_SUDO, tool("ip"), "netns", "exec", self.name, *map(str, args)]

    def run(self, *args, timeout=30):
        return subprocess.run(
            self.argv(*args), capture_output=True, text=True, timeout=timeout, check=True
        )


def _ip(*args):
    done = subprocess.run([*_SUDO, tool("ip"), *args], capture_output=True, text=True, timeout=10)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(args)}: {done.stderr.strip()}")
