"""The agent: accepts SPOP connections on TCP and unix sockets.

This module owns the sockets and the clock. Each read is answered by one write in the same turn of
the event loop. The number of connections, the time of handshakes and idle connections, and the size
of unsent answers are bounded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import cast

import structlog

from ratelimit.agent.sockets import Listening
from ratelimit.agent.trust import Trusted, is_loopback
from ratelimit.exceptions import SpopError
from ratelimit.histogram import Histogram
from ratelimit.limiter.limiter import Limiter
from ratelimit.model import Address
from ratelimit.process.systemd import Passed
from ratelimit.spop.connection import Connection
from ratelimit.spop.constants import Status
from ratelimit.spop.respond import Responder
from ratelimit.store.sync import Sync

MAX_CONNECTIONS = 4096
"""More than one HAProxy 3.1 needs for 50,000 requests at once, at 20 streams per connection."""

HANDSHAKE_TIMEOUT = 5
"""Seconds from the connection to a complete HAPROXY-HELLO."""

IDLE_TIMEOUT = 600
"""Seconds without a byte; longer than HAProxy's ``timeout idle`` and ``timeout server``."""

FRAME_TIMEOUT = 5
"""Seconds without a byte inside a frame."""

CLOSE_TIMEOUT = 5
"""Seconds for a peer to read data or to close."""

_WRITE_LIMIT = 1 << 18  # unsent bytes above which the peer's requests are not read
_SILENCE = 0.002  # seconds without a frame after which none is probably under way
_LINES_PER_SECOND = 10
_UNTIMED = 15  # of 16 reads: timing each one makes a read of few checks several percent slower

log = structlog.get_logger()


class Agent:
    """Accepts, keeps and closes connections.

    ``trusted`` are the peers that may connect from other machines. ``sockets`` are the listening
    sockets, ``peers`` the open connections. ``refused`` counts connections beyond
    ``MAX_CONNECTIONS``, ``untrusted`` those of untrusted peers, ``protocol_errors`` those closed by
    a protocol error. ``answer_times`` measures the time from a read to its answer, for each 16th
    read of a connection.
    """

    def __init__(
        self, limiter: Limiter, sync: Sync | None = None, trusted: Trusted | None = None
    ) -> None:
        self.limiter = limiter
        self.responder = Responder(limiter.engine)
        self.sync = sync or Sync(limiter, 0.01, False)
        self.trusted = trusted or Trusted()
        self.peers: set[_Peer] = set()
        self.refused = 0
        self.untrusted = 0
        self.protocol_errors = 0
        self.answer_times = Histogram()
        self.lines = 0
        self._told_refused = 0
        self._listening = Listening(lambda: _Peer(self))
        self._quiet = asyncio.Event()

    async def listen(self, address: Address, passed: Sequence[Passed] = ()) -> Address:
        """Accept connections; see ``Listening.listen()``. Raises StartError."""
        return await self._listening.listen(address, passed)

    @property
    def sockets(self) -> list[Passed]:
        """The listening sockets."""
        return self._listening.sockets

    def tick(self, attempt: Callable[[Callable[[], object]], object] = lambda step: step()) -> None:
        """Enforce time limits and run the limiter's periodic work; call about once a second.

        ``attempt`` calls each step, so that a failure of one does not stop the others.
        """
        for peer in tuple(self.peers):
            attempt(peer.look)
        attempt(self.sync.tick)
        attempt(self._tick_limiter)
        attempt(self._report)

    def _tick_limiter(self) -> None:
        if not self.sync.flying:  # checks in progress have their own time
            self.limiter.tick(self.sync.now())

    async def close(self, timeout: float, handed_over: bool = False) -> None:
        """Stop accepting, send each peer a disconnect, and close, within ``timeout`` seconds.

        All data read so far is answered already. ``handed_over`` is true if another process
        continues with the sockets.
        """
        self._listening.close(handed_over)
        self.sync.release()
        # HAProxy gets no answer for frames that it sends before it sees the disconnect, and since
        # 3.1 it waits for the answer. So each connection is closed in a moment without input, if
        # possible.
        began = time.monotonic()
        for peer in self.peers:
            peer.seen = False
        while self.peers and time.monotonic() < began + timeout / 2:
            await asyncio.sleep(_SILENCE)
            for peer in tuple(self.peers):
                if not peer.seen:
                    peer.close(Status.NORMAL, "the agent stops")
                peer.seen = False
        for peer in tuple(self.peers):
            peer.close(Status.NORMAL, "the agent stops")
        self._quiet.clear()
        if self.peers:
            try:
                await asyncio.wait_for(self._quiet.wait(), began + timeout - time.monotonic())
            except TimeoutError:
                for peer in tuple(self.peers):
                    peer.abort()
        self._report()

    def left(self, peer: _Peer) -> None:
        self.peers.discard(peer)
        if not self.peers:
            self._quiet.set()

    def ended(self, peer: str, error: SpopError) -> None:
        """Log why a connection was closed with an error."""
        self._warn("connection ended", peer=peer, status=int(error.status), why=str(error))

    def admits(self, host: str) -> bool:
        """Return whether a peer with this address may connect; count it if not."""
        if is_loopback(host) or host in self.trusted:
            return True
        self.untrusted += 1
        self._warn("connection refused: the peer is not in agent.trusted", peer=host)
        return False

    def _warn(self, event: str, **about: object) -> None:
        self.lines += 1
        if self.lines <= _LINES_PER_SECOND:
            log.warning(event, **about)

    def _report(self) -> None:
        """Log the events of the last second, with a bounded number of lines."""
        if self.lines > _LINES_PER_SECOND:
            log.warning("more connections ended", count=self.lines - _LINES_PER_SECOND)
        self.lines = 0
        news = self.limiter.news
        blocks, self.limiter.blocks_unreported = self.limiter.blocks_unreported, 0
        for block in news:
            log.info(
                "blocked",
                key=block.shown,
                limit=block.limit,
                reason=block.reason,
                strikes=block.strikes,
                seconds=block.until - block.since,
            )
        if blocks > len(news):
            log.info("more blocked", count=blocks - len(news))
        news.clear()
        blocklist = self.limiter.blocklist
        if blocklist.refused > self._told_refused:
            more = blocklist.refused - self._told_refused
            log.warning("the blocklist is full: clients are throttled, not blocked", count=more)
            self._told_refused = blocklist.refused
        notes = self.responder.notes
        for (problem, name), told in notes.items():
            if not told:
                notes[problem, name] = True
                log.warning(problem, message=name)


class _Peer(asyncio.Protocol):
    """One connection; passes data between the transport and the protocol object."""

    __slots__ = (
        "_agent",
        "_engine",
        "_name",
        "_reads",
        "_spop",
        "_transport",
        "age",
        "seen",
        "stuck",
    )

    _transport: asyncio.Transport

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._name = "unix"
        self._engine = agent.limiter.engine
        self._spop = Connection(agent.responder)
        self._reads = 0
        self.age = 0  # seconds in the present state
        self.seen = False  # data has arrived since the last look()
        self.stuck = False  # reading has stopped: the peer does not read, or it is closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports behave like asyncio.Transport but do not derive from it.
        self._transport = cast(asyncio.Transport, transport)
        peername = transport.get_extra_info("peername")
        if isinstance(peername, tuple):
            self._name = f"{peername[0]}:{peername[1]}"
            if not self._agent.admits(peername[0]):
                self.abort()
                return
        self._transport.set_write_buffer_limits(high=_WRITE_LIMIT)
        full = len(self._agent.peers) >= MAX_CONNECTIONS
        self._agent.peers.add(self)
        if full:
            self._agent.refused += 1
            self._fail(Status.RESOURCES, f"more than {MAX_CONNECTIONS} connections")

    def data_received(self, data: bytes) -> None:
        self.seen = True
        sync = self._agent.sync
        if sync.waits:
            sync.hold(self, data)
            return
        self.answer(data, time.monotonic_ns() + sync.epoch)
        if self._engine.urgent:
            sync.hurry()

    def reserve(self, data: bytes) -> None:
        """Announce to the store the hits that ``answer(data)`` will count."""
        self._spop.reserve(data)

    def answer(self, data: bytes, now: int) -> None:
        """Process data as of ``now`` and send the answers."""
        if self._spop.closed:
            return
        answer = self._spop.receive_data(data, now)
        if answer:
            self._transport.write(answer)
            self._reads += 1
            if not self._reads & _UNTIMED:
                # The clock may be adjusted while answers wait for the store.
                took = time.monotonic_ns() + self._agent.sync.epoch - now
                self._agent.answer_times.add(max(0, took))
        if self._spop.closed:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        # HAProxy 3.1 and later may reset connections that they no longer need.
        self._agent.left(self)

    def pause_writing(self) -> None:
        self._transport.pause_reading()
        self.stuck = True
        self.age = 0

    def resume_writing(self) -> None:
        if not self._spop.closed:
            self.stuck = False
        self._transport.resume_reading()

    def _fail(self, status: int, message: str) -> None:
        """Log an error and close the connection."""
        self._agent.ended(self._name, SpopError(status, message))
        self.close(status, message)

    def close(self, status: int, message: str) -> None:
        """Close the connection."""
        farewell = self._spop.close(status, message)
        if farewell:
            self._transport.write(farewell)
            self._finish()

    def look(self) -> None:
        """Close the connection if it takes too long; called about once a second."""
        self.age += 1
        if self.stuck:
            if self.age > CLOSE_TIMEOUT:
                if not self._spop.closed:
                    error = SpopError(Status.TIMEOUT, "HAProxy does not read the answers")
                    self._agent.ended(self._name, error)
                self.abort()
        elif self._spop.hello is None:
            if self.age > HANDSHAKE_TIMEOUT:
                self._fail(Status.TIMEOUT, "no HAPROXY-HELLO in time")
        elif self.seen:
            self.age = 0
        elif self._spop.in_frame and self.age > FRAME_TIMEOUT:
            self._fail(Status.TIMEOUT, "incomplete frame: timeout")
        elif self.age > IDLE_TIMEOUT:
            self.close(Status.TIMEOUT, "idle timeout")
        self.seen = False

    def abort(self) -> None:
        """Close without sending unsent data."""
        self._transport.abort()

    def _finish(self) -> None:
        if self._spop.error is not None:
            self._agent.protocol_errors += 1
            self._agent.ended(self._name, self._spop.error)
        self.stuck = True
        self.age = 0
        # Half-close, then read and drop data until the peer closes: closing with unread bytes would
        # reset the connection, and the peer would lose the last frame.
        if not self._transport.is_closing():
            self._transport.write_eof()
