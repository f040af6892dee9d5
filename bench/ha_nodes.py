"""What `ha.py` measures: Ringgate, and keepalived with nginx, as nodes of a pair."""

import contextlib
import os
import signal
from pathlib import Path

from harness.client import tool
from harness.lan import Keepalived, Ringgate
from harness.process import Process
from harness.proxy import run_once
from harness.tools import eventually

VIP = "10.77.0.100"


class RinggateNode:
    """Ringgate: proxy and VRRP in one process."""

    def __init__(self, host, directory, name, priority, interval_ms, node=""):
        vrrp = (
            f'[vrrp.VI_1]\ninterface = "eth0"\nvirtual_router_id = 51\npriority = {priority}\n'
            f'advertise = "{interval_ms}ms"\naddresses = ["{VIP}/24"]\n'
        )
        self.host, self.name = host, name
        self.ringgate = Ringgate(host, directory, name, vrrp, node=node)
        self.text, self.reloads = self.ringgate.file.read_text(), 0

    def start(self):
        self.ringgate.start()

    def stop(self):
        self.ringgate.stop(check=False)

    def kill(self):
        self.ringgate.kill()

    def is_running(self):
        return self.ringgate.process is not None

    def cleaned(self):
        """The kernel drops what a killed process left."""
        return VIP not in self.host.addresses()

    def signal(self, number):
        os.kill(self.ringgate.pid, number)

    def reload(self):
        """With another file each time."""
        self.reloads += 1
        self.ringgate.file.write_text(f'{self.text}[http]\nkeepalive_timeout = "{60 + self.reloads}s"\n')
        done = run_once("ctl", "--socket", self.ringgate.socket, "reload")
        assert done.returncode == 0, done.stderr

    def release(self):
        self.ringgate.ctl("release")

    def unrelease(self):
        self.ringgate.ctl("resume")

    def prefer(self):
        self.ringgate.ctl("prefer")

    def unprefer(self):
        self.ringgate.ctl("resume")

    def said(self):
        return self.ringgate.log() if self.ringgate.process else ""

    def takeovers(self):
        return self.said().count("to=active")


class KeepalivedNode:
    """keepalived and nginx, as one would run them."""

    def __init__(self, host, directory, name, priority, interval_ms, node=""):
        self.host, self.name = host, name
        self.directory = directory / f"nginx-{name}"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.text = lambda priority: (
            f"global_defs {{\n router_id {name}\n vrrp_version 3\n{node}}}\n"
            "vrrp_instance VI_1 {\n interface eth0\n virtual_router_id 51\n"
            f" priority {priority}\n advert_int {interval_ms / 1000}\n"
            f" virtual_ipaddress {{\n {VIP}/24\n }}\n}}\n"
        )
        self.priority = priority
        self.keepalived = Keepalived(host, directory, self.text(priority), urgent=False)
        self.file = self.directory / "nginx.conf"
        self.file.write_text(
            f"daemon off; worker_processes 1; pid {self.directory}/pid; error_log {self.directory}/error;\n"
            "events {}\nhttp { access_log off; server { listen 80 reuseport; "
            f'return 200 "{name}"; }} }}\n'
        )
        self.nginx = None

    def start(self):
        argv = self.host.argv(tool("nginx"), "-p", self.directory, "-c", self.file)
        self.nginx = Process(argv, self.directory / "log")
        eventually(lambda: (self.directory / "pid").exists(), 5)
        self.keepalived.start()

    def stop(self):
        self.keepalived.stop()
        if self.nginx:
            self.nginx.terminate(5)
            self.nginx = None

    def _pids(self):
        nginx = self.nginx.pid
        children = Path(f"/proc/{nginx}/task/{nginx}/children").read_text().split()
        return [self.keepalived.process.pid, self.keepalived.vrrp_pid(), nginx, *map(int, children)]

    def kill(self):
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.keepalived.process.kill()
        self.keepalived.process = None
        self.nginx.kill()
        self.nginx = None

    def is_running(self):
        return self.keepalived.process is not None and self.nginx is not None

    def cleaned(self):
        """Nobody drops what a killed keepalived left, so this does, to go on."""
        self.host.ip("addr", "del", f"{VIP}/24", "dev", "eth0", check=False)
        return True

    def signal(self, number):
        for pid in self._pids():
            os.kill(pid, number)

    def reload(self):
        for pid in (self.keepalived.process.pid, self.nginx.pid):
            os.kill(pid, signal.SIGHUP)

    def release(self):
        self.keepalived.stop()

    def unrelease(self):
        if self.keepalived.process is None:
            self.keepalived.start()

    def prefer(self):
        """It has no such order: a higher priority in its file, and a reload."""
        self._prioritize(250)

    def unprefer(self):
        self._prioritize(self.priority)

    def _prioritize(self, priority):
        self.keepalived.file.write_text(self.text(priority))
        os.kill(self.keepalived.process.pid, signal.SIGHUP)

    def said(self):
        return self.keepalived.log() if self.keepalived.process else ""

    def takeovers(self):
        return self.said().count("Entering MASTER")
