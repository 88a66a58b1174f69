"""The busiest clients as operators ask for them: who shares a scan, who is answered meanwhile."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from ratelimit.limiter.limiter import Limiter
from ratelimit.model import Limit
from ratelimit.node import top as module
from ratelimit.node.top import Busiest
from ratelimit.store.sync import Sync
from tests.helpers import wire
from tests.helpers.forms import responder


class Node:
    """A limiter whose clients have come, the first ones most often."""

    def __init__(self, clients: int = 40, capacity: int = 8000) -> None:
        self.limiter = Limiter([Limit(rate=1000, window=3600 * 10**9)], capacity)
        self.sync = Sync(self.limiter, 0.01, False)
        self.busiest = Busiest(self.limiter, self.sync)
        for number in range(clients):
            self.hit(f"192.0.2.{number}", 2 * (clients - number))

    def hit(self, address: str, hits: int) -> None:
        engine = self.limiter.engine
        engine.at(self.sync.now())
        key = wire.address(address)
        frame = wire.notify(wire.message("default", key=key, hits=wire.int64(hits)))
        assert responder(engine).answer(frame, 0, 16_384) == len(frame)
        responder(engine).take()

    async def keys(self, count: int, sort: str = "rate") -> list[str]:
        return [one.key for one in await self.busiest.find(count, sort)]


def test_the_busiest_come_first() -> None:
    node = Node()
    first, second = asyncio.run(node.busiest.find(2))
    assert (first.key, first.limit, first.hits, first.hashed) == ("192.0.2.0", "default", 80, False)
    assert (second.key, second.hits) == ("192.0.2.1", 78)


def test_those_who_ask_together_share_a_scan_unless_one_wants_more() -> None:
    async def main() -> None:
        node = Node()
        few, some = await asyncio.gather(node.keys(3), node.keys(2))
        assert (len(few), some) == (3, few[:2])
        node.hit("198.51.100.1", 500)
        assert "198.51.100.1" not in await node.keys(3), "it is good for a second"
        assert (await node.keys(4))[0] == "198.51.100.1"
        assert (await node.keys(3, "share"))[0] == "198.51.100.1"

    asyncio.run(main())


def test_a_costly_scan_is_good_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    clock = SimpleNamespace(monotonic=lambda: now, perf_counter=time.perf_counter)
    monkeypatch.setattr(module, "time", clock)

    async def main() -> None:
        nonlocal now
        for share, found in ((1.0, True), (1e-9, False)):
            monkeypatch.setattr(module, "SHARE", share)
            node = Node(capacity=8)
            await node.keys(3)
            now += 10  # far longer than it took, far less than a billion times that
            node.hit("198.51.100.1", 500)
            assert ("198.51.100.1" in await node.keys(3)) is found

    asyncio.run(main())


def test_others_are_answered_between_the_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """However quick the machine, slices double from 16 sets up to 4,096."""
    monkeypatch.setattr(module, "SLICE", 3600.0)

    async def main() -> None:
        node = Node(capacity=8 * 16_384)
        turns = 0
        scan = asyncio.create_task(node.keys(1000))
        while not scan.done():
            await asyncio.sleep(0)
            turns += 1
        assert len(scan.result()) == 40
        assert turns >= 8 + 3 + 2, "8 to double, 3 more of the table, 2 of what was found"

    asyncio.run(main())


def test_a_slow_machine_gets_small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE", 0.0)

    async def main() -> None:
        node = Node(capacity=8 * 100)
        turns = 0
        scan = asyncio.create_task(node.keys(10))
        while not scan.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns > 100 - 16, "one set at a time after the first slice"

    asyncio.run(main())
