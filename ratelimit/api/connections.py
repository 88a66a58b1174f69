"""The connections of the API: their number, their timeouts, and their share of the event loop.

A connection whose client is slow to send a request or to read an answer is closed after some
seconds, and at once when a new connection needs its place, so that slow clients can't keep
operators out. Each turn of the event loop handles one piece of input or one request, and each
connection has at most one unread answer, so that API requests do not delay checks.
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
"""Seconds from the connection, or from a request's first byte, to the end of its headers."""

REQUEST_TIMEOUT = 20.0
"""Seconds for the rest of a request, including the store's answer."""

IDLE_TIMEOUT = 30.0
"""Seconds between requests."""

WRITE_TIMEOUT = 5.0
"""Seconds in which a client must read part of its answer."""

_READ = 4096  # bytes
_UNREAD = 1 << 16  # bytes that the kernel buffers for a client


class Http(Protocol):
    """Reads requests and calls their handlers; ``full`` is true while it accepts no more input."""

    @property
    def full(self) -> bool: ...
    def connection_made(self, transport: asyncio.BaseTransport, /) -> None: ...
    def data_received(self, data: bytes, /) -> None: ...
    def eof_received(self) -> bool | None: ...
    def connection_lost(self, exc: Exception | None, /) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class Connections:
    """The open connections.

    ``protocol`` makes the HTTP protocol of a new connection; ``cut`` counts connections that were
    closed because they were slow or because another one needed their place.
    """

    def __init__(self, protocol: Callable[[], Http]) -> None:
        self.protocol = protocol
        self.cut = 0
        self.buffer = bytearray(_READ)  # shared by all reads
        self._open: dict[asyncio.BaseTransport, HttpConnection] = {}

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._open)

    def open(self) -> list[HttpConnection]:
        """Return the open connections."""
        return list(self._open.values())

    def of(self, transport: asyncio.BaseTransport | None) -> HttpConnection | None:
        """Return the connection of a transport, or None if it is closed."""
        return None if transport is None else self._open.get(transport)

    def joined(self, transport: asyncio.BaseTransport, connection: HttpConnection) -> bool:
        """Add a connection, if necessary in place of the slowest; return false if all are busy."""
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
        """Remove a connection."""
        self._open.pop(transport, None)

    def cut_overdue(self, now: float) -> None:
        """Close overdue connections; ``now`` is a time of ``time.monotonic``."""
        for connection in self.open():
            if connection.overdue(now):
                self.cut += 1
                connection.abort()

    def abort(self) -> None:
        """Close all connections."""
        for connection in self.open():
            connection.abort()


class HttpConnection(asyncio.BufferedProtocol):
    """Passes data between a socket and aiohttp, and measures how long the client is waited for."""

    transport: asyncio.Transport

    def __init__(self, every: Connections) -> None:
        self._all = every
        self._inner: Http | None = None
        self._read = b""
        self._unsent = 0
        self._written = asyncio.Event()
        self._written.set()
        self.since = time.monotonic()
        self.busy = False  # a request is being answered, and the client is not waited for
        self.stream: asyncio.Task[object] | None = None  # the task of an event stream
        self.reading = True  # waits for headers
        self.stuck = False  # the client has not read all of its answer

    async def begin(self) -> bool:
        """Wait for this connection's turn to have a request answered; return false if it has
        closed.
        """
        await self._written.wait()
        await turn()
        self.go_on()
        return not self.transport.is_closing()

    def go_on(self) -> None:
        """Mark that the connection no longer waits for its client."""
        self.busy, self.reading, self.since = True, False, time.monotonic()

    def end(self) -> None:
        """Mark that the request is answered or the connection waits for its client."""
        self.busy, self.stream, self.since = False, None, time.monotonic()

    def overdue(self, now: float) -> bool:
        """Return whether the connection has exceeded its time limit."""
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
        """Close the connection at once."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports behave like asyncio.Transport but do not derive from it.
        self.transport = cast(asyncio.Transport, transport)
        if not self._all.joined(transport, self):
            self.abort()
            return
        # Otherwise the kernel buffers megabytes for a client that does not read.
        transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_SNDBUF, _UNREAD)
        self.transport.set_write_buffer_limits(high=0)
        # Reading can't be paused here: uvloop begins it afterwards. The first read pauses it.
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

    # Each call has its own turn of the event loop.

    def _open(self) -> None:
        if not self.transport.is_closing():
            self._inner = self._all.protocol()
            self._inner.connection_made(self.transport)

    def _pass_on(self) -> None:
        if self._inner is None or self.transport.is_closing():
            return
        if not self.busy and not self.reading:
            self.reading, self.since = True, time.monotonic()
        data, self._read = self._read, b""
        self._inner.data_received(data)
        if not self._inner.full and not self.transport.is_closing():
            self.transport.resume_reading()
