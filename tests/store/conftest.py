"""Servers, and nodes that use them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from structlog.testing import capture_logs

from ratelimit.limiter.limiter import Limiter
from ratelimit.limiter.merge import Merge
from ratelimit.model import Block, Lift, Limit
from ratelimit.store import Events, MemoryStore, Node, Store, open_store
from ratelimit.store.journal_file import SlotFile
from ratelimit.store.redis.store import RedisStore
from ratelimit.store.redis.url import Target, parse
from ratelimit.store.sync import Sync
from tests.helpers.running import entries
from tests.helpers.servers import PROGRAM, Server, until


@pytest.fixture
def make_server(folder: Path) -> Iterator[Callable[..., Server]]:
    """Return a function that starts servers; all end with the test."""
    assert PROGRAM is not None, "redis-server is not installed"
    servers: list[Server] = []

    def make(*options: str, start: bool = True, **where: Any) -> Server:
        server = Server(folder, *options, **where)
        servers.append(server)
        return server.start() if start else server

    yield make
    for server in servers:
        server.kill()


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Server:
    return make_server()


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines


BLOCKS, LIFTS = "test:{fleet}:blocks", "test:{fleet}:lifts"

FORGET = 100
"""Seconds that strikes are remembered."""


class Seen:
    """A node's owner: keeps the blocklist as it is told, and all else that it is told."""

    def __init__(self) -> None:
        self.list = Limiter([Limit(forget=FORGET)], 8)
        # Short keys for the tests, which a limiter would keep as hashes.
        self.list.kept = lambda entry: entry  # type: ignore[method-assign]
        self.lifts: list[tuple[str, str]] = []
        self.loads = 0
        self.hot: list[bytes] = []
        self.states: list[str] = []
        self.ends_at_clock: list[list[int]] = []
        self.events = Events(
            on_block=self._block,
            on_lift=self._lift,
            merge=self._merge,
            on_hot=self.hot.append,
            on_lost=lambda: self.states.append("lost"),
            on_back=lambda: self.states.append("back"),
            on_clock=lambda: self.ends_at_clock.append(self.ends()),
            forget=lambda limit: FORGET,
        )

    @property
    def blocks(self) -> dict[tuple[str, str], Block]:
        return {(block.limit, block.key): block for block in self.list.blocklist}

    def _block(self, block: Block) -> None:
        self.list.apply(block)

    def _lift(self, lift: Lift) -> None:
        self.lifts.append((lift.limit, lift.key))
        self.list.lift(lift)

    def _merge(self) -> Merge:
        self.loads += 1
        return Merge(self.list)

    def lift(self, limit: str, key: str) -> Lift:
        """Lift as an operator of this node does."""
        return self.list.lift_now(limit, key, time.time_ns())

    def clients(self) -> set[str]:
        return {key for _, key in self.blocks}

    def ends(self) -> list[int]:
        return [block.until for block in self.blocks.values()]


def make_node(
    url: str | Target,
    name: str = "node",
    prefix: str = "test",
    state: Path | None = None,
    **options: Any,
) -> tuple[RedisStore, Seen]:
    """Return a node that is not started; ``state`` is where its journal is to be."""
    seen, target = Seen(), url if isinstance(url, Target) else parse(url)
    journal = SlotFile(state, target, prefix, seen.events.forget) if state else None
    node = Node(name, "1.0", int(time.time()))
    store = RedisStore(target, prefix, seen.events, node=node, journal=journal, **options)
    seen.list.on_taken.append(store.keep)
    return store, seen


@contextlib.asynccontextmanager
async def nodes(
    url: str | Target, count: int = 1, prefix: str = "test", **options: Any
) -> AsyncIterator[list[tuple[RedisStore, Seen]]]:
    """Run nodes of one store."""
    made = []
    try:
        for number in range(count):
            made.append(make_node(url, f"node{number}", prefix, **options))
            await made[-1][0].start()
        yield made
    finally:
        for store, _ in made:
            await store.close()


def run(test: Callable[[], Awaitable[None]], seconds: float = 120) -> None:
    """Run a test in an event loop; it may not take longer."""

    async def main() -> None:
        async with asyncio.timeout(seconds):
            await test()

    uvloop.run(main())


_orders = itertools.count()


def block(
    key: str,
    strikes: int = 1,
    since: int = 0,
    length: int = 60,
    limit: str = "default",
    **more: Any,
) -> Block:
    """Return an entry that begins ``since`` seconds from now."""
    begin = int(time.time()) + since
    more.setdefault("order", begin * 1_000_000 + next(_orders))
    return Block(key, limit, "over 100 in 1 s", strikes, begin, begin + length, **more)


def lift(key: str, limit: str = "default", after: int = 0) -> Lift:
    """Return a lift by the clock, so many seconds later."""
    now = time.time_ns() // 1000 + after * 1_000_000 + next(_orders)
    return Lift(key, limit, now, now // 1_000_000 + 3600)


async def listed(store: Store) -> list[Block]:
    """Return the blocks that a store has."""
    return [entry for entry in await entries(store) if isinstance(entry, Block)]


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[MemoryStore, Seen]]:
    seen = Seen()
    store = MemoryStore(str(folder), seen.events)
    await store.start()
    try:
        yield store, seen
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def strings_node(
    url: str, folder: Path, limit: Limit | None = None
) -> AsyncIterator[tuple[Store, Limiter]]:
    """Run what an agent has of a limiter and a store."""
    limiter = Limiter([limit or Limit()], 100, keyed=False)
    sync = Sync(limiter, 0.01, False)
    about = Node(folder.name, "1", 0)
    store = open_store(url, prefix="test", state_dir=str(folder), events=sync.events, node=about)
    if store.kept.secret:
        limiter.rekey(store.kept.secret)
    sync.attach(store, about)
    await store.start()
    try:
        yield store, limiter
    finally:
        await store.close()


def by_hand(key: str, **more: Any) -> Any:
    return block(key, limit="*", by="ann", **more)


async def at_both(of: list[tuple[RedisStore, Seen]], clients: set[str]) -> None:
    await until(lambda: all(seen.clients() == clients for _, seen in of))


@pytest.fixture(params=[b"", b"s" * 32], ids=["plain", "signed"])
def secret(request: pytest.FixtureRequest) -> bytes:
    """That of the fleet: nodes that sign merge as the scripts do for others."""
    given: bytes = request.param
    return given
