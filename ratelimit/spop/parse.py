"""NOTIFY frames to messages (SPOE.txt, sections 3.2.6 and 3.4), so many at a time.

Reading them is a pass of its own, before any is answered: whose counters will be needed is known
then, and the table can be fetched for all of them at once.
"""

from __future__ import annotations

from ratelimit.engine.key import Key
from ratelimit.engine.layout import FETCHED
from ratelimit.engine.query import UNTOLD, Query
from ratelimit.engine.rule import Rule
from ratelimit.exceptions import SpopError
from ratelimit.spop.codec import Reader
from ratelimit.spop.constants import DataType, FrameType, Status

CHECKED = 0
"""A message that asks for a limit, with a key."""

UNKNOWN = 1
"""A message whose name is no limit."""

KEYLESS = 2
"""A message without a usable key or hits."""

EMPTY = 3
"""The place of a frame without messages, which is answered as well."""

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
_CHECKED = CHECKED
_UNKNOWN = UNKNOWN
_KEYLESS = KEYLESS
_EMPTY = EMPTY

_FIN = 1
_MAX_HITS = 1 << 27
_UNTOLD = UNTOLD


class Message(Query):
    """What one message asks; these objects are filled again for each.

    ``state`` is one of the constants above. The query is that of a CHECKED one. Of an UNKNOWN or
    KEYLESS one ``name`` and ``name_size`` are that of its name. ``ends`` says that its frame, whose
    ids are at ``ids``, ends with it.
    """

    def __init__(self, rule: Rule) -> None:
        super().__init__(rule)
        self.state = _EMPTY
        self.name = 0
        self.name_size = 0
        self.ends = False
        self.ids = 0
        self.ids_size = 0


class Plan:
    """The messages of a read, up to FETCHED at a time.

    ``begin()`` a read, then ``read()`` until it returns fewer than FETCHED. ``pos`` is behind the
    last whole frame that was read, ``error`` tells what broke the protocol there, if anything did.
    """

    def __init__(self, rule: Rule, key: Key) -> None:
        self.key = key
        self.reader = Reader()
        self.messages = [Message(rule) for _ in range(FETCHED)]
        self.data = b""
        self.pos = 0
        self.max_frame_size = 0
        self.within = False
        self.ids = 0
        self.ids_size = 0
        self.error: SpopError | None = None

    def begin(self, data: bytes, start: int, max_frame_size: int) -> None:
        """Take another read, from ``data[start:]``."""
        self.data = data
        self.pos = start
        self.max_frame_size = max_frame_size
        self.within = False
        self.error = None

    def read(self, rules: list[Rule], frames: int) -> int:
        """Read the next messages, of up to ``frames`` frames; return how many they are.

        One that was begun before is among these frames. It stops at what is not a whole NOTIFY
        frame. Of a frame that breaks the protocol nothing is read, unless what it began with was
        before.
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
                    message.state = _EMPTY
                if reader.pos == reader.end:
                    message.ends = True
                    message.ids = self.ids
                    message.ids_size = self.ids_size
                    self.within = False
                    self.pos = reader.end
                    whole = count
        except SpopError as error:
            self.error = error
            return whole
        return count

    def open(self) -> bool:
        """Begin the next frame, if it is a whole NOTIFY."""
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
                _TOO_BIG, f"a frame of {length} bytes, at most {self.max_frame_size} are"
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
        left = _UNTOLD
        usable = True
        for _ in range(reader.byte()):
            reader.string()
            start = reader.start
            size = reader.size
            reader.typed()
            if size == 3 and same(data, start, b"key", 3):
                kind = reader.type
                key = reader.start
                key_size = reader.size
                number = reader.number
            elif size == 3 and same(data, start, b"via", 3):
                if _INT32 <= reader.type <= _UINT64:
                    via = reader.number
            elif size == 4 and same(data, start, b"left", 4):
                if _INT32 <= reader.type <= _UINT64:
                    left = reader.number
            elif size == 4 and same(data, start, b"hits", 4):
                if reader.type == _NULL:
                    continue
                hits = reader.number
                if reader.type < _INT32 or reader.type > _UINT64:
                    usable = False
                elif hits >> 63 and (reader.type == _INT32 or reader.type == _INT64):
                    usable = False
                elif hits > _MAX_HITS:
                    hits = _MAX_HITS
        message.state = _UNKNOWN
        for rule in rules:
            if rule.name_size == message.name_size and same(
                data, message.name, rule.name, rule.name_size
            ):
                message.rule = rule
                message.state = _KEYLESS
                break
        # A header that is there and empty names no client.
        named = kind != _NULL and (key_size > 0 or kind < _STRING)
        if message.state == _KEYLESS and named and usable:
            message.state = _CHECKED
            message.hits = hits
            message.via = via
            message.left = left
            self.take(message, kind, key, key_size, number)

    def take(self, message: Message, kind: int, start: int, size: int, number: int) -> None:
        """Take the key of a message, of a type of SPOP."""
        key = self.key
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


def same(data: bytes, start: int, name: bytes, size: int) -> bool:
    """Tell whether ``data`` has the ``size`` bytes of ``name`` at ``start``."""
    p = data
    q = name
    for i in range(size):
        if p[start + i] != q[i]:
            return False
    return True
