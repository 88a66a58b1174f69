"""The definition of a table (peers.txt, "Definition message format")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ratelimit.exceptions import FrameError, TableError
from ratelimit.peers.constants import MAX_ARRAY, MAX_KEY, DataType, Form, KeyType
from ratelimit.wire.reader import Reader
from ratelimit.wire.writer import Writer

_KEY_SIZES = {KeyType.INTEGER: 4, KeyType.IPV4: 4, KeyType.IPV6: 16}
_MAX_NAME = 255
_OUTPUT = 1_024  # bytes; more than a name and the parameters of all data types


@dataclass(frozen=True, slots=True)
class Definition:
    """A table, as its owner announces it.

    Attributes:
        id: chosen by the side that sends the updates; each side has its own.
        key_size: bytes of a key; one more than the longest key if the keys are strings.
        types: the data types, in the order of their bits, which is that of the values.
        periods: milliseconds of the period of each rate.
        sizes: number of elements of each array.
        expire: milliseconds after which an unused entry expires.

    Raises ValueError if a value is out of its range, or the types are not in order.
    """

    id: int
    name: str
    key_type: KeyType
    key_size: int
    types: tuple[DataType, ...]
    periods: Mapping[DataType, int] = field(default_factory=dict)
    sizes: Mapping[DataType, int] = field(default_factory=dict)
    expire: int = 0

    def __post_init__(self) -> None:
        if len(self.name) > _MAX_NAME:
            raise ValueError(f"the name of a table has {len(self.name)} bytes: {self.name}")
        if self.types != tuple(sorted(self.types)):
            raise ValueError(f"the data types of {self.name} are not in order")
        # Compiled code writes so many values without a check.
        if not all(0 < size <= MAX_ARRAY for size in self.sizes.values()):
            raise ValueError(f"arrays of {self.name} with {list(self.sizes.values())} values")

    def width(self, kind: DataType) -> int:
        """Return how many integers an update has for a data type."""
        return kind.width * self.sizes.get(kind, 1)


def read_definition(reader: Reader) -> Definition:
    """Read the content of a definition.

    Raises FrameError if it is not complete, and TableError if the updates of the table can't be
    read.
    """
    number = reader.varint()
    reader.string()
    if not 0 < reader.size <= _MAX_NAME:
        raise FrameError(f"the name of a table has {reader.size} bytes, not 1 to {_MAX_NAME}")
    text = reader.data[reader.start : reader.start + reader.size]
    name = text.decode("ascii", "backslashreplace")
    if not name.isprintable():
        raise FrameError(f"the name of a table has control characters: {name!r}")
    key_type = reader.varint()
    key_size = reader.varint()
    bits = reader.varint()
    expire = reader.varint()
    if key_type not in list(KeyType):
        raise TableError(number, name, f"unknown key type {key_type}")
    fixed = _KEY_SIZES.get(KeyType(key_type))
    if key_size != fixed if fixed else not 0 < key_size <= MAX_KEY:
        expected = str(fixed) if fixed else f"1 to {MAX_KEY}"
        kind_of_key = KeyType(key_type).name.lower()
        raise TableError(
            number, name, f"keys of type {kind_of_key} with {key_size} bytes, not {expected}"
        )
    unknown = bits >> len(DataType)
    if unknown:
        bit = len(DataType) + (unknown & -unknown).bit_length() - 1
        raise TableError(number, name, f"unknown data type {bit}")
    types = tuple(kind for kind in DataType if bits >> kind & 1)
    periods = {}
    sizes = {}
    for kind in types:
        if not kind.array and kind.form != Form.RATE:
            continue
        told = reader.varint()
        if told != kind:
            raise FrameError(
                f"the definition of {name} has a parameter of data type {told}, not {int(kind)}"
            )
        if kind.array:
            sizes[kind] = reader.varint()
            if not 0 < sizes[kind] <= MAX_ARRAY:
                raise TableError(
                    number,
                    name,
                    f"an array {kind.name.lower()} of {sizes[kind]} values, not 1 to {MAX_ARRAY}",
                )
        if kind.form == Form.RATE:
            periods[kind] = reader.varint()
    return Definition(number, name, KeyType(key_type), key_size, types, periods, sizes, expire)


def write_definition(definition: Definition) -> bytes:
    """Return the content of a definition."""
    writer = Writer(_OUTPUT)
    writer.varint(definition.id)
    writer.string(definition.name.encode("ascii"))
    writer.varint(definition.key_type)
    writer.varint(definition.key_size)
    writer.varint(sum(1 << kind for kind in definition.types))
    writer.varint(definition.expire)
    for kind in definition.types:
        if kind.array or kind.form == Form.RATE:
            writer.varint(kind)
            if kind.array:
                writer.varint(definition.sizes[kind])
            if kind.form == Form.RATE:
                writer.varint(definition.periods[kind])
    return writer.take()
