"""Times the turns of an agent's event loop, for a benchmark that reads the result from outside.

The loop never sleeps under the probe, so that each turn begins where the one before has ended. CPU
time is that of the thread of the loop: what else the machine does is no part of it.
"""

from __future__ import annotations

import asyncio
import mmap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

if TYPE_CHECKING:
    from collections.abc import Coroutine

_SLICE = 1_000_000  # nanoseconds


class Turns:
    """The turns since the last ``clear()``, in a file that both processes have in their memory."""

    def __init__(self, file: Path) -> None:
        if not file.exists():
            file.write_bytes(bytes(16))
        with file.open("r+b") as opened:
            self._words = memoryview(mmap.mmap(opened.fileno(), 16)).cast("Q")

    @property
    def longest(self) -> float:
        """Milliseconds of CPU."""
        return self._words[0] / 1e6

    @property
    def long(self) -> int:
        """How many took more than a millisecond."""
        return self._words[1]

    def clear(self) -> None:
        self._words[0] = self._words[1] = 0

    def add(self, took: int) -> None:
        """Count a turn that took so many nanoseconds."""
        if took > _SLICE:
            self._words[1] += 1
        self._words[0] = max(self._words[0], took)


def install(file: Path) -> None:
    """Time the turns of the loop that this process will run."""
    turns, run = Turns(file), uvloop.run
    last = 0

    def turn(loop: asyncio.AbstractEventLoop) -> None:
        nonlocal last
        turns.add(time.thread_time_ns() - last)
        last = time.thread_time_ns()
        loop.call_soon(turn, loop)

    async def timed(agent: Coroutine[Any, Any, Any]) -> Any:
        nonlocal last
        last = time.thread_time_ns()
        turn(asyncio.get_running_loop())
        return await agent

    setattr(uvloop, "run", lambda agent: run(timed(agent)))  # noqa: B010 - of another signature
