"""What a process does next to its node; other tests of it run real processes."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ratelimit.serve import _hand_over

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def test_a_process_that_stops_takes_what_its_predecessor_leaves() -> None:
    leaves, taken = asyncio.Event(), []

    async def replace(take: Callable[[list[bytes]], Awaitable[object]]) -> None:
        await leaves.wait()
        await take([b"a block"])

    async def take(lines: list[bytes]) -> None:
        taken.extend(lines)

    async def main() -> None:
        running, predecessor = SimpleNamespace(take=take), SimpleNamespace(replace=replace)
        arguments: list[Any] = [running, None, predecessor, asyncio.Event()]
        task = asyncio.create_task(_hand_over(*arguments))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        leaves.set()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert taken == [b"a block"]

    asyncio.run(main())
