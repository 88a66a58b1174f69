"""Visitors who send requests at a fixed rate, whatever becomes of the answers.

``python -m benchmarks.visitors HOST:PORT RATE FILE`` runs until SIGTERM. Each visitor has its own
address and keeps a connection. A request has a time at which it is due, and what is measured is
the time from then to the end of its answer, so that a server that stalls can't hide what it cost
those who came meanwhile. FILE gets three doubles for each request: when it was due, by
``time.monotonic()``, the seconds, and the status; a status of 0 is a request without an answer.
"""

from __future__ import annotations

import array
import asyncio
import re
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import cast

import uvloop

VISITORS = 200
PATIENCE = 5.0
"""Seconds after which a request without an answer has failed."""

_TICK = 0.001


class Visitor:
    """One client; a request that is due while another is under way waits for that one."""

    def __init__(self, number: int, address: tuple[str, int], record: array.array[float]) -> None:
        self.waiting: deque[float] = deque()
        self.connection: Connection | None = None
        self._source = f"127.77.{number >> 8}.{number & 255}"
        self._address = address
        self._record = record
        self._connecting: asyncio.Task[None] | None = None

    def ask(self, due: float) -> None:
        self.waiting.append(due)
        self.go_on()

    def go_on(self) -> None:
        """Send what is due, if nothing is under way."""
        if not self.waiting or self._connecting is not None:
            return
        if self.connection is None:
            self._connecting = asyncio.create_task(self._connect())
        else:
            self.connection.ask()

    async def _connect(self) -> None:
        try:
            _, self.connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self), *self._address, local_addr=(self._source, 0)
            )
        except OSError:
            self.done(0)
        finally:
            self._connecting = None
        self.go_on()

    def done(self, status: int) -> None:
        due = self.waiting.popleft()
        self._record.extend((due, time.monotonic() - due, status))


class Connection(asyncio.Protocol):
    """A connection of a visitor."""

    _transport: asyncio.Transport

    def __init__(self, visitor: Visitor) -> None:
        self._visitor = visitor
        self._asked = False
        self._kept = False  # something has been answered on it
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self) -> None:
        if not self._asked:
            self._asked = True
            self._transport.write(b"GET / HTTP/1.1\r\nHost: visited\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, blank, body = self._data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if not blank or len(body) < int(length[1] if length else 0):
            return
        self._data = b""
        self._asked, self._kept = False, True
        if re.search(rb"(?i)\r\nconnection: *close", head):
            self._visitor.connection = None
            self._transport.close()
        self._visitor.done(int(head[9:12]))
        self._visitor.go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._visitor.connection is not self:
            return
        self._visitor.connection = None
        # One that is closed while kept, before a byte of an answer, is tried again on another
        # (RFC 9112, section 9.3.1).
        if self._asked and (self._data or not self._kept):
            self._visitor.done(0)
        self._visitor.go_on()


async def visit(address: tuple[str, int], rate: float, file: Path) -> None:
    record = array.array("d")
    visitors = [Visitor(number, address, record) for number in range(1, VISITORS + 1)]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    begin = time.monotonic()
    count = 0
    while not stop.is_set():
        while (due := begin + count / rate) <= time.monotonic():
            visitors[count % VISITORS].ask(due)
            count += 1
        await asyncio.sleep(_TICK)
    deadline = time.monotonic() + PATIENCE
    while any(visitor.waiting for visitor in visitors) and time.monotonic() < deadline:
        await asyncio.sleep(_TICK)
    for visitor in visitors:
        while visitor.waiting:
            visitor.done(0)
    file.write_bytes(record.tobytes())


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    uvloop.run(visit((host, int(port)), float(sys.argv[2]), Path(sys.argv[3])))
