"""Session resumption, over shards and nodes; certificates replaced while they are used."""

import contextlib
import os
import re
import signal
import ssl
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from harness import eventually
from harness.client import message
from harness.proxy import one
from harness.tls import Authority, TlsClient, context

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("pki"))


def https(origin, *certificates, **tls):
    config = one(origin)
    config["listener"] = [{"certificates": list(certificates)}]
    config["tls"] = tls
    return config


def session(address, made, name="a.test"):
    """A session with a ticket, from a connection that served a request."""
    with TlsClient(address, made, name) as client:
        assert client.ask(message(host=name)).status == 200
        assert client.sock.session.has_ticket
        return client.sock.session


def resumes(address, made, kept, name="a.test"):
    """Whether a connection with this session resumes it."""
    with TlsClient(address, made, name, session=kept) as client:
        assert client.ask(message(host=name)).status == 200
        return client.sock.session_reused


@pytest.mark.parametrize("version", [V12, V13])
def test_sessions_resume_on_every_shard(start, origin, authority, version):
    pair = authority.issue("a.test", "a.test")
    config = https(origin, pair)
    config["node"] = {"shards": 4}
    proxy = start(config)
    made = context(authority, version=version)
    # The kernel spreads connections over the shards by a hash of their ports.
    for _ in range(10):
        kept = session(proxy.address, made)
        assert [resumes(proxy.address, made, kept) for _ in range(4)] == [True] * 4
    used = {l["shard"] for n, l, v in proxy.metrics() if n == "ringgate_ring_completions_total" and v > 60}
    assert len(used) > 1, "connections met one shard only"
    label = "1.2" if version == V12 else "1.3"
    name = "ringgate_tls_handshakes_total"
    proxy.await_equal(name, 40, version=label, resumed="true")
    proxy.await_equal(name, 10, version=label, resumed="false")


def test_a_shared_secret_joins_two_nodes(start, origin, authority, tmp_path):
    pair = authority.issue("a.test", "a.test")
    (tmp_path / "shared").write_text(f"{SECRET}\n")
    (tmp_path / "other").write_text(f"{SECRET[::-1]}\n")
    (tmp_path / "both").write_text(f"{SECRET[::-1]}\n{SECRET}\n")
    files = ["shared", "shared", "other", "both"]
    nodes = [start(https(origin, pair, ticket_keys=str(tmp_path / f))) for f in files]
    alone = start(https(origin, pair))
    for version in (V12, V13):
        made = context(authority, version=version)
        kept = session(nodes[0].address, made)
        found = [resumes(node.address, made, kept) for node in (*nodes, alone)]
        assert found == [True, True, False, True, False], version


def test_a_ticket_is_good_where_the_same_is_asked_only(start, origin, authority, tmp_path):
    clients = Authority(tmp_path / "clients", "clients")
    carol = clients.issue("carol", client=True)
    asked = {"client_ca": str(clients.cert), "client_auth": "required"}
    pairs = [authority.issue(n, n) for n in ("a.test", "must.test", "also.test")]
    config = https(origin, pairs[0], {**pairs[1], **asked}, {**pairs[2], **asked})
    proxy = start(config)
    for version in (V12, V13):
        made = context(authority, carol, version)
        kept = session(proxy.address, made, "a.test")
        assert resumes(proxy.address, made, kept, "a.test")
        assert not resumes(proxy.address, made, kept, "must.test")
        # Without a certificate the ticket does not help: nobody gets in.
        empty = context(authority, version=version)
        kept = session(proxy.address, empty, "a.test")
        with pytest.raises((ssl.SSLError, OSError)):
            resumes(proxy.address, empty, kept, "must.test")
        kept = session(proxy.address, made, "must.test")
        assert resumes(proxy.address, made, kept, "must.test")
        assert not resumes(proxy.address, made, kept, "also.test")


def test_a_session_does_not_outlive_the_certificate(start, origin, authority, tmp_path):
    clients = Authority(tmp_path / "clients", "clients")
    asked = {"client_ca": str(clients.cert), "client_auth": "required"}
    proxy = start(https(origin, {**authority.issue("must.test", "must.test"), **asked}))

    def seen_valid(seconds):
        """What was kept while it was valid, and until when; nothing when the machine was too slow for that."""
        end = int(time.time()) + seconds
        brief, kept = clients.brief(f"brief{seconds}", end), []
        with contextlib.suppress(OSError):
            for version in (V12, V13):
                made = context(authority, brief, version)
                kept.append((made, session(proxy.address, made, "must.test")))
                assert resumes(proxy.address, *kept[-1], "must.test") or time.time() > end
        return (kept, end) if time.time() < end else None

    kept, end = seen_valid(4) or seen_valid(30)
    proxy.await_metric("ringgate_tls_handshakes_total", 2, resumed="true")
    before = {outcome: proxy.metric(name, **labels) for outcome, name, labels in (
        ("resumed", "ringgate_tls_handshakes_total", {"resumed": "true"}),
        ("refused", "ringgate_tls_handshake_failures_total", {"reason": "certificate"}))}
    eventually(lambda: time.time() > end + 1, 10, "expired")
    for turn, (made, session_kept) in enumerate(kept, 1):
        with pytest.raises((OSError, EOFError, AssertionError)):
            resumes(proxy.address, made, session_kept, "must.test")
        proxy.await_metric("ringgate_tls_handshake_failures_total", before["refused"] + turn, reason="certificate")
    # Nothing but the sessions before was resumed.
    assert before["resumed"] >= 2
    assert proxy.metric("ringgate_tls_handshakes_total", resumed="true") == before["resumed"]


def test_ticket_keys_change(start, origin, authority):
    pair = authority.issue("a.test", "a.test")
    proxy = start(https(origin, pair, session_lifetime="2s", reload_interval="100ms"))
    made = context(authority, version=V12)
    kept = session(proxy.address, made)
    name = lambda s: s.id and s.ticket_lifetime_hint  # noqa: E731
    assert name(kept) == 2
    # After the next period but one the ticket is of no use, and new ones are.
    eventually(lambda: not resumes(proxy.address, made, kept), 10, "old keys are gone", every=0.2)
    eventually(lambda: resumes(proxy.address, made, session(proxy.address, made)), 5, "new ones are of use")


@contextlib.contextmanager
def at_once(proxy):
    """What is written inside is seen together: the process does not run meanwhile."""
    proxy.signal(signal.SIGSTOP)
    try:
        eventually(lambda: Path(f"/proc/{proxy.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        yield
    finally:
        proxy.signal(signal.SIGCONT)


def put(pair, source):
    """Writes a pair over another, each file at once but one after the other, as certbot does."""
    for kind in ("cert", "key"):
        temporary = f"{pair[kind]}.new"
        with open(temporary, "wb") as out, open(source[kind], "rb") as data:
            out.write(data.read())
        os.replace(temporary, pair[kind])


def test_certificates_are_replaced_a_hundred_times_under_load(start, origin, authority, tmp_path):
    pairs = [authority.issue(f"rotated{i}", "a.test") for i in range(2)]
    live = {"cert": str(tmp_path / "live.pem"), "key": str(tmp_path / "live.key")}
    put(live, pairs[0])
    proxy = start(https(origin, live, reload_interval="20ms"))
    stop, failures, seen = threading.Event(), [], Counter()

    def load(fresh):
        made = context(authority)
        try:
            client = TlsClient(proxy.address, made)
            while not stop.is_set():
                if fresh:
                    client.close()
                    client = TlsClient(proxy.address, made)
                    seen[client.certificate()] += 1
                if client.ask(message(target="/x", body=b"y" * 100, method="POST")).status != 200:
                    failures.append("status")
                seen["requests"] += 1
            client.close()
        except Exception as error:  # noqa: BLE001
            failures.append(repr(error))

    threads = [threading.Thread(target=load, args=(fresh,)) for fresh in (True, True, False)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(1, 101):
            put(live, pairs[turn % 2])
            wanted = turn
            eventually(lambda: proxy.metric("ringgate_tls_files_replaced_total") >= wanted, 10,
                       f"replacement {turn}", every=0.01)
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert not failures, failures[:5]
    served = [n for serial, n in seen.items() if serial != "requests"]
    assert len(served) == 2 and min(served) > 5, seen
    assert sum(v for n, _, v in proxy.metrics() if n == "ringgate_tls_handshake_failures_total") == 0
    # A half-written pair may have been refused on the way; that costs nobody a handshake.


def test_a_bad_pair_is_refused_and_the_old_one_stays(start, origin, authority, tmp_path):
    good = authority.issue("good", "a.test")
    newer = authority.issue("newer", "a.test")
    live = {"cert": str(tmp_path / "live.pem"), "key": str(tmp_path / "live.key")}
    put(live, good)
    proxy = start(https(origin, live, reload_interval="20ms"))
    made = context(authority)

    def shown():
        with TlsClient(proxy.address, made) as client:
            return client.certificate()

    first = shown()
    refused = "ringgate_tls_files_refused_total"
    for turn, (cert, key) in enumerate((
        (good["cert"], newer["key"]),
        ("/dev/null", good["key"]),
        (good["key"], good["key"]),
    ), 1):
        with at_once(proxy):
            put(live, {"cert": cert, "key": key})
        proxy.await_metric(refused, turn)
        assert shown() == first
    os.remove(live["cert"])
    proxy.await_metric(refused, 4)
    assert shown() == first
    told = lambda: len(re.findall("error.*refused, the old one stays in force", proxy.log()))
    eventually(lambda: told() == 4, 5, lambda: f"each refusal is told, once: {told()}")
    with at_once(proxy):
        put(live, newer)
    proxy.await_metric("ringgate_tls_files_replaced_total", 1)
    assert shown() != first
    proxy.await_log("certificates replaced")


def test_a_change_that_was_refused_is_tried_again(start, origin, authority, tmp_path):
    clients = Authority(tmp_path / "clients", "clients")
    names = ("a.test", "b.test", "newer.test")
    pairs = {name: authority.issue(name, name) for name in names}
    live = [{"cert": str(tmp_path / f"{n}.pem"), "key": str(tmp_path / f"{n}.key")} for n in "ab"]
    put(live[0], pairs["a.test"])
    put(live[1], pairs["b.test"])
    asked = {"client_ca": str(clients.cert), "client_auth": "optional"}
    proxy = start(https(origin, live[0], {**live[1], **asked}, reload_interval="20ms"))

    def serves(name):
        made = context(authority)
        made.check_hostname = False
        with TlsClient(proxy.address, made, name) as client:
            return client.sock.getpeercert()["subjectAltName"] == (("DNS", name),)

    # Two for a.test that differ in what they ask: refused as a whole, and said once.
    with at_once(proxy):
        put(live[1], pairs["a.test"])
    proxy.await_metric("ringgate_tls_files_refused_total", 1)
    time.sleep(0.3)
    proxy.await_equal("ringgate_tls_files_refused_total", 1)
    assert serves("a.test") and serves("b.test")
    # With the other changed they go together; this one is not touched again.
    put(live[0], pairs["newer.test"])
    eventually(lambda: serves("a.test") and serves("newer.test"), 10, "both are in force")
    assert not serves("b.test")
