"""Reads the updates of one table (peers.txt, "Entry update message format").

A reader is made once for each table and reused for its updates; nothing is allocated for an update.
"""

from __future__ import annotations

from array import array

from ratelimit.exceptions import FrameError
from ratelimit.peers.constants import (
    MAX_ENTRIES,
    PLACE,
    VALUES,
    DataType,
    Form,
    KeyType,
    Message,
)
from ratelimit.peers.definition import Definition
from ratelimit.wire.reader import Reader

# Of C's int type when compiled.
_UPDATE = int(Message.UPDATE)
_TIMED = int(Message.TIMED)
_INTEGER = int(KeyType.INTEGER)
_STRING = int(KeyType.STRING)
_SERVER_KEY = PLACE[DataType.SERVER_KEY]
_ENTRIES = MAX_ENTRIES

_MAX_TEXT = 256  # bytes kept of a text

_U32 = 0xFFFFFFFF
_U64 = 0xFFFFFFFFFFFFFFFF


class Shared:
    """What the readers of a session share: the values of the last update, and the dictionary.

    ``texts`` has the texts that the peer has sent, by their numbers (peers.txt, STD_T_DICT).
    """

    def __init__(self) -> None:
        self.values = memoryview(bytearray(8 * VALUES)).cast("Q")
        self.texts: list[bytes | None] = [None] * (_ENTRIES + 1)


class UpdateReader:
    """Reads the updates of one table; the attributes hold the last one.

    Attributes:
        definition: the table.
        owner: free for the listener of the session; set in ``on_table()``.
        id: number of the update, 32 bits.
        expiry: milliseconds until the entry expires; -1 if the update does not tell.
        data: where the key is, at ``key_start`` with ``key_size`` bytes.
        end: where the update ends in ``data``.
        key_type: KeyType of the table.
        number: the key, if its type is INTEGER.
        values: 64-bit numbers, those of a data type from ``PLACE[type]`` on; valid only for the
            data types of the table. A 32-bit value has no higher bits. The value of a dictionary
            entry is its number, or 0.
    """

    def __init__(self, definition: Definition, shared: Shared) -> None:
        self.definition = definition
        self.owner: object = None
        self.id = 0
        self.expiry = -1
        self.data = b""
        self.end = 0
        self.key_start = 0
        self.key_size = 0
        self.key_type = int(definition.key_type)
        self.number = 0
        self.values = shared.values
        self._announced = definition.key_size
        self._texts = shared.texts
        self._reader = Reader()
        places = array("i")
        masks = array("Q")
        for kind in definition.types:
            for i in range(definition.width(kind)):
                places.append(PLACE[kind] + i)
                masks.append(_U64 if kind.form == Form.U64 else _U32)
        self._count = len(places)
        # A compiled view of an empty array would fail.
        self._places = places or array("i", [0])
        self._masks = masks or array("Q", [0])

    def read(self, kind: int, data: bytes, start: int, end: int) -> None:
        """Read the update of type ``kind`` whose content is ``data[start:end]``.

        Raises FrameError; then the attributes are not valid.
        """
        reader = self._reader
        reader.reset(data, start, end)
        if kind in (_UPDATE, _TIMED):
            self.id = reader.u32()
        else:
            self.id = (self.id + 1) & _U32
        self.expiry = reader.u32() if kind >= _TIMED else -1
        self.data = data
        self.end = end
        self._key(reader)
        # Local copies: for a C compiler, each value stored may change ``reader``.
        p = reader.p
        pos = reader.pos
        for i in range(self._count):
            if pos < end and p[pos] < 240:
                value = p[pos]  # of one byte, as most: this saves a call
                pos += 1
            else:
                reader.pos = pos
                value = reader.varint()
                pos = reader.pos
            at = self._places[i]
            if at == _SERVER_KEY and value > 0:
                reader.pos = pos
                value = self._entry(reader, value)
                pos = reader.pos
            self.values[at] = value & self._masks[i]

    def forget(self) -> None:
        """Release the bytes of the last read; ``id`` and ``values`` stay."""
        self.data = b""
        self.key_start = self.key_size = 0
        self._reader.reset(b"", 0, 0)

    def value(self, place: int) -> int:
        """Return ``values[place]``."""
        return int(self.values[place])

    def key(self) -> bytes:
        """Return the bytes of the key."""
        return self.data[self.key_start : self.key_start + self.key_size]

    def text(self) -> bytes | None:
        """Return the text of SERVER_KEY; None without one, or if the peer never sent it."""
        return self._texts[self.values[_SERVER_KEY]]

    def _key(self, reader: Reader) -> None:
        if self.key_type == _STRING:
            reader.string()
            # HAProxy's size includes a byte for the end of the string.
            if reader.size >= self._announced:
                raise FrameError(
                    f"a key of {reader.size} bytes in a table with up to {self._announced - 1}"
                )
            self.key_start = reader.start
            self.key_size = reader.size
        elif self._announced > reader.end - reader.pos:
            raise FrameError("the frame ends within a key")
        else:
            self.key_start = reader.pos
            self.key_size = self._announced
            if self.key_type == _INTEGER:
                self.number = reader.u32()
            else:
                reader.pos += self._announced

    def _entry(self, reader: Reader, size: int) -> int:
        """Read an entry of the dictionary of ``size`` bytes; return its number."""
        if size > reader.end - reader.pos:
            raise FrameError("a dictionary entry is longer than its frame")
        end = reader.pos + size
        number = reader.varint()
        if number == 0 or number > _ENTRIES:
            raise FrameError(f"a dictionary entry with the number {number}, not 1 to {_ENTRIES}")
        if reader.pos < end:
            reader.string()
            size = min(reader.size, _MAX_TEXT)
            self._texts[number] = reader.data[reader.start : reader.start + size]
        if reader.pos > end:
            raise FrameError("a dictionary entry is longer than its size")
        reader.pos = end
        return number
