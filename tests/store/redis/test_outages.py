"""Redis killed, hung, refusing and emptied, while nodes use it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import struct
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from ratelimit.store import Events, StoreError
from ratelimit.store.redis import store as module
from ratelimit.store.redis.store import EXCHANGE_TIMEOUT, RedisStore
from ratelimit.store.redis.url import parse
from tests.helpers.servers import Server, until
from tests.store.conftest import block, lift, listed, nodes, run

pytestmark = pytest.mark.integration

RECORD = struct.pack("<16sIQI64x", b"0123456789abcdef", 0, 1000, 1)
TTL = 600_000


def total(answer: bytes) -> int:
    """Return the hits of the newest tick of the only client."""
    return int.from_bytes(answer[12:16], "little")


def kill(server: Server) -> Callable[[], object]:
    server.kill()
    return server.start


def pause(server: Server) -> Callable[[], object]:
    server.pause()
    return server.resume


def password(server: Server) -> Callable[[], object]:
    server.do("CONFIG", "SET", "requirepass", "new")
    server.client("new").client_kill_filter(_type="pubsub")

    def back() -> None:
        with server.client("new") as client:
            client.config_set("requirepass", "")

    return back


def replica(server: Server) -> Callable[[], object]:
    server.do("REPLICAOF", "127.0.0.1", "1")
    return lambda: server.do("REPLICAOF", "NO", "ONE")


def memory(server: Server) -> Callable[[], object]:
    server.do("CONFIG", "SET", "maxmemory", "1")
    return lambda: server.do("CONFIG", "SET", "maxmemory", "0")


def clients(server: Server) -> Callable[[], object]:
    with server.client() as client:
        client.config_set("maxclients", 1)
        client.client_kill_filter(_type="pubsub")

    def back() -> None:
        # The only connection that is let in may be a node's, for a moment.
        while True:
            with contextlib.suppress(Exception):
                server.do("CONFIG", "SET", "maxclients", "100")
                return

    return back


@pytest.mark.parametrize(
    ("begin", "problem"),
    [
        (kill, "refused|No such file|closed|reset"),
        (pause, "no answer within"),
        (password, "requires a password"),
        (replica, "this is a replica"),
        (memory, "out of memory"),
        (clients, "accepts no more clients"),
    ],
)
def test_an_outage_begins_and_ends_by_itself(
    server: Server, begin: Callable[[Server], Callable[[], object]], problem: str, logs: list[Any]
) -> None:
    outages = 0

    async def main() -> None:
        async with nodes(server.url, 2) as [(first, one), (second, two)]:
            await until(lambda: first.nodes == second.nodes == 2)
            # To a machine that does much else, standing still may be an outage, here and later.
            logs.clear()
            earlier = first.outages, second.outages
            await first.save(block("before"))
            await until(lambda: "before" in two.clients())
            end = await asyncio.to_thread(begin, server)
            await until(lambda: not first.up and not second.up)
            await until(lambda: re.search(problem, first.problem))
            assert first.nodes == 2
            with pytest.raises(StoreError) as caught:
                await first.exchange("default", 0, 7, TTL, RECORD)
            assert caught.value.unsent
            with pytest.raises(StoreError):
                await first.save(block("meanwhile"), timeout=0.05)
            second.put(block("meanwhile too"))
            with pytest.raises(StoreError):
                await second.lift(lift("before"), timeout=0.05)
            assert len(first.outbox) == 1
            await asyncio.to_thread(end)
            await until(lambda: first.up and second.up)
            everything = {"meanwhile", "meanwhile too"}
            await until(lambda: one.clients() == two.clients() == everything)
            assert not len(first.outbox) and not len(second.outbox)
            assert total(await first.exchange("default", 0, 7, TTL, RECORD)) == 1
            assert total(await second.exchange("default", 0, 7, TTL, RECORD)) == 2
            assert first.nodes == 2
            for store, seen, before in zip((first, second), (one, two), earlier, strict=True):
                assert store.outages > before
                assert store.problem == ""
                assert seen.states[-2:] == ["lost", "back"]
            nonlocal outages
            outages = first.outages + second.outages - sum(earlier)

    run(main)
    events = Counter(line["event"] for line in logs)
    del events["the store lacked blocks or lifts; they were written back"]
    assert events == {"store lost": outages, "store back": outages}


def test_it_starts_without_the_store(make_server: Callable[..., Server], logs: list[Any]) -> None:
    server = make_server(start=False)

    async def main() -> None:
        async with nodes(server.url) as [(store, seen)]:
            assert not store.up
            assert "refused" in store.problem
            assert store.nodes == 1
            assert store.clock_offset == 0
            store.put(block("early"))
            await asyncio.to_thread(server.start)
            await until(lambda: store.up)
            await until(lambda: not len(store.outbox))
            assert [entry.key for entry in await listed(store)] == ["early"]
            assert seen.clients() == {"early"}

    run(main)
    assert [line["event"] for line in logs] == ["store lost", "store back"]


def test_the_clock_is_told_before_blocks_get_its_time(
    make_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(start=False)
    true = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: true() - 300 * 10**9)

    async def main() -> None:
        async with nodes(server.url) as [(store, seen)]:
            early = block("early")
            assert seen.list.apply(early)
            store.put(early)
            await asyncio.to_thread(server.start)
            await until(lambda: store.up)
            assert seen.ends_at_clock == [[early.until]]
            (end,) = seen.ends()
            assert abs(end - early.until - 300) <= 2

    run(main)


def test_a_long_outage_takes_no_memory(
    make_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = make_server(start=False)
    monkeypatch.setattr(module, "BACKOFF", (0.0, 0.0))
    attempts = 0

    async def main() -> None:
        nonlocal attempts
        async with nodes(nobody.url) as [(store, _)]:
            begin = store._begin

            async def counted() -> None:
                nonlocal attempts
                attempts += 1
                for number in range(10):
                    store.put(block(str(number)))
                await begin()

            monkeypatch.setattr(store, "_begin", counted)
            sizes = []
            for rounds in (100, 400):
                await until(lambda rounds=rounds: attempts >= rounds)  # type: ignore[misc]
                gc.collect()
                sizes.append(len(gc.get_objects()))
            assert abs(sizes[1] - sizes[0]) < 100

    run(main)


def test_a_request_without_an_answer_is_not_sent_again(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            await store.exchange("default", 0, 7, TTL, RECORD)
            server.pause()
            with pytest.raises(StoreError, match="no answer within 250 ms") as caught:
                await store.exchange("default", 0, 7, TTL, RECORD)
            assert not caught.value.unsent
            server.resume()
            await until(lambda: store.up)
            # It was in the server's socket, so it did count: once.
            assert total(await store.exchange("default", 0, 7, TTL, RECORD)) == 3

    run(main)


def test_nothing_waits_behind_a_hung_server(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            server.pause()
            calls = [store.exchange("default", 0, 7, TTL, RECORD) for _ in range(50)]
            began = time.monotonic()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert time.monotonic() - began < 50 * EXCHANGE_TIMEOUT, "not one after another"
            assert all(isinstance(result, StoreError) for result in results)
            server.resume()

    run(main)


def test_a_hung_server_is_noticed_though_nobody_waits_for_it(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url, timeout=5) as [(store, _)]:
            server.pause()
            began = time.monotonic()
            while store.up:
                with contextlib.suppress(TimeoutError, StoreError):
                    async with asyncio.timeout(0.02):
                        await store.exchange("default", 0, 7, TTL, RECORD)
            assert time.monotonic() - began < 5, "sooner than the time limit of what else is asked"
            server.resume()

    run(main)


def test_forgotten_scripts_are_sent_again(server: Server, logs: list[Any]) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            await store.exchange("default", 0, 7, TTL, RECORD)
            server.do("SCRIPT", "FLUSH")
            assert total(await store.exchange("default", 0, 7, TTL, RECORD)) == 2
            await store.save(block("a"))
            assert store.outages == 0

    run(main)
    assert [line["event"] for line in logs] == ["store reached"]


def test_a_store_that_was_emptied_gets_the_blocklist_again(server: Server, logs: list[Any]) -> None:
    async def main() -> None:
        async with nodes(server.url, 2) as [(first, one), (second, two)]:
            secret = first.kept.secret
            for number in range(250):
                first.put(block(str(number), 2))
            await until(lambda: len(two.blocks) == 250)
            before = dict(two.blocks)
            server.do("FLUSHALL")
            await until(lambda: server.do("HLEN", "test:{fleet}:blocks") == 251)
            assert one.blocks == two.blocks == before
            await until(lambda: one.loads == two.loads == 2)
            assert one.blocks == two.blocks == before
            assert {entry.key: entry for entry in await listed(first)} == {
                key: entry for (_, key), entry in before.items()
            }
            assert first.up and first.outages == 0
            async with nodes(server.url) as [(late, _)]:
                assert late.kept.secret == first.kept.secret == second.kept.secret == secret

    run(main)
    lost = [line for line in logs if line["event"].startswith("the store has lost data")]
    assert 1 <= len(lost) <= 2


def test_what_was_lost_with_the_server_is_written_again(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url, 2) as [(first, one), (second, two)]:
            await first.save(block("a", 3))
            await until(lambda: two.blocks)
            server.kill()
            await until(lambda: not first.up and not second.up)
            second.put(block("b"))
            await asyncio.to_thread(server.start)
            await until(lambda: first.up and second.up)
            await until(lambda: one.clients() == two.clients() == {"a", "b"})
            assert {entry.strikes for entry in await listed(first)} == {1, 3}

    run(main)


def test_a_gap_in_the_subscription_loads_all_again(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url, 2) as [(first, one), (second, _)]:
            loads = one.loads
            server.do("CLIENT", "KILL", "TYPE", "pubsub")
            await second.save(block("unheard"), timeout=5)
            await until(lambda: one.loads > loads and "unheard" in one.clients())
            await until(lambda: first.up)

    run(main)


def test_blocks_made_while_the_list_is_loaded_are_not_lost(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url, 2) as [(first, one), (second, _)]:
            for number in range(3000):
                second.put(block(f"old {number}"))
            await until(lambda: not len(second.outbox))
            server.do("CLIENT", "KILL", "TYPE", "pubsub")
            number = 0
            while first.outages == 0 or not first.up:
                for store, seen in ((first, one), (second, None)):
                    entry = block(f"new {number}")
                    if seen is not None:
                        seen.list.apply(entry)
                    store.put(entry)
                    number += 1
                # On a busy machine an outage is long, and each of its blocks is written afterwards.
                await asyncio.sleep(0.002)
            assert {f"new {i}" for i in range(0, number, 2)} <= one.clients()
            assert number > 10
            await until(lambda: len(one.blocks) == 3000 + number, 90)

    run(main)


def test_too_many_blocks_in_an_outage_are_written_from_the_owners_list(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, seen)]:
            monkeypatch.setattr(store.outbox, "_size", 10)
            server.kill()
            await until(lambda: not store.up)
            for number in range(30):
                entry = block(str(number))
                seen.list.apply(entry)
                store.put(entry)
            assert len(store.outbox) == 10
            assert store.outbox.dropped == 20
            with pytest.raises(StoreError, match="too many") as caught:
                await store.save(block("one more"))
            assert caught.value.unsent
            await asyncio.to_thread(server.start)
            await until(lambda: store.up)
            assert len(await listed(store)) == 30

    run(main)


def test_loading(make_server: Callable[..., Server], logs: list[Any]) -> None:
    server = make_server()
    server.do("DEBUG", "POPULATE", "3000")
    server.save()

    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            server.kill()
            await until(lambda: not store.up)
            # A millisecond for each key.
            server._command += [
                "--key-load-delay",
                "1000",
                "--loading-process-events-interval-bytes",
                "1024",
            ]
            await asyncio.to_thread(server.start)
            await until(lambda: "is loading its data" in store.problem)
            await until(lambda: store.up)

    run(main)
    assert [line["event"] for line in logs].count("store lost") == 1


def test_an_owner_that_fails_does_not_end_the_store(server: Server, logs: list[Any]) -> None:
    def fail(ids: bytes) -> None:
        raise RuntimeError(ids)

    async def main() -> None:
        store = RedisStore(parse(server.url), "test", Events(on_hot=fail))
        await store.start()
        try:
            await store.exchange("default", 0, 7, TTL, RECORD, b"x")
            await until(lambda: store.outages == 1 and store.up)
            await store.save(block("a"))
        finally:
            await store.close()

    run(main)
    assert "internal error while handling a message" in [line["event"] for line in logs]
