"""The smuggling corpus: raw requests as data, and what a strict proxy does with each.

A case is a `Case`; its fields:

- `id`: unique; `raw`: what the client sends on a fresh connection.
- `status`: the first answer's status. Where RFC 9110/9112 leave several open (`why` says so) it is a
  tuple: Ringgate gives the first, and a peer that gives another of them does not differ.
- `forwarded`: "no" (nothing reaches the origin), "yes", "partial" (the head was good, so the origin
  may see the beginning of the message, never a complete one), or "accepted" (as the status says:
  200 forwarded, anything else not).
- `closes`: the proxy closes after the answer. Refusals always do.
- `answers`: how many responses the whole input gets (pipelines).
- `target`, `host`, `body`, `method`: what the origin must have received, when it matters.
- `absent` / `present`: field names (lower case) the origin must not / must have received.
- `note`: the rule, with the RFC section.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    id: str
    raw: bytes
    status: int | tuple
    note: str
    forwarded: str = ""
    closes: bool | None = None
    answers: int = 1
    target: str | None = None
    host: str | None = None
    body: bytes | None = None
    method: str | None = None
    absent: tuple = ()
    present: tuple = ()
    why: str = ""

    def __post_init__(self):
        statuses = self.status if isinstance(self.status, tuple) else (self.status,)
        object.__setattr__(self, "status", statuses)
        if not self.forwarded:
            kind = "yes" if statuses == (200,) else "accepted" if 200 in statuses else "no"
            object.__setattr__(self, "forwarded", kind)
        assert self.forwarded in ("yes", "no", "partial", "accepted"), self.id
        assert len(statuses) == 1 or self.why, f"{self.id}: say why several statuses are right"

    @property
    def ours(self):
        """The one status that Ringgate answers."""
        return self.status[0]

    @property
    def file(self):
        return self.id.partition("/")[0]


def _load():
    from . import chunked, connection, fields, host, length, limits, request_line, target, transfer_coding

    modules = (
        request_line, target, host, fields, length, transfer_coding, chunked, limits, connection
    )
    found = {}
    for module in modules:
        for case in module.CASES:
            assert case.id not in found, f"{case.id} twice"
            found[case.id] = case
    return list(found.values())


CASES = _load()
BY_ID = {case.id: case for case in CASES}
