"""Ringgate itself: started from a generated file, awaited, scraped, stopped and checked."""

import json
import os
import re
import signal
from pathlib import Path

from .client import get
from .process import Process, accepts
from .tools import eventually, free_port, toml

ROOT = Path(__file__).resolve().parents[2]


def binary():
    """The program under test: the release build, or RINGGATE_BIN."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    path = Path(os.environ.get("RINGGATE_BIN", ROOT / target / "release" / "ringgate"))
    assert path.is_file(), f"{path} does not exist: run tests/run, or cargo build --release"
    return path


def upstream(*servers, **keys):
    """An [upstream.NAME] table; a server is host:port, an Origin or Nginx, or a dict."""
    return {**keys, "servers": [_server(s) for s in servers]}


def _server(server):
    if isinstance(server, dict):
        return {**server, "address": getattr(server["address"], "text", server["address"])}
    return {"address": getattr(server, "text", server)}


def one(*servers, http=None, **keys):
    """A whole configuration: one route to one upstream of these servers."""
    return {
        "http": http or {},
        "route": [{"upstream": "up"}],
        "upstream": {"up": upstream(*servers, **keys)},
    }


def complete(config):
    """Fills in what the tests do not care about: two shards, a listener, an admin address."""
    config = {k: v for k, v in config.items()}
    config["node"] = {"shards": 2, "pin": False, "drain_timeout": "5s", **config.get("node", {})}
    config["log"] = {"level": "debug", **config.get("log", {})}
    # The default socket is the machine's, and other tests run beside this one.
    config["admin"] = {
        "bind": f"127.0.0.1:{free_port()}",
        "socket": "off",
        **config.get("admin", {}),
    }
    listeners = config.get("listener") or [{}]
    config["listener"] = [
        {"name": "web" if i == 0 else f"web{i}", "bind": f"127.0.0.1:{free_port()}", **item}
        for i, item in enumerate(listeners)
    ]
    return config


def address_of(text):
    host, _, port = text.rpartition(":")
    return (host.strip("[]"), int(port))


class Proxy:
    """`with Proxy(config, directory) as proxy:`; leaving asserts a clean exit and a log without panic."""

    def __init__(self, config, directory, ready=True, drain=15.0, prefix=(), **process):
        self.config = complete(config)
        self.directory, self.ready, self.drain = Path(directory), ready, drain
        self.process_options, self.process, self.told = process, None, False
        self.prefix = [*prefix]  # a command that ends in exec, so that the PID stays the proxy's
        self.addresses = {e["name"]: address_of(e["bind"]) for e in self.config["listener"]}
        self.address = next(iter(self.addresses.values()))
        bind = self.config["admin"]["bind"]
        self.admin = None if bind == "off" else address_of(bind)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.stop()
        elif self.process:
            self.process.kill()

    def start(self):
        self.directory.mkdir(parents=True, exist_ok=True)
        self.file = self.directory / "ringgate.toml"
        self.file.write_text(toml(self.config))
        log = self.directory / "ringgate.log"
        argv = [*self.prefix, binary(), "run", self.file]
        self.process = Process(argv, log, cwd=self.directory, **self.process_options)
        if self.ready:
            self.process.await_ready(self.is_ready)

    def is_ready(self):
        if self.admin is None:
            return all(accepts(a) for a in self.addresses.values())
        try:
            return get(self.admin, "/readyz", timeout=2).status == 200
        except OSError:
            return False

    def tell_to_end(self):
        """SIGTERM; `stop` is to follow, and finds the process ended or ending."""
        if self.process and self.process.alive():
            self.process.send_signal(signal.SIGTERM)
            self.told = True

    def stop(self, expect=0):
        """SIGTERM, then the exit code and the log are checked; harmless when it ended already."""
        if not self.process:
            return
        process, self.process = self.process, None
        code = process.terminate(self.drain, told=self.told)
        log = process.log()
        assert code is not None, f"did not end within {self.drain} s of SIGTERM:\n{log[-4000:]}"
        assert code == expect, f"exit code {code}, expected {expect}:\n{log[-4000:]}"
        check_log(log)

    def kill(self):
        if self.process:
            self.process.kill()
            self.process = None

    @property
    def pid(self):
        return self.process.pid

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, timeout=15.0):
        """Exit code of a proxy that was told to end; the log is checked for panics."""
        process = self.process
        code = process.wait(timeout)
        self.process = None
        process.kill()
        check_log(process.log())
        return code

    def log(self):
        return (self.directory / "ringgate.log").read_text(errors="replace")

    def rss(self):
        return self.process.rss()

    def cpu(self):
        return self.process.cpu()

    def metrics(self):
        """All samples as (name, labels, value)."""
        response = get(self.admin, "/metrics", timeout=20)
        assert response.status == 200, response
        return parse_metrics(response.body.decode())

    def metric(self, name, **labels):
        """Sum of the samples that carry these labels; 0 when there are none."""
        return sum(
            value
            for sample, found, value in self.metrics()
            if sample == name and labels.items() <= found.items()
        )

    def await_metric(self, name, value, timeout=5.0, **labels):
        """Waits until a counter is at least `value`."""
        eventually(
            lambda: self.metric(name, **labels) >= value,
            timeout,
            f"{name}{labels} >= {value}",
            every=0.05,
        )

    def await_equal(self, name, value, timeout=5.0, **labels):
        """Waits until a figure is `value`: what a client has seen may be counted a moment later."""
        eventually(
            lambda: self.metric(name, **labels) == value,
            timeout,
            lambda: f"{name}{labels} is {self.metric(name, **labels)}, not {value}",
            every=0.02,
        )

    def await_log(self, *texts, timeout=5.0):
        """Waits until the log has all of these: lines are written by a thread of their own."""
        for text in texts:
            eventually(lambda: text in self.log(), timeout, f"{text!r} in the log")

    def status(self):
        response = get(self.admin, "/status", timeout=20)
        assert response.status == 200, response
        return json.loads(response.body)


def check_log(log):
    for word in ("panicked at", "RUST_BACKTRACE", "fatal runtime error", "stack overflow"):
        assert word not in log, f"the log has {word!r}:\n{log[-4000:]}"


_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)( -?\d+)?\Z")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\["\\n])*)"(?:,|\Z)')


def parse_metrics(text):
    """Prometheus text format 0.0.4, strictly: unknown lines and samples without TYPE fail."""
    samples, types, seen = [], {}, set()
    assert text.endswith("\n"), "the exposition does not end in a newline"
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in types, f"{name} has two TYPE lines"
            types[name] = kind
        if line.startswith("#") or not line:
            continue
        match = _SAMPLE.match(line)
        assert match, f"not a sample: {line!r}"
        labels = dict(_labels(match[2] or "", line))
        base = re.sub(r"_(bucket|sum|count)\Z", "", match[1])
        assert match[1] in types or types.get(base) in ("histogram", "summary"), f"no TYPE: {line}"
        key = (match[1], tuple(sorted(labels.items())))
        assert key not in seen, f"sample twice: {line}"
        seen.add(key)
        samples.append((match[1], labels, float(match[3])))
    return samples


def _labels(text, line):
    at = 0
    while at < len(text):
        match = _LABEL.match(text, at)
        assert match, f"labels of {line!r}"
        yield match[1], match[2].replace('\\"', '"').replace("\\n", "\n").replace("\\\\", "\\")
        at = match.end()


def run_once(*args, timeout=20, **more):
    """`ringgate ARGS` to its end."""
    import subprocess

    return subprocess.run(
        [str(binary()), *map(str, args)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        **more,
    )


__all__ = ["Proxy", "binary", "complete", "one", "parse_metrics", "run_once", "upstream"]
