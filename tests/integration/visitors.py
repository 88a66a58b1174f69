"""Visitors below the limit, who are all answered whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

from tests.helpers.world import PROCESSING_TIMEOUT, Answer, World, until

NOISE = 5.0
"""Seconds that a busy machine may add to an answer; other time limits are longer."""


@contextlib.asynccontextmanager
async def load(w: World, clients: int = 8, pause: float = 0.025) -> AsyncIterator[list[Answer]]:
    """Send requests of visitors below the limit, all the while; every one must be answered."""
    answers: list[Answer] = []
    going = True

    async def visit(source: str) -> None:
        client = w.client(source)
        while going:
            answers.append(await client.get())
            await asyncio.sleep(pause)

    async with asyncio.TaskGroup() as group:
        for n in range(1, clients + 1):
            group.create_task(visit(f"127.9.0.{n}"))
        try:
            await more(answers)
            yield answers
            await more(answers)
        finally:
            going = False
    counted = Counter(answer.status for answer in answers)
    assert counted == {200: len(answers)}, counted
    slowest = max(answer.seconds for answer in answers)
    assert slowest < PROCESSING_TIMEOUT + NOISE, f"an answer took {slowest:.3f} s"


async def more(answers: list[Answer], count: int = 100) -> None:
    """Wait until the load has gone on for a while."""
    goal = len(answers) + count
    await until(lambda: len(answers) >= goal, f"{count} more answers")
