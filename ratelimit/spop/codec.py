"""Reads SPOP's typed data (SPOE.txt, section 3.1)."""

from __future__ import annotations

from ratelimit.exceptions import SpopError
from ratelimit.spop.constants import DataType, Status
from ratelimit.wire.reader import Reader

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


class Typed:
    """Reads typed data; ``type`` and ``number`` have the last value. Raises FrameError."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.type = 0
        self.number = 0

    def read(self) -> None:
        """Read one value.

        ``number`` is an integer as 64 bits, or a boolean as 0 or 1; an address, string or binary is
        at ``start`` of the reader with ``size`` bytes.
        """
        reader = self.reader
        kind = reader.byte()
        self.type = kind & 0x0F
        if self.type == _STRING or self.type == _BINARY:
            reader.string()
        elif self.type == _IPV4 or self.type == _IPV6:
            reader.size = 4 if self.type == _IPV4 else 16
            if reader.size > reader.end - reader.pos:
                raise SpopError(_INVALID, "an address is longer than its frame")
            reader.start = reader.pos
            reader.pos += reader.size
        elif self.type == _BOOL:
            self.number = kind >> 4 & 1
        elif self.type == _NULL:
            self.number = 0
        elif self.type <= _UINT64:
            self.number = reader.varint()
        else:
            raise SpopError(_INVALID, f"unknown data type {self.type}")

    def value(self) -> Value:
        """Read typed data as a Python object; addresses, strings and binaries as bytes."""
        self.read()
        reader = self.reader
        if self.type == _NULL:
            return None
        if self.type == _BOOL:
            return self.number == 1
        if self.type <= _UINT64:
            number = int(self.number)
            signed = self.type == _INT32 or self.type == _INT64
            return number - (1 << 64) if signed and number >> 63 else number
        return reader.data[reader.start : reader.start + reader.size]

    def kv_list(self) -> dict[str, Value]:
        """Read a KV-LIST to the end of the frame."""
        reader = self.reader
        found: dict[str, Value] = {}
        while reader.pos < reader.end:
            reader.string()
            name = reader.data[reader.start : reader.start + reader.size]
            found[name.decode("ascii", "backslashreplace")] = self.value()
        return found
