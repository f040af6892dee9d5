"""A shard whose thread stops: the watchdog starves, and whoever asks is told which one it is."""

import contextlib
import socket
import time

from harness import eventually, get, respond
from harness.proxy import one
from harness.threads import stopped

from .test_upgrade import Line


def fed(manager, seconds):
    """Times the watchdog is fed from now on."""
    manager.settimeout(0.01)
    with contextlib.suppress(TimeoutError):
        while True:  # what was said before
            manager.recv(4096)
    count, until = 0, time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        manager.settimeout(left)
        with contextlib.suppress(TimeoutError):
            count += b"WATCHDOG=1" in manager.recv(4096)
    return count


def test_a_stuck_shard_starves_the_watchdog_and_shows(tmp_path, serve):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
        with Line({**one(serve(respond())), "node": {"shards": 2}}, tmp_path / "p", env=env) as proxy:
            eventually(lambda: fed(manager, 0.5) > 0, 15, "the watchdog is fed")
            stuck = lambda: [s["stuck_seconds"] for s in proxy.status()["shards"]]  # noqa: E731
            assert stuck() == [None, None]
            with stopped(proxy.pid, "shard-1"):
                eventually(lambda: get(proxy.admin, "/readyz").status == 503, 20, "not ready")
                assert "shard 1 has not answered for" in get(proxy.admin, "/readyz").body.decode()
                # The control thread runs: it is alive, and answers, but does not feed.
                assert get(proxy.admin, "/healthz").status == 200
                assert fed(manager, 1) == 0
                none, since = stuck()
                assert none is None and since >= 3
                assert proxy.metric("ringgate_shard_stuck", shard="1") == 1
                assert proxy.metric("ringgate_shard_stuck", shard="0") == 0
                assert "shard 1 has not answered for" in proxy.ctl("status").stdout
                proxy.await_log("a shard does not answer: its connections wait shard=1")
            eventually(lambda: get(proxy.admin, "/readyz").status == 200, 15, "ready again")
            eventually(lambda: fed(manager, 0.5) > 0, 15, "fed again")
            eventually(lambda: stuck() == [None, None], 5)
            proxy.await_log("a shard answers again shard=1")
            proxy.await_metric("ringgate_shard_stalls_total", 1, shard="1")
            assert get(proxy.address).status == 200
