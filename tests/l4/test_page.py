"""The status page of a node that is everything at once: VRRP, director, tuning, upstreams."""

import os
import re
import tempfile
from pathlib import Path

from harness.client import tool
from harness.tools import eventually

from .common import VIP, Node, Server, spread, virtual_server
from .test_views import service


def browse(host, *more):
    """The page in the host's namespace, after its script has run."""
    with tempfile.TemporaryDirectory() as profile:
        done = host.run(
            tool("chromium"), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
            "--virtual-time-budget=3000", *more, "http://127.0.0.1:9090/", timeout=60,
        )  # fmt: skip
    return done


def test_the_page_of_a_whole_node(lan, tmp_path):
    """`PAGES=DIRECTORY` keeps pictures of it, to be looked at: wide, middling and on a phone, dark and light."""
    client, host, server = lan.host(), lan.host(), Server(lan.host(), tmp_path, "s1")
    root = tmp_path / "root"
    root.mkdir()
    check = '{ tcp = true, delay_loop = "200ms", connect_timeout = "200ms", retry = 1, warmup = "0s" }'
    node = Node(
        host, tmp_path, "a",
        '[vrrp.VI_1]\ninterface = "eth0"\nvirtual_router_id = 51\npriority = 100\nadvertise = "50ms"\n'
        f'addresses = ["{VIP}/24"]\n'
        f'[tuning]\nprofile = "minimal"\nroot = "{root}"\ninterfaces = ["lo"]\n'
        '[upstream.dead]\ncheck = { tcp = true, interval = "200ms", fall = 1 }\n'
        'servers = [{ address = "127.0.0.1:1" }, { address = "127.0.0.1:9090" }]\n'
        + virtual_server(f"{VIP}:80", [server.host.address, "10.77.0.99"]).replace("]]\n", f"]]\ncheck = {check}\n", 1),
    )
    node.start()
    try:
        node.await_neighbours(1)
        eventually(lambda: VIP in host.addresses("eth0"), 15, "the address is here")
        down = lambda: "real server is down" in node.log()
        eventually(down, 15, "the missing server is found dead")
        eventually(lambda: spread(client, f"http://{VIP}/", 2) == {"s1": 2}, 15, "the director forwards")
        dom = lambda: re.sub(r"<script.*?</script>", "", browse(host, "--dump-dom").stdout, flags=re.S)
        wanted = ("VI_1 (eth0, id 51)", f"{VIP}/24", "no advertisement from an active router",  # VRRP
                  f"TCP {VIP}:80 rr", server.host.address, "10.77.0.99", "timeout",  # the director
                  "<span>eth0</span>", "unreachable",  # its surroundings
                  "127.0.0.1:1", "unhealthy", "its health check fails: Connection refused", "1 of 2 out")
        tuned = ("are not as they should be", "minimal: all that applies is in force")  # the machine decides which

        def missing(found):
            return [part for part in wanted if part not in found] + [tuned] * all(part not in found for part in tuned)

        eventually(lambda: missing(dom()) == [], 30, f"{wanted}")
        for name in (f"{width}-{kind}" for width in ("phone", "middle", "wide") for kind in ("light", "dark")) if os.environ.get("PAGES") else ():
            width, kind = name.split("-")
            picture = Path(os.environ["PAGES"]) / f"{name}.png"
            size = {"phone": "400,2800", "middle": "900,1700", "wide": "1400,1500"}[width]
            dark = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if kind == "dark" else []
            browse(host, f"--window-size={size}", f"--screenshot={picture}", *dark)
            assert picture.stat().st_size > 10_000
    finally:
        node.stop()
        server.stop()


def test_checks_of_real_servers_change_with_a_reload(lan, tmp_path):
    """None at first, then one that finds a dead server, then none again, which takes it for alive."""
    host, servers = lan.host(), [Server(lan.host(), tmp_path, f"s{n}", web=False) for n in (1, 2)]
    host.ip("addr", "add", f"{VIP}/24", "dev", "eth0")
    plain = virtual_server(f"{VIP}:8080", [server.host.address for server in servers])
    check = 'check = { tcp = true, delay_loop = "100ms", connect_timeout = "2s", retry = 0, warmup = "0s" }\n'
    node = Node(host, tmp_path, "a", plain)
    node.start()
    try:
        node.await_neighbours(2)
        good = node.file.read_text()
        checked = good.replace("[[virtual_server]]\n", f"[[virtual_server]]\n{check}")
        states = lambda: [one["state"] for one in service(node, 8080)["servers"]]
        servers[0].stop()
        assert states() == ["up", "up"], "nobody looks"
        for _ in range(2):
            node.file.write_text(checked)
            assert "in force" in node.control("reload").stdout
            eventually(lambda: states() == ["down", "up"], 15, "the dead one is found")
            node.file.write_text(good)
            node.control("reload")
            eventually(lambda: states() == ["up", "up"], 15, "nobody looks any more")
        assert "real server is down" in node.log()
    finally:
        node.stop()
        for server in servers:
            server.stop()
