"""The leases of an agent in a store that a test plays."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import cast

import uvloop

from ratelimit.agent.leasing import Leasing
from ratelimit.limiter.limiter import Limiter, Sharing
from ratelimit.model import Limit
from ratelimit.notation import SECOND
from ratelimit.peers.hub import Hub
from ratelimit.peers.leases import LIFE
from ratelimit.store.base import Node, SharedStore, Store, StoreError
from ratelimit.store.sync import Sync
from tests.helpers.fake_haproxy import FakeHaproxy, ipv4
from tests.helpers.servers import until

CLIENT = ipv4("192.0.2.7")


class FakeStore(SharedStore):
    """A store whose leases a test changes; ``asked`` are the calls."""

    def __init__(self, sync: Sync) -> None:
        super().__init__(sync.events)
        self.up = True
        self.holders: dict[str, str] = {}
        self.asked: list[tuple[list[str], int]] = []
        self.exchanges = 0
        self.silent = False

    async def start(self) -> None: ...
    async def close(self) -> None: ...
    def announce(self, node: Node) -> None: ...
    async def nodes_list(self) -> list[Node]:
        return []

    async def exchange(self, *args: object, **more: object) -> bytes:
        self.exchanges += 1
        raise StoreError("not played")

    async def lease(
        self, names: Sequence[str], agent: str, life: int
    ) -> dict[str, tuple[str, str]]:
        self.asked.append((list(names), life))
        if self.silent:
            raise StoreError("no answer")
        found = {}
        for name in names:
            before = self.holders.get(name, "")
            if before in ("", agent):
                self.holders[name] = agent if life else ""
            found[name] = before, self.holders[name]
        return found

    def lose(self) -> None:
        self.up = False
        self.events.on_lost()

    def recover(self) -> None:
        self.up = True
        self.events.on_back()


class Agent:
    """A hub with its leases, and a HAProxy that tells it counts."""

    def __init__(self) -> None:
        self.limiter = Limiter([Limit(rate=10)], max_clients=1_000, sharing=Sharing.HOT)
        self.sync = Sync(self.limiter, 0.01, False)
        self.hub = Hub(self.limiter, "agent", capacity=1_000)
        self.leasing = Leasing(self.hub, self.sync)
        self.store = FakeStore(self.sync)
        self.sync.attach(cast(Store, self.store), Node("a", "", 0))
        self.leasing.begin()
        self.hub.tick(self.sync.now(), 0)
        self.haproxy = FakeHaproxy(self.hub, self.sync.now(), "edge")
        self.counted = 0

    def pump(self) -> None:
        assert self.hub.reads(self.haproxy.link, self.sync.now())
        self.haproxy.pump(self.sync.now())

    def request(self) -> None:
        self.counted += 1
        values = [self.counted, 0, self.counted, 0]
        self.haproxy.session.update(self.haproxy.tables[0], CLIENT, values)
        self.pump()

    async def connect(self) -> None:
        """Shake hands; HAProxy tells its counts once they may be read."""
        self.haproxy.pump(self.sync.now())
        await until(lambda: self.hub.reads(self.haproxy.link, self.sync.now()))
        self.haproxy.connect(self.sync.now())

    def hits(self) -> int:
        engine = self.limiter.engine
        engine.at(self.sync.now())
        return engine.hits(engine.rules[0], engine.slot(engine.rules[0], b"192.0.2.7"))

    @property
    def counts(self) -> bool:
        return self.hub.origins["edge"].counting


@contextlib.asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(agent.leasing.run()), asyncio.create_task(agent.sync.run())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def run(test: Callable[[Agent], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            agent = Agent()
            async with running(agent):
                await test(agent)

    uvloop.run(main())


def test_the_agent_counts_with_a_lease_and_tells_haproxy_so() -> None:
    async def test(agent: Agent) -> None:
        await agent.connect()
        assert agent.store.asked[0] == (["edge"], LIFE // 1_000_000)
        agent.request()
        assert agent.hits() == 1
        assert agent.haproxy.entries["rlc_limits"][b"default"][2] > 0
        await agent.leasing.close()
        assert agent.store.asked[-1] == (["edge"], 0) and agent.store.holders == {"edge": ""}

    run(test)


def test_without_the_lease_it_counts_nothing_and_tells_haproxy_no_limit() -> None:
    async def test(agent: Agent) -> None:
        agent.store.holders["edge"] = "agent2"
        await agent.connect()
        agent.request()
        agent.hub.tick(agent.sync.now(), 0)
        agent.pump()
        assert agent.hits() == 0
        assert "rlc_limits" not in agent.haproxy.entries
        agent.store.holders["edge"] = ""
        agent.request()
        await until(lambda: agent.counts)
        agent.request()
        assert agent.hits() == 1
        assert agent.haproxy.entries["rlc_limits"][b"default"][2] > 0

    run(test)


def test_the_lease_of_a_session_that_has_ended_is_given_back() -> None:
    async def test(agent: Agent) -> None:
        await agent.connect()
        agent.hub.end(agent.haproxy.link)
        await until(lambda: agent.store.asked[-1] == (["edge"], 0))

    run(test)


def test_hits_that_another_agent_has_counted_are_forgotten_before_any_is_exchanged() -> None:
    async def test(agent: Agent) -> None:
        await agent.connect()
        agent.store.lose()
        for _ in range(5):
            agent.request()
        assert agent.hits() == 5
        agent.store.holders["edge"] = "agent2"
        # The client is shared, and other nodes wait for its hits.
        engine = agent.limiter.engine
        slot = engine.slot(engine.rules[0], b"192.0.2.7")
        engine.exchanges[0].heat(slot, 0)
        agent.store.recover()
        await until(lambda: not agent.counts)
        assert agent.hits() == 0
        assert agent.store.exchanges == 0

    run(test)


def test_leases_are_asked_for_also_if_the_first_socket_is_opened_later() -> None:
    async def main() -> None:
        agent = Agent()
        agent.hub.leases.shared = False  # as before the first socket
        async with asyncio.timeout(20), running(agent):
            await until(lambda: agent.hub.leases.shared)
            await agent.connect()
            assert agent.counts and agent.store.asked

    uvloop.run(main())


def test_a_silent_store_changes_nothing() -> None:
    async def test(agent: Agent) -> None:
        await agent.connect()
        agent.store.silent = True
        before = len(agent.store.asked)
        await until(lambda: len(agent.store.asked) > before)
        assert agent.counts
        agent.store.lose()
        assert agent.hub.reads(agent.haproxy.link, time.time_ns() + 60 * SECOND)
        agent.request()
        assert agent.hits() == 1

    run(test)
