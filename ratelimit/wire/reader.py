"""Reads the values that SPOP and the peers protocol have in common.

``p`` is bytes in plain Python and a pointer when compiled; pointers are not checked, so every index
is compared with ``end`` first.
"""

from __future__ import annotations

from ratelimit.exceptions import FrameError

_MASK = 0xFFFFFFFFFFFFFFFF


class Reader:
    """A cursor over ``data[pos:end]``; reading past ``end`` raises FrameError.

    ``string()`` stores its result in ``start`` and ``size``, because a C function returns one value
    and a tuple would be an object for each string.
    """

    def __init__(self) -> None:
        self.reset(b"", 0, 0)

    def reset(self, data: bytes, pos: int, end: int) -> None:
        """Read from ``data[pos:end]``; ``end`` must be within the data."""
        self.data = data
        self.p = data
        self.pos = pos
        self.end = end
        self.start = 0
        self.size = 0

    def byte(self) -> int:
        """Read one byte."""
        if self.pos >= self.end:
            raise FrameError("the frame ends where a byte is expected")
        self.pos += 1
        return self.p[self.pos - 1]

    def u32(self) -> int:
        """Read a 32-bit integer, most significant byte first."""
        if self.end - self.pos < 4:
            raise FrameError("the frame ends where a byte is expected")
        value = 0
        for _ in range(4):
            value = value << 8 | self.p[self.pos]
            self.pos += 1
        return value

    def varint(self) -> int:
        """Read a variable-length integer, 0 to 2^64 - 1."""
        if self.pos >= self.end:
            raise FrameError("the frame ends where an integer is expected")
        value = self.p[self.pos]
        self.pos += 1
        if value < 240:
            return value
        shift = 4
        while True:
            if self.pos >= self.end:
                raise FrameError("the frame ends within an integer")
            byte = self.p[self.pos]
            self.pos += 1
            # 4 + 9 * 7 = 67: ten bytes hold all 64 bits; more would be lost by the shift.
            if shift > 60:
                raise FrameError("an integer of more than 64 bits")
            value = (value + (byte << shift)) & _MASK
            if byte < 128:
                return value
            shift += 7

    def string(self) -> None:
        """Read a string or binary: ``start`` and ``size``."""
        if self.pos < self.end and self.p[self.pos] < 240:
            size = self.p[self.pos]  # of one byte, as nearly always: this saves a call
            self.pos += 1
        else:
            size = self.varint()
        if size > self.end - self.pos:
            raise FrameError("a string is longer than its frame")
        self.start = self.pos
        self.size = size
        self.pos += size
