"""Parses NOTIFY frames into messages (SPOE.txt, sections 3.2.6 and 3.4), a number at a time.

Parsing is a separate pass before the checks, so that the table entries of all messages can be
prefetched at once.
"""

from __future__ import annotations

from ratelimit.engine.check import Engine
from ratelimit.engine.layout import FETCHED, UNTOLD
from ratelimit.engine.query import Query
from ratelimit.engine.rule import Rule
from ratelimit.exceptions import FrameError, SpopError
from ratelimit.spop.codec import Typed
from ratelimit.spop.constants import (
    CHECKED,
    EMPTY,
    KEYLESS,
    UNKNOWN,
    DataType,
    FrameType,
    Status,
)
from ratelimit.wire.reader import Reader

# Of C's int type when compiled.
_NOTIFY = int(FrameType.NOTIFY)
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

_FIN = 1
_MAX_HITS = 1 << 27


class Message(Query):
    """A parsed message; objects are reused.

    ``state`` is CHECKED, UNKNOWN, KEYLESS or EMPTY; the query is valid in state CHECKED. ``name``
    and ``name_size`` are the position of its name. ``ends`` is true for the last message of a
    frame, whose ids are at ``ids``.
    """

    def __init__(self, rule: Rule) -> None:
        super().__init__(rule)
        self.state = EMPTY
        self.name = 0
        self.name_size = 0
        self.ends = False
        self.ids = 0
        self.ids_size = 0


class NotifyParser:
    """The messages of a read, up to FETCHED at a time.

    Call ``begin()``, then ``read()`` until it returns fewer than FETCHED. ``pos`` is the end of the
    last whole frame, ``error`` the protocol error at that position, or None.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.reader = Reader()
        self.typed = Typed(self.reader)
        self.messages = [Message(engine.rules[0]) for _ in range(FETCHED)]
        self.data = b""
        self.pos = 0
        self.max_frame_size = 0
        self.within = False
        self.ids = 0
        self.ids_size = 0
        self.error: FrameError | None = None

    def begin(self, data: bytes, start: int, max_frame_size: int) -> None:
        """Begin a new read, from ``data[start:]``."""
        self.data = data
        self.pos = start
        self.max_frame_size = max_frame_size
        self.within = False
        self.error = None

    def read(self, rules: list[Rule], frames: int) -> int:
        """Parse the next messages, of up to ``frames`` frames; return their number.

        A frame that was begun before counts as one of them. Parsing stops at anything that is not a
        whole NOTIFY frame. Messages of a frame with a protocol error are dropped, except those
        returned by an earlier call.
        """
        reader = self.reader
        count = 0
        whole = 0
        if self.within:
            frames -= 1
        try:
            while count < FETCHED:
                if not self.within:
                    if frames == 0 or not self.open():
                        break
                    frames -= 1
                message = self.messages[count]
                count += 1
                message.ends = False
                if reader.pos < reader.end:
                    self.message(message, rules)
                else:
                    message.state = EMPTY
                if reader.pos == reader.end:
                    message.ends = True
                    message.ids = self.ids
                    message.ids_size = self.ids_size
                    self.within = False
                    self.pos = reader.end
                    whole = count
        except FrameError as error:
            self.error = error
            return whole
        return count

    def open(self) -> bool:
        """Begin the next frame; return false if it is not a whole NOTIFY."""
        p = self.data
        pos = self.pos
        left = len(self.data) - pos
        if left < 5:
            return False
        length = p[pos]
        length = length << 8 | p[pos + 1]
        length = length << 8 | p[pos + 2]
        length = length << 8 | p[pos + 3]
        if length > self.max_frame_size:
            raise SpopError(
                _TOO_BIG, f"a frame of {length} bytes; the maximum is {self.max_frame_size}"
            )
        if p[pos + 4] != _NOTIFY or left - 4 < length:
            return False
        reader = self.reader
        reader.reset(self.data, pos + 5, pos + 4 + length)
        flags = reader.u32()
        if flags != _FIN:
            raise SpopError(_FRAGMENTED, "a fragmented NOTIFY; fragmentation was not announced")
        self.ids = reader.pos
        reader.varint()
        reader.varint()
        self.ids_size = reader.pos - self.ids
        self.within = True
        return True

    def message(self, message: Message, rules: list[Rule]) -> None:
        reader = self.reader
        typed = self.typed
        data = reader.data
        reader.string()
        message.name = reader.start
        message.name_size = reader.size
        kind = _NULL
        key = 0
        key_size = 0
        number = 0
        hits = 1
        via = 0
        left = UNTOLD
        usable = True
        for _ in range(reader.byte()):
            reader.string()
            start = reader.start
            size = reader.size
            typed.read()
            if size == 3 and same(data, start, b"key", 3):
                kind = typed.type
                key = reader.start
                key_size = reader.size
                number = typed.number
            elif size == 3 and same(data, start, b"via", 3):
                if _INT32 <= typed.type <= _UINT64:
                    via = typed.number
            elif size == 4 and same(data, start, b"left", 4):
                if _INT32 <= typed.type <= _UINT64:
                    left = typed.number
            elif size == 4 and same(data, start, b"hits", 4):
                if typed.type == _NULL:
                    continue
                hits = typed.number
                if typed.type < _INT32 or typed.type > _UINT64:
                    usable = False
                elif hits >> 63 and (typed.type == _INT32 or typed.type == _INT64):
                    usable = False
                elif hits > _MAX_HITS:
                    hits = _MAX_HITS
        message.state = UNKNOWN
        for rule in rules:
            if rule.name_size == message.name_size and same(
                data, message.name, rule.name, rule.name_size
            ):
                message.rule = rule
                message.state = KEYLESS
                break
        # An empty header names no client.
        named = kind != _NULL and (key_size > 0 or kind < _STRING)
        if message.state == KEYLESS and named and usable:
            message.state = CHECKED
            message.hits = hits
            message.via = via
            message.left = left
            self.take(message, kind, key, key_size, number)

    def take(self, message: Message, kind: int, start: int, size: int, number: int) -> None:
        """Set the key of a message from a value of SPOP, and find its place in the table."""
        key = self.engine.key
        data = self.data
        message.data = data
        message.text = start
        message.text_size = 0
        if kind == _IPV4:
            key.ipv4(data, start)
        elif kind == _IPV6:
            key.ipv6(data, start)
        elif kind == _STRING:
            key.text(data, start, size)
            message.text_size = size
        elif kind == _BINARY:
            key.binary(data, start, size)
            message.text_size = size
        else:
            key.number(number)
            message.data = key.written
            message.text = 0
            message.text_size = len(key.written)
        message.kind = key.kind
        message.hi = key.hi
        message.lo = key.lo
        self.engine.aim(message)


def same(data: bytes, start: int, name: bytes, size: int) -> bool:
    """Return whether ``data`` has the ``size`` bytes of ``name`` at ``start``."""
    p = data
    q = name
    for i in range(size):
        if p[start + i] != q[i]:
            return False
    return True
