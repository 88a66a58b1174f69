"""The audit log: each change with its caller and its result.

A request that changes something, or tried to, always has its own line, without a rate limit, so
that a flood of other requests can't hide it. A read has a line only if it is refused. Refused reads
without a valid token have at most ``LINES_PER_SECOND`` lines; the rest are counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from ratelimit.api.tokens import STRANGER, Caller, Role
from ratelimit.notation import printable
from ratelimit.process.log import AUDIT

LINES_PER_SECOND = 10
"""Lines per second for refused reads without a valid token; the rest share one line with a count.
"""

READS = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing (RFC 9110, section 9.2.1)."""

GONE = 499
"""Status of a request whose client disconnected before the answer."""

_SHOWN = 200  # characters of a path, or of an unknown method

log = structlog.get_logger()


@dataclass(slots=True)
class Attempt:
    """A request, as far as it is known.

    Attributes:
        path: in the form for the log, as are the keys in ``names`` and ``asked``.
        peer: source address of the connection.
        forwarded: client named by a trusted proxy, or empty.
        caller: owner of the token; without a name if unknown or if there is no token.
        what: name of the operation, or empty if there is none.
        names: parameters in the path.
        asked: fields of the body.
        status: of the answer.
        why: error text, or empty.
    """

    method: str
    path: str
    peer: str
    forwarded: str = ""
    caller: Caller = STRANGER
    what: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    status: int = GONE
    why: str = ""


class Audit:
    """Writes the audit lines; call ``tick()`` once a second."""

    def __init__(self) -> None:
        self._reads = 0

    def record(self, attempt: Attempt) -> None:
        """Write the line of a request; an answered read has none."""
        if attempt.method in READS:
            if attempt.status not in (400, 401, 403, 405, 421):
                return
            if attempt.caller.role is Role.NOBODY:
                self._reads += 1
                if self._reads > LINES_PER_SECOND:
                    return
        asked = dict(attempt.asked)
        key = str(asked.pop("key", "") or "/".join(attempt.names.values()))
        told = {
            "who": attempt.caller.name,
            "role": attempt.caller.role.name.lower(),
            "peer": attempt.peer,
            "forwarded": attempt.forwarded,
            "method": printable(attempt.method[:_SHOWN]),
            "path": printable(attempt.path[:_SHOWN]),
            "what": attempt.what,
            "key": printable(key[:_SHOWN]),
            "status": attempt.status,
            "why": attempt.why,
        }
        log.info(AUDIT, **(asked | told))

    def tick(self) -> None:
        """Write the number of refused reads without a line since the last call."""
        if (more := self._reads - LINES_PER_SECOND) > 0:
            log.info(AUDIT, what="refused reads without a valid token", count=more)
        self._reads = 0
