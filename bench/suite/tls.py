"""TLS of the contenders: one certificate for all, the proof that all agree to the same, and a request of HTTP/2.

Equal means: the same ECDSA P-256 certificate, TLS 1.3 with AES-128-GCM (in TLS 1.2 the cipher of the same kind),
tickets that resume, HTTP/2 and HTTP/1.1 by ALPN.
"""

import functools
import socket
import ssl
import struct
import subprocess
import tempfile
from pathlib import Path

from . import BenchError
from .process import HOST, tls_context

CIPHER = {"TLSv1.3": "TLS_AES_128_GCM_SHA256", "TLSv1.2": "ECDHE-ECDSA-AES128-GCM-SHA256"}
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1


@functools.cache
def identity():
    """Certificate and key in PEM, self-signed, made once for all contenders of a run."""
    with tempfile.TemporaryDirectory(prefix="ringgate-bench-") as directory:
        key, cert = Path(directory) / "key.pem", Path(directory) / "cert.pem"
        done = subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}", "-keyout", key, "-out", cert],
            capture_output=True, text=True, timeout=30, check=False)
        if done.returncode != 0:
            raise BenchError(f"openssl req: {done.stderr.strip()}")
        return cert.read_text(), key.read_text()


def write_identity(directory):
    """Certificate and key as files, and both in one."""
    cert, key = identity()
    for name, text in (("site.pem", cert), ("site.key", key), ("both.pem", cert + key)):
        (directory / name).write_text(text)


def check(server):
    """Fails unless the contender agrees to what all of them are measured with."""
    wrong = [fault for version in CIPHER for fault in faults(server, version)]
    if wrong:
        raise BenchError(f"{server.label} does not speak the agreed TLS: " + "; ".join(wrong))


def faults(server, version):
    """What is not as it should be in one version."""
    context = tls_context(("h2", "http/1.1"))
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version.replace(".", "_")]
    try:
        first = look(server, context)
        again = look(server, context, first["session"])
    except OSError as error:
        return [f"{version}: {error}"]
    expected = {"version": version, "cipher": CIPHER[version], "alpn": "h2", "certificate": ssl.PEM_cert_to_DER_cert(identity()[0]),
                "ticket": True, "reused": False}
    wrong = [f"{version}: {key} is {first[key]!r}, not {value!r}" for key, value in expected.items() if first[key] != value]
    context.set_alpn_protocols(["http/1.1"])
    if look(server, context)["alpn"] != "http/1.1":
        wrong.append(f"{version}: no HTTP/1.1 by ALPN")
    return wrong + ([] if again["reused"] else [f"{version}: the session is not resumed"])


def look(server, context, session=None):
    """What a handshake came to."""
    with secured(server, context, session) as sock:
        sock.sendall(b"?" * 64 + b"\r\n\r\n")  # tickets of TLS 1.3 come before the answer to nonsense
        try:
            while sock.recv(4096):
                pass
        except OSError:
            pass  # it may as well reset
        kept = sock.session
        return {"version": sock.version(), "cipher": sock.cipher()[0], "alpn": sock.selected_alpn_protocol(),
                "certificate": sock.getpeercert(binary_form=True), "session": kept, "reused": sock.session_reused,
                "ticket": bool(kept and kept.has_ticket)}


def secured(server, context, session=None):
    """A connection."""
    raw = socket.create_connection((server.address, server.port), 5)
    try:
        return context.wrap_socket(raw, server_hostname=HOST, session=session)
    except BaseException:
        raw.close()
        raise


def get_http2(server, path):
    """The body of the answer to one GET over HTTP/2."""
    with secured(server, tls_context(("h2",))) as sock:
        if sock.selected_alpn_protocol() != "h2":
            raise BenchError("no HTTP/2 by ALPN")
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b"")
                     + frame(HEADERS, END_STREAM | END_HEADERS, 1, request_block(path)))
        return body_of(sock.makefile("rb"), sock)


def body_of(source, sock):
    """Reads frames up to the end of stream 1."""
    body = b""
    while True:
        head = source.read(9)
        if len(head) < 9:
            raise BenchError(f"the connection ended after {body!r}")
        length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        payload = source.read(length)
        if kind in (RST_STREAM, GOAWAY):
            raise BenchError(f"frame {kind} in place of an answer: {payload!r}")
        if kind == SETTINGS and not flags & ACK:
            sock.sendall(frame(SETTINGS, ACK, 0, b""))
        body += payload if kind == DATA else b""
        if kind in (DATA, HEADERS) and flags & END_STREAM:
            return body.decode()


def frame(kind, flags, stream, payload):
    """A frame (RFC 9113 section 4.1)."""
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def request_block(path):
    """The fields of a GET, literal and without Huffman coding (RFC 7541 section 6.2.2)."""
    text = lambda word: bytes([len(word)]) + word.encode()
    # Static names: :method GET is entry 2, :scheme https 7, :path 4, :authority 1.
    return b"\x82\x87\x04" + text(path) + b"\x01" + text(HOST)
