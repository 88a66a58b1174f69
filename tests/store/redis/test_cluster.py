"""Three servers that share the keys."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Any

import pytest
from redis.crc import key_slot

from ratelimit.store import StoreError
from tests.helpers.acl import rights
from tests.helpers.servers import LIMIT, Server, until
from tests.store.conftest import block, lift, nodes, run

pytestmark = pytest.mark.integration

if TYPE_CHECKING:
    from collections.abc import Callable

RECORD = struct.pack("<16sIQI64x", b"0123456789abcdef", 0, 1000, 1)
FIRST = [0, 5461, 10923, 16384]
TTL = 600_000


@pytest.fixture
def cluster(make_server: Callable[..., Server]) -> list[Server]:
    servers = [
        make_server(
            "--cluster-enabled", "yes", "--cluster-node-timeout", "1000",
            "--cluster-config-file", f"nodes-{number}.conf",
        )
        for number in range(3)
    ]  # fmt: skip
    for number, server in enumerate(servers):
        server.do("CLUSTER", "ADDSLOTSRANGE", FIRST[number], FIRST[number + 1] - 1)
        server.do("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        server.do("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
    run(lambda: whole(servers))
    return servers


async def whole(servers: list[Server]) -> None:
    def complete() -> bool:
        states = [str(server.do("CLUSTER", "INFO")) for server in servers]
        return all("cluster_state:ok" in s and "known_nodes:3" in s for s in states)

    await until(complete, 2 * LIMIT)


def url(servers: list[Server]) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in servers)


def owner(servers: list[Server], key: str) -> int:
    slot = key_slot(key.encode())
    return next(number for number in range(3) if slot < FIRST[number + 1])


def shard_of(servers: list[Server], number: int) -> int:
    """Return a shard of the default limit that a server has."""
    return next(s for s in range(1000) if owner(servers, f"test:{{default.{s}}}:") == number)


def name(number: int) -> bytes:
    return b"hot %d" % number


def hits(answer: bytes) -> int:
    return int.from_bytes(answer[12:16], "little")


def test_the_keys_are_spread_and_everything_works(cluster: list[Server]) -> None:
    async def main() -> None:
        # One address is enough to find the others, and one that is gone does no harm.
        some = f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster[1].port}"
        async with nodes(some, 2) as [(first, one), (second, two)]:
            assert first.up and second.up
            await first.save(block("a"))
            await until(lambda: two.clients() == {"a"})
            for number in range(3):
                shard = shard_of(cluster, number)
                assert hits(await first.exchange("default", shard, 7, TTL, RECORD)) == 1
                assert hits(await second.exchange("default", shard, 7, TTL, RECORD)) == 2
                # Servers that have only just met do not pass on all messages yet.
                while name(number) not in two.hot:
                    await first.exchange("default", shard, 7, TTL, b"", name(number))
                    await asyncio.sleep(0.01)
            assert await second.lift(lift("a"))
            await until(lambda: not one.blocks)
            await until(lambda: first.nodes == 2)
        for server in cluster:
            with server.client() as client:
                keys = list(client.scan_iter())
                assert keys and all(client.pttl(key) > 0 for key in keys)

    run(main)


def test_a_part_of_the_keys_moves(cluster: list[Server]) -> None:
    source, target = cluster[0], cluster[1]
    shard = shard_of(cluster, 0)
    key = f"test:{{default.{shard}}}:hits:7"
    before = f"test:{{default.{shard}}}:hits:6"
    slot = key_slot(key.encode())
    ids = [str(server.do("CLUSTER", "MYID"), "ascii") for server in cluster]  # type: ignore[call-overload]

    async def main() -> None:
        async with nodes(url(cluster)) as [(store, _)]:
            count = 0

            async def exchange() -> None:
                nonlocal count
                count += 1
                assert hits(await store.exchange("default", shard, 7, TTL, RECORD)) == count

            await exchange()
            await store.exchange("default", shard, 6, TTL, RECORD)
            target.do("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
            source.do("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
            await exchange()
            # Half of the keys have moved: the servers ask to try again, until a time limit.
            source.do("MIGRATE", "127.0.0.1", target.port, key, 0, 1000)
            with pytest.raises(StoreError) as caught:
                await store.exchange("default", shard, 7, TTL, RECORD)
            assert caught.value.unsent
            for rest in source.do("CLUSTER", "GETKEYSINSLOT", slot, 10):  # type: ignore[attr-defined]
                source.do("MIGRATE", "127.0.0.1", target.port, rest, 0, 1000)
            await until(lambda: store.up)
            await exchange()  # ASK
            for server in (target, source, cluster[2]):
                server.do("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
            await exchange()  # MOVED
            await exchange()
            assert target.do("EXISTS", key, before) == 2
            assert store.outages == 1

    run(main)


def test_a_part_of_the_keys_is_lost_for_a_while(cluster: list[Server], logs: list[Any]) -> None:
    away = (owner(cluster, "test:{fleet}:") + 1) % 3
    shard = shard_of(cluster, away)

    async def main() -> None:
        async with nodes(url(cluster)) as [(store, seen)]:
            await store.exchange("default", shard, 7, TTL, RECORD)
            cluster[away].kill()
            with pytest.raises(StoreError):
                await store.exchange("default", shard, 7, TTL, RECORD)
            await until(lambda: not store.up)
            store.put(block("meanwhile"))
            await asyncio.sleep(0)
            await asyncio.to_thread(cluster[away].start)
            await until(lambda: store.up)
            assert hits(await store.exchange("default", shard, 7, TTL, RECORD)) == 1
            await until(lambda: seen.clients() == {"meanwhile"})

    run(main)
    assert [line["event"] for line in logs] == ["store reached", "store lost", "store back"]


def test_the_keys_of_the_fleet_move(cluster: list[Server], logs: list[Any]) -> None:
    at = owner(cluster, "test:{fleet}:")
    source, target = cluster[at], cluster[(at + 1) % 3]
    slot = key_slot(b"fleet")
    ids = [str(server.do("CLUSTER", "MYID"), "ascii") for server in (source, target)]  # type: ignore[call-overload]

    async def main() -> None:
        async with nodes(url(cluster), 2) as [(first, one), (second, two)]:
            await first.save(block("before"))
            target.do("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
            source.do("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
            # The list stays behind: what the new server has is older.
            for server in (target, source, *cluster):
                server.do("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
            await until(lambda: first.outages and second.outages and first.up and second.up)
            await first.save(block("after"))
            await until(lambda: one.clients() == two.clients() == {"before", "after"})
            assert target.do("HLEN", "test:{fleet}:blocks") == 3

    run(main)
    why = [line["why"] for line in logs if line["event"] == "store lost"]
    assert any("this key has moved to" in one or "is the new master" in one for one in why)


def test_the_documented_rights(cluster: list[Server]) -> None:
    for server in cluster:
        server.do("ACL", "SETUSER", "ratelimit", *rights("server"))
        server.do("ACL", "SETUSER", "ratelimit", *rights("cluster"))
    address = ",".join(f"127.0.0.1:{server.port}" for server in cluster)

    async def main() -> None:
        async with nodes(f"redis+cluster://ratelimit:secret@{address}", 2) as made:
            (first, _), (_, two) = made
            await first.save(block("a"))
            await until(lambda: two.clients() == {"a"})
            for number in range(3):
                shard = shard_of(cluster, number)
                assert hits(await first.exchange("default", shard, 7, TTL, RECORD)) == 1

    run(main)
    for server in cluster:
        with server.client() as client:
            assert client.acl_log() == []
