"""The tables that a peer announces in one session.

HAProxy repeats the definition of a table whenever its updates follow those of another table, often
before each update. So a definition that is known byte by byte is not parsed again.
"""

from __future__ import annotations

from ratelimit.exceptions import PeersError, TableError
from ratelimit.peers.constants import MAX_TABLES, ErrorType
from ratelimit.peers.definition import Definition, read_definition
from ratelimit.peers.updates import UpdateReader
from ratelimit.wire.reader import Reader

_PROTOCOL = int(ErrorType.PROTOCOL)


class Incoming:
    """A table of the peer.

    Attributes:
        number: its id in the session.
        definition: None if the table can't be read, because of ``why``.
        reader: reads the updates; None if they are skipped.
        changed: updates were read since the last acknowledgement.
    """

    def __init__(self, number: int, name: str, raw: bytes) -> None:
        self.number = number
        self.name = name
        self.raw = raw
        self.definition: Definition | None = None
        self.why = ""
        self.reader: UpdateReader | None = None
        self.changed = False


class Tables:
    """The tables of one session by their ids and names.

    ``fresh`` tells whether ``defined()`` returned a new table.
    """

    def __init__(self) -> None:
        self.names: dict[str, Incoming] = {}
        self.fresh = False
        self._ids: dict[int, Incoming] = {}
        # By the first byte of a definition, which is the id of the first 240 tables.
        self._latest: list[Incoming | None] = [None] * 256
        self._reader = Reader()

    def switched(self, number: int) -> Incoming:
        """Return the table with the id ``number``. Raises PeersError."""
        if number not in self._ids:
            raise PeersError(_PROTOCOL, f"a switch to the unknown table {number}")
        return self._ids[number]

    def defined(self, data: bytes, start: int, end: int) -> Incoming:
        """Return the table of the definition ``data[start:end]``.

        Raises FrameError, also for a definition that differs from an earlier one with its id or its
        name.
        """
        self.fresh = False
        p = data
        if start < end:
            latest = self._latest[p[start]]
            if latest is not None and same(data, start, end - start, latest.raw):
                return latest
        table = self._parse(data[start:end])
        self._latest[table.raw[0]] = table
        return table

    def alike(self, definition: Definition) -> bool:
        """Return whether the peer has a table with the name and the type of key."""
        table = self.names.get(definition.name)
        if table is None or table.definition is None:
            return False
        there = table.definition
        return (there.key_type, there.key_size) == (definition.key_type, definition.key_size)

    def _parse(self, raw: bytes) -> Incoming:
        self._reader.reset(raw, 0, len(raw))
        definition = None
        why = ""
        try:
            definition = read_definition(self._reader)
            number, name = definition.id, definition.name
        except TableError as error:
            number, name, why = error.number, error.name, str(error)
        known = self._ids.get(number)
        if known is not None:
            if known.raw != raw:
                raise PeersError(
                    _PROTOCOL, f"table {known.name} with the id {number} becomes another: {name}"
                )
            return known
        if name in self.names:
            raise PeersError(_PROTOCOL, f"a second table with the name {name}")
        if len(self._ids) >= MAX_TABLES:
            raise PeersError(_PROTOCOL, f"more than {MAX_TABLES} tables")
        table = Incoming(number, name, raw)
        table.definition = definition
        table.why = why
        self._ids[number] = self.names[name] = table
        self.fresh = True
        return table


def same(data: bytes, start: int, size: int, other: bytes) -> bool:
    """Return whether the ``size`` bytes of ``data`` from ``start`` on are ``other``."""
    if size != len(other):
        return False
    p = data
    q = other
    for i in range(size):
        if p[start + i] != q[i]:
            return False
    return True
