"""ACK frames and the variables in them (SPOE.txt, sections 3.2.7 and 3.4), all in scope txn."""

from __future__ import annotations

from ratelimit.engine.rule import Rule
from ratelimit.spop.codec import Writer
from ratelimit.spop.constants import DataType, FrameType

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


def _head(name: bytes, kind: int) -> bytes:
    """Return what stands before the value of a variable, for most of an answer is always the same.

    A boolean is its kind, and nothing follows.
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
    """The answers of one read: ``begin()`` each, say what it says, and ``end()`` it."""

    def __init__(self) -> None:
        self.writer = Writer(_OUTPUT)
        self.frame = 0

    def room(self) -> int:
        """Return how many more answers are sure to fit."""
        return self.writer.room() // _MAX_ACK

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
        self.head(_DENY)
        self.head(_REASON)
        self.writer.string(reason)
        self.integer(_RETRY_AFTER, wait)
        if until > 0:
            self.integer(_BLOCK_UNTIL, until)

    def tell(self, rule: Rule, remaining: int, reset: int) -> None:
        """Say what is left of a limit, for the header fields."""
        if rule.told_rate != rule.rate:
            self.describe(rule)
        self.head(rule.told)
        self.integer(_REMAINING, remaining)
        self.integer(_RESET, reset)

    def watch(self, verdict: bytes, rule: Rule) -> None:
        """Say what a limit in shadow would have done; ``verdict`` ends with a colon."""
        writer = self.writer
        self.head(_SHADOW)
        writer.varint(len(verdict) + rule.name_size)
        writer.copy(verdict, 0, len(verdict))
        writer.copy(rule.name, 0, rule.name_size)

    def describe(self, rule: Rule) -> None:
        """Keep with a limit what every answer says of it."""
        writer = self.writer
        start = writer.pos
        self.integer(_LIMIT, rule.rate)
        if rule.seconds > 0:
            self.integer(_WINDOW, rule.seconds)
        else:
            # There may be one of a limit that another group of the same request asked for.
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
