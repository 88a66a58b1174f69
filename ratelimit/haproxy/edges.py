"""Tells the HAProxy processes beside this node what the blocklist says.

Of an automatic block HAProxy hears with the answer to its client's request. What is told here are
blocks by hand, and who is blocked no more: always what holds now, whatever was asked for before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from ratelimit.engine.layout import ALLOW
from ratelimit.haproxy.api import Fault, Network, Runtime, Telling
from ratelimit.haproxy.commands import network_key, parse_key
from ratelimit.haproxy.map_files import MapFiles
from ratelimit.haproxy.maps import ALWAYS, LISTS, NEVER
from ratelimit.limiter.limiter import Limiter
from ratelimit.model import EVERY_LIMIT, Block
from ratelimit.steps import Steps
from ratelimit.turns import paced

MAX_KEYS = 10_000
"""Keys of which the edges are to be told; with the next one, their tables are compared instead."""


class Edges:
    """The edges of a node; a ``folder`` gets HAProxy's maps as files."""

    def __init__(self, limiter: Limiter, runtime: Runtime, folder: str = "") -> None:
        self.limiter = limiter
        self.runtime = runtime
        self.files = MapFiles(folder, self.lines)
        self._dropped = 0
        self._keys: dict[str, None] = {}
        self._wait = asyncio.Event()

    @property
    def faults(self) -> int:
        """Changes that an HAProxy did not take at once."""
        return self.runtime.missed

    @property
    def dropped(self) -> int:
        """Changes that found no room to wait for HAProxy; a comparison makes them."""
        return self._dropped + self.runtime.dropped

    @property
    def corrected(self) -> int:
        """Entries that comparisons have removed, changed or added."""
        return self.runtime.corrected

    @property
    def behind(self) -> int:
        """HAProxy processes whose table may not be as the blocklist says."""
        return self.runtime.behind

    async def run(self) -> None:
        """Tell what is to be told, until cancelled."""
        while True:
            await self._wait.wait()
            self._wait.clear()
            while self._keys:
                await self._settle()
                await paced(self._telling())

    async def compare_all(self) -> None:
        """Keep the edge tables in step with the blocklist, until cancelled."""
        await self.runtime.run(self)

    def tell(self, key: str) -> None:
        """Have the edges know of a key as soon as possible."""
        if len(self._keys) >= MAX_KEYS and key not in self._keys:
            self._dropped += len(self._keys)
            self._keys.clear()
            self.compare()
        self._keys[key] = None
        self._wait.set()
        self.files.changed()

    async def told(self, *keys: str) -> list[Fault]:
        """Have the edges know of keys; return where that failed, or takes longer."""
        for key in keys:
            self._keys.pop(key, None)
        self.files.changed()
        await self._settle()
        found = await asyncio.gather(*map(self._tell, keys))
        return list({fault.socket: fault for faults in found for fault in faults}.values())

    def compare(self) -> None:
        """Have the edge tables compared: the blocklist or the lists may have changed unseen."""
        self.runtime.compare()
        self.files.changed()

    # What the tables should have, see ``runtime.Truth``.

    def until(self, client: Network) -> int:
        """Return until when an edge may refuse a client, by the clock of this machine."""
        until = self.limiter.edge_until(client)
        return until - self.limiter.engine.ahead if until else 0

    def by_hand(self) -> Iterator[str]:
        """Yield the keys that are blocked by hand."""
        return (block.key for block in self.limiter.blocklist.of(EVERY_LIMIT))

    def lines(self, name: str) -> Iterator[str]:
        """Yield the lines of a map of HAProxy's, see ``haproxy.maps``."""
        if name == LISTS:
            for network, value in self.limiter.lists.networks():
                yield f"{network} {NEVER if value == ALLOW else ALWAYS}"
        else:
            for block in self.limiter.blocklist.of(EVERY_LIMIT):
                if (one := parse_key(block.key)) is not None and (until := self._ends(block)):
                    yield f"{network_key(one)} {until}"

    def _ends(self, block: Block) -> int:
        """Return when a block ends, by the clock of this machine; 0 if it has."""
        ahead = self.limiter.engine.ahead
        return block.until - ahead if block.until > self.limiter.engine.table.now else 0

    # ---- telling ---------------------------------------------------------------------------

    def _telling(self) -> Steps[None]:
        while self._keys and not self.limiter.stale:
            key = next(iter(self._keys))
            del self._keys[key]
            self._tell(key)
            yield

    async def _settle(self) -> None:
        """Have the engine know all networks that are blocked by hand.

        Otherwise its answers would have HAProxy remember again what is lifted.
        """
        await paced(self.limiter.cut())

    def _tell(self, key: str) -> Telling:
        block = self.limiter.blocklist.get(EVERY_LIMIT, key)
        network = parse_key(key)
        by_hand = 0 if block is None else self._ends(block)
        if block is not None and network is not None:
            until = self.until(self.runtime.prefixes.client(network))
            if until:
                return self.runtime.push(key, until, by_hand)
        return self.runtime.lift(key, by_hand)
