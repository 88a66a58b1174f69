"""A buffer of fixed size, filled from the front, for protocols and batches."""

from __future__ import annotations


class Buffer:
    """A buffer of ``size`` bytes. Writes are unchecked: callers check ``room()`` first."""

    def __init__(self, size: int) -> None:
        self.buffer = bytearray(size)
        self.o = self.buffer
        self.size = size
        self.pos = 0

    def room(self) -> int:
        """Return the number of free bytes."""
        return self.size - self.pos

    def take(self) -> bytes:
        """Return the written bytes and start again."""
        written = bytes(self.o[: self.pos])
        self.pos = 0
        return written

    def byte(self, value: int) -> None:
        self.o[self.pos] = value
        self.pos += 1

    def copy(self, value: bytes, start: int, size: int) -> None:
        """Write ``value[start:start + size]``."""
        # Local copies: for a C compiler, each byte written may change ``self``.
        source = value
        o = self.o
        pos = self.pos
        for i in range(size):
            o[pos + i] = source[start + i]
        self.pos = pos + size

    def little(self, value: int, size: int) -> None:
        """Write a number as ``size`` bytes, least significant byte first."""
        o = self.o
        pos = self.pos
        for i in range(size):
            o[pos + i] = value >> 8 * i & 0xFF
        self.pos = pos + size
