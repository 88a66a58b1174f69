"""The audit log: who asked for what, and what became of it.

A request that changes something, or would have, has a line of its own whatever happens to it: no
limit of lines applies, so that no flood can hide one. Reads have a line only if they are refused.
Those without a valid token come in any number, so beyond a few a second they are only counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from ratelimit.api.tokens import STRANGER, Caller, Role
from ratelimit.process.log import AUDIT

LINES_PER_SECOND = 10
"""Lines for refused reads without a valid token; the rest are one line with their number."""

READS = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing (RFC 9110, section 9.2.1)."""

GONE = 499
"""The status of a request whose client went before it was answered."""

_SHOWN = 200  # characters of a path, or of a method that is none of ours

log = structlog.get_logger()


@dataclass(slots=True)
class Attempt:
    """A request, as far as it is known.

    Attributes:
        path: as it may be logged, as are the keys in ``names`` and ``asked``.
        peer: the address that it came from.
        forwarded: whom a trusted proxy says that it asks for, or empty.
        caller: whose token it has; without a name before that is known, or if it has none.
        what: the operation, or empty if it is none.
        names: parts of the path.
        asked: what the body says.
        status: of the answer.
        why: what was wrong with it, or empty.
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
    """Writes the lines; ``tick()`` is to be called once a second."""

    def __init__(self) -> None:
        self._reads = 0

    def record(self, attempt: Attempt) -> None:
        """Write what became of a request, unless it is a read that was answered."""
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
            "method": _shown(attempt.method),
            "path": _shown(attempt.path),
            "what": attempt.what,
            "key": _shown(key),
            "status": attempt.status,
            "why": attempt.why,
        }
        log.info(AUDIT, **(asked | told))

    def tick(self) -> None:
        """Write how many refused reads had no line since the last time."""
        if (more := self._reads - LINES_PER_SECOND) > 0:
            log.info(AUDIT, what="refused reads without a valid token", count=more)
        self._reads = 0


def _shown(text: str) -> str:
    text = text[:_SHOWN]
    return text if text.isprintable() else ascii(text)
