"""A node with its API on a free port, in the test's event loop, and a fake HAProxy."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from ratelimit.agent.server import Agent
from ratelimit.api.server import ApiServer
from ratelimit.config import load
from ratelimit.haproxy.api import Runtime, Telling
from ratelimit.limiter.limiter import Limiter
from ratelimit.model import Block, Entry, Lift
from ratelimit.node.operations import Control
from ratelimit.store import Events, MemoryStore, Node, Store
from ratelimit.store.journal import Journal
from ratelimit.store.redis.store import RedisStore
from ratelimit.store.sync import Sync
from tests.helpers.servers import until

__all__ = ["EDGE", "Edges", "Running", "block", "running", "until"]


EDGE = "/run/haproxy.sock"


class Edges(Runtime):
    """Replaces HAProxy's edge table: records changes, and fails on demand."""

    def __init__(self) -> None:
        super().__init__(())
        self.told: list[tuple[str, int]] = []
        self.fails = False
        self.failed = 0
        self.compared = 0

    @property
    def sockets(self) -> list[str]:
        return [EDGE]

    @property
    def missed(self) -> int:
        return self.failed

    def push(self, key: str, until: int, by_hand: int = 0) -> Telling:
        self.told.append((key, until))
        return self._tell()

    def lift(self, key: str, by_hand: int = 0) -> Telling:
        self.told.append((key, 0))
        return self._tell()

    def compare(self) -> None:
        self.compared += 1

    def _tell(self) -> Telling:
        self.failed += self.fails
        made = asyncio.get_running_loop().create_future()
        made.set_result("it does not answer" if self.fails else "")
        return Telling({EDGE: [made]}, 1)


@dataclass
class Running:
    control: Control
    server: ApiServer
    client: httpx.AsyncClient
    port: int
    edges: Edges
    events: Events

    def seconds(self) -> int:
        return self.control.now()


@contextlib.asynccontextmanager
async def running(folder: Path, config: str = "", clients: int = 1000) -> AsyncIterator[Running]:
    """Yield a running node with an API; ``config`` is its file."""
    path = folder / "api.toml"
    path.write_text(config)
    loaded = load(path)
    limiter = Limiter(loaded.limits_in_force(), clients, node="here", lists=loaded.read_lists())
    sync = Sync(limiter, 0.01, False)
    about = Node("here", "0", 0)
    edges = Edges()
    control = Control(loaded, Agent(limiter, sync), about, edges)
    server = ApiServer(control)
    events = sync.events
    store = MemoryStore(str(folder / "state"), events, about)
    sync.attach(store, about)
    address = await server.start()
    await store.start()
    limiter.engine.at(sync.now())
    control.ready = True
    parts = control.edges.run(), control.edges.compare_all(), server.run()
    tasks = [asyncio.create_task(part) for part in parts]
    base = f"http://127.0.0.1:{address.port}"
    try:
        async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=10) as client:
            yield Running(control, server, client, address.port, edges, events)
        assert not any(task.done() for task in tasks), "a part has ended"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.close()
        await store.close()


def block(key: str, until: int, limit: str = "default") -> Block:
    order = time.time_ns() // 1000
    return Block(key, limit, "over 100 in 1s", 1, 1, until, order=order)


def lift(limit: str, key: str) -> Lift:
    """Return a lift of any current block."""
    now = time.time_ns() // 1000 + 1
    return Lift(key, limit, now, now // 1_000_000 + 3600)


async def entries(store: Store) -> list[Entry]:
    """Return the blocks and lifts that a store has."""
    if isinstance(store, RedisStore):
        pages = [page async for page in store._blocklist.read(store._connected())]
    else:
        assert isinstance(store, MemoryStore)
        pages = await journalled(store._journal)
    return list({(one.limit, one.key, type(one)): one for page in pages for one in page}.values())


async def journalled(journal: Journal) -> list[list[Entry]]:
    """Return the blocks and lifts in the file of a journal that are not forgotten."""
    return await journal._do(list, journal._file.pages(journal._second()))


async def listed(store: Store) -> list[str]:
    """Return the keys of a store's blocks."""
    return [entry.key for entry in await entries(store) if isinstance(entry, Block)]
