"""Detects the events for webhooks and ensures that only one node sends each.

A block or an unblock is sent by the node that made it. An event that all nodes see is sent by the
first node that claims it in the store. While the store is down, the node with the lowest id of the
last known nodes sends it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from ratelimit.events.load import Load, LoadChange
from ratelimit.events.webhooks import Webhooks
from ratelimit.limiter.limiter import Limiter
from ratelimit.store import Node, Store, StoreError

_LOOK = 1.0  # seconds between checks
_BACK = 10.0  # seconds in which all nodes reconnect to the store
_DAY = 86_400.0


class Alerts:
    """Detects the events of a node.

    Args:
        servers: returns how many servers of the application are up, or None if unknown.
        publish: called on each node when the load changes.
    """

    def __init__(
        self,
        limiter: Limiter,
        store: Store,
        node: str,
        webhooks: Webhooks,
        load: Load,
        servers: Callable[[], Awaitable[int | None]],
        publish: Callable[..., object],
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
        """Take an event of this node; send a block or unblock that was made here.

        ``data["node"]`` is the node that made it. Blocks in shadow mode are not sent.
        """
        if name in ("block", "unblock") and data["node"] == self._node and not data.get("shadow"):
            self._webhooks.send(name, data)

    async def run(self) -> None:
        """Check once a second until cancelled."""
        while True:
            await asyncio.sleep(_LOOK)
            # A reload may change both.
            if self._webhooks.hooks or self._load.high:
                await self.look(time.time())

    async def look(self, now: float) -> None:
        """Detect changes at ``now`` in epoch seconds."""
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
            limit, blown = rule.limit.name, rule.fused
            if blown == (limit in self._fused):
                continue
            self._fused ^= {limit}
            if await self._first(f"fuse:{limit}", "blown" if blown else "cleared", _DAY):
                self._webhooks.send("fuse", {"limit": limit, "blown": blown})

    async def _tell_load(self, change: LoadChange) -> None:
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
        """Return whether this node must report that ``name`` has become ``value``."""
        try:
            return await self._store.claim(name, value, ttl)
        except StoreError:
            return self._lowest()

    def _lowest(self) -> bool:
        return self._node <= min(node.id for node in self._nodes)
