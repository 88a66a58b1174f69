"""The connections of the API: how many there may be, and what each may take.

One whose client is waited for, be it for a request, the rest of one or to read an answer, is cut
after a few seconds, and at once when its place is needed: slow clients can't keep operators out,
however many they are. Of all that is read and asked, a turn of the loop has one piece, and a
connection has one answer that its client has not read: so no number of requests delays a check.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Protocol, cast

from ratelimit.turns import call, turn

MAX_CONNECTIONS = 256

HEAD_TIMEOUT = 5.0
"""Seconds from connecting, or from a request's first byte, to the end of its headers."""

REQUEST_TIMEOUT = 20.0
"""Seconds for everything else, the store's answer included."""

IDLE_TIMEOUT = 30.0
"""Seconds between requests."""

WRITE_TIMEOUT = 5.0
"""Seconds in which a client reads nothing of an answer."""

_READ = 4096  # bytes
_UNREAD = 1 << 16  # bytes that the kernel keeps for a client, besides what is unsent


class Http(Protocol):
    """What reads requests and calls for their answers; ``full`` says that it wants no more yet."""

    @property
    def full(self) -> bool: ...
    def connection_made(self, transport: asyncio.BaseTransport, /) -> None: ...
    def data_received(self, data: bytes, /) -> None: ...
    def eof_received(self) -> bool | None: ...
    def connection_lost(self, exc: Exception | None, /) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class Connections:
    """All of them.

    ``protocol`` makes a new connection's HTTP; ``cut`` counts those that were ended because they
    were slow, or in the way of others.
    """

    def __init__(self, protocol: Callable[[], Http]) -> None:
        self.protocol = protocol
        self.cut = 0
        self.buffer = bytearray(_READ)  # of whichever is read
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
            slow = [one for one in self._open.values() if one.stuck or not one.busy]
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


class Connection(asyncio.BufferedProtocol):
    """Stands between a socket and aiohttp, and knows how long either has kept the other waiting."""

    __slots__ = (
        "_all",
        "_inner",
        "_read",
        "_unsent",
        "_written",
        "busy",
        "reading",
        "since",
        "stream",
        "stuck",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, every: Connections) -> None:
        self._all = every
        self._inner: Http | None = None
        self._read = b""
        self._unsent = 0
        self._written = asyncio.Event()
        self._written.set()
        self.since = time.monotonic()
        self.busy = (
            False  # a request is being answered, and it is not the client that is waited for
        )
        self.stream: asyncio.Task[object] | None = None  # sends events, for as long as it lasts
        self.reading = True  # its headers are to come
        self.stuck = False  # its client has not read all that it was sent

    async def begin(self) -> bool:
        """Wait until it is this connection's turn to have a request answered; false if it ended."""
        await self._written.wait()
        await turn()
        self.go_on()
        return not self.transport.is_closing()

    def go_on(self) -> None:
        """It is no longer the client that is waited for."""
        self.busy, self.reading, self.since = True, False, time.monotonic()

    def end(self) -> None:
        """The request is answered, or the client is waited for."""
        self.busy, self.stream, self.since = False, None, time.monotonic()

    def overdue(self, now: float) -> bool:
        """Tell whether this takes too long."""
        if self.stuck:
            unsent = self.transport.get_write_buffer_size()
            if unsent < self._unsent:
                self._unsent, self.since = unsent, now
            return now - self.since > WRITE_TIMEOUT
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
        # uvloop's transports do not derive from asyncio.Transport, but are such.
        self.transport = cast(asyncio.Transport, transport)
        if not self._all.joined(transport, self):
            self.abort()
            return
        # The kernel would take megabytes for a client that does not read.
        transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_SNDBUF, _UNREAD)
        self.transport.set_write_buffer_limits(high=0)
        self.transport.pause_reading()
        call(self._open)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._all.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._read = bytes(self._all.buffer[:nbytes])
        self.transport.pause_reading()
        call(self._pass_on)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner is not None else None

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.left(self.transport)
        self._written.set()
        if self.stream is not None:
            self.stream.cancel()
        if self._inner is not None:
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self.stuck, self.since = True, time.monotonic()
        self._unsent = self.transport.get_write_buffer_size()
        self._written.clear()
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        self.stuck, self.since = False, time.monotonic()
        self._written.set()
        if self._inner is not None:
            self._inner.resume_writing()

    # In turns of the loop of their own.

    def _open(self) -> None:
        if not self.transport.is_closing():
            self._inner = self._all.protocol()
            self._inner.connection_made(self.transport)
            self.transport.resume_reading()

    def _pass_on(self) -> None:
        if self._inner is None or self.transport.is_closing():
            return
        if not self.busy and not self.reading:
            self.reading, self.since = True, time.monotonic()
        data, self._read = self._read, b""
        self._inner.data_received(data)
        if not self._inner.full and not self.transport.is_closing():
            self.transport.resume_reading()
