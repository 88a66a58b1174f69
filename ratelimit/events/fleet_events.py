"""Finds out what webhooks tell of, and sees to it that one node tells it, not each.

A block is told by the node that made it, a lift by the node that was asked for it. What all nodes
see is told by the one that first claims it in the store. While the store is away nobody can claim,
so then the node with the lowest id of those known last tells.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from ratelimit.events.load import Change, Load
from ratelimit.events.webhooks import Webhooks
from ratelimit.limiter.limiter import Limiter
from ratelimit.store import Node, Store, StoreError

_LOOK = 1.0  # seconds between looks
_BACK = 10.0  # seconds in which all nodes find the store again
_DAY = 86_400.0


async def unknown_servers() -> int | None:
    """Stand for HAProxy's runtime API where none is configured."""
    return None


class Alerts:
    """The events of a node.

    Args:
        servers: asked how many servers of the application are up; None if that is not known.
        publish: told of a change of the load, on each node.
    """

    def __init__(
        self,
        limiter: Limiter,
        store: Store,
        node: str,
        webhooks: Webhooks,
        load: Load,
        servers: Callable[[], Awaitable[int | None]] = unknown_servers,
        publish: Callable[..., object] = lambda name, **data: None,
    ) -> None:
        self._limiter = limiter
        self._store = store
        self._node = node
        self._webhooks = webhooks
        self._load = load
        self._servers = servers
        self._publish = publish
        self._nodes = [Node(node, "", 0)]
        self._lost_at: float | None = None
        self._fused: set[str] = set()

    def hear(self, name: str, data: Mapping[str, object]) -> None:
        """Take an event of this node; a block or lift that was made here is told.

        ``data`` has the ``node`` of it. What a limit in shadow would have blocked is nobody's news.
        """
        if name in ("block", "unblock") and data["node"] == self._node and not data.get("shadow"):
            self._webhooks.send(name, data)

    async def run(self) -> None:
        """Look once a second until cancelled, while there is anything to look for."""
        while True:
            await asyncio.sleep(_LOOK)
            # A reload may have set either.
            if self._webhooks.hooks or self._load.high:
                await self.look(time.time())

    async def look(self, now: float) -> None:
        """See what has changed by a time in epoch seconds."""
        await self._look_at_store(now)
        await self._look_at_fuses()
        if self._store.up:
            try:
                self._nodes = await self._store.nodes_list() or self._nodes
            except StoreError:
                return
            change = self._load.observe(now, sum(node.allowed for node in self._nodes))
            if change is not None:
                await self._tell_load(change)

    async def _look_at_store(self, now: float) -> None:
        up, lost_at = self._store.up, self._lost_at
        if not up and lost_at is None:
            self._lost_at = now
            if self._lowest():
                self._webhooks.send("store.lost", {"why": self._store.problem})
        elif up and lost_at is not None:
            self._lost_at = None
            if await self._first("store", "back", _BACK):
                self._webhooks.send("store.back", {"lost_at": lost_at, "seconds": now - lost_at})

    async def _look_at_fuses(self) -> None:
        for rule in self._limiter.engine.rules:
            limit, blown = rule.limit.name, getattr(rule, "fused", False)
            if blown == (limit in self._fused):
                continue
            self._fused ^= {limit}
            if await self._first(f"fuse:{limit}", "blown" if blown else "cleared", _DAY):
                self._webhooks.send("fuse", {"limit": limit, "blown": blown})

    async def _tell_load(self, change: Change) -> None:
        name = f"load.{change.name}"
        data = {
            "allowed_per_second": change.rate,
            "threshold": change.threshold,
            "since": change.since,
            "nodes": len(self._nodes),
            "servers_up": await self._servers(),
        }
        self._publish(name, **data)
        if await self._first("load", change.name, _DAY):
            self._webhooks.send(name, data)

    async def _first(self, name: str, value: str, ttl: float) -> bool:
        """Return whether this node is the one to tell that ``name`` has become ``value``."""
        try:
            return await self._store.claim(name, value, ttl)
        except StoreError:
            return self._lowest()

    def _lowest(self) -> bool:
        return self._node <= min(node.id for node in self._nodes)
