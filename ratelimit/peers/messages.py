"""Splits what a peer sends into messages (peers.txt, "Messages").

A message has a class and a type, and from type 128 on a length and so many bytes.
"""

from __future__ import annotations

from ratelimit.exceptions import PeersError
from ratelimit.peers.constants import MAX_MESSAGE, Class, ErrorType
from ratelimit.wire.reader import Reader

# Of C's int type when compiled.
_CONTROL = int(Class.CONTROL)
_ERROR = int(Class.ERROR)
_TABLE = int(Class.TABLE)
_MAX_LENGTH = MAX_MESSAGE

_VARIABLE = 128
_MAX_DIGITS = 3  # bytes of the longest accepted length


class Messages:
    """The messages of a stream: ``feed()`` each read, then ``next()`` until false, then ``keep()``.

    Attributes:
        data: the read, after what was kept of earlier ones.
        pos: where the next message begins.
        group: class of the message.
        kind: its type.
        start: where its content begins in ``data``.
        end: where its content ends.
    """

    def __init__(self) -> None:
        self._kept = bytearray()
        self._wanted = 0
        self._reader = Reader()
        self.data = b""
        self.pos = 0
        self.group = 0
        self.kind = 0
        self.start = 0
        self.end = 0

    def waiting(self) -> bool:
        """Return whether a message has arrived only in part."""
        return len(self._kept) > 0

    def feed(self, data: bytes) -> bool:
        """Take a read; return false if it can't complete a message."""
        if self._kept:
            # Messages may arrive one byte at a time; joining at every byte would be quadratic.
            self._kept += data
            if len(self._kept) < self._wanted:
                return False
            data = bytes(self._kept)
            self._kept.clear()
        self._wanted = 0
        self.data = data
        self.pos = 0
        return True

    def next(self) -> bool:
        """Find the next message; return false if it is not complete. Raises PeersError."""
        p = self.data
        pos = self.pos
        size = len(self.data)
        if size - pos < 2:
            return False
        group = p[pos]
        if group not in (_CONTROL, _ERROR, _TABLE):
            raise PeersError(ErrorType.PROTOCOL, f"a message of the unknown class {group}")
        self.group = group
        self.kind = p[pos + 1]
        self.start = self.end = pos + 2
        if self.kind >= _VARIABLE:
            if not self._measure(pos + 2, size):
                return False
            if self.end > size:
                self._wanted = self.end - pos
                return False
        self.pos = self.end
        return True

    def keep(self) -> None:
        """Keep an incomplete message for the next read."""
        if self.pos < len(self.data):
            self._kept += self.data[self.pos :]
        self.data = b""

    def drop(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.data = b""
        self.pos = 0

    def _measure(self, pos: int, size: int) -> bool:
        """Set ``start`` and ``end`` from the length at ``pos``; return false if it is cut."""
        p = self.data
        i = pos
        while i < size and p[i] >= (240 if i == pos else 128):
            i += 1
            if i - pos == _MAX_DIGITS:
                raise PeersError(ErrorType.SIZE, "a message that is too long")
        if i >= size:
            return False
        self._reader.reset(self.data, pos, size)
        length = self._reader.varint()
        if length > _MAX_LENGTH:
            raise PeersError(
                ErrorType.SIZE, f"a message of {length} bytes; the maximum is {_MAX_LENGTH}"
            )
        self.start = self._reader.pos
        self.end = self.start + length
        return True
