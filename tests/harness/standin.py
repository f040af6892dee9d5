"""nginx in Ringgate's place, to prove tests and harness before (or without) the proxy.

`RINGGATE_STANDIN=nginx` makes the `proxy` fixture start this. It translates the plain part of a
configuration; what it leaves out fails the test, which is then no news about Ringgate.
"""

import os
import signal

from .peers import Nginx
from .proxy import Proxy

_BALANCE = {"least_conn": "least_conn;", "ip_hash": "ip_hash;", "random_two": "random two;"}


class StandIn(Proxy):
    """Looks like a Proxy; admin answers nothing but 404."""

    def start(self):
        http, server = _nginx(self.config)
        (name, address), *more = self.addresses.items()
        self.nginx = Nginx(self.directory / "standin", server, http, port=address[1])
        self.nginx.listen_more = "".join(f"; listen {h}:{p}" for _, (h, p) in more)
        self.nginx.master = "on"
        self.nginx.start()
        self.process = self.nginx.process

    def signal(self, number):
        """nginx drains on SIGQUIT; its SIGTERM is the fast one."""
        self.process.send_signal(signal.SIGQUIT if number == signal.SIGTERM else number)

    def log(self):
        return self.nginx.process.log()

    def stop(self, expect=0):
        if self.process:
            self.process.terminate(5)
            self.process = None

    kill = stop

    def metrics(self):
        raise AssertionError("the stand-in has no metrics")


def _nginx(config):
    http = ['map $http_upgrade $upgraded { default upgrade; "" ""; }']
    for name, upstream in config.get("upstream", {}).items():
        lines = [_BALANCE.get(upstream.get("balance"), "")]
        lines += [f"server {_server(s)};" for s in upstream["servers"]]
        http.append(f"upstream {name} {{ {' '.join(lines)} keepalive 64; }}")
    limits = {**{"client_max_body_size": "1m"}, **config.get("http", {})}
    known = ("client_header_timeout", "client_body_timeout", "keepalive_timeout", "client_max_body_size")
    server = [f"{key} {limits[key]};" for key in known if key in limits]
    for route in config.get("route", []):
        server.append(f"location {_path(route.get('path', '/'))} {{ {_action(route, config)} }}")
    return "\n".join(http), "\n".join(server)


def _server(server):
    words = [server["address"]]
    for key in ("weight", "max_fails", "fail_timeout", "max_conns"):
        value = str(server.get(key, ""))
        value = "1s" if value.endswith("ms") else value  # nginx counts whole seconds here
        words += [f"{key}={value}"] if value else []
    words += [word for word in ("backup", "down") if server.get(word)]
    return " ".join(words)


def _path(path):
    if isinstance(path, str):
        return path
    return f"= {path['exact']}" if "exact" in path else f'~ "{path["regex"]}"'


def _action(route, config):
    if "respond" in route:
        body = route["respond"].get("body", "").replace('"', '\\"')
        return f'default_type text/plain; return {route["respond"]["status"]} "{body}";'
    if "redirect" in route:
        return f'return {route["redirect"]["status"]} {route["redirect"]["to"]};'
    upstream = config["upstream"][route["upstream"]]
    timeouts = "".join(
        f"proxy_{key} {upstream[key]};"
        for key in ("connect_timeout", "send_timeout", "read_timeout")
        if key in upstream
    )
    return f"""proxy_pass http://{route["upstream"]}; proxy_http_version 1.1; {timeouts}
        proxy_request_buffering off; proxy_buffering off; proxy_set_header Host $http_host;
        proxy_set_header X-Real-IP $remote_addr; proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Request-Id $request_id;
        proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $upgraded;"""


def proxy_kind():
    """What the fixtures start: Ringgate, or the stand-in when RINGGATE_STANDIN asks for it."""
    return StandIn if os.environ.get("RINGGATE_STANDIN") == "nginx" else Proxy
