"""Encoding and decoding of SPOP's data types (SPOE.txt, section 3.1), without I/O.

A ``Reader`` is a cursor over the bytes of one frame; a ``Writer`` fills a buffer of fixed size.
Both are used for the handshake and the request path, and are compiled with the types of codec.pxd.
``p`` and ``o`` are bytes in plain Python and pointers when compiled; pointers are not checked, so
every index is compared with ``end`` first.
"""

from __future__ import annotations

from ratelimit.engine.buffer import Buffer
from ratelimit.engine.layout import M64
from ratelimit.exceptions import SpopError
from ratelimit.spop.constants import DataType, Status

# Of C's int type when compiled.
_NULL = int(DataType.NULL)
_BOOL = int(DataType.BOOL)
_INT32 = int(DataType.INT32)
_INT64 = int(DataType.INT64)
_UINT64 = int(DataType.UINT64)
_IPV4 = int(DataType.IPV4)
_IPV6 = int(DataType.IPV6)
_STRING = int(DataType.STRING)
_BINARY = int(DataType.BINARY)
_INVALID = int(Status.INVALID)

Value = bool | int | bytes | None


class Reader:
    """A cursor over ``data[pos:end]``; reading past ``end`` raises SpopError with status 4.

    ``string()``, ``typed()`` and ``skip()`` store their result in fields, because a C function
    returns one value and a tuple would be an object per argument: ``type`` has the type, ``number``
    an integer, ``start`` and ``size`` the position of bytes.
    """

    def __init__(self) -> None:
        self.reset(b"", 0, 0)

    def reset(self, data: bytes, pos: int, end: int) -> None:
        """Read from ``data[pos:end]``; ``end`` must be within the data."""
        self.data = data
        self.p = data
        self.pos = pos
        self.end = end
        self.type = 0
        self.number = 0
        self.start = 0
        self.size = 0

    def byte(self) -> int:
        """Read one byte."""
        if self.pos >= self.end:
            raise SpopError(_INVALID, "the frame ends where a byte is expected")
        self.pos += 1
        return self.p[self.pos - 1]

    def u32(self) -> int:
        """Read a 32-bit integer, most significant byte first."""
        if self.end - self.pos < 4:
            raise SpopError(_INVALID, "the frame ends where a byte is expected")
        value = 0
        for _ in range(4):
            value = value << 8 | self.p[self.pos]
            self.pos += 1
        return value

    def varint(self) -> int:
        """Read a variable-length integer, 0 to 2^64 - 1."""
        if self.pos >= self.end:
            raise SpopError(_INVALID, "the frame ends where an integer is expected")
        value = self.p[self.pos]
        self.pos += 1
        if value < 240:
            return value
        shift = 4
        while True:
            if self.pos >= self.end:
                raise SpopError(_INVALID, "the frame ends within an integer")
            byte = self.p[self.pos]
            self.pos += 1
            # 4 + 9 * 7 = 67: ten bytes hold all 64 bits; more would be lost by the shift.
            if shift > 60:
                raise SpopError(_INVALID, "an integer of more than 64 bits")
            value = (value + (byte << shift)) & M64
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
            raise SpopError(_INVALID, "a string is longer than its frame")
        self.start = self.pos
        self.size = size
        self.pos += size

    def typed(self) -> None:
        """Read typed data.

        ``number`` is an integer as 64 bits, or a boolean as 0 or 1; an address, string or binary is
        at ``start`` with ``size`` bytes.
        """
        kind = self.byte()
        self.type = kind & 0x0F
        if self.type == _STRING or self.type == _BINARY:
            self.string()
        elif self.type == _IPV4 or self.type == _IPV6:
            self.size = 4 if self.type == _IPV4 else 16
            if self.size > self.end - self.pos:
                raise SpopError(_INVALID, "an address is longer than its frame")
            self.start = self.pos
            self.pos += self.size
        elif self.type == _BOOL:
            self.number = kind >> 4 & 1
        elif self.type == _NULL:
            self.number = 0
        elif self.type <= _UINT64:
            self.number = self.varint()
        else:
            raise SpopError(_INVALID, f"unknown data type {self.type}")

    def value(self) -> Value:
        """Read typed data as a Python object; addresses, strings and binaries as bytes."""
        self.typed()
        if self.type == _NULL:
            return None
        if self.type == _BOOL:
            return self.number == 1
        if self.type <= _UINT64:
            number = int(self.number)
            signed = self.type == _INT32 or self.type == _INT64
            return number - (1 << 64) if signed and number >> 63 else number
        return self.data[self.start : self.start + self.size]

    def kv_list(self) -> dict[str, Value]:
        """Read a KV-LIST to the end of the frame."""
        found: dict[str, Value] = {}
        while self.pos < self.end:
            self.string()
            name = self.data[self.start : self.start + self.size]
            found[name.decode("ascii", "backslashreplace")] = self.value()
        return found


class Writer(Buffer):
    """A buffer for values of SPOP."""

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

    def typed_string(self, value: bytes) -> None:
        """Write a string as typed data."""
        self.byte(_STRING)
        self.string(value)

    def u32(self, at: int, value: int) -> None:
        """Write a big-endian 32-bit number at position ``at``, which was skipped before."""
        self.o[at] = value >> 24 & 0xFF
        self.o[at + 1] = value >> 16 & 0xFF
        self.o[at + 2] = value >> 8 & 0xFF
        self.o[at + 3] = value & 0xFF
