"""The agent's side of the runtime API, in front of the HAProxies of ``edges``."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass, field

from ratelimit.haproxy import commands
from ratelimit.haproxy.api import Runtime
from ratelimit.limiter.keys import Network, network_text
from tests.helpers.edges import Edge, edges
from tests.helpers.world import LONGEST

EVIL = [
    "192.0.2.1;clear table t_block",
    "192.0.2.1\nclear table t_block",
    "192.0.2.1\rclear table t_block",
    "192.0.2.1 data.gpt0 9",
    "::1%;clear table t_block",
    "fe80::1%eth0\nset server app/app1 state maint",
    "2001:db8::/64;clear table t_block",
    "fe80::%;clear table t_block/64",
    "١٩٢.0.2.1",
    "192.0.2.1\0",
    "api-key;clear table t_block",
    "<<\nclear table t_block",
    "",
    ";",
    "🦀",
]
"""Keys that would empty the table if any of it got through."""


@dataclass
class Book:
    """What the edges should have: ends of blocks by client, keys blocked by hand, lines of maps.

    ``reads`` counts how often each map was read.
    """

    ends: dict[str, int] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    maps: dict[str, list[str]] = field(default_factory=dict)
    reads: Counter[str] = field(default_factory=Counter)

    def until(self, client: Network) -> int:
        return self.ends.get(network_text(client), 0)

    def by_hand(self) -> Iterator[str]:
        return iter(self.keys)

    def lines(self, name: str) -> Iterator[str]:
        self.reads[name] += 1
        return iter(self.maps.get(name, []))


@contextlib.asynccontextmanager
async def runtime(
    *made: Edge, timeout: float = 1, book: Book | None = None
) -> AsyncIterator[Runtime]:
    """Yield what is tested, beside HAProxies; with a ``book`` it keeps them in step with that."""
    tested = Runtime([str(edge.path) for edge in made], timeout)
    keeping = asyncio.create_task(tested.run(book or Book()))
    try:
        async with edges(*made):
            if book is not None:
                tested.compare()
            yield tested
            assert not keeping.done(), keeping
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await tested.close()


def run(test: Awaitable[None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(LONGEST):
            await test

    asyncio.run(main())


def later(seconds: int = 600) -> int:
    return int(time.time()) + seconds


def fill(made: Edge, ends: dict[str, int]) -> None:
    """Write entries by themselves, as HAProxy does when it is told by the agent's answers."""
    for line in commands.batches(commands.set_entry(key, end) for key, end in ends.items()):
        made.say(line)
