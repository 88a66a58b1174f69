"""Writes the messages of one session: control, definitions, updates, acknowledgements.

Update ids are always explicit: incremental updates of HAProxy 3.3 and later are reported to be
wrong, and the four bytes cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from ratelimit.exceptions import PeersError
from ratelimit.peers.constants import MAX_TABLES, Class, DataType, ErrorType, KeyType, Message
from ratelimit.peers.definition import Definition, write_definition
from ratelimit.peers.tables import Tables
from ratelimit.wire.writer import Writer

# Of C's int type when compiled.
_TABLE = int(Class.TABLE)
_UPDATE = int(Message.UPDATE)
_DEFINITION = int(Message.DEFINITION)
_ACK = int(Message.ACK)
_TIMED = int(Message.TIMED)
_STRING = int(KeyType.STRING)
_PROTOCOL = int(ErrorType.PROTOCOL)
_FULL = int(ErrorType.SIZE)

_M32 = 0xFFFFFFFF
_M64 = 0xFFFFFFFFFFFFFFFF

_MAX_EXPIRE = 0x7FFFFFFF  # milliseconds; HAProxy takes more for negative

_HELLO = 1024  # bytes; more than a hello
_OUTPUT = 1 << 16
_MAX_ACK = 17  # bytes
_RESERVE = MAX_TABLES * _MAX_ACK + 1024  # bytes kept for acknowledgements and control messages
_HEADER = 16  # bytes of class, type, length, id and expiry, at most
_WIDEST = 10  # bytes of an integer, at most


class Outgoing:
    """A table of ours.

    ``sent`` and ``acknowledged`` are numbers of updates; their ids are the lower 32 bits.
    """

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.key_type = int(definition.key_type)
        self.key_size = definition.key_size
        self.width = sum(definition.width(kind) for kind in definition.types)
        # The place of SERVER_KEY among the values, or -1.
        self.entry = -1
        if DataType.SERVER_KEY in definition.types:
            before = definition.types[: definition.types.index(DataType.SERVER_KEY)]
            self.entry = sum(definition.width(kind) for kind in before)
        self.raw = write_definition(definition)
        self.sent = 0
        self.acknowledged = 0


class Sender:
    """The output of one session; ``take()`` it before ``room()`` is 0.

    Before ``open()`` it is small, so that peers without a hello take little memory.
    """

    def __init__(self) -> None:
        self.writer = Writer(_HELLO)
        self.scratch = Writer(0)
        self.tables: dict[int, Outgoing] = {}
        self.current: Outgoing | None = None

    def open(self) -> None:
        """Begin to write messages."""
        written = self.writer.take()
        self.writer = Writer(_OUTPUT)
        self.scratch = Writer(_OUTPUT)
        self.raw(written)

    def take(self) -> bytes:
        """Return the bytes written since the last call."""
        return self.writer.take()

    def room(self) -> int:
        """Return the bytes that updates may fill before ``take()``."""
        return max(self.writer.room() - _RESERVE, 0)

    def raw(self, data: bytes) -> None:
        """Write bytes of the handshake. Raises PeersError without room."""
        self._need(len(data))
        self.writer.copy(data, 0, len(data))

    def say(self, kind: int, message: int) -> None:
        """Write a control or error message. Raises PeersError without room."""
        self._need(2)
        self.writer.byte(kind)
        self.writer.byte(message)

    def define(self, definition: Definition) -> bool:
        """Announce a table; return false if there is no room.

        Raises ValueError if another table has the id.
        """
        table = self.tables.get(definition.id)
        if table is None:
            table = Outgoing(definition)
        elif table.definition != definition:
            raise ValueError(f"another table than {definition.name} has the id {definition.id}")
        if self.room() < _HEADER + len(table.raw):
            return False
        self.tables[definition.id] = table
        self._switch(table)
        return True

    def update(
        self,
        definition: Definition,
        key: bytes,
        values: Sequence[int],
        expire_ms: int | None,
        text: bytes,
    ) -> bool:
        """Write an update; return false if there is no room.

        Raises ValueError if key or values are not those of the table.
        """
        table = self.tables.get(definition.id)
        if table is None:
            if not self.define(definition):
                return False
            table = self.tables[definition.id]
        size = len(key)
        if len(values) != table.width:
            raise ValueError(f"{len(values)} values for a table with {table.width}")
        if size >= table.key_size if table.key_type == _STRING else size != table.key_size:
            raise ValueError(f"a key of {size} bytes for a table with {table.key_size}")
        needed = 2 * _HEADER + size + _WIDEST * (len(values) + 2) + len(text) + len(table.raw)
        if self.room() < needed:
            return False
        if self.current is not table:
            self._switch(table)
        scratch = self.scratch
        table.sent += 1
        scratch.u32(scratch.pos, table.sent)
        scratch.pos += 4
        if expire_ms is not None:
            scratch.u32(scratch.pos, min(max(expire_ms, 0), _MAX_EXPIRE))
            scratch.pos += 4
        if table.key_type == _STRING:
            scratch.varint(size)
        scratch.copy(key, 0, size)
        for i in range(len(values)):
            if i == table.entry and values[i]:
                self._entry(values[i], text)
            else:
                scratch.varint(values[i] & _M64)
        self._message(_UPDATE if expire_ms is None else _TIMED, scratch.take())
        return True

    def acknowledge(self, number: int, update: int) -> None:
        """Acknowledge an update of a table of the peer. Raises PeersError without room."""
        self._need(_MAX_ACK)
        scratch = self.scratch
        scratch.varint(number)
        scratch.u32(scratch.pos, update)
        scratch.pos += 4
        self._message(_ACK, scratch.take())

    def acknowledged(self, number: int, update: int) -> None:
        """Note that the peer has the updates of a table of ours up to ``update``.

        Raises PeersError.
        """
        table = self.tables.get(number)
        if table is None:
            raise PeersError(_PROTOCOL, f"an acknowledgement of the unknown table {number}")
        behind = (table.sent - update) & _M32
        if behind > table.sent or behind >> 31:
            raise PeersError(
                _PROTOCOL,
                f"update {update} of {table.definition.name} is acknowledged, but not sent",
            )
        table.acknowledged = max(table.acknowledged, table.sent - behind)

    def pending(self, tables: Tables) -> int:
        """Return how many updates of tables that the peer has too are not acknowledged.

        HAProxy ignores updates of other tables.
        """
        return sum(
            table.sent - table.acknowledged
            for table in self.tables.values()
            if tables.alike(table.definition)
        )

    def forgive(self) -> None:
        """Await no acknowledgement of the updates written so far."""
        for table in self.tables.values():
            table.acknowledged = table.sent

    def offer(self, kind: int, message: int) -> bool:
        """Write a control or error message; return false if there is no room."""
        if self.writer.room() < 2:
            return False
        self.say(kind, message)
        return True

    def _entry(self, number: int, text: bytes) -> None:
        """Write an entry of the dictionary to the scratch; without ``text``, the peer knows it."""
        entry = Writer(len(text) + 2 * _WIDEST)
        entry.varint(number)
        if text:
            entry.string(text)
        self.scratch.string(entry.take())

    def _switch(self, table: Outgoing) -> None:
        self.current = table
        self._message(_DEFINITION, table.raw)

    def _message(self, kind: int, content: bytes) -> None:
        writer = self.writer
        writer.byte(_TABLE)
        writer.byte(kind)
        writer.string(content)

    def _need(self, size: int) -> None:
        # What is left after updates is enough for a peer that reads what it causes.
        if self.writer.room() < size:
            raise PeersError(_FULL, "more answers to one read than fit into the output")
