"""The connections of the API: how many there may be, and for how long one may keep us waiting.

One that says nothing, or slowly, is cut after a few seconds, and at once when its place is needed:
slow clients can't keep operators out, however many they are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

MAX_CONNECTIONS = 256

HEAD_TIMEOUT = 5.0
"""Seconds from connecting, or from a request's first byte, to the end of its headers."""

REQUEST_TIMEOUT = 20.0
"""Seconds for everything else, the store's answer included."""

IDLE_TIMEOUT = 30.0
"""Seconds between requests, and for an answer to be read."""


class Connections:
    """All of them.

    ``protocol`` makes a new connection's HTTP; ``cut`` counts those that were ended because they
    were slow, or in the way of others.
    """

    def __init__(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        self.protocol = protocol
        self.cut = 0
        self._open: dict[asyncio.BaseTransport, Connection] = {}

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def open(self) -> list[Connection]:
        """Return all of them."""
        return list(self._open.values())

    def of(self, transport: asyncio.BaseTransport | None) -> Connection | None:
        """Return the connection of a transport, unless it has been ended."""
        return None if transport is None else self._open.get(transport)

    def joined(self, transport: asyncio.BaseTransport, connection: Connection) -> bool:
        """Take a connection, in the place of a slower one if there is no other; false if full."""
        if len(self._open) >= MAX_CONNECTIONS:
            slow = [one for one in self._open.values() if not one.busy]
            if not slow:
                return False
            oldest = min(slow, key=lambda one: one.since)
            self.cut += 1
            oldest.abort()
            self.left(oldest.transport)
        self._open[transport] = connection
        return True

    def left(self, transport: asyncio.BaseTransport) -> None:
        """Forget a connection."""
        self._open.pop(transport, None)

    def cut_overdue(self, now: float) -> None:
        """End those that take too long, by a time of ``time.monotonic``."""
        for connection in self.open():
            if connection.overdue(now):
                self.cut += 1
                connection.abort()

    def abort(self) -> None:
        """End all of them at once."""
        for connection in self.open():
            connection.abort()


class Connection(asyncio.Protocol):
    """Stands between a socket and aiohttp, and knows how long either has kept the other waiting."""

    __slots__ = ("_all", "_inner", "busy", "reading", "since", "stream", "transport")

    transport: asyncio.Transport

    def __init__(self, every: Connections) -> None:
        self._all = every
        self._inner: asyncio.Protocol | None = None
        self.since = time.monotonic()
        self.busy = False  # a request is being answered
        self.stream: asyncio.Task[object] | None = None  # sends events, for as long as it lasts
        self.reading = True  # its headers are to come

    def begin(self) -> None:
        """The headers of a request have come."""
        self.busy, self.reading, self.since = True, False, time.monotonic()

    def end(self) -> None:
        """It is answered."""
        self.busy, self.stream, self.since = False, None, time.monotonic()

    def overdue(self, now: float) -> bool:
        """Tell whether this takes too long."""
        if self.stream is not None:
            return False
        limit = IDLE_TIMEOUT
        if self.busy:
            limit = REQUEST_TIMEOUT
        elif self.reading:
            limit = HEAD_TIMEOUT
        return now - self.since > limit

    def abort(self) -> None:
        """End it at once."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self._all.joined(transport, self):
            self._inner = self._all.protocol()
            self._inner.connection_made(transport)
        else:
            self.abort()

    def data_received(self, data: bytes) -> None:
        if not self.busy and not self.reading:
            self.reading, self.since = True, time.monotonic()
        if self._inner is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner is not None else None

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.left(self.transport)
        if self.stream is not None:
            self.stream.cancel()
        if self._inner is not None:
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()
