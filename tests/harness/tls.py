"""Certificates made for a test, with openssl, and TLS clients."""

import socket
import ssl
import time
from pathlib import Path

from .client import Client, run, tool
from .message import Stream


class Authority:
    """A certificate authority in a directory; its leaves are valid for a month."""

    def __init__(self, directory, name="authority"):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.cert, self.key = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        openssl("req", "-x509", *EC, "-nodes", "-keyout", self.key, "-out", self.cert,
                "-subj", f"/CN={name}", "-days", "30",
                "-addext", "basicConstraints=critical,CA:TRUE",
                "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        self.serial = 1000

    def issue(self, name, *hosts, rsa=False, subject=None, client=False, days=30):
        """A pair for these hosts (the first name is that of the files); returns its paths."""
        self.serial += 1
        cert, key = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        request, extensions = self.directory / f"{name}.csr", self.directory / f"{name}.ext"
        usage = "clientAuth" if client else "serverAuth"
        names = [f"IP:{h}" if h.replace(".", "").isdigit() else f"DNS:{h}" for h in hosts]
        lines = ["basicConstraints=CA:FALSE", f"extendedKeyUsage={usage}",
                 "keyUsage=critical,digitalSignature"]
        lines += [f"subjectAltName={','.join(names)}"] if names else []
        extensions.write_text("\n".join(lines) + "\n")
        openssl("req", "-new", *(RSA if rsa else EC), "-nodes", "-keyout", key, "-out", request,
                "-subj", subject or f"/CN={name}")
        openssl("x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self.key,
                "-set_serial", self.serial, "-days", days, "-extfile", extensions, "-out", cert)
        return {"cert": str(cert), "key": str(key)}

    def brief(self, name, end):
        """A client's pair that is valid until this second."""
        cert, key = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        request, config = self.directory / f"{name}.csr", self.directory / f"{name}.cnf"
        index = self.directory / f"{name}.index"
        index.write_text("")
        config.write_text(
            "[ca]\ndefault_ca=x\n[x]\npolicy=p\nx509_extensions=e\ndefault_md=sha256\n"
            f"database={index}\nnew_certs_dir={self.directory}\nrand_serial=yes\n"
            "[p]\ncommonName=supplied\n[e]\nextendedKeyUsage=clientAuth\n")
        openssl("req", "-new", *EC, "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        until = time.strftime("%y%m%d%H%M%SZ", time.gmtime(end))
        openssl("ca", "-batch", "-notext", "-config", config, "-in", request, "-out", cert,
                "-cert", self.cert, "-keyfile", self.key, "-enddate", until)
        return {"cert": str(cert), "key": str(key)}

    def ocsp(self, pair, name="staple"):
        """An OCSP response that calls the pair's certificate good."""
        response, index = self.directory / f"{name}.der", self.directory / f"{name}.index"
        serial = openssl("x509", "-in", pair["cert"], "-noout", "-serial").stdout.split("=")[1]
        index.write_text(f"V\t491231235959Z\t\t{serial.strip()}\tunknown\t/CN=x\n")
        openssl("ocsp", "-index", index, "-CA", self.cert, "-rsigner", self.cert, "-rkey", self.key,
                "-issuer", self.cert, "-cert", pair["cert"], "-ndays", "7", "-respout", response)
        return str(response)


EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
RSA = ("-newkey", "rsa:2048")


def openssl(*args, timeout=30, **more):
    return run("openssl", *args, timeout=timeout, **more)


def s_client(address, *args, name=None, stdin="", timeout=20):
    """`openssl s_client` to its end; returns all it printed."""
    import subprocess

    names = ["-servername", name] if name else ["-noservername"]
    target = f"{address[0]}:{address[1]}"
    done = subprocess.run(
        [tool("openssl"), "s_client", "-connect", target, *names, *map(str, args)],
        input=stdin, capture_output=True, text=True, timeout=timeout, errors="replace",
    )
    return done.stdout + done.stderr


def context(authority, pair=None, version=None, alpn=("http/1.1",)):
    """A client that trusts this authority."""
    made = ssl.create_default_context(cafile=str(authority.cert))
    if alpn:
        made.set_alpn_protocols(list(alpn))
    if pair:
        made.load_cert_chain(pair["cert"], pair["key"])
    if version:
        made.minimum_version = made.maximum_version = version
    return made


class TlsClient(Client):
    """A client inside TLS; `.sock` is an SSLSocket."""

    def __init__(self, address, made, name="a.test", timeout=10.0, session=None, **more):
        super().__init__(address, timeout, **more)
        try:
            self.sock = made.wrap_socket(self.sock, server_hostname=name, session=session)
        except (OSError, ssl.SSLError):
            self.sock.close()
            raise
        self.stream = Stream(self.sock, timeout)

    def certificate(self):
        """The serial number the server showed."""
        return int(self.sock.getpeercert()["serialNumber"], 16)


def raw(address, timeout=10.0):
    """A TCP socket."""
    sock = socket.create_connection(address, timeout)
    sock.settimeout(timeout)
    return sock


__all__ = ["Authority", "TlsClient", "context", "openssl", "raw", "s_client"]
