"""The sockets on which HAProxy connects to the agent as to one of its peers.

This module owns the sockets and the clock. Long reads are processed in slices, between which other
work of the event loop runs. The number of sessions, the time of a handshake, silence, and the size
of unsent data are bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import Callable, Sequence
from typing import cast

import structlog

from ratelimit.agent.leasing import Leasing
from ratelimit.agent.sockets import Listening
from ratelimit.agent.trust import Trusted, is_loopback
from ratelimit.engine import compiled
from ratelimit.model import Address
from ratelimit.notation import MILLISECOND
from ratelimit.peers.constants import Status
from ratelimit.peers.hub import Hub
from ratelimit.peers.link import Link
from ratelimit.peers.session import Session
from ratelimit.process.systemd import Passed
from ratelimit.store.sync import Sync
from ratelimit.turns import SLICE, call, paced

MAX_SESSIONS = 1024
"""More than there are HAProxies; each has one session, and one more while it connects again."""

CLOSE_TIMEOUT = 5
"""Seconds for a peer to read data or to close."""

_WRITE_LIMIT = 1 << 18  # unsent bytes above which nothing more is written
_PIECE, _LARGE_PIECE = (1 << 12, 1 << 13) if compiled() else (1 << 9, 1 << 10)
"""Bytes of a read that are processed at a time: at first in a slice, and at most."""
_LOOK = 0.01  # seconds between looks at the sockets
_LINES_PER_SECOND = 10

log = structlog.get_logger()


class Peers:
    """Accepts and keeps the sessions of HAProxies.

    ``refused`` counts connections beyond ``MAX_SESSIONS``, ``untrusted`` those of untrusted peers,
    ``protocol_errors`` sessions that ended with an error.
    """

    def __init__(
        self,
        hub: Hub,
        sync: Sync,
        trusted: Trusted | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.hub = hub
        self.sync = sync
        self.sessions: set[_Peer] = set()
        self.refused = 0
        self.untrusted = 0
        self.protocol_errors = 0
        self.looked = 0
        self._trusted = trusted or Trusted()
        self._listening = Listening(lambda: _Peer(self), tls)
        self._lines = 0
        self._stale = asyncio.Event()
        self._idle = asyncio.Event()
        self.leasing = Leasing(hub, sync)
        hub.warn = self._warn
        hub.on_stale = self._stale.set

    @property
    def sockets(self) -> list[Passed]:
        """The listening sockets."""
        return self._listening.sockets

    async def listen(self, address: Address, passed: Sequence[Passed] = ()) -> Address:
        """Accept connections; see ``Listening.listen()``. Raises StartError."""
        self.leasing.begin()
        return await self._listening.listen(address, passed)

    async def run(self) -> None:
        """Note until when all that HAProxy had told was read, until cancelled.

        All that had arrived before the last turn of the loop has been read in this one. Without
        this, the hits of a read could be from any time since the previous read.
        """
        last = self.sync.now()
        while True:
            await asyncio.sleep(_LOOK if self.sessions else 1)
            self.looked, last = last, self.sync.now()

    async def rebuild(self) -> None:
        """Compare the tables of verdicts with the blocklist when necessary, until cancelled."""
        while True:
            await self._stale.wait()
            self._stale.clear()
            await paced(self.hub.rebuild())

    def tick(self, attempt: Callable[[Callable[[], object]], object] = lambda step: step()) -> None:
        """Enforce time limits and tell HAProxy the limits; call about once a second."""
        now = self.sync.now()
        attempt(lambda: self.hub.tick(now, (time.time_ns() - now) // MILLISECOND))
        for peer in tuple(self.sessions):
            attempt(peer.look)
        if self._lines > _LINES_PER_SECOND:
            log.warning("more sessions of peers ended", count=self._lines - _LINES_PER_SECOND)
        self._lines = 0

    async def close(self, timeout: float, handed_over: bool = False) -> None:
        """Stop accepting, and end all sessions within ``timeout`` seconds.

        Another agent takes over the leases, unless a successor of this one has ``handed_over``.
        """
        self._listening.close(handed_over)
        self._idle.clear()
        for peer in tuple(self.sessions):
            peer.close()
        if not handed_over:
            await self.leasing.close()
        if self.sessions:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._idle.wait()
        for peer in tuple(self.sessions):
            peer.abort()

    def dial(self, name: str) -> asyncio.Protocol:
        """Return the object for a connection to the HAProxy of this name."""
        return _Peer(self, name)

    def admits(self, host: str) -> bool:
        """Return whether a peer with this address may connect; count it if not."""
        if is_loopback(host) or host in self._trusted:
            return True
        self.untrusted += 1
        self.ended("connection refused: the peer is not in agent.trusted", peer=host)
        return False

    def ended(self, event: str, **about: object) -> None:
        """Log why a session ended, with a bounded number of lines."""
        self._lines += 1
        if self._lines <= _LINES_PER_SECOND:
            log.warning(event, **about)

    def left(self, peer: _Peer) -> None:
        """Remove a session whose socket is closed."""
        self.sessions.discard(peer)
        if not self.sessions:
            self._idle.set()

    def _warn(self, event: str, about: dict[str, str]) -> None:
        self.ended(event, **about)


class _Peer(asyncio.Protocol):
    """One session; passes data between the transport and the protocol object."""

    _transport: asyncio.Transport
    _link: Link

    def __init__(self, peers: Peers, remote: str = "") -> None:
        self._peers = peers
        self._hub = peers.hub
        self._name = "unix"
        self._remote = remote  # the HAProxy that this agent connects to
        now = time.monotonic_ns()
        self._session = Session(peers.hub, peers.hub.name, now, remote, os.getpid())
        self._held = b""  # of a long read,
        self._done = 0  # of which so many bytes are processed
        self._now = 0  # of the read in progress
        self._read_at = 0  # of the previous read
        self._since = 0
        self._awake = False  # a call of _write() is planned
        self._stuck = False  # HAProxy does not read
        self._finished = False
        self._age = 0  # seconds in which HAProxy does not read, or does not close

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports behave like asyncio.Transport but do not derive from it.
        self._transport = cast(asyncio.Transport, transport)
        self._read_at = self._peers.sync.now()
        # Not earlier: no method is called for a connection whose TLS handshake fails.
        self._link = self._hub.begin(self._session, self._name, self._wake)
        peername = transport.get_extra_info("peername")
        if isinstance(peername, tuple):
            self._name = self._link.address = f"{peername[0]}:{peername[1]}"
            if not self._remote and not self._peers.admits(peername[0]):
                self._hub.end(self._link)
                self.abort()
                return
        self._transport.set_write_buffer_limits(high=_WRITE_LIMIT)
        full = len(self._peers.sessions) >= MAX_SESSIONS
        self._peers.sessions.add(self)
        if full:
            self._peers.refused += 1
            self._peers.ended(f"more than {MAX_SESSIONS} sessions of peers", peer=self._name)
            self._session.close(Status.TRY_LATER)
        self._write()

    def data_received(self, data: bytes) -> None:
        self._now = self._peers.sync.now()
        self._since = max(self._read_at, self._peers.looked)
        self._held = data
        self._done = 0
        if len(data) > _LARGE_PIECE:
            # Several sessions may be read in one turn of the loop: a slice for each is too much.
            self._transport.pause_reading()
            call(self._read)
        else:
            self._read()

    def _read(self) -> None:
        """Process what was read, for one slice."""
        begin = end = time.perf_counter()
        end += SLICE / 2  # one turn of the loop also copies what the socket has, up to 256 KB
        size = _PIECE
        hub, session = self._hub, self._session
        while self._held and not session.closed and self._reads():
            hub.begin_read(self._now, self._since)
            piece = self._held[self._done : self._done + size]
            self._done += len(piece)
            if self._done == len(self._held):
                self._held = b""
            self._send(session.receive_data(piece, time.monotonic_ns()))
            now = time.perf_counter()
            if now > end:
                break
            # Updates of clients that are in no cache cost ten times as much.
            if now - begin < SLICE / 4:
                size = min(2 * size, _LARGE_PIECE)
            begin = now
        if session.closed:
            self._finish()
        elif self._held:
            self._transport.pause_reading()
            if self._reads():
                call(self._read)
        else:
            self._read_at = self._now
            if not self._stuck:
                self._transport.resume_reading()
        if hub.engine.urgent:
            self._peers.sync.hurry()

    def _reads(self) -> bool:
        return self._hub.reads(self._link, self._peers.sync.now())

    def _wake(self) -> None:
        """Plan to send what is due."""
        if not self._awake:
            self._awake = True
            call(self._write)

    def _write(self) -> None:
        """Send what is due, as much as a slice permits."""
        self._awake = False
        if self._finished:
            return
        if not self._stuck:
            more = self._link.fill()
            self._send(self._session.take())
            if more and not self._stuck:
                self._wake()
        if self._session.closed:
            self._finish()
        elif self._held and self._reads():
            self._read()

    def _send(self, data: bytes) -> None:
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def pause_writing(self) -> None:
        self._transport.pause_reading()
        self._stuck = True
        self._age = 0

    def resume_writing(self) -> None:
        self._stuck = False
        if not self._finished:
            if not self._held:
                self._transport.resume_reading()
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finished = True
        self._held = b""
        self._hub.end(self._link)
        self._peers.left(self)

    def look(self) -> None:
        """Send a heartbeat; end the session if it takes too long; called about once a second."""
        self._age += 1
        if (self._stuck or self._finished) and self._age > CLOSE_TIMEOUT:
            if not self._finished:
                self._peers.ended("a peer does not read", peer=self._name, haproxy=self._link.name)
            self.abort()
        elif not self._finished and not self._stuck:
            self._session.look(time.monotonic_ns(), unread=bool(self._held))
            self._send(self._session.take())
            if self._session.closed:
                self._finish()

    def close(self) -> None:
        """End the session."""
        self._session.close(Status.TRY_LATER)
        self._finish()

    def abort(self) -> None:
        """Close without sending unsent data."""
        self._transport.abort()

    def _finish(self) -> None:
        """Send what the session has written, and close."""
        if self._finished:
            return
        self._finished = True
        self._age = 0
        self._hub.end(self._link)
        self._send(self._session.take())
        error = self._session.error
        if error is not None:
            self._peers.protocol_errors += 1
            about = {"peer": self._name, "haproxy": self._link.name}
            self._peers.ended("a session of a peer ended", why=str(error), **about)
        elif self._link.replaced:
            log.info("a newer session replaces one", haproxy=self._link.name, peer=self._name)
        self._transport.close()
