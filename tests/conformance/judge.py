"""Sends one case through a proxy and says what happened."""

import time
from dataclasses import dataclass, field

from harness import Client, get
from harness.message import Closed, Malformed
from harness.tools import eventually

HOP_BY_HOP = ("connection", "keep-alive", "proxy-connection", "upgrade", "http2-settings", "te",
              "proxy-authorization")


@dataclass
class Outcome:
    """What the client saw and what the origin got."""

    statuses: list
    closed: bool | None  # None: not established
    complete: list  # requests the origin got whole
    started: int  # heads the origin got
    error: str = ""
    usable: bool | None = None  # a follow-up request was answered
    malformed: list = field(default_factory=list)  # what the origin could not read

    @property
    def status(self):
        return self.statuses[0] if self.statuses else None

    def brief(self):
        """A line for the differences file."""
        return {"status": self.status or 0, "forwarded": bool(self.complete)}


def send(address, origin, case, patience=5.0, suffix=b"", pieces=None):
    """Sends `case` on a fresh connection; `origin` is the recording origin behind `address`."""
    origin.clear()
    outcome = Outcome([], None, [], 0)
    with Client(address, patience) as client:
        try:
            client.send_pieces(pieces) if pieces else client.send(case.raw + suffix)
        except (ConnectionResetError, BrokenPipeError):
            pass
        _answers(client, case, outcome)
    _settle(address, origin, outcome)
    return outcome


def _answers(client, case, outcome):
    method = "HEAD" if case.raw.startswith(b"HEAD ") else "GET"
    while len(outcome.statuses) < case.answers:
        try:
            response = client.read_response(method)
        except (Closed, ConnectionResetError, BrokenPipeError) as error:
            outcome.closed = True
            if isinstance(error, Closed) and error.got:
                outcome.error = str(error)
            return
        except TimeoutError:
            outcome.error, outcome.closed = "no answer", False
            return
        except Malformed as error:
            outcome.error = f"malformed answer: {error}"
            return
        outcome.statuses.append(response.status)
        if response.until_close:
            outcome.closed = True
            return
        if response.status >= 400:
            break
    _after(client, outcome, response)


def _after(client, outcome, response):
    """Closed after the answer, or fit for another request?"""
    if "close" in (response.header("connection") or "").lower() or response.status >= 400:
        try:
            rest = client.read_until_eof(min(client.timeout, 2.0))
            outcome.closed = True
            if rest:
                outcome.error = f"bytes after the last answer: {rest[:200]!r}"
        except TimeoutError:
            outcome.closed = False
        return
    try:
        again = client.ask(b"GET /usable HTTP/1.1\r\nHost: a.example\r\n\r\n")
        outcome.usable, outcome.closed = again.status == 200, False
    except (Closed, ConnectionResetError, BrokenPipeError):
        outcome.usable, outcome.closed = False, True
    except (TimeoutError, Malformed) as error:
        outcome.usable, outcome.closed, outcome.error = False, False, f"follow-up: {error}"


def _settle(address, origin, outcome):
    """Reads the records once all that was forwarded has arrived: a sentinel request shows that the
    proxy is done, but it may overtake what went over other connections."""
    eventually(lambda: get(address, "/sentinel", timeout=5).status == 200, 10, "the sentinel's answer")
    eventually(lambda: any(r.target == "/sentinel" for r in list(origin.requests)), 5, "the sentinel")
    for _ in range(2):
        # Twice with a pause: bytes that were just taken off a socket need a moment to be counted.
        eventually(origin.quiet, 5, "the origin to have read everything", every=0.001)
        time.sleep(0.001)
    ours = [r for r in list(origin.requests) if r.target not in ("/sentinel", "/usable")]
    heads = [r for r in list(origin.heads) if r.target not in ("/sentinel", "/usable")]
    outcome.complete, outcome.started, outcome.malformed = ours, len(heads), list(origin.malformed)


def complaints(case, outcome):
    """Why the outcome is not what the case expects; empty when it is."""
    found = []
    if outcome.error:
        found.append(outcome.error)
    if outcome.status != case.ours:
        found.append(f"status {outcome.status}, expected {case.ours}")
    refused = outcome.status is None or outcome.status >= 400
    found += outcome.malformed + _forwarding(case, outcome, refused)
    closes = True if refused and case.closes is None else case.closes
    if closes and not outcome.closed:
        found.append("the connection stays open")
    if not closes and closes is not None and outcome.closed:
        found.append("the connection is closed")
    if not refused and not case.closes and outcome.usable is False:
        found.append("the connection is not usable after the answers")
    if not refused and len(outcome.statuses) != case.answers:
        found.append(f"{len(outcome.statuses)} answers, expected {case.answers}")
    for request in outcome.complete:
        found += [f"{request.target}: {text}" for text in uncanonical(request)]
    if outcome.complete and outcome.status == 200:
        found += _expectations(case, outcome.complete[0])
    return found


def _forwarding(case, outcome, refused):
    kind = case.forwarded
    if kind == "accepted":
        kind = "partial" if refused and case.file == "chunked" else "no" if refused else "yes"
    got = len(outcome.complete)
    if kind == "no" and (got or outcome.started):
        return [f"the origin got {outcome.complete or 'a beginning'}"]
    if kind == "partial" and got:
        return [f"the origin got a complete message: {outcome.complete}"]
    answered = sum(status == 200 for status in outcome.statuses)
    if kind == "yes" and got != answered:
        return [f"the origin got {got} requests, {answered} were answered: {outcome.complete}"]
    return []


def _expectations(case, request):
    found = []
    names = {name.lower() for name, _ in request.fields}
    wanted = (("target", case.target), ("body", case.body), ("method", case.method))
    for name, value in wanted:
        if value is not None and getattr(request, name) != value:
            found.append(f"the origin got {name} {getattr(request, name)!r}, expected {value!r}")
    if case.host is not None and request.all("host") != [case.host]:
        found.append(f"the origin got Host {request.all('host')}, expected {case.host}")
    found += [f"the origin got {name}" for name in case.absent if name in names]
    found += [f"the origin did not get {name}" for name in case.present if name not in names]
    return found


def uncanonical(request):
    """What a forwarded request must not have, whatever the client sent."""
    found = []
    names = [name.lower() for name, _ in request.fields]
    framings = [n for n in names if n in ("content-length", "transfer-encoding")]
    websocket = request.all("upgrade") == ["websocket"]
    if len(framings) > 1:
        found.append(f"framing fields {framings}")
    if names.count("host") != 1 and request.version == "HTTP/1.1":
        found.append(f"{names.count('host')} Host fields")
    if request.version != "HTTP/1.1":
        found.append(request.version)
    for name in names:
        if "_" in name:
            found.append(f"underscore in {name}")
        if name in HOP_BY_HOP and not (websocket and name in ("connection", "upgrade")):
            values = request.all(name)
            if not (name == "te" and values == ["trailers"]) and values != ["TE"]:
                found.append(f"hop-by-hop {name}: {values}")
    head = request.raw.partition(b"\r\n\r\n")[0]
    for line in head.split(b"\r\n"):
        if b"\r" in line or b"\n" in line or b"\0" in line or line[:1] in b" \t":
            found.append(f"line {line!r}")
    bad = {"content-length", "transfer-encoding", "host", "connection", "upgrade"}
    found += [f"trailer {name}" for name, _ in request.trailers if name.lower() in bad]
    return found
