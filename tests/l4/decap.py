"""Unpacks tunnelled packets (IP in IP, and GUE on UDP port 6080) and gives them to this host: the kernel here has no ipip."""

import selectors
import socket

IPIP, IPV6_IN, GUE_PORT, UDP_NO_CHECK6_RX = 4, 41, 6080, 102

lo = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
lo.bind(("lo", 0))
outer = selectors.DefaultSelector()
v4_in_v4 = socket.socket(socket.AF_INET, socket.SOCK_RAW, IPIP)
v6_in_v4 = socket.socket(socket.AF_INET, socket.SOCK_RAW, IPV6_IN)
gue = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
# The outer datagram has no checksum (RFC 6936); as Linux' fou, which takes such.
gue.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_RX, 1)
gue.bind(("::", GUE_PORT))
for one in (v4_in_v4, v6_in_v4, gue):
    outer.register(one, selectors.EVENT_READ)
print("unpacking", flush=True)
while True:
    for key, _ in outer.select():
        packet = key.fileobj.recv(65536)
        # Raw IPv4 sockets show the header.
        inner = packet[4:] if key.fileobj is gue else packet[(packet[0] & 15) * 4 :]
        kind = b"\x08\x00" if inner[0] >> 4 == 4 else b"\x86\xdd"
        lo.send(bytes(12) + kind + inner)
