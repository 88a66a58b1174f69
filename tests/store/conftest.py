"""Servers, and nodes that use them."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from structlog.testing import capture_logs

from ratelimit.model import Block
from ratelimit.store import Events, Node
from ratelimit.store.redis import RedisStore
from ratelimit.store.url import Target, parse
from tests.store.servers import PROGRAM, Server


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="rl-") as name:
        yield Path(name)


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


class Seen:
    """A node's owner: keeps the blocklist as it is told, and all else that it is told."""

    def __init__(self) -> None:
        self.blocks: dict[tuple[str, str], Block] = {}
        self.lifts: list[tuple[str, str]] = []
        self.loads = 0
        self.hot: list[bytes] = []
        self.states: list[str] = []
        self.events = Events(
            on_block=self._block,
            on_lift=self._lift,
            on_loaded=self._loaded,
            on_hot=self.hot.append,
            on_lost=lambda: self.states.append("lost"),
            on_back=lambda: self.states.append("back"),
            held=lambda: list(self.blocks.values()),
            forget=lambda limit: 100,
        )

    def _block(self, block: Block) -> None:
        self.blocks[block.limit, block.key] = block

    def _lift(self, limit: str, key: str) -> None:
        self.lifts.append((limit, key))
        self.blocks.pop((limit, key), None)

    def _loaded(self, blocks: list[Block]) -> Iterator[None]:
        self.loads += 1
        self.blocks = {(block.limit, block.key): block for block in blocks}
        return iter(())

    def clients(self) -> set[str]:
        return {key for _, key in self.blocks}


@contextlib.asynccontextmanager
async def nodes(
    url: str | Target, count: int = 1, prefix: str = "test", **options: Any
) -> AsyncIterator[list[tuple[RedisStore, Seen]]]:
    """Run nodes of one store."""
    made = []
    try:
        for number in range(count):
            seen = Seen()
            node = Node(f"node{number}", "1.0", int(time.time()))
            target = parse(url) if isinstance(url, str) else url
            store = RedisStore(target, prefix, seen.events, node=node, **options)
            made.append((store, seen))
            await store.start()
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


def block(key: str, strikes: int = 1, since: int = 0, length: int = 60, **more: Any) -> Block:
    """Return an entry that begins ``since`` seconds from now."""
    begin = int(time.time()) + since
    return Block(key, "default", "over 100 in 1 s", strikes, begin, begin + length, **more)
