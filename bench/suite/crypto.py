"""The part of a request's CPU time that is cryptography, whoever serves it: `openssl speed` and arithmetic.

OpenSSL is what nginx and HAProxy use; Ringgate has AWS-LC, which may take less. Reckoned is what TLS 1.3 cannot do
without: AES-128-GCM over the records of a request and its response (small ones as 256 bytes each); in a handshake two
operations of X25519 (making a key, and deriving with it, taken to cost the same), and in a full one a signature. Left
out are hashing and the derivation of traffic keys.
"""

import subprocess
from pathlib import Path

from . import BenchError
from .process import pinned

SMALL, RECORD = 256, 16384
# Each is measured this often; the fastest counts, since the machine only ever slows it down.
TIMES = 2


def measure(cpus):
    """Microseconds of each operation on these CPUs."""
    return {"version": " ".join(run(["openssl", "version"]).split()[:2]),
            "small_record_us": fastest(cpus, lambda line: SMALL * 1e6 / float(line[3]), "-bytes", SMALL, "-evp", "aes-128-gcm"),
            "full_record_us": fastest(cpus, lambda line: RECORD * 1e6 / float(line[3]), "-bytes", RECORD, "-evp", "aes-128-gcm"),
            # Operations a second; of ECDSA the signatures come before the verifications.
            "sign_us": fastest(cpus, lambda line: 1e6 / float(line[3]), "ecdsap256"),
            "exchange_us": fastest(cpus, lambda line: 1e6 / float(line[3]), "ecdhx25519")}


def fastest(cpus, figure, *algorithm):
    """The least of some runs."""
    command = pinned(cpus, ["openssl", "speed", "-mr", "-seconds", 1, *algorithm])
    found = []
    for _ in range(TIMES):
        lines = [line.split(":") for line in run(command).splitlines() if line.startswith("+F")]
        if len(lines) != 1:
            raise BenchError(f"openssl speed {algorithm[-1]}: no result")
        found.append(figure(lines[0]))
    return min(found)


def run(command):
    """Standard output of a command."""
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
                          check=False)
    if done.returncode != 0:
        raise BenchError(f"{Path(str(command[0])).name}: {done.stderr.strip()}")
    return done.stdout


def cost(speed, body, handshake=None):
    """Microseconds a request."""
    response = -(-body // RECORD) * speed["full_record_us"] if body >= RECORD else speed["small_record_us"]
    exchange = {None: 0.0, "resumed": 2 * speed["exchange_us"], "full": 2 * speed["exchange_us"] + speed["sign_us"]}[handshake]
    return speed["small_record_us"] + response + exchange


def handshake(name):
    """Which handshake a request of this scenario makes."""
    return {"tls-full": "full", "tls-resumed": "resumed"}.get(name)
