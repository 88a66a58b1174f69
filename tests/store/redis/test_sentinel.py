"""A primary that Sentinels watch over, and its failover."""

from __future__ import annotations

import asyncio
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis

from ratelimit.store import StoreError
from tests.helpers.acl import rights
from tests.helpers.servers import LIMIT, PROGRAM, Server, until
from tests.store.conftest import block, lift, listed, nodes, run

pytestmark = pytest.mark.integration

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratelimit.store.redis.store import RedisStore

RECORD = struct.pack("<16sIQI64x", b"0123456789abcdef", 0, 1000, 1)


def watch(sentinel: Server, primary: Server, *lines: str) -> Server:
    """Make a server, not yet started, a Sentinel."""
    path = sentinel.folder / f"{sentinel.port}.conf"
    path.write_text(
        "\n".join(
            (
                f"port {sentinel.port}",
                "bind 127.0.0.1",
                f"unixsocket {sentinel.socket}",
                f"dir {sentinel.folder}",
                f"sentinel monitor main 127.0.0.1 {primary.port} 1",
                "sentinel down-after-milliseconds main 300",
                "sentinel failover-timeout main 2000",
                *lines,
                "",
            )
        )
    )
    assert PROGRAM is not None
    sentinel._command = [*PROGRAM, str(path), "--sentinel"]
    return sentinel.start()


def pair(make_server: Callable[..., Server]) -> tuple[Server, Server, Server]:
    """Return a master, its replica, and a Sentinel that knows of both."""
    primary = make_server()
    replica = make_server("--replicaof", f"127.0.0.1 {primary.port}")
    with replica.client() as client:
        while client.info("replication")["master_link_status"] != "up":
            time.sleep(0.01)
    # It looks for replicas at its start, and then every ten seconds.
    sentinel = watch(make_server(start=False), primary)
    with sentinel.client() as client:
        while len(client.sentinel_slaves("main")) != 1:
            time.sleep(0.01)
    return primary, replica, sentinel


async def exchanged(store: RedisStore) -> bytes:
    """Exchange a record, again if the connection ended before it was sent."""
    while True:
        try:
            return await store.exchange("default", 0, 7, 600_000, RECORD)
        except StoreError as error:
            if not error.unsent:
                raise
        await until(lambda: store.up)


def test_a_failover(make_server: Callable[..., Server], logs: list[Any]) -> None:
    primary, replica, sentinel = pair(make_server)
    absent = make_server(start=False)
    url = f"redis+sentinel://127.0.0.1:{absent.port},127.0.0.1:{sentinel.port}/main"

    async def main() -> None:
        async with nodes(url, 2) as [(first, one), (second, two)]:
            await first.save(block("before"))
            await first.exchange("default", 0, 7, 600_000, RECORD)
            with primary.client() as client:
                # WAIT is for what its own connection wrote, and all that was written before.
                client.set("written", 1)
                assert client.wait(1, 40_000) == 1
            primary.kill()
            await until(lambda: not first.up and not second.up)
            second.put(block("meanwhile"))
            await until(lambda: first.up and second.up)
            await until(lambda: one.clients() == two.clients() == {"before", "meanwhile"})
            answer = await exchanged(second)
            assert int.from_bytes(answer[12:16], "little") == 2
            assert first.outages >= 1 and second.outages >= 1
            # The old primary comes back and takes itself for one still, but nobody goes to it.
            primary.start()
            await first.save(block("after"))
            await until(lambda: "after" in two.clients())
            assert primary.do("DBSIZE") == 0
            assert replica.do("HEXISTS", "test:{fleet}:blocks", "default|after") == 1

    run(main)
    events = [line["event"] for line in logs]
    assert events.count("store lost") == events.count("store back") >= 2


@pytest.mark.parametrize("told", [True, False])
def test_a_planned_failover_loses_nothing(
    make_server: Callable[..., Server], told: bool, logs: list[Any]
) -> None:
    _, replica, sentinel = pair(make_server)
    if not told:
        # Then it is found out by asking.
        sentinel.do("ACL", "SETUSER", "default", "-subscribe")
    acknowledged: set[str] = set()
    lifted: set[str] = set()

    async def main() -> None:
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main"
        async with nodes(url, 2) as [(first, one), (second, two)]:
            stop = asyncio.Event()

            async def load() -> None:
                number = 0
                while not stop.is_set():
                    number += 1
                    entry = block(f"k{number}", limit="*", by="ann")
                    try:
                        one.list.apply(await first.save(entry))
                        acknowledged.add(entry.key)
                        if number % 3 == 0:
                            await second.lift(two.lift("*", entry.key))
                            lifted.add(entry.key)
                    except StoreError:
                        await asyncio.sleep(0.01)

            task = asyncio.create_task(load())
            await until(lambda: len(acknowledged) > 50)
            await until(lambda: failover(sentinel))
            await until(lambda: named(sentinel) == replica.port)
            # The old master is not told for seconds, and would go on taking writes.
            await until(lambda: first.up and first.outages and second.up and second.outages)
            before = len(acknowledged)
            await until(lambda: len(acknowledged) > before + 50)
            stop.set()
            await task
            wanted = acknowledged - lifted
            await until(lambda: one.clients() == two.clients())
            assert wanted <= one.clients() and not one.clients() & lifted
            held = {entry.key for entry in await listed(first)}
            assert held == one.clients()
            assert replica.do("ROLE")[0] == b"master"  # type: ignore[index]

    run(main)
    why = [line["why"] for line in logs if line["event"] == "store lost"]
    assert f"127.0.0.1:{replica.port} is the new master" in why


def failover(sentinel: Server) -> bool:
    """Have a Sentinel make a replica the master; false if it knows of none that is fit."""
    try:
        sentinel.do("SENTINEL", "FAILOVER", "main")
    except redis.ResponseError as error:
        if not str(error).startswith("NOGOODSLAVE"):
            raise
        return False
    return True


def named(sentinel: Server) -> int:
    with sentinel.client() as client:
        return int(client.sentinel_get_master_addr_by_name("main")[1])


def test_another_sentinel_is_asked_if_the_first_goes_away(
    make_server: Callable[..., Server], logs: list[Any]
) -> None:
    primary, replica, sentinel = pair(make_server)
    other = watch(make_server(start=False), primary)

    async def main() -> None:
        await until(lambda: len(other.client().sentinel_slaves("main")) == 1)
        url = f"redis+sentinel://127.0.0.1:{sentinel.port},127.0.0.1:{other.port}/main"
        async with nodes(url) as [(store, _)]:
            await store.save(block("a"))
            sentinel.kill()
            await until(lambda: failover(other))
            await until(lambda: store.outages and store.up)
            await store.save(block("b"))
            assert replica.do("HEXISTS", "test:{fleet}:blocks", "default|b") == 1
            assert replica.do("HEXISTS", "test:{fleet}:blocks", "default|a") == 1

    run(main)


async def acknowledged(store: RedisStore, name: str) -> None:
    """Block a client, again if the replicas of a busy machine do not confirm it in time."""
    async with asyncio.timeout(LIMIT):
        while True:
            try:
                await store.save(block(name))
            except StoreError as error:
                if "replicas" not in str(error):
                    raise
            else:
                return


def test_a_block_by_hand_waits_for_replicas(make_server: Callable[..., Server]) -> None:
    primary = make_server()
    primary.do("ACL", "SETUSER", "ratelimit", *rights("server"), *rights("replicas"))
    replica = make_server("--replicaof", f"127.0.0.1 {primary.port}")
    url = f"redis://ratelimit:secret@127.0.0.1:{primary.port}"

    async def main() -> None:
        # A replica that is up by its own account may not be by the primary's, which counts it.
        await until(lambda: "'state': 'online'" in str(primary.do("INFO", "replication")))
        async with nodes(url, replicas=1) as [(store, seen)]:
            for number in range(20):
                await acknowledged(store, f"k{number}")
                assert replica.do("HEXISTS", "test:{fleet}:blocks", f"default|k{number}") == 1
            replica.pause()
            with pytest.raises(StoreError, match="0 of 1 replicas") as caught:
                await store.save(block("a"))
            assert not caught.value.unsent
            with pytest.raises(StoreError, match="0 of 1 replicas"):
                await store.lift(lift("k1", after=1))
            # It is in force, what nobody waits for is not held up, and the store is there.
            await until(lambda: "a" in seen.clients() and "k1" not in seen.clients())
            store.put(block("b"))
            await until(lambda: "b" in seen.clients())
            assert store.up and store.outages == 0
            replica.resume()
            await acknowledged(store, "c")
        async with nodes(url, replicas=2) as [(store, _)]:
            with pytest.raises(StoreError, match=r"[01] of 2 replicas"):
                await store.save(block("d"))
        assert primary.client().acl_log() == []

    run(main)


def test_what_sentinels_say(make_server: Callable[..., Server]) -> None:
    primary = make_server("--requirepass", "one")
    sentinel = watch(
        make_server(start=False), primary, "sentinel auth-pass main one", "requirepass two"
    )
    base = f"127.0.0.1:{sentinel.port}"

    async def main() -> None:
        for url, problem in {
            f"redis+sentinel://:one@{base}/main?sentinel_password=two": "",
            f"redis+sentinel://:one@{base}/other?sentinel_password=two": "unknown service other",
            f"redis+sentinel://:one@{base}/main": "Sentinel 127.0.0.1",
            f"redis+sentinel://:one@{base}/main?sentinel_password=one": "refuses the user",
            f"redis+sentinel://{base}/main?sentinel_password=two": "requires a password",
            "redis+sentinel://127.0.0.1:1/main": "Sentinel 127.0.0.1:1: Connection refused",
        }.items():
            async with nodes(url) as [(store, _)]:
                assert problem in store.problem
                assert store.up is (problem == "")

    run(main)


def test_the_documented_rights(make_server: Callable[..., Server]) -> None:
    primary = make_server()
    primary.do("ACL", "SETUSER", "ratelimit", *rights("server"))
    sentinel = watch(make_server(start=False), primary)
    sentinel.do("ACL", "SETUSER", "ratelimit", *rights("sentinel"))
    address = f"127.0.0.1:{sentinel.port}/main?sentinel_user=ratelimit&sentinel_password="

    async def main() -> None:
        url = f"redis+sentinel://ratelimit:secret@{address}"
        async with nodes(url + "secret", 2) as [(first, _), (_, two)]:
            await first.save(block("a"))
            await until(lambda: two.clients() == {"a"})
        async with nodes(url + "wrong") as [(store, _)]:
            assert "refuses the user or the password" in store.problem

    run(main)
    with sentinel.client() as client:
        assert {line["reason"] for line in client.acl_log()} == {"auth"}
