"""Blocks and lifts as the scripts of the store merge them."""

from __future__ import annotations

import pytest

from ratelimit.store.pending import Change
from tests.helpers.servers import Server, until
from tests.store.conftest import BLOCKS, block, lift, listed, nodes, run

pytestmark = pytest.mark.integration


def test_the_strike_of_two_nodes_at_once_is_one_strike(server: Server, secret: bytes) -> None:
    async def main() -> None:
        async with nodes(server.url, 2, secret=secret) as [(first, _), (second, seen)]:
            one, two = (
                block("192.0.2.1", since=0, length=10),
                block("192.0.2.1", since=1, length=10),
            )
            await second.save(two)
            await first.save(one)
            (entry,) = await listed(first)
            assert (entry.strikes, entry.until) == (1, two.until)
            await until(lambda: list(seen.blocks.values()) == [entry])

    run(main)


@pytest.mark.parametrize(
    ("since", "strikes"),
    [(0, 4), (69, 4), (93, 4), (95, 1)],  # its strikes are remembered for 100 s after -5
)
def test_a_strike_after_the_block_is_one_more(
    server: Server, secret: bytes, since: int, strikes: int
) -> None:
    async def main() -> None:
        async with nodes(server.url, secret=secret) as [(store, _)]:
            await store.save(block("192.0.2.1", 3, since=-10, length=5))
            await store.save(block("192.0.2.1", 1, since=since, length=5))
            (entry,) = await listed(store)
            assert entry.strikes == strikes
            assert entry.until - entry.since == 5

    run(main)


def test_writing_again_changes_nothing(server: Server, secret: bytes) -> None:
    async def main() -> None:
        async with nodes(server.url, 2, secret=secret) as [(first, _), (_, seen)]:
            for _ in range(3):
                await first.save(block("192.0.2.1", 2, since=-20, length=10))
            assert [entry.strikes for entry in await listed(first)] == [2]
            await until(lambda: len(seen.blocks) == 1)

    run(main)


def test_old_news_does_not_replace_the_new(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            entry = block("192.0.2.1", 2, since=0, length=60)
            await store.save(entry)
            await store.save(block("192.0.2.1", 1, since=-30, length=10))
            assert await listed(store) == [entry]

    run(main)


def test_what_was_lifted_is_not_written_again_by_a_late_node(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            await store.save(block("192.0.2.1", since=-2))
            await store.lift(lift("192.0.2.1"))
            await store.save(block("192.0.2.1", since=-1))
            assert await listed(store) == []
            await store.save(block("192.0.2.1", since=1))
            assert [entry.strikes for entry in await listed(store)] == [1]

    run(main)


def test_a_lift_that_is_written_late_spares_who_was_blocked_again(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url, 2) as [(one, of_one), (two, of_two)]:
            # As long ago as an outage may take.
            for key, since in (("before", -70), ("after", -50)):
                await two.save(block(key, since=since, length=600))
            await until(lambda: of_one.clients() == {"before", "after"})
            for change in [Change(lift(key, after=-60)) for key in ("before", "after", "again")]:
                change.asked -= 60
                one.outbox.add(change)
            one.put(block("again", since=-50, length=600))
            await until(lambda: not len(one.outbox))
            await one.save(block("last"))
            left = {"after", "again", "last"}
            assert {entry.key for entry in await listed(one)} == left
            await until(lambda: of_one.clients() == of_two.clients() == left)

    run(main)


@pytest.mark.parametrize(
    "damaged", ["5", "[]", "{}", '{"lifted":"x"}', '{"since":1,"until":"x","strikes":1}', "?"]
)
def test_a_damaged_entry_is_replaced(server: Server, damaged: str) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            server.do("HSET", BLOCKS, "default|a", f"99999999999 {damaged}")
            await store.save(block("a"))
            assert [entry.key for entry in await listed(store)] == ["a"]
            assert store.outages == 0

    run(main)
