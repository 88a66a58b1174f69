"""The blocklist in the store: loaded whole, told in small pieces, damaged."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest

from ratelimit.model import EVERY_LIMIT, Entry
from ratelimit.steps import finish
from ratelimit.store.entries import block_to_json
from ratelimit.store.redis.blocklist import SharedBlocklist
from ratelimit.store.redis.session import Life
from tests.helpers.servers import Server, until
from tests.store.conftest import (
    BLOCKS,
    LIFTS,
    block,
    lift,
    listed,
    nodes,
    run,
)

pytestmark = pytest.mark.integration


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


def test_a_block_by_hand_does_not_wait_for_a_comparison(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = SharedBlocklist.read

    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            compared, saved = asyncio.Event(), asyncio.Event()

            async def read(made: SharedBlocklist, life: Life) -> AsyncIterator[list[Entry]]:
                async for page in true(made, life):
                    yield page
                compared.set()
                await until(lambda: store.outbox.has_waiters)
                yield []
                await saved.wait()

            monkeypatch.setattr(SharedBlocklist, "read", read)
            store.outbox.overflowed = True
            store.outbox.woken.set()
            await compared.wait()
            await store.save(block("by hand", limit=EVERY_LIMIT))
            saved.set()
            await until(lambda: not store.outbox.overflowed)

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


def stored(server: Server, field: str) -> str:
    """Return a block as the store has it."""
    value = server.do("HGET", BLOCKS, field)
    assert isinstance(value, bytes)
    return value.decode().partition(" ")[2]


def test_damaged_entries_of_the_store_cost_a_line_each(server: Server, logs: list[Any]) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            await store.save(block("good"))
            (good,) = await listed(store)
            text = json.loads(stored(server, "default|good"))
            for key, change in {
                "below": {"until": -5},
                "beyond": {"until": 10**30},
                "other": {"key": "another"},
                "half": {"reason": "\\ud800"},
                "order": {"order": 1 << 60},
            }.items():
                entry = json.dumps(text | {"key": key} | change).replace("\\\\u", "\\u")
                server.do("HSET", BLOCKS, f"default|{key}", f"8000000000 {entry}")
            server.do("HSET", BLOCKS, b"default|\xff", "8000000000 {}", "nobar", "8000000000 {}")
            server.do("HSET", LIFTS, "default|odd", "8000000000 x", "default|x", "x 1")
            assert await listed(store) == [good]
            async with nodes(server.url) as [(late, seen)]:
                assert late.up and seen.clients() == {"good"}
            await store.save(block("below"))
            assert {entry.key for entry in await listed(store)} == {"good", "below"}
            assert store.outages == 0

    run(main)
    damaged = {line["entry"] for line in logs if line["event"] == "a damaged entry is ignored"}
    names = ("below", "beyond", "other", "half", "order", "\\udcff", "odd")
    assert damaged == {f"default|{name}" for name in names} | {"nobar"}


def test_damaged_news_costs_a_line_and_the_rest_is_heard(server: Server, logs: list[Any]) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, seen)]:
            good = block("good")
            await store.save(good)
            text = json.loads(stored(server, "default|good"))
            news = {"blocks": [text | {"key": "bad", "until": -1}, text | {"key": "heard"}]}
            server.do("PUBLISH", "test:{fleet}:news", json.dumps(news))
            await until(lambda: seen.clients() == {"good", "heard"})
            news = {
                "lifts": ["default|bad", "default|heard"],
                "lifted": [1, 2],
                "marks": [[-1, 5], [good.order + 10**9, 8000000000]],
            }
            server.do("PUBLISH", "test:{fleet}:news", json.dumps(news))
            await until(lambda: seen.clients() == {"good"})
            # What the version before this one says of a lift.
            news = {"lifts": ["default|good"], "lifted": [good.since]}
            server.do("PUBLISH", "test:{fleet}:news", json.dumps(news))
            await until(lambda: not seen.clients())
            assert store.up

    run(main)
    lines = [line for line in logs if line["event"] == "a damaged entry is ignored"]
    assert len(lines) == 2


def test_entries_of_the_version_before_are_read(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            await store.save(block("a"))
        old = json.loads(stored(server, "default|a"))
        del old["order"]
        for key in ("a", "b", "c"):
            value = f"8000000000 {json.dumps(old | {'key': key})}"
            server.do("HSET", BLOCKS, f"default|{key}", value)
        server.do("HSET", BLOCKS, "default|c", f'8000000000 {{"lifted":{old["since"]}}}')
        server.do("DEL", LIFTS)
        async with nodes(server.url) as [(store, seen)]:
            assert seen.clients() == {"a", "b"}
            assert await store.lift(seen.lift("default", "a"))
            # A node that was cut off does not know of the lift before that.
            seen.list.apply(block("c", since=-5))
            assert seen.clients() == {"b"}
            async with nodes(server.url) as [(_, late)]:
                assert late.clients() == {"b"}

    run(main)
