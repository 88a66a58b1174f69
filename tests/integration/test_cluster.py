"""Three HAProxies with an agent each, and a Redis Cluster that loses a shard."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from pathlib import Path
from typing import cast

import pytest
import redis
from redis.crc import key_slot

from tests.helpers.servers import Server
from tests.helpers.world import LONGEST, Client, World, until, world

pytestmark = pytest.mark.integration

RATE = 60
LIMIT = f'[limits.default]\nrate = {RATE}\nwindow = "10s"\nblock = ["10m"]\nfuse = 0\n'
SLOTS = [0, 5461, 10923, 16384]
NODES = 3


class Cluster:
    """Three shards, each with a replica."""

    def __init__(self, folder: Path) -> None:
        self._servers = [
            Server(
                folder, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000",
                "--cluster-config-file", f"nodes-{number}.conf", "--repl-diskless-sync-delay", "0",
            )
            for number in range(2 * NODES)
        ]  # fmt: skip

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{one.port}" for one in self._servers)

    async def start(self) -> None:
        for number, server in enumerate(self._servers):
            server.start()
            if number < NODES:
                server.do("CLUSTER", "ADDSLOTSRANGE", SLOTS[number], SLOTS[number + 1] - 1)
            server.do("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            server.do("CLUSTER", "MEET", "127.0.0.1", self._servers[0].port)
        await until(lambda: self._say(f"cluster_known_nodes:{2 * NODES}"), "all know all")
        for number in range(NODES):
            identity = str(self._servers[number].do("CLUSTER", "MYID"), "ascii")  # type: ignore[call-overload]
            await until(functools.partial(self._follows, number, identity), "a replica")
        await until(lambda: self._say("cluster_state:ok"), "the cluster is whole")
        await until(lambda: all(map(_in_step, self._servers[NODES:])), "replicas are in step")

    def _follows(self, number: int, identity: str) -> bool:
        try:
            self._servers[NODES + number].do("CLUSTER", "REPLICATE", identity)
        except redis.ResponseError as error:
            if "Unknown node" in str(error):
                return False
            raise
        return True

    def _say(self, word: str) -> bool:
        return all(word in str(server.do("CLUSTER", "INFO")) for server in self._servers)

    def kill(self, key: str) -> None:
        """End the server that has a key."""
        slot = key_slot(key.encode())
        next(s for s, end in zip(self._servers, SLOTS[1:], strict=False) if slot < end).kill()

    def stop(self) -> None:
        for server in self._servers:
            server.kill()


def _in_step(replica: Server) -> bool:
    with replica.client() as client:
        found = cast("dict[str, object]", client.info("replication"))
    return found.get("master_link_status") == "up"


async def allowed(worlds: list[World], source: str) -> int:
    """Send a client's requests round the HAProxies until one is refused; return how many passed."""
    clients = [made.client(source) for made in worlds]
    for number in range(2 * NODES * RATE):
        if (await clients[number % len(clients)].get()).status == 429:
            return number
    raise AssertionError(f"{source} is never refused")


async def refused(worlds: list[World], source: str) -> None:
    """Wait until every HAProxy refuses a client."""
    for made in worlds:
        await until(functools.partial(_refused, made.client(source)), f"{source} is blocked")


async def _refused(client: Client) -> bool:
    return (await client.get()).status == 429


def _outages(made: World) -> tuple[int, int]:
    """Return how many outages have begun and ended for an agent."""
    log = made.agent_log()
    return log.count("store lost"), log.count("store back")


async def shared(worlds: list[World], part: int) -> None:
    """Wait until the agents count as one, for which each has to know of the others."""
    sources = (f"127.{part}.0.{number}" for number in range(1, 250))

    async def as_one() -> bool:
        return await allowed(worlds, next(sources)) < 2 * RATE

    await until(as_one, "a client behind all of them has one limit")


def test_counts_and_blocks_go_on_when_a_shard_is_killed(folder: Path) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            cluster = Cluster(folder)
            stack.callback(cluster.stop)
            await cluster.start()
            worlds = []
            for name in "abc":
                (folder / name).mkdir()
                config = f'[store]\nurl = "{cluster.url}"\n{LIMIT}'
                worlds.append(await stack.enter_async_context(world(folder / name, config)))
            await shared(worlds, 20)
            assert await allowed(worlds, "127.21.0.1") >= RATE
            await refused(worlds, "127.21.0.1")

            cluster.kill("ratelimit:{default.0}:hits:0")
            # At once, and each for itself if need be: nobody gets more behind one of them.
            assert await allowed(worlds[:1], "127.21.0.2") == RATE
            await refused(worlds, "127.21.0.1")
            await refused(worlds[:1], "127.21.0.2")

            # An agent that had nothing to tell the shard may not have noticed.
            await until(lambda: _outages(worlds[0]) == (1, 1), "the store is back")
            await shared(worlds, 22)
            await refused(worlds, "127.21.0.1")
            await refused(worlds, "127.21.0.2")
            for made in worlds:
                await until(lambda: _outages(made) in ((0, 0), (1, 1)), "the store is back")  # noqa: B023
                assert "Traceback" not in made.agent_log()

    async def limited() -> None:
        async with asyncio.timeout(LONGEST):
            await main()

    asyncio.run(limited())
