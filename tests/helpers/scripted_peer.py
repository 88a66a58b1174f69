"""An agent of HAProxy's peers protocol as a script: it says what a test tells it, and nothing else.

It shares no code with ``ratelimit.peers``, so that the tests of the shipped files do not depend on
it. The specification is ``peers.txt`` of HAProxy's documentation.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.wire import Cursor, varint
from tests.helpers.world import PATIENCE, closed, until

CONTROL, TABLES = 0, 10
ASK, DONE, PARTIAL, CONFIRM, HEARTBEAT = range(5)
UPDATE, INCREMENTAL, DEFINITION, _SWITCH, _ACK, TIMED, TIMED_INCREMENTAL = range(128, 135)

STRING, BINARY, IPV6 = 6, 7, 5
GPC0, HTTP_REQ_CNT, HTTP_REQ_RATE, GPT = 2, 9, 10, 22
KINDS = {"rlc_": STRING, "rlv_api_key": BINARY, "rlv_": IPV6}
SIZES = {STRING: 65, BINARY: 32, IPV6: 16}

BEAT = 1.0
"""Seconds between two heartbeats; HAProxy ends a session after 5 s of silence."""


def ipv6_key(address: str) -> bytes:
    """Return the key of an address in a table of the type ``ipv6``."""
    parsed = ipaddress.ip_address(address)
    if parsed.version == 4:
        return b"\0" * 10 + b"\xff\xff" + parsed.packed
    return parsed.packed


@dataclass
class Table:
    """A table as HAProxy announced it, and the last values of its entries."""

    name: str
    kind: int
    size: int
    types: list[int]
    arrays: dict[int, int]
    periods: dict[int, int]
    entries: dict[bytes, dict[int, list[int]]] = field(default_factory=dict)


@dataclass
class ScriptedPeer:
    """An agent; ``tables`` are those that HAProxy has announced, by name."""

    tables: dict[str, Table] = field(default_factory=dict)
    hello: list[str] = field(default_factory=list)
    _known: dict[tuple[str, bytes], list[int]] = field(default_factory=dict)
    _writer: asyncio.StreamWriter | None = None
    _ids: dict[str, int] = field(default_factory=dict)
    _sent: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def connected(self) -> None:
        """Wait until HAProxy has connected."""
        await until(lambda: self._writer is not None, "HAProxy connects to its peer")

    def tell(self, table: str, key: str | bytes, values: Sequence[int]) -> None:
        """Write the array ``gpt`` of an entry of HAProxy; now, or when it connects."""
        kind = next(kind for start, kind in KINDS.items() if table.startswith(start))
        if isinstance(key, str):
            key = key.encode() if kind == STRING else ipv6_key(key)
        self._known[table, key] = list(values)
        if self._writer is not None:
            self._write(self._writer, table, key, values)

    def count(self, table: str, key: str | bytes, kind: int) -> int:
        """Return a value of an entry as HAProxy told it last, -1 if it told none."""
        key = ipv6_key(key) if isinstance(key, str) else key
        found = self.tables.get(table)
        values = found.entries.get(key, {}).get(kind) if found else None
        return values[0] if values else -1

    def _write(
        self, writer: asyncio.StreamWriter, table: str, key: bytes, values: Sequence[int]
    ) -> None:
        kind = next(kind for start, kind in KINDS.items() if table.startswith(start))
        number = self._ids.setdefault(table, len(self._ids) + 1)
        definition = varint(number) + varint(len(table) + 1) + b"/" + table.encode()
        definition += varint(kind) + varint(SIZES[kind]) + varint(1 << GPT) + varint(3_600_000)
        definition += varint(GPT) + varint(len(values))
        self._sent += 1
        update = struct.pack(">I", self._sent)
        update += (varint(len(key)) if kind == STRING else b"") + key
        update += b"".join(map(varint, values))
        for message, content in ((DEFINITION, definition), (UPDATE, update)):
            writer.write(bytes([TABLES, message]) + varint(len(content)) + content)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        beats = asyncio.create_task(self._beat(writer))
        self._tasks.add(beats)
        try:
            lines = [(await reader.readline()).decode().strip() for _ in range(3)]
            self.hello = lines
            writer.write(b"200\n")
            # Some seconds after its start, HAProxy asks no longer for what the agent knows.
            for (name, key), values in self._known.items():
                self._write(writer, name, key, values)
            self._writer = writer
            await self._read(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            beats.cancel()
            if self._writer is writer:
                self._writer = None
            writer.close()

    async def _beat(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await asyncio.sleep(BEAT)
            writer.write(bytes([CONTROL, HEARTBEAT]))

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        by_id: dict[int, Table] = {}
        table: Table | None = None
        while True:
            category, message = await reader.readexactly(2)
            if category == CONTROL:
                if message == ASK:
                    writer.write(bytes([CONTROL, DONE]))
                elif message in (DONE, PARTIAL):
                    writer.write(bytes([CONTROL, CONFIRM]))
                continue
            assert category == TABLES, (category, message)
            if message < 128:
                continue
            content = Cursor(await reader.readexactly(await self._length(reader)))
            if message == DEFINITION:
                table = self._define(content, by_id)
            elif message in (UPDATE, INCREMENTAL, TIMED, TIMED_INCREMENTAL):
                assert table is not None
                self._update(content, table, message)

    async def _length(self, reader: asyncio.StreamReader) -> int:
        data = await reader.readexactly(1)
        if data[0] >= 240:
            data += await reader.readexactly(1)
            while data[-1] >= 128:
                data += await reader.readexactly(1)
        return Cursor(data).varint()

    def _define(self, content: Cursor, by_id: dict[int, Table]) -> Table:
        number = content.varint()
        # HAProxy names a table of a "peers" section so on the wire.
        name = content.take(content.varint()).decode().removeprefix("/")
        kind, size, bits, _expire = (content.varint() for _ in range(4))
        types = [bit for bit in range(32) if bits >> bit & 1]
        made = Table(name, kind, size, types, {}, {})
        for bit in types:
            if bit == GPT:
                assert content.varint() == bit
                made.arrays[bit] = content.varint()
            elif bit == HTTP_REQ_RATE:
                assert content.varint() == bit
                made.periods[bit] = content.varint()
        if name in self.tables:
            made.entries = self.tables[name].entries
        by_id[number] = self.tables[name] = made
        return made

    def _update(self, content: Cursor, table: Table, message: int) -> None:
        if message in (UPDATE, TIMED):
            content.take(4)
        if message in (TIMED, TIMED_INCREMENTAL):
            content.take(4)
        size = content.varint() if table.kind == STRING else table.size
        key = content.take(size)
        values: dict[int, list[int]] = {}
        for bit in table.types:
            count = 3 if bit == HTTP_REQ_RATE else table.arrays.get(bit, 1)
            values[bit] = [content.varint() for _ in range(count)]
        table.entries[key] = values

    async def close(self) -> None:
        """End the session, as an agent that stops."""
        if self._writer is not None:
            await closed(self._writer)


@contextlib.asynccontextmanager
async def scripted_peer(
    path: Path, told: Mapping[tuple[str, str], Sequence[int]] | None = None
) -> AsyncIterator[ScriptedPeer]:
    """Yield an agent that listens on a socket file, and knows ``told`` from the start."""
    peer = ScriptedPeer()
    for (table, key), values in (told or {}).items():
        peer.tell(table, key, values)
    server = await asyncio.start_unix_server(peer.serve, str(path))
    try:
        async with asyncio.timeout(3 * PATIENCE):
            yield peer
    finally:
        server.close()
        await peer.close()
        for task in peer._tasks:
            task.cancel()
