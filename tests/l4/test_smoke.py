from harness.lan import Lan

from .common import *


def test_it(tmp_path):
    with Lan() as lan:
        client = lan.host()
        a = lan.host()
        servers = [Server(lan.host(), tmp_path, f"s{n}") for n in (1, 2, 3)]
        a.ip("addr", "add", f"{VIP}/24", "dev", "eth0")
        a.ip("addr", "add", f"{VIP6}/64", "dev", "eth0", "nodad")
        four = [s.host.address for s in servers]
        six = [s.host.address6 for s in servers]
        config = (virtual_server(f"{VIP}:80", four) + virtual_server(f"{VIP}:8080", four)
            + virtual_server(f"[{VIP6}]:80", six) + virtual_server(f"{VIP}:8080", four, protocol="udp"))
        with Node(a, tmp_path, "a", config) as node:
            node.await_neighbours(6)
            print(node.log())
            print(spread(client, f"http://{VIP}/", 9))
            print(spread(client, f"http://[{VIP6}]/", 9))
            print(spread(client, f"http://{VIP}:8000/", 2))
            big = tmp_path / "big"
            big.write_bytes(b"0123456789abcdef" * (4 << 20))
            import hashlib
            want = hashlib.sha256(big.read_bytes()).hexdigest()
            up = curl(client, "-T", big, f"http://{VIP}:8080/up", "-w", " %{speed_upload}", timeout=30)
            print(up, want)
            down = curl(client, f"http://{VIP}:8080/bytes/100000000", "-o", "/dev/null", "-w", "%{size_download} %{speed_download}", timeout=30)
            print(down)
            print(client.run("nft", "list", "ruleset", check=False) if False else "")
        for s in servers:
            s.stop()
