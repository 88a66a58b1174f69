"""Connects to the HAProxies that have no session with the agent; HAProxy waits up to 4 s for that.

HAProxy tries again some seconds after a session has ended. An agent that has been started, or is
the successor of another process, connects to HAProxy's own peers socket at once instead.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence

import structlog

from ratelimit.agent.peers import Peers
from ratelimit.backoff import Backoff
from ratelimit.model import Address

TIMEOUT = 1.0
"""Seconds for a connection."""

BACKOFF = (0.25, 10.0)
"""First and longest pause in seconds between attempts."""

log = structlog.get_logger()


class Dialing:
    """Keeps a session with each HAProxy of a list.

    Args:
        peers: has the sessions.
        haproxies: names of HAProxies, and the addresses of their own peers sockets.
        tls: for TCP.

    While ``paused``, a successor connects.
    """

    def __init__(
        self,
        peers: Peers,
        haproxies: Sequence[tuple[str, Address]],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.paused = False
        self._peers = peers
        self._haproxies = haproxies
        self._tls = tls
        self._missing = {name: asyncio.Event() for name, _ in haproxies}
        for event in self._missing.values():
            event.set()
        peers.hub.on_end = self._ended

    def pause(self, paused: bool) -> None:
        """Connect no more, or again."""
        self.paused = paused
        for name, event in self._missing.items():
            if not paused and name not in self._peers.hub.by_name:
                event.set()

    def wanted(self, name: str) -> bool:
        """Return whether a session with this HAProxy is wanted."""
        return self._missing[name].is_set()

    async def run(self) -> None:
        """Connect until cancelled."""
        await asyncio.gather(*(self._keep(name, address) for name, address in self._haproxies))
        await asyncio.Event().wait()

    async def _keep(self, name: str, address: Address) -> None:
        backoff = Backoff(*BACKOFF)
        failed = ""
        while True:
            await self._missing[name].wait()
            if self.paused or name in self._peers.hub.by_name:
                self._missing[name].clear()
                backoff.reset()
                failed = ""
                continue
            try:
                await self._connect(name, address)
            except (OSError, TimeoutError) as error:
                why = str(error) or f"no connection within {TIMEOUT:.0f} s"
                if why != failed:
                    failed = why
                    log.warning("an HAProxy can't be reached", haproxy=name, why=why)
            await asyncio.sleep(backoff.next())

    async def _connect(self, name: str, address: Address) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(TIMEOUT):
            if address.path:
                await loop.create_unix_connection(lambda: self._peers.dial(name), address.path)
            else:
                await loop.create_connection(
                    lambda: self._peers.dial(name), address.host, address.port, ssl=self._tls
                )

    def _ended(self, name: str) -> None:
        if name in self._missing:
            self._missing[name].set()
