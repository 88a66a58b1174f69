"""Writes into a buffer of fixed size, from the front, for protocols and batches."""

from __future__ import annotations


class Writer:
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

    def varint(self, value: int) -> None:
        """Write an integer from 0 to 2^64 - 1; at most ten bytes."""
        # Local copies: for a C compiler, each byte written through ``o`` may change ``self``.
        o = self.o
        pos = self.pos
        if value >= 240:
            o[pos] = (value & 0x0F) | 0xF0
            pos += 1
            value = (value - 240) >> 4
            while value >= 128:
                o[pos] = (value & 0x7F) | 0x80
                pos += 1
                value = (value - 128) >> 7
        o[pos] = value
        self.pos = pos + 1

    def string(self, value: bytes) -> None:
        """Write the length of ``value`` and its bytes."""
        self.varint(len(value))
        self.copy(value, 0, len(value))

    def u32(self, at: int, value: int) -> None:
        """Write a big-endian 32-bit number at position ``at``, which was skipped before."""
        self.o[at] = value >> 24 & 0xFF
        self.o[at + 1] = value >> 16 & 0xFF
        self.o[at + 2] = value >> 8 & 0xFF
        self.o[at + 3] = value & 0xFF
