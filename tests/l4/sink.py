"""A real server for tests: says its name, sums up what it is sent, sends what it is asked for. UDP: echoes."""

import hashlib
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME, PORT = sys.argv[1], int(sys.argv[2])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.startswith("/bytes/"):
            body = hashlib.shake_128(b"body").digest(1 << 16) * (int(self.path[7:]) >> 16)
        else:
            body = NAME.encode()
        self.answer(body)

    def do_PUT(self):
        left, digest = int(self.headers["content-length"]), hashlib.sha256()
        while left:
            chunk = self.rfile.read(min(left, 1 << 16))
            if not chunk:
                return
            digest.update(chunk)
            left -= len(chunk)
        self.answer(f"{NAME} {digest.hexdigest()}".encode())

    def answer(self, body):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 1024
    daemon_threads = True


def echo():
    """Answers from the address that was asked, as a service on a virtual address has to."""
    pktinfo = 8  # IP_PKTINFO
    for family, level, want, kind in (
        (socket.AF_INET, socket.IPPROTO_IP, pktinfo, pktinfo),
        (socket.AF_INET6, socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, socket.IPV6_PKTINFO),
    ):
        threading.Thread(target=serve_udp, args=(family, level, want, kind), daemon=True).start()


def serve_udp(family, level, want, kind):
    with socket.socket(family, socket.SOCK_DGRAM) as udp:
        udp.setsockopt(level, want, 1)
        if family == socket.AF_INET6:
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        udp.bind(("", PORT))
        while True:
            data, control, _, peer = udp.recvmsg(65536, 256)
            info = next(value for one, two, value in control if (one, two) == (level, kind))
            if family == socket.AF_INET:
                info = b"\0\0\0\0" + info[8:12] + b"\0\0\0\0"
            digest = hashlib.sha256(data).hexdigest()
            udp.sendmsg([f"{NAME} {digest}".encode()], [(level, kind, info)], 0, peer)


echo()
Server(("::", PORT), Handler).serve_forever()
