"""NOTIFY frames to ACK frames in one pass (SPOE.txt, sections 3.2.6, 3.2.7 and 3.4).

For each frame of a read: find the key of each message, find the client in the table, count, decide,
append the ACK. Nothing here waits or does I/O, and an allowed request makes no Python object. What
is not a NOTIFY stops the pass and is left to ``spop.connection``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from ratelimit.engine.constants import ADDRESS, HOT, SECOND, TELL
from ratelimit.engine.exchange import Exchange
from ratelimit.engine.key import Key
from ratelimit.engine.rule import Rule
from ratelimit.engine.table import Table
from ratelimit.exceptions import SpopError
from ratelimit.model import Limit, Verdict
from ratelimit.spop.codec import Reader, Writer
from ratelimit.spop.constants import DataType, FrameType, Status

# Of C's int type when compiled.
_NOTIFY = int(FrameType.NOTIFY)
_ACK = int(FrameType.ACK)
_FRAGMENTED = int(Status.FRAGMENTED)
_TOO_BIG = int(Status.TOO_BIG)
_NULL = int(DataType.NULL)
_INT32 = int(DataType.INT32)
_INT64 = int(DataType.INT64)
_UINT64 = int(DataType.UINT64)
_IPV4 = int(DataType.IPV4)
_IPV6 = int(DataType.IPV6)
_STRING = int(DataType.STRING)
_BINARY = int(DataType.BINARY)
_ALLOW = int(Verdict.ALLOW)
_THROTTLE = int(Verdict.THROTTLE)
_BLOCK = int(Verdict.BLOCK)

_FIN = 1
_SET_VAR = 1
_SET_VAR_ARGUMENTS = 3
_SCOPE_TXN = 2
_TRUE = 0x11

_MAPPED = 0xFFFF
_MAX_HITS = 1 << 27
_WRITTEN = -1  # size of a text that is in the key, not in the frame

MAX_ACK = 256
"""Bytes of the longest ACK: fits the smallest frame that a peer may ask for."""

_OUTPUT = 1 << 16
_MAX_NOTES = 64
_MAX_NOTE = 64  # bytes

Strike = Callable[[Rule, bytes, int, int, int, int], int]


class Engine:
    """The limits, the table, and the pass over both.

    Args:
        limits: what is enforced; a message of one's name asks for it.
        capacity: clients that the table holds.
        strike: called when a client exceeds a limit that has a ladder, with the rule, the key as
            text that came as a string (else empty), the key's kind and upper and lower 64 bits,
            and the time in nanoseconds; returns the epoch second until which the client is blocked,
            or 0 to throttle it only.
        secret: 64 bytes that key the hashes; random by default.
        shared: how many clients of each limit can be shared with other nodes at a time.
        refresh: see ``Exchange``.

    ``urgent`` says that the other nodes should hear of a client soon; its ``Exchange`` says when.
    ``ahead`` is how many seconds the time given to ``at()`` is ahead of this machine's clock,
    rounded down.

    ``checks`` counts messages answered, ``unknown`` those whose name is no limit, ``keyless`` those
    without a usable key or hits. ``notes`` holds the first of these as (problem, name), for the
    log.
    """

    def __init__(
        self,
        limits: Sequence[Limit],
        capacity: int,
        strike: Strike,
        secret: bytes | None = None,
        shared: int = 0,
        refresh: int = 0,
    ) -> None:
        secret = secret or secrets.token_bytes(64)
        self.rules = [Rule(limit, index) for index, limit in enumerate(limits)]
        self.table = Table(capacity, secret[:48])
        self.exchanges = [
            Exchange(self.table, rule, shared, refresh) for rule in self.rules if shared
        ]
        self.urgent = False
        self.reserving = False
        self.ahead = 0
        self.key = Key(secret[48:])
        self.reader = Reader()
        self.writer = Writer(_OUTPUT)
        self.strike = strike
        self.now = 0
        self.checks = 0
        self.unknown = 0
        self.keyless = 0
        self.notes: dict[tuple[str, str], bool] = {}
        self.text_start = 0
        self.text_size = 0
        self.until = 0
        self.wait = 0
        self.worst = 0
        self.worst_rule = self.rules[0]
        self.worst_until = 0
        self.worst_wait = 0

    def at(self, now: int) -> None:
        """Set the time, in nanoseconds since the epoch, for the checks that follow.

        Time stands still while the clock is set back by up to a second: a window that already
        counted a moment must not see it again. After a greater step clients start anew.
        """
        if now < self.now and self.now - now < SECOND:
            return
        self.now = now
        self.table.at(now)

    def answer(self, data: bytes, start: int, max_frame_size: int) -> int:
        """Answer the NOTIFY frames from ``data[start:]``; return where the pass stopped.

        It stops at what is not a whole NOTIFY frame, or when the output is full: call ``take()``,
        and again if any progress was made. SpopError tells of a frame that breaks the protocol;
        answers to those before it are still there to be taken.
        """
        p = data
        pos = start
        size = len(data)
        while size - pos >= 5:
            length = p[pos]
            length = length << 8 | p[pos + 1]
            length = length << 8 | p[pos + 2]
            length = length << 8 | p[pos + 3]
            if length > max_frame_size:
                raise SpopError(
                    _TOO_BIG, f"a frame of {length} bytes, at most {max_frame_size} are"
                )
            if p[pos + 4] != _NOTIFY or size - pos - 4 < length:
                break
            if self.writer.room() < MAX_ACK:
                break
            self.reader.reset(data, pos + 5, pos + 4 + length)
            self.notify()
            pos += 4 + length
        return pos

    def reserve(self, data: bytes, start: int, max_frame_size: int) -> None:
        """Pass over the frames that ``answer()`` would answer, for the store to hear of them first.

        What breaks the protocol ends the pass; ``answer()`` will say so.
        """
        self.reserving = True
        try:
            self.answer(data, start, max_frame_size)
        except SpopError:
            pass
        finally:
            self.reserving = False

    def take(self) -> bytes:
        """Return the ACK frames written since the last call."""
        return self.writer.take()

    def notify(self) -> None:
        reader = self.reader
        flags = 0
        for _ in range(4):
            flags = flags << 8 | reader.byte()
        if flags != _FIN:
            raise SpopError(_FRAGMENTED, "a fragmented NOTIFY; fragmentation was not announced")
        ids = reader.pos
        reader.varint()
        reader.varint()
        ids_size = reader.pos - ids
        self.worst = _ALLOW
        while reader.pos < reader.end:
            self.message()
        if not self.reserving:
            self.acknowledge(ids, ids_size)

    def acknowledge(self, ids: int, ids_size: int) -> None:
        reader = self.reader
        writer = self.writer
        frame = writer.pos
        writer.pos += 4
        writer.byte(_ACK)
        writer.u32(writer.pos, _FIN)
        writer.pos += 4
        writer.copy(reader.data, ids, ids_size)
        if self.worst != _ALLOW:
            self.refuse()
        writer.u32(frame, writer.pos - frame - 4)

    def message(self) -> None:
        reader = self.reader
        data = reader.data
        reader.string()
        name = reader.start
        name_size = reader.size
        kind = _NULL
        key = 0
        key_size = 0
        number = 0
        hits = 1
        usable = True
        for _ in range(reader.byte()):
            reader.string()
            start = reader.start
            size = reader.size
            reader.typed()
            if size == 3 and self.same(data, start, b"key", 3):
                kind = reader.type
                key = reader.start
                key_size = reader.size
                number = reader.number
            elif size == 4 and self.same(data, start, b"hits", 4):
                if reader.type == _NULL:
                    continue
                hits = reader.number
                if reader.type < _INT32 or reader.type > _UINT64:
                    usable = False
                elif hits >> 63 and (reader.type == _INT32 or reader.type == _INT64):
                    usable = False
                elif hits > _MAX_HITS:
                    hits = _MAX_HITS
        rule = None
        for candidate in self.rules:
            if candidate.name_size == name_size and self.same(
                data, name, candidate.name, name_size
            ):
                rule = candidate
                break
        if rule is not None and kind != _NULL and usable:
            self.take_key(kind, key, key_size, number)
            if self.reserving:
                self.announce(rule, hits)
            else:
                self.judge(rule, hits)
        elif self.reserving:
            pass  # it is noted when it is answered
        elif rule is None:
            self.unknown += 1
            self.note("unknown message", name, name_size)
        else:
            self.keyless += 1
            self.note("no usable key or hits", name, name_size)

    def take_key(self, kind: int, key: int, key_size: int, number: int) -> None:
        data = self.reader.data
        self.text_start = key
        self.text_size = 0
        if kind == _IPV4:
            self.key.ipv4(data, key)
        elif kind == _IPV6:
            self.key.ipv6(data, key)
        elif kind == _STRING:
            self.key.text(data, key, key_size)
            self.text_size = key_size
        elif kind == _BINARY:
            self.key.binary(data, key, key_size)
            self.text_size = key_size
        else:
            self.key.number(number)
            self.text_size = _WRITTEN

    def judge(self, rule: Rule, hits: int) -> None:
        """Check one message, and keep its verdict if it is the most severe of the frame so far."""
        verdict = self.check(rule, hits)
        if verdict > self.worst or (
            verdict == self.worst and verdict != _ALLOW and self.wait > self.worst_wait
        ):
            self.worst = verdict
            self.worst_rule = rule
            self.worst_until = self.until
            self.worst_wait = self.wait

    def check(self, rule: Rule, hits: int) -> int:
        """Count ``hits`` of the client in ``key`` against a limit and return the verdict.

        A refusal leaves in ``wait`` the seconds to wait, and a block its end in ``until``.
        """
        table = self.table
        self.checks += 1
        rule.at(self.now)
        slot = self.locate(rule)
        self.until = table.until(slot)
        if self.until > table.now:
            self.wait = self.until - table.now
            rule.blocked += 1
            return _BLOCK
        self.until = 0
        counted = table.count(slot, rule, hits)
        if self.exchanges:
            exchange = self.exchanges[rule.index]
            place = table.halves[2 * slot + HOT]
            if place > 0:
                counted += exchange.remote(place - 1, hits)
                exchange.press(slot, place - 1, counted)
                if exchange.due:
                    self.urgent = True
            elif counted > rule.share:
                exchange.heat(slot, TELL)
                exchange.urgent = True
                self.urgent = True
        if counted <= rule.rate:
            rule.allowed += 1
            return _ALLOW
        if rule.ladder and hits > 0:
            if self.text_size == _WRITTEN:
                text = self.key.written
            else:
                text = self.reader.data[self.text_start : self.text_start + self.text_size]
            self.until = self.strike(
                rule, text, self.key.kind, table.words[slot], table.words[slot + 1], self.now
            )
            if self.until > table.now:
                self.hold(rule, slot, self.until)
                self.wait = self.until - table.now
                rule.blocked += 1
                return _BLOCK
        self.wait = table.wait(slot, rule)
        rule.throttled += 1
        return _THROTTLE

    def slot(self, rule: Rule, key: bytes) -> int:
        """Return the slot of the client whose key is written as ``key``, an address or a string.

        The table has it from then on. A network is known by its address.
        """
        self.key.text(key, 0, len(key))
        return self.locate(rule)

    def hold(self, rule: Rule, slot: int, until: int) -> None:
        """Block a client until an epoch second; what it had done before is settled by that."""
        table = self.table
        table.block(slot, until)
        rule.at(self.now)
        table.settle(slot, rule)
        if self.exchanges and table.halves[2 * slot + HOT] > 0:
            exchange = self.exchanges[rule.index]
            exchange.settle(table.halves[2 * slot + HOT] - 1)

    def locate(self, rule: Rule) -> int:
        """Return the slot of the client in ``key``, cut to the limit's prefix."""
        key = self.key
        hi = key.hi
        lo = key.lo
        if key.kind == ADDRESS:
            if hi == 0 and lo >> 32 == _MAPPED:
                lo &= rule.ipv4_mask
            else:
                hi &= rule.hi_mask
                lo &= rule.lo_mask
        return self.table.find(hi, lo, key.kind << 16 | rule.index)

    def announce(self, rule: Rule, hits: int) -> None:
        """Have the store hear of a client's hits, unless it is blocked anyway."""
        rule.at(self.now)
        slot = self.locate(rule)
        if self.table.until(slot) <= self.table.now:
            exchange = self.exchanges[rule.index]
            exchange.reserve(slot, hits)

    def refuse(self) -> None:
        """Write the variables of a refusal, all in scope txn."""
        rule = self.worst_rule
        writer = self.writer
        self.variable(b"deny")
        writer.byte(_TRUE)
        self.variable(b"reason")
        writer.typed_string(b"block" if self.worst == _BLOCK else b"throttle")
        self.integer(b"retry_after", self.worst_wait)
        if self.worst == _BLOCK:
            # HAProxy compares it with its own clock, which is this machine's.
            until = self.worst_until
            until -= self.ahead
            self.integer(b"block_until", max(until, 0))
        self.integer(b"limit", rule.rate)
        self.integer(b"remaining", 0)
        self.integer(b"reset", self.worst_wait)
        self.variable(b"limit_name")
        writer.typed_string(rule.name)

    def variable(self, name: bytes) -> None:
        writer = self.writer
        writer.byte(_SET_VAR)
        writer.byte(_SET_VAR_ARGUMENTS)
        writer.byte(_SCOPE_TXN)
        writer.string(name)

    def integer(self, name: bytes, value: int) -> None:
        self.variable(name)
        self.writer.typed_int(value)

    def same(self, data: bytes, start: int, name: bytes, size: int) -> bool:
        """Tell whether ``data`` has the ``size`` bytes of ``name`` at ``start``."""
        p = data
        q = name
        for i in range(size):
            if p[start + i] != q[i]:
                return False
        return True

    def note(self, problem: str, start: int, size: int) -> None:
        """Remember the name of a message that could not be checked, for whoever logs."""
        if len(self.notes) < _MAX_NOTES:
            name = self.reader.data[start : start + min(size, _MAX_NOTE)]
            self.notes.setdefault((problem, name.decode("ascii", "backslashreplace")), False)
