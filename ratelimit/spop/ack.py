"""ACK frames and their variables (SPOE.txt, sections 3.2.7 and 3.4), all in scope txn."""

from __future__ import annotations

from ratelimit.engine.rule import Rule
from ratelimit.spop.constants import MAX_ACK, DataType, FrameType
from ratelimit.wire.writer import Writer

_ACK = int(FrameType.ACK)  # of C's int type when compiled
_FIN = 1
_SET_VAR = 1
_SET_VAR_ARGUMENTS = 3
_UNSET_VAR = 2
_UNSET_VAR_ARGUMENTS = 2
_SCOPE_TXN = 2
_TRUE = 0x11

_OUTPUT = 1 << 16


def _head(name: bytes, kind: int) -> bytes:
    """Return the bytes before the value of a variable; precomputed, as most of an answer is
    constant.

    The type byte of a boolean includes its value.
    """
    start = (_SET_VAR, _SET_VAR_ARGUMENTS, _SCOPE_TXN, len(name))
    return bytes(start) + name + bytes((kind,))


_DENY = _head(b"deny", _TRUE)
_REASON = _head(b"reason", DataType.STRING)
_RETRY_AFTER = _head(b"retry_after", DataType.INT64)
_BLOCK_UNTIL = _head(b"block_until", DataType.INT64)
_LIMIT = _head(b"limit", DataType.INT64)
_REMAINING = _head(b"remaining", DataType.INT64)
_RESET = _head(b"reset", DataType.INT64)
_WINDOW = _head(b"window", DataType.INT64)
_NO_WINDOW = bytes((_UNSET_VAR, _UNSET_VAR_ARGUMENTS, _SCOPE_TXN, 6)) + b"window"
_LIMIT_NAME = _head(b"limit_name", DataType.STRING)
_SHADOW = _head(b"shadow", DataType.STRING)


class Acknowledge:
    """Writes the ACKs of one read: for each, ``begin()``, the variables, ``end()``."""

    def __init__(self) -> None:
        self.writer = Writer(_OUTPUT)
        self.frame = 0

    def room(self) -> int:
        """Return how many more ACKs are sure to fit."""
        return self.writer.room() // MAX_ACK

    def take(self) -> bytes:
        """Return the frames written since the last call."""
        return self.writer.take()

    def begin(self, data: bytes, ids: int, ids_size: int) -> None:
        """Begin the ACK of the NOTIFY whose ids are in ``data`` from ``ids`` on."""
        writer = self.writer
        self.frame = writer.pos
        writer.pos += 4
        writer.byte(_ACK)
        writer.u32(writer.pos, _FIN)
        writer.pos += 4
        writer.copy(data, ids, ids_size)

    def end(self) -> None:
        """End the ACK."""
        self.writer.u32(self.frame, self.writer.pos - self.frame - 4)

    def refuse(self, reason: bytes, wait: int, until: int) -> None:
        """Set the variables of a refusal; ``wait`` is the seconds after which to retry.

        ``until`` is the epoch second at which a block ends, by HAProxy's clock, or 0.
        """
        self.head(_DENY)
        self.head(_REASON)
        self.writer.string(reason)
        self.integer(_RETRY_AFTER, wait)
        if until > 0:
            self.integer(_BLOCK_UNTIL, until)

    def tell(self, rule: Rule, remaining: int, reset: int) -> None:
        """Set the variables for the ``RateLimit`` header fields."""
        if rule.told_rate != rule.rate:
            self.describe(rule)
        self.head(rule.told)
        self.integer(_REMAINING, remaining)
        self.integer(_RESET, reset)

    def watch(self, verdict: bytes, rule: Rule) -> None:
        """Set the verdict of a limit in shadow mode; ``verdict`` ends with a colon."""
        writer = self.writer
        self.head(_SHADOW)
        writer.varint(len(verdict) + rule.name_size)
        writer.copy(verdict, 0, len(verdict))
        writer.copy(rule.name, 0, rule.name_size)

    def describe(self, rule: Rule) -> None:
        """Precompute the variables of a limit that are the same in all answers."""
        writer = self.writer
        start = writer.pos
        self.integer(_LIMIT, rule.rate)
        if rule.seconds > 0:
            self.integer(_WINDOW, rule.seconds)
        else:
            # Another group of the same request may have set the variable for another limit.
            self.head(_NO_WINDOW)
        self.head(_LIMIT_NAME)
        writer.string(rule.name)
        rule.told = bytes(writer.buffer[start : writer.pos])
        rule.told_rate = rule.rate
        writer.pos = start

    def head(self, head: bytes) -> None:
        self.writer.copy(head, 0, len(head))

    def integer(self, head: bytes, value: int) -> None:
        self.writer.copy(head, 0, len(head))
        self.writer.varint(value)
