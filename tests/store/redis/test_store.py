"""Nodes that share one store."""

from __future__ import annotations

import asyncio
import struct

import pytest

from ratelimit.store import StoreError
from tests.helpers.servers import Server, until
from tests.store.conftest import BLOCKS, block, lift, listed, nodes, run

pytestmark = pytest.mark.integration
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
