"""The main job in peers mode: HAProxy tells its counts, the agent tells its verdicts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from tests.helpers.world import LONGEST, PEERS_FILE, World, free_port, until, world

pytestmark = pytest.mark.integration


def run(
    folder: Path, test: Callable[[World], Awaitable[None]], config: str = "", **env: str
) -> None:
    """Run a test with an agent that HAProxy has as its peer."""

    async def main() -> None:
        made = world(folder, config, env=env, file=PEERS_FILE)
        async with asyncio.timeout(LONGEST), made as w:
            await until(lambda: taught(w), "HAProxy has all verdicts")
            await test(w)

    asyncio.run(main())


BLOCK = 2
"""The kind of a verdict."""


async def taught(w: World, limit: str = "default") -> bool:
    """Return whether the agent has told HAProxy all verdicts."""
    entry = await row(w, "rlc_limits", limit)
    return bool(entry.get("gpt2"))


async def row(w: World, table: str, key: str) -> dict[str, int]:
    """Return the numbers of an entry in one of HAProxy's tables; empty without an entry."""
    try:
        shown = await w.runtime(f"show table ratelimit/{table}")
    except ConnectionError:
        return {}  # a HAProxy that just starts or ends
    for line in shown.splitlines():
        if f" key={key} " in line:
            return {name: int(value) for name, value in re.findall(r" (\S+?)=(-?\d+)(?= |$)", line)}
    return {}


async def blocked(w: World, address: str, limit: str = "default") -> bool:
    """Return whether HAProxy has a block of a client."""
    entry = await row(w, f"rlv_{limit}", f"::ffff:{address}")
    return entry.get("gpt2") == BLOCK and entry["gpt0"] > time.time()


def test_above_the_limit_a_client_is_refused_and_others_are_not(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        attacker, visitor = w.client("127.2.0.1"), w.client("127.2.0.2")
        statuses = await attacker.statuses(300)
        admitted = statuses.count(200)
        # Above twice the rate HAProxy refuses by itself, should the agent be late.
        assert 100 <= admitted <= 200
        assert statuses == [200] * admitted + [429] * (300 - admitted)
        await until(lambda: blocked(w, "127.2.0.1"), "the agent blocks the client")
        assert await visitor.statuses(20) == [200] * 20
        assert w.requests == {"127.2.0.1": admitted, "127.2.0.2": 20}
        assert await row(w, "rlv_default", "::ffff:127.2.0.2") == {}

        refused = await attacker.get()
        assert refused.status == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 11

    run(tmp_path, test)


LADDER = "[limits.default]\nrate = 20\nwindow = '2s'\nblock = ['3s', '5s']\n"
"""Blocks that a test can wait for."""

LONG = "[limits.default]\nrate = 20\nwindow = '30s'\nblock = ['5m']\n"
"""A limit that a machine that does much else can exceed, and blocks that outlast a test."""


@contextlib.asynccontextmanager
async def api(w: World) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of the API of the agent that runs now."""
    async with httpx.AsyncClient(base_url=f"http://{await w.ops()}", trust_env=False) as client:
        yield client


async def attack(w: World, address: str) -> None:
    """Send requests until the agent has blocked the client."""
    client = w.client(address)

    async def sent() -> bool:
        await client.get()
        return await blocked(w, address)

    await until(sent, "the agent blocks the client")
    assert (await client.get()).status == 429


async def passes(w: World, address: str) -> bool:
    return (await w.client(address).get()).status == 200


def test_the_second_block_is_longer(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        client = w.client("127.3.0.1")
        lengths = []
        for _ in range(2):
            await attack(w, "127.3.0.1")
            started = time.time()
            lengths.append((await row(w, "rlv_default", "::ffff:127.3.0.1"))["gpt0"] - started)
            await until(lambda: passes(w, "127.3.0.1"), "the block ends")
        assert (await client.get()).status == 200
        assert 0 < lengths[0] <= 4 < lengths[1] <= 6

    run(tmp_path, test, LADDER)


def test_a_block_by_hand_and_its_end_reach_haproxy(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        async with api(w) as here:
            made = await here.post("/v1/blocks", json={"key": "127.3.0.2", "ttl": "10m"})
            assert made.is_success, made.text
            await until(lambda: blocked(w, "127.3.0.2"), "HAProxy has the block")
            assert not await passes(w, "127.3.0.2")
            assert await passes(w, "127.3.0.3")
            gone = await here.delete("/v1/blocks/127.3.0.2")
            assert gone.is_success, gone.text
            await until(lambda: passes(w, "127.3.0.2"), "HAProxy has lost the block")
            assert (await row(w, "rlv_default", "::ffff:127.3.0.2")).get("gpt0", 0) == 0

    run(tmp_path, test)


def test_a_lift_of_a_block_by_the_limit_reaches_haproxy(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        await attack(w, "127.3.0.4")
        async with api(w) as here:
            gone = await here.delete("/v1/blocks/127.3.0.4")
            assert gone.is_success, gone.text
        await until(lambda: passes(w, "127.3.0.4"), "HAProxy has lost the block")

    run(tmp_path, test, LONG)


def test_a_killed_haproxy_gets_its_blocks_back_with_the_handshake(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        await attack(w, "127.3.0.5")
        assert w.haproxy is not None
        os.killpg(w.haproxy.pid, signal.SIGKILL)
        w.haproxy.wait()
        w.start_haproxy()
        await until(w.listens, "HAProxy listens")
        await until(lambda: blocked(w, "127.3.0.5"), "HAProxy has the block again")
        assert not await passes(w, "127.3.0.5")
        await until(lambda: taught(w), "HAProxy has all verdicts")

    run(tmp_path, test, LONG)


def test_a_reloaded_haproxy_keeps_its_blocks(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        await attack(w, "127.3.0.6")
        before = w.requests["127.3.0.6"]
        await w.reload()

        async def refused() -> bool:
            return not await passes(w, "127.3.0.6")

        # HAProxy accepts clients before it has learnt the tables, from the old process or here.
        await until(refused, "the new process has the block")
        assert w.requests["127.3.0.6"] - before < 20, "it is the same block"
        await until(lambda: taught(w), "HAProxy has all verdicts")
        assert await refused()

    run(tmp_path, test, LONG)


def test_a_restarted_agent_lifts_what_ended_meanwhile_and_counts_no_hit_twice(
    tmp_path: Path,
) -> None:
    async def test(w: World) -> None:
        visitor = w.client("127.3.0.8")
        await attack(w, "127.3.0.7")
        assert await visitor.statuses(15) == [200] * 15
        w.stop_agent()
        # The state is lost: the block holds no longer.
        shutil.rmtree(w.folder / "state")
        await until(lambda: forgotten(w), "HAProxy knows that the agent is gone")
        w.start_agent(LONG)
        await until(lambda: w.agent_log().count("agent started") == 2, "the agent runs")
        # Its requests are in the window still, so that it is throttled.
        await until(lambda: is_no_longer_blocked(w, "127.3.0.7"), "the agent lifts the block")
        await until(lambda: taught(w), "HAProxy has all verdicts")
        assert await visitor.statuses(5) == [200] * 5

    run(tmp_path, test, LONG)


async def forgotten(w: World) -> bool:
    return "used:0" in await w.runtime("show table ratelimit/rlc_caps")


async def is_no_longer_blocked(w: World, address: str) -> bool:
    return not await blocked(w, address)


def test_a_reload_of_the_agent_changes_rate_and_mode(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        w.configure("[limits.default]\nrate = 7\nshadow = true\n")

        async def told() -> bool:
            entry = await row(w, "rlc_limits", "default")
            return (entry["gpt0"], entry["gpt1"]) == (7, 2)

        await until(told, "HAProxy knows the new rate and mode")
        assert await w.client("127.3.0.9").statuses(40) == [200] * 40

    run(tmp_path, test)


def test_two_haproxies_of_one_agent_count_together(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        other = World(w.folder / "other", free_port(), w.backend, file=PEERS_FILE)
        other.folder.mkdir()
        shutil.copytree(w.folder / "haproxy", other.folder / "haproxy")
        other.env = {
            "RATELIMIT_PEERS": f"unix@{w.folder}/peers.sock",
            "RATELIMIT_LOCALPEER": "other",
        }
        other.start_haproxy()
        try:
            await until(other.listens, "the other HAProxy listens")
            await until(lambda: taught(other), "the other HAProxy has all verdicts")
            here, there = w.client("127.3.0.10"), other.client("127.3.0.10")
            for _ in range(11):
                await here.get()
                await there.get()
            await until(lambda: blocked(w, "127.3.0.10"), "one HAProxy has the block")
            await until(lambda: blocked(other, "127.3.0.10"), "the other HAProxy has the block")
            assert (await here.get()).status == (await there.get()).status == 429
            assert (await other.client("127.3.0.11").get()).status == 200
        finally:
            await other.down()

    run(tmp_path, test, LONG)
