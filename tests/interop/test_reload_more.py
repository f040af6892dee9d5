"""Certificates and names that a reload changes."""

from harness import eventually, get, respond, tool
from harness.origin import Origin
from harness.proxy import one
from harness.tls import Authority, s_client

from .test_upgrade import line  # noqa: F401 (a fixture)


def served(proxy, name):
    """The subject of the certificate for this name."""
    out = s_client(proxy.address, "-brief", name=name, stdin="Q")
    return next((row.split("CN = ")[-1].split("CN=")[-1].strip() for row in out.splitlines()
                 if "certificate: " in row.lower()), out)


def test_certificates_come_and_go(line, origin, tmp_path):
    authority = Authority(tmp_path / "ca")
    a, b = authority.issue("a", "a.example"), authority.issue("b", "b.example")
    proxy = line({**one(origin), "listener": [{"certificates": [a]}]})
    good = proxy.file.read_text()
    assert served(proxy, "a.example") == "a" and served(proxy, "b.example") == "a", "the first is the default"
    entry = f'{{ cert = "{b["cert"]}", key = "{b["key"]}" }}'
    more = good.replace("certificates = [", f"certificates = [{entry}, ")
    assert more != good

    def files():
        return sorted(c["file"].rpartition("/")[2] for c in proxy.status()["certificates"])

    assert files() == ["a.pem"]
    proxy.file.write_text(more)
    done = proxy.ctl("reload")
    assert "listener web: certificates changed" in done.stdout, done.stdout
    # The one that was added comes first now, so unknown names get it.
    found = [served(proxy, f"{name}.example") for name in "abc"]
    assert found == ["a", "b", "b"]
    assert files() == ["a.pem", "b.pem"]
    # One that does not belong to its key changes nothing.
    proxy.file.write_text(more.replace(b["key"], a["key"]))
    refused = proxy.ctl("reload", check=False)
    assert refused.returncode == 1 and "b.pem" in refused.stderr, refused.stderr
    assert served(proxy, "b.example") == "b"
    proxy.file.write_text(good)
    proxy.ctl("reload")
    assert served(proxy, "b.example") == "a" and files() == ["a.pem"]
    proxy.stop()


def test_names_change_with_a_reload(line, tmp_path):
    """Servers by name: another name, another address of a name once the interval is shortened, an unknown name."""
    backs = {}
    for last in (2, 3, 4):
        port = backs[2].port if backs else None
        backs[last] = Origin(respond(body=str(last).encode()), host=f"127.0.0.{last}", port=port)
        backs[last].listen()
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.2 one.example\n127.0.0.3 two.example\n")
    mount = 'mount --bind "$0" /etc/hosts && exec "$@"'
    try:
        name = f"one.example:{backs[2].port}"
        proxy = line({**one(name), "node": {"resolve_interval": "1h"}},
                     prefix=[tool("unshare"), "-m", "sh", "-c", mount, hosts])

        def bodies():
            return {get(proxy.address).body.decode() for _ in range(8)}

        assert bodies() == {"2"}
        proxy.write(lambda text: text.replace("one.example", "two.example"))
        assert "two.example" in proxy.ctl("reload").stdout
        assert bodies() == {"3"}
        # In place: the file is mounted.
        with open(hosts, "w") as file:
            file.write("127.0.0.2 one.example\n127.0.0.4 two.example\n")
        assert bodies() == {"3"}, "not looked up before its time"
        proxy.write(lambda text: text.replace('"1h"', '"200ms"'))
        proxy.ctl("reload")
        eventually(lambda: bodies() == {"4"}, 10, "the name has another address")
        # A name that nobody knows any more: told, and what is served goes on.
        with open(hosts, "w") as file:
            file.write("127.0.0.2 one.example\n")
        eventually(lambda: "name not resolved; its addresses stay" in proxy.log(), 10, "it is told")
        assert bodies() == {"4"}, "the last known address stays"
        proxy.stop()
    finally:
        for back in backs.values():
            back.stop()
