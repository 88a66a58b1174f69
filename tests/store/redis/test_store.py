"""Nodes that share one store."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from itertools import pairwise

import pytest

from ratelimit.model import EVERY_LIMIT
from ratelimit.steps import finish
from ratelimit.store import StoreError
from ratelimit.store.base import Node
from ratelimit.store.entries import block_to_json
from ratelimit.store.pending import Change
from tests.helpers.servers import Server, until
from tests.store.conftest import block, lift, listed, nodes, run

pytestmark = pytest.mark.integration


@pytest.fixture(params=[b"", b"s" * 32], ids=["plain", "signed"])
def secret(request: pytest.FixtureRequest) -> bytes:
    """That of the fleet: nodes that sign merge as the scripts do for others."""
    given: bytes = request.param
    return given


BLOCKS, LIFTS = "test:{fleet}:blocks", "test:{fleet}:lifts"
RECORD = struct.pack("<16sIQI64x", b"0123456789abcdef", 0, 1000, 1)


def test_the_owner_is_told_what_a_person_has_made(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, seen)]:
            saved = store.save(block("a"))
            assert seen.clients() == {"a"}, "before the store has it"
            await saved
            assert await store.lift(lift("a", after=1))
            assert seen.clients() == set()

    run(main)


def test_a_block_is_known_to_all_nodes(server: Server, secret: bytes) -> None:
    async def main() -> None:
        async with nodes(server.url, 3, secret=secret) as fleet:
            (first, _), *others = fleet
            entry = block("192.0.2.1")
            await first.save(entry)
            await until(
                lambda: all(seen.blocks == {("default", "192.0.2.1"): entry} for _, seen in others)
            )
            async with nodes(server.url, secret=secret) as [(_, late)]:
                assert late.blocks == {("default", "192.0.2.1"): entry}

    run(main)


def test_a_lift_lifts_on_all_nodes(server: Server, secret: bytes) -> None:
    async def main() -> None:
        async with nodes(server.url, 3, secret=secret) as fleet:
            (first, _), *others = fleet
            await first.save(block("192.0.2.1"))
            assert await others[0][0].lift(lift("192.0.2.1"))
            await until(lambda: all(seen.lifts and not seen.blocks for _, seen in fleet))
            assert not await first.lift(lift("192.0.2.1"))
            assert await listed(first) == []

    run(main)


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


def test_a_block_by_hand_follows_a_lift_that_is_heard_late(server: Server, secret: bytes) -> None:
    """Whoever is told that it is in force can rely on it."""

    async def main() -> None:
        async with nodes(server.url, 2, secret=secret) as [(one, of_one), (two, of_two)]:
            key, field = "192.0.2.1", "*|192.0.2.1"
            await two.save(block(key, 0, limit=EVERY_LIMIT, since=-1))
            await until(lambda: of_one.blocks)
            assert await two.lift(lift(key, EVERY_LIMIT))
            mark = server.do("HGET", LIFTS, field)
            assert isinstance(mark, bytes)
            end, order, *signature = mark.decode().split()
            news = {"lifts": [field], "lifted": [0], "marks": [[int(order), int(end), *signature]]}
            # By a clock that is behind.
            change = one.outbox.submit(block(key, 0, limit=EVERY_LIMIT, since=-1))
            assert finish(one._blocklist.hear(json.dumps(news).encode()))
            held, _ = await one.outbox.written(change, 1, str)
            await until(
                lambda: set(of_one.blocks.values()) == set(of_two.blocks.values()) == {held}
            )
            assert await listed(one) == [held]

    run(main)


def test_forgotten_entries_go(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            await store.save(block("192.0.2.1", since=-200, length=10))
            assert server.do("HKEYS", BLOCKS) == [b""]
            # One that was still to be remembered when it was written.
            old = json.dumps({"key": "a", "limit": "default"})
            server.do("HSET", BLOCKS, "default|a", f"1000000 {old}")
            assert await listed(store) == []
            await until(lambda: server.do("HKEYS", BLOCKS) == [b""])

    run(main)


def test_a_list_of_thousands_is_loaded_whole(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            for number in range(5000):
                store.put(block(f"2001:db8::{number:x}"))
            await until(lambda: not len(store.outbox))
            async with nodes(server.url) as [(_, late)]:
                await until(lambda: len(late.blocks) == 5000)

    run(main)


def test_a_flood_is_told_in_small_pieces(server: Server) -> None:
    """Each node takes a piece of news in one turn of its loop."""

    async def main() -> None:
        with server.client() as client:
            listener = client.pubsub()
            listener.subscribe("test:{fleet}:news")
            async with nodes(server.url) as [(store, seen)]:
                for number in range(500):
                    store.put(block(f"k{number}"))
                await until(lambda: len(seen.blocks) == 500)
                for number in range(500):
                    store.put(seen.lift("default", f"k{number}"))
                await until(lambda: not len(store.outbox))
                server.do("FLUSHALL")
                await until(lambda: server.do("HLEN", "test:{fleet}:lifts") == 502)
            sizes = []
            while (told := listener.get_message()) is not None:
                if told["type"] == "message":
                    news = json.loads(told["data"])
                    sizes.append(len(news.get("blocks", ())) + len(news.get("lifts", ())))
        assert sum(sizes) >= 1500
        assert max(sizes) <= 25

    run(main)


def test_news_is_taken_in_small_steps(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, seen)]:
            data = [json.loads(block_to_json(block(f"k{number}"))) for number in range(100)]
            marks = [[number, int(time.time()) + 60] for number in range(100)]
            lifts = [f"default|other{number}" for number in range(100)]
            news = {"blocks": data, "lifts": lifts, "lifted": [0] * 100, "marks": marks}
            steps = store._blocklist.hear(json.dumps(news).encode())
            done = [0, *(len(seen.blocks) + len(seen.lifts) for _ in steps)]
            done.append(len(seen.blocks) + len(seen.lifts))
            assert done[-1] == 200
            assert max(after - before for before, after in pairwise(done)) <= 5

    run(main)


def test_any_key_and_reason_come_back_as_they_were(server: Server, secret: bytes) -> None:
    async def main() -> None:
        async with nodes(server.url, secret=secret) as [(store, _)]:
            for key in ("ключ|\\x00", 'a"b\\', "\x00\x1f\n", "{}%s", "😀"):
                await store.save(block(key))
                assert await store.lift(lift(key))
            entry = block("ключ|x", 7)
            await store.save(entry)
            await store.save(block("ключ|x", 1, since=30))  # merged by the script
            (loaded,) = await listed(store)
            assert (loaded.key, loaded.reason, loaded.strikes) == ("ключ|x", entry.reason, 7)

    run(main)


def test_nodes_know_of_each_other(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url, 2) as [(first, _), (second, _)]:
            await until(lambda: first.nodes == second.nodes == 2)
            second.announce(Node("", "2.0", 5, 123.5, 61.5))
            await until(lambda: "123.5" in str(server.do("HGET", "test:{fleet}:nodes", "node1")))
            listed = sorted(await first.nodes_list(), key=lambda node: node.id)
            assert [node.id for node in listed] == ["node0", "node1"]
            assert listed[1] == Node("node1", "2.0", 5, 123.5, 61.5)
            await second.close()
            await until(lambda: first.nodes == 1)
            assert [node.id for node in await first.nodes_list()] == ["node0"]

    run(main)


def test_what_a_later_version_announces_is_left_out(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            about = '{"id":"new","version":"9","since":5,"checks":1.5,"mood":"good"}'
            server.do("HSET", "test:{fleet}:nodes", "new", f"{10**14} {about}")
            listed = {node.id: node for node in await store.nodes_list()}
            assert listed["new"] == Node("new", "9", 5, 1.5)
            assert store.up

    run(main)


def test_of_nodes_that_claim_the_same_one_is_the_first(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url, 3) as fleet:
            for value in ("high", "low", "high"):
                claims = [store.claim("load", value, 60) for store, _ in fleet]
                assert sorted(await asyncio.gather(*claims)) == [False, False, True]
            (store, _) = fleet[0]
            assert await store.claim("other", "high", 0.05)
            assert not await store.claim("other", "high", 0.05)
            await until(lambda: not server.do("EXISTS", "test:{fleet}:claim:other"))
            assert await store.claim("other", "high", 0.05)
            server.kill()
            with pytest.raises(StoreError):
                await store.claim("load", "low", 60)

    run(main)


def test_a_node_that_vanished_is_not_counted_for_long(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            server.do("HSET", "test:{fleet}:nodes", "gone", '1000 {"id":"gone"}')
            server.do("HSET", "test:{fleet}:nodes", "odd", "?")
            await until(lambda: server.do("HLEN", "test:{fleet}:nodes") == 2)
            assert store.nodes == 1

    run(main)


def test_hot_notices_reach_all_nodes(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url, 2) as [(first, _), (_, seen)]:
            await first.exchange("default", 0, 1, 1000, RECORD, b"\x00one")
            await first.exchange("default", 0, 1, 1000, b"", b"\xfftwo")
            await until(lambda: seen.hot == [b"\x00one", b"\xfftwo"])

    run(main)


def test_the_time_is_the_stores(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            seconds, microseconds = server.client().time()
            true = (seconds * 1_000_000 + microseconds) * 1000
            assert abs(store.now() - true) < 100_000_000
            assert abs(store.clock_offset) < 100_000_000

    run(main)


def test_every_key_has_prefix_tag_and_time_to_live(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url, 2) as [(first, _), (second, _)]:
            await first.save(block("192.0.2.1"))
            await first.save(block("192.0.2.2", length=100_000))
            await second.lift(lift("192.0.2.1"))
            await second.lift(lift("never"))
            assert await first.claim("load", "high", 60)
            for shard in range(3):
                await first.exchange("default", shard, 7, 5000, RECORD)
                await first.exchange("default", shard, 8, 5000, RECORD)
                await first.exchange("default", shard, 9, 5000, b"")

    run(main)
    with server.client() as client:
        keys = sorted(client.keys())
        assert len(keys) == 3 + 1 + 3 * 3
        for key in keys:
            assert key.startswith((b"test:{fleet}:", b"test:{default."))
            assert client.pttl(key) > 0
        assert 99_000_000 < client.pttl(BLOCKS) <= 100_100_000
        assert client.pttl("test:{default.0}:hits:9") <= 5000
