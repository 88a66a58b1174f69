"""The main job in peers mode: HAProxy tells its counts, the agent tells its verdicts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.helpers.world import LONGEST, PEERS_FILE, World, until, world

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


THROTTLE, BLOCK = 1, 2
"""Kinds of verdicts."""


async def taught(w: World, limit: str = "default") -> bool:
    """Return whether the agent has told HAProxy all verdicts."""
    entry = await row(w, "rlc_limits", limit)
    return bool(entry.get("gpt2"))


async def row(w: World, table: str, key: str) -> dict[str, int]:
    """Return the numbers of an entry in one of HAProxy's tables; empty without an entry."""
    for line in (await w.runtime(f"show table ratelimit/{table}")).splitlines():
        if f" key={key} " in line:
            return {name: int(value) for name, value in re.findall(r" (\S+?)=(-?\d+)(?= |$)", line)}
    return {}


async def blocked(w: World, address: str, limit: str = "default") -> bool:
    """Return whether HAProxy has a block of a client."""
    return (await row(w, f"rlv_{limit}", f"::ffff:{address}")).get("gpt2") == BLOCK


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
