"""Sends changes of the blocklist to the HAProxy processes of this node.

HAProxy learns a block by a limit from the answer to the client's request. Blocks by hand, and ends
of blocks, are sent from here: always the current state of a key, not each change.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator

from ratelimit.engine.layout import ALLOW
from ratelimit.haproxy.api import Fault, Runtime, Telling
from ratelimit.haproxy.commands import network_key
from ratelimit.haproxy.map_files import MapFiles
from ratelimit.haproxy.maps import ALWAYS, LISTS, NEVER
from ratelimit.limiter.keys import Network, key_network
from ratelimit.limiter.limiter import Limiter
from ratelimit.model import EVERY_LIMIT, Block
from ratelimit.steps import Steps
from ratelimit.turns import paced

MAX_KEYS = 10_000
"""Keys that wait to be sent; beyond that, whole tables are compared instead."""


class Edges:
    """The HAProxy processes of a node; ``folder`` is where HAProxy's maps are written as files."""

    def __init__(self, limiter: Limiter, runtime: Runtime, folder: str = "") -> None:
        self.limiter = limiter
        self.runtime = runtime
        self.files = MapFiles(folder, self.lines)
        self._dropped = 0
        # A dict would search from its start again for each key that is taken from there.
        self._keys: OrderedDict[str, None] = OrderedDict()
        self._wait = asyncio.Event()

    @property
    def dropped(self) -> int:
        """Changes that were dropped because the queue was full; a comparison makes up for them."""
        return self._dropped + self.runtime.dropped

    async def run(self) -> None:
        """Send changes until cancelled."""
        while True:
            await self._wait.wait()
            self._wait.clear()
            while self._keys:
                await self._settle()
                await paced(self._telling())

    async def compare_all(self) -> None:
        """Keep the edge tables equal to the blocklist until cancelled."""
        await self.runtime.run(self)

    def tell(self, key: str) -> None:
        """Send the state of a key as soon as possible."""
        if len(self._keys) >= MAX_KEYS and key not in self._keys:
            self._dropped += len(self._keys)
            self._keys.clear()
            self.compare()
        self._keys[key] = None
        self._wait.set()
        self._changed(key)

    def ended(self, key: str) -> None:
        """Have the maps forget a key whose block has ended.

        HAProxy looks for the narrowest network of an address: one whose block has ended would hide
        a wider one that is still blocked.
        """
        if key not in self._keys:
            self.runtime.ended(key)
        self.files.changed()

    async def told(self, *keys: str) -> list[Fault]:
        """Send the state of keys; return the failures, including changes that take too long."""
        for key in keys:
            self._keys.pop(key, None)
            self._changed(key)
        await self._settle()
        found = await asyncio.gather(*map(self._tell, keys))
        return list({fault.socket: fault for faults in found for fault in faults}.values())

    def compare(self) -> None:
        """Compare the edge tables: the blocklist or the lists may have changed without notice."""
        self.runtime.compare()
        self.files.changed()

    # The wanted content of the tables, see ``edge_table.Truth``.

    def until(self, client: Network) -> int:
        """Return until when HAProxy may block a client, by the clock of this machine."""
        until = self.limiter.edge_until(client)
        return until - self.limiter.engine.ahead if until else 0

    def by_hand(self) -> Iterator[str]:
        """Yield the keys of blocks by hand."""
        return (block.key for block in self.limiter.blocklist.of(EVERY_LIMIT))

    def lines(self, name: str) -> Iterator[str]:
        """Yield the lines of a map of HAProxy, see ``haproxy.maps``."""
        if name == LISTS:
            for network, value in self.limiter.lists.networks():
                yield f"{network} {NEVER if value == ALLOW else ALWAYS}"
        else:
            for block in self.limiter.blocklist.of(EVERY_LIMIT):
                one = key_network(block.key)
                if one is not None and (until := self._ends(block, one)):
                    yield f"{network_key(one)} {until}"

    def _ends(self, block: Block, network: Network) -> int:
        """Return the end of a network's block by hand by the clock of this machine; 0 if it ended.

        The latest end of this block and those of wider networks: HAProxy looks for the narrowest
        network of an address, and would take no notice of a wider one, should the agent be down
        when the narrower one ends.
        """
        if block.until <= self.limiter.engine.table.now:
            return 0
        return max(block.until, self.limiter.wider_until(network)) - self.limiter.engine.ahead

    def _changed(self, key: str) -> None:
        """Note that the block of a key has changed, and with it the ends of its parts in maps."""
        network = key_network(key)
        if network is not None and self.limiter.may_have_parts(network):
            self.runtime.refill()
        self.files.changed()

    # ---- sending ---------------------------------------------------------------------------

    def _telling(self) -> Steps[None]:
        while self._keys and not self.limiter.stale:
            key, _ = self._keys.popitem(last=False)
            self._tell(key)
            yield

    async def _settle(self) -> None:
        """Apply all networks that are blocked or unblocked by hand in the engine.

        Otherwise HAProxy would store a removed block again, from the engine's next answer.
        """
        await paced(self.limiter.cut())

    def _tell(self, key: str) -> Telling:
        block = self.limiter.blocklist.get(EVERY_LIMIT, key)
        network = key_network(key)
        by_hand = 0 if block is None or network is None else self._ends(block, network)
        if block is not None and network is not None:
            until = self.until(self.runtime.prefixes.client(network))
            if until:
                return self.runtime.push(key, until, by_hand)
        return self.runtime.lift(key, by_hand)
