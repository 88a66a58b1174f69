"""What is sent to the HAProxy processes of a node when its blocklist or its lists change."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from ratelimit.haproxy import push
from ratelimit.haproxy.maps import BLOCKS, LISTS
from ratelimit.haproxy.push import Edges
from ratelimit.limiter.limiter import Limiter
from ratelimit.limiter.lists import Lists, read_lists
from ratelimit.model import EVERY_LIMIT, Block, Limit
from ratelimit.steps import finish
from tests.helpers.running import EDGE
from tests.helpers.running import Edges as Told
from tests.helpers.world import until

SECOND = 1_000_000_000
START = 1_700_000_000
NO_LISTS = Lists()


@dataclass
class Node:
    """A limiter, and what its edges are told."""

    lists: Lists = NO_LISTS
    runtime: Told = field(default_factory=Told)

    def __post_init__(self) -> None:
        self.limiter = Limiter([Limit(block=(60,))], 1000, lists=self.lists)
        self.limiter.tick(START * SECOND)
        self.edges = Edges(self.limiter, self.runtime)

    def block(self, key: str, until: int, limit: str = EVERY_LIMIT) -> None:
        order = self.limiter.blocklist.next_order(limit, key, START * SECOND)
        self.limiter.apply(Block(key, limit, "", 0, START, until, order=order))

    @contextlib.asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.edges.run())
        try:
            yield
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def test_the_state_of_a_key_is_sent_and_not_each_change() -> None:
    async def main() -> None:
        node = Node()
        node.edges.tell("192.0.2.1")
        node.edges.tell("192.0.2.1")
        node.block("192.0.2.1", START + 60)
        node.edges.tell("192.0.2.2")
        async with node.sending():
            await until(lambda: len(node.runtime.told) == 2, "both keys are sent")
        assert node.runtime.told == [("192.0.2.1", START + 60), ("192.0.2.2", 0)]

    asyncio.run(main())


def test_a_key_sent_at_once_is_not_sent_again_and_its_failure_is_returned() -> None:
    async def main() -> None:
        node = Node()
        node.block("192.0.2.1", START + 60)
        node.runtime.fails = True
        node.edges.tell("192.0.2.1")
        [fault] = await node.edges.told("192.0.2.1", "192.0.2.2")
        assert (fault.socket, node.edges.runtime.missed) == (EDGE, 2)
        node.edges.tell("192.0.2.3")
        async with node.sending():
            await until(lambda: len(node.runtime.told) == 3, "the third key is sent")
        assert [key for key, _ in node.runtime.told] == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]

    asyncio.run(main())


def test_more_keys_than_can_wait_are_compared_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "MAX_KEYS", 3)

    async def main() -> None:
        node = Node()
        for number in range(4):
            node.edges.tell(f"192.0.2.{number}")
            node.edges.tell(f"192.0.2.{number}")
        assert (node.edges.dropped, node.runtime.compared) == (3, 1)
        async with node.sending():
            await until(lambda: bool(node.runtime.told), "the fourth key is sent")
        assert node.runtime.told == [("192.0.2.3", 0)]

    asyncio.run(main())


def test_tables_have_ends_by_the_clock_of_this_machine() -> None:
    async def main() -> None:
        node = Node()
        node.block("192.0.2.1", START + 60)
        node.block("192.0.2.2", START + 60, "default")
        node.limiter.engine.ahead = 5
        await node.edges.told("192.0.2.1")
        assert node.runtime.told == [("192.0.2.1", START + 55)]
        assert list(node.edges.by_hand()) == ["192.0.2.1"]
        assert list(node.edges.lines(BLOCKS)) == [f"192.0.2.1 {START + 55}"]

    asyncio.run(main())


def test_a_part_of_a_blocked_network_ends_with_the_network_in_the_map() -> None:
    async def main() -> None:
        node = Node()
        node.block("192.0.2.0/24", START + 60)
        node.block("192.0.2.1", START + 9)
        node.block("192.0.3.1", START)
        finish(node.limiter.cut())
        assert sorted(node.edges.lines(BLOCKS)) == [
            f"192.0.2.0/24 {START + 60}",
            f"192.0.2.1 {START + 60}",
        ]

    asyncio.run(main())


def test_lists_are_lines_of_a_map() -> None:
    node = Node(lists=finish(read_lists(["192.0.2.0/24"], ["198.51.100.7"], [], [])))
    assert sorted(node.edges.lines(LISTS)) == ["192.0.2.0/24 -1", "198.51.100.7/32 4294967295"]
