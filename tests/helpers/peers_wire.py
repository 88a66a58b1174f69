"""The other side of a peers session, written from peers.txt and sharing no line with the agent's.

Bits, types and sizes are numbers here, so that a wrong constant of the agent is noticed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ratelimit.peers.constants import PLACE, DataType, Status
from ratelimit.peers.listener import Listener
from ratelimit.peers.session import Session
from tests.helpers.wire import string, varint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ratelimit.peers.definition import Definition
    from ratelimit.peers.updates import UpdateReader

SECOND = 1_000_000_000
ADDRESS = bytes.fromhex("20010db8000000000000000000000001")
NOW = 1_700_000_000 * SECOND

ASK, FINISHED, PARTIAL, CONFIRMED, HEARTBEAT = (bytes((0, kind)) for kind in range(5))
PROTOCOL_ERROR, SIZE_ERROR = b"\x01\x00", b"\x01\x01"

INTEGER, IPV4, IPV6, STRING, BINARY = 2, 4, 5, 6, 7

HELLO = b"HAProxyS 2.1\nagent\nhap1 14979 1\n"


def message(kind: int, content: bytes) -> bytes:
    return bytes((10, kind)) + string(content)


def define(
    number: int = 1,
    name: str = "rl_default",
    key: tuple[int, int] = (IPV6, 16),
    bits: Sequence[int] = (9,),
    parameters: Sequence[int] = (),
    expire: int = 60_000,
) -> bytes:
    """A definition; ``key`` is type and size, ``parameters`` follow the expiry as they are."""
    mask = sum(1 << bit for bit in bits)
    head = varint(number) + string(name)
    tail = [key[0], key[1], mask, expire, *parameters]
    return message(0x82, head + b"".join(varint(value) for value in tail))


def update(
    number: int | None,
    key: bytes,
    *values: int | bytes,
    expire: int | None = None,
) -> bytes:
    """An update; a number of None leaves it out, values of bytes are written as they are."""
    kind = (0x80 if expire is None else 0x85) + (number is None)
    head = b"" if number is None else struct.pack(">I", number)
    head += b"" if expire is None else struct.pack(">I", expire)
    told = (value if isinstance(value, bytes) else varint(value) for value in values)
    return message(kind, head + key + b"".join(told))


def ack(table: int, number: int) -> bytes:
    return message(0x84, varint(table) + struct.pack(">I", number))


def messages(data: bytes) -> Iterator[bytes]:
    """Split what a session sends after the handshake."""
    while data:
        size = 2
        if data[1] >= 128:
            length = data[2]
            size = 3
            if length >= 240:
                shift = 4
                while True:
                    length += data[size] << shift
                    shift += 7
                    size += 1
                    if data[size - 1] < 128:
                        break
            size += length
        assert len(data) >= size, "a message is cut"
        yield data[:size]
        data = data[size:]


@dataclass(frozen=True)
class Update:
    """What a listener saw of an update."""

    table: str
    id: int
    key: bytes
    values: tuple[int, ...]
    expiry: int = -1
    synced: bool = True


@dataclass
class Seen:
    """All that a listener was told."""

    events: list[str] = field(default_factory=list)
    tables: dict[str, Definition] = field(default_factory=dict)
    updates: list[Update] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    texts: list[bytes | None] = field(default_factory=list)


class Recorder(Listener):
    """Records all, admits ``status``, skips the tables ``skipped``."""

    def __init__(self, status: Status = Status.SUCCESS, skipped: Sequence[str] = ()) -> None:
        self.status = status
        self.skipped = skipped
        self.seen = Seen()

    def admits(self, session: Session) -> Status:
        self.seen.events.append(f"hello of {session.name} {session.pid}")
        return self.status

    def on_open(self, session: Session) -> None:
        self.seen.events.append("open")

    def on_table(self, session: Session, definition: Definition) -> object:
        self.seen.tables[definition.name] = definition
        return definition.name not in self.skipped and definition.name

    def on_update(self, session: Session, definition: Definition, update: UpdateReader) -> None:
        assert update.owner == definition.name
        values = tuple(
            update.value(PLACE[kind] + i)
            for kind in definition.types
            for i in range(definition.width(kind))
        )
        seen = self.seen
        seen.updates.append(
            Update(definition.name, update.id, update.key(), values, update.expiry, session.synced)
        )
        if DataType.SERVER_KEY in definition.types:
            seen.texts.append(update.text())

    def on_read(self, session: Session) -> None:
        self.seen.events.append("read")

    def on_sync_wanted(self, session: Session) -> None:
        self.seen.events.append("wanted")

    def on_synced(self, session: Session, whole: bool) -> None:
        self.seen.events.append("synced" if whole else "synced in part")

    def on_refused(self, session: Session, name: str, why: str) -> None:
        self.seen.refused[name] = why


def opened(listener: Recorder | None = None) -> tuple[Session, Seen]:
    """A session after the handshake, in which HAProxy has taught nothing."""
    listener = listener or Recorder()
    session = Session(listener, "agent", NOW)
    assert session.receive_data(HELLO, NOW) == b"200\n" + ASK
    assert session.receive_data(FINISHED, NOW) == CONFIRMED
    listener.seen.events.clear()
    return session, listener.seen
