"""Keeps the leases on HAProxies in the store; see ``peers.leases``."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from ratelimit.notation import MILLISECOND, SECOND
from ratelimit.peers.hub import Hub
from ratelimit.peers.leases import LIFE, PAUSE
from ratelimit.store.base import SharedStore, StoreError
from ratelimit.store.sync import Sync
from ratelimit.turns import paced

INTERVAL = 0.5
"""Seconds between questions to the store."""

_MOST = 1000  # leases per question
_GAP = 0.01  # seconds between them if there are many reasons to ask

log = structlog.get_logger()


class Leasing:
    """Asks the store for the leases of the connected HAProxies."""

    def __init__(self, hub: Hub, sync: Sync) -> None:
        self._hub = hub
        self._leases = hub.leases
        self._sync = sync
        self._due = asyncio.Event()
        self._asking = asyncio.Lock()
        hub.on_ask = self._due.set
        sync.on_lost.append(self._lost)
        sync.on_back.append(self._back)
        sync.on_return.append(self._ask)

    def begin(self) -> None:
        """Learn of the store; before the first session."""
        store = self._sync.store
        self._leases.shared = isinstance(store, SharedStore)
        self._leases.up = store is not None and store.up

    async def run(self) -> None:
        """Take and renew leases until cancelled."""
        self.begin()  # a socket may be opened later
        while self._leases.shared:
            await self._ask()
            waiting = self._leases.start(self._sync.now())
            self._changed()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PAUSE / SECOND if waiting else INTERVAL):
                    await self._due.wait()
            await asyncio.sleep(_GAP)
            self._due.clear()
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Give all leases back, so that another agent takes over."""
        async with self._asking:
            await self._call(self._leases.unwanted(()), 0)

    async def _ask(self) -> None:
        async with self._asking:
            connected = self._hub.by_name
            asked = self._sync.now()
            names = self._leases.wanted(connected, asked)
            forget = False
            for name, (before, holder) in (await self._call(names, LIFE)).items():
                now = self._sync.now()
                forget = self._leases.answered(name, before, holder, asked, now) or forget
            if forget:
                log.warning("another agent has counted meanwhile; hits of this one are forgotten")
                await paced(self._hub.restart())
            self._changed()
            await self._call(self._leases.unwanted(connected), 0)

    async def _call(self, names: list[str], life: int) -> dict[str, tuple[str, str]]:
        store = self._sync.store
        found: dict[str, tuple[str, str]] = {}
        if not isinstance(store, SharedStore) or not store.up:
            return found
        with contextlib.suppress(StoreError):  # the store reports its outage itself
            for begin in range(0, len(names), _MOST):
                part = names[begin : begin + _MOST]
                found |= await store.lease(part, self._leases.agent, life // MILLISECOND)
        return found

    def _changed(self) -> None:
        for link in self._hub.changed():
            holder = self._leases.by_name[link.name].holder
            if link.counts:
                log.info("this agent counts for an HAProxy", haproxy=link.name)
            else:
                log.info("another agent counts for an HAProxy", haproxy=link.name, agent=holder)

    def _lost(self) -> None:
        self._leases.lost()
        self._changed()

    def _back(self) -> None:
        self._leases.back(self._sync.now())
        self._due.set()
