"""What nginx and HAProxy answer to the corpus, next to what a strict proxy must.

`python3 -m conformance.compare` (from tests/) prints the entries that differences.toml needs.
"""

import sys
import tempfile
import tomllib
from pathlib import Path

from conformance.corpus import CASES
from conformance.judge import send
from harness import HAProxy, Nginx, Origin

FILE = Path(__file__).with_name("differences.toml")


def peer(name, directory, origin):
    """A plain proxy of that kind in front of the recording origin."""
    if name == "nginx":
        return Nginx.proxy(directory, origin.text)
    return HAProxy(directory, origin.text)


def answers(name, directory):
    """Outcome by case id for every case."""
    with Origin(lenient=True, timeout=60) as origin, peer(name, Path(directory), origin) as proxy:
        found = {case.id: send(proxy.address, origin, case, patience=2.5) for case in CASES}
        origin.clear()
        origin.errors.clear()
    return found


def difference(case, outcome):
    """What the peer does otherwise, as an entry for the file; None when it does as we do."""
    forwarded = bool(outcome.complete)
    wanted = outcome.status == 200 if case.forwarded == "accepted" else case.forwarded == "yes"
    if outcome.status in case.status and forwarded == wanted:
        return None
    return outcome.brief()


def listed():
    """The known differences: {peer: {case id: entry}} and the reasons."""
    data = tomllib.loads(FILE.read_text())
    return {name: data.get(name, {}) for name in ("nginx", "haproxy")}, data["reasons"]


def main():
    for name in sys.argv[1:] or ("nginx", "haproxy"):
        print(f"\n[{name}]")
        with tempfile.TemporaryDirectory() as directory:
            found = answers(name, directory)
        for case in CASES:
            entry = difference(case, found[case.id])
            if entry:
                status, forwarded = entry["status"], str(entry["forwarded"]).lower()
                expected = "/".join(map(str, case.status)) + " " + case.forwarded
                print(f'"{case.id}" = {{ status = {status}, forwarded = {forwarded}, reason = "" }}  # {expected}')


if __name__ == "__main__":
    main()
