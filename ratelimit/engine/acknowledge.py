"""ACK frames and the variables in them (SPOE.txt, sections 3.2.7 and 3.4), all in scope txn."""

from __future__ import annotations

from ratelimit.engine.rule import Rule
from ratelimit.spop.codec import Writer
from ratelimit.spop.constants import FrameType

_ACK = int(FrameType.ACK)  # of C's int type when compiled
_FIN = 1
_SET_VAR = 1
_SET_VAR_ARGUMENTS = 3
_UNSET_VAR = 2
_UNSET_VAR_ARGUMENTS = 2
_SCOPE_TXN = 2
_TRUE = 0x11

MAX_ACK = 256
"""Bytes of the longest ACK: fits the smallest frame that a peer may ask for."""

_MAX_ACK = MAX_ACK  # of C's int type when compiled
_OUTPUT = 1 << 16


class Acknowledge:
    """The answers of one read: ``begin()`` each, say what it says, and ``end()`` it."""

    def __init__(self) -> None:
        self.writer = Writer(_OUTPUT)
        self.frame = 0

    def full(self) -> bool:
        """Tell whether another answer might not fit."""
        return self.writer.room() < _MAX_ACK

    def take(self) -> bytes:
        """Return the frames written since the last call."""
        return self.writer.take()

    def begin(self, data: bytes, ids: int, ids_size: int) -> None:
        """Begin the answer to the NOTIFY whose ids are in ``data`` from ``ids`` on."""
        writer = self.writer
        self.frame = writer.pos
        writer.pos += 4
        writer.byte(_ACK)
        writer.u32(writer.pos, _FIN)
        writer.pos += 4
        writer.copy(data, ids, ids_size)

    def end(self) -> None:
        """End the answer."""
        self.writer.u32(self.frame, self.writer.pos - self.frame - 4)

    def refuse(self, reason: bytes, wait: int, until: int) -> None:
        """Say that the request is refused, and in how many seconds to come again.

        ``until`` is the epoch second at which a block ends, by HAProxy's clock, or 0.
        """
        self.variable(b"deny")
        self.writer.byte(_TRUE)
        self.variable(b"reason")
        self.writer.typed_string(reason)
        self.integer(b"retry_after", wait)
        if until > 0:
            self.integer(b"block_until", until)

    def tell(self, rule: Rule, remaining: int, reset: int) -> None:
        """Say what is left of a limit, for the header fields."""
        self.integer(b"limit", rule.rate)
        self.integer(b"remaining", remaining)
        self.integer(b"reset", reset)
        if rule.seconds > 0:
            self.integer(b"window", rule.seconds)
        else:
            # There may be one of a limit that another group of the same request asked for.
            self.forget(b"window")
        self.variable(b"limit_name")
        self.writer.typed_string(rule.name)

    def variable(self, name: bytes) -> None:
        writer = self.writer
        writer.byte(_SET_VAR)
        writer.byte(_SET_VAR_ARGUMENTS)
        writer.byte(_SCOPE_TXN)
        writer.string(name)

    def forget(self, name: bytes) -> None:
        writer = self.writer
        writer.byte(_UNSET_VAR)
        writer.byte(_UNSET_VAR_ARGUMENTS)
        writer.byte(_SCOPE_TXN)
        writer.string(name)

    def integer(self, name: bytes, value: int) -> None:
        self.variable(name)
        self.writer.typed_int(value)
