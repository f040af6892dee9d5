"""nginx and HAProxy as origins, or as proxies to compare with; each in its own directory."""

import os
import signal
from pathlib import Path

from .client import tool
from .process import Process, accepts
from .tools import free_port


class _Peer:
    """One foreground process without workers, so that its PID is all there is."""

    def __init__(self, directory, port=None):
        self.port = port or free_port()
        self.address = ("127.0.0.1", self.port)
        self.text = f"127.0.0.1:{self.port}"
        self.directory = Path(directory)
        self.process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        self.directory.mkdir(parents=True, exist_ok=True)
        self.process = Process(self.command(), self.directory / "output.log", cwd=self.directory)
        self.process.await_ready(lambda: accepts(self.address))

    def stop(self):
        if self.process:
            self.process.terminate(5, signal.SIGTERM)
            self.process = None

    def kill(self):
        """SIGKILL: connections are reset or closed by the kernel."""
        if self.process:
            self.process.kill()
            self.process = None

    @property
    def pid(self):
        return self.process.pid


class Nginx(_Peer):
    """nginx with `server` as the inside of its server block and `http` before it.

    One process, so that kill() kills all of it; `master = "on"` gives the usual two, which drain on
    SIGQUIT but must never be ended by SIGKILL.
    """

    master = "off"

    def __init__(self, directory, server="", http="", port=None, listen=""):
        super().__init__(directory, port)
        self.server, self.http, self.listen_more = server, http, listen

    @classmethod
    def origin(cls, directory, name="nginx", port=None):
        """An origin: / answers its name, files under `directory`/www are served from /files/."""
        root = Path(directory) / "www"
        root.mkdir(parents=True, exist_ok=True)
        server = f"""
            location / {{ default_type text/plain; return 200 "{name}\\n"; }}
            location /files/ {{ alias {root}/; }}
            location /echo {{ default_type text/plain;
                return 200 "$request_method $request_uri $http_host $http_x_forwarded_for\\n"; }}
        """
        return cls(directory, server, port=port)

    @classmethod
    def proxy(cls, directory, upstream, server="", http=""):
        """A plain reverse proxy to `upstream` (host:port) with keep-alive."""
        http = f"upstream up {{ server {upstream} max_fails=0; keepalive 16; }}\n{http}"
        server = f"""
            client_header_timeout 1s; client_body_timeout 1s; lingering_timeout 1s;
            large_client_header_buffers 4 32k; client_max_body_size 1m;
            {server}
            location / {{ proxy_pass http://up; proxy_http_version 1.1;
                proxy_request_buffering off; proxy_buffering off; proxy_set_header Host $host;
                proxy_set_header Connection ""; }}
        """
        return cls(directory, server, http)

    def command(self):
        base = self.directory
        user = "user root;" if os.geteuid() == 0 else ""
        temporary = "".join(
            f"{kind}_temp_path {base}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (base / "nginx.conf").write_text(f"""
            {user} daemon off; master_process {self.master}; worker_processes 1; pid {base}/nginx.pid; error_log stderr warn;
            worker_rlimit_nofile 8192;
            events {{ worker_connections 4096; }}
            http {{ access_log off; keepalive_requests 1000000; {temporary} {self.http}
                server {{ listen {self.text} backlog=1024 {self.listen_more}; {self.server} }} }}
        """)
        return [tool("nginx"), "-p", base, "-c", base / "nginx.conf", "-e", "stderr"]


class HAProxy(_Peer):
    """HAProxy as a plain reverse proxy to `upstream` (host:port)."""

    def __init__(self, directory, upstream, frontend="", backend="", port=None):
        super().__init__(directory, port)
        self.upstream, self.frontend, self.backend = upstream, frontend, backend

    def command(self):
        path = self.directory / "haproxy.cfg"
        path.write_text(f"""
global
    maxconn 2000
    tune.bufsize 40960
    nbthread 1
defaults
    mode http
    timeout connect 2s
    timeout client 5s
    timeout server 5s
    timeout http-request 1s
    timeout http-keep-alive 5s
frontend web
    bind {self.text}
    {self.frontend}
    default_backend up
backend up
    http-reuse always
    {self.backend}
    server one {self.upstream}
""")
        return [tool("haproxy"), "-db", "-f", path]
