"""The command ``ratelimit`` from this checkout, in a chosen form and with probes.

``python -m benchmarks.harness.launch compiled serve --config FILE`` runs the extensions, ``plain``
the same modules as plain Python although the extensions exist. ``BENCHMARK_BACKOFF`` replaces the
seconds between attempts to reach Redis. ``BENCHMARK_TURNS`` is a file for the times of the turns of
the event loop, which a benchmark reads from outside.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import uvloop

from tests.helpers.forms import PlainFinder

_SLICE = 1_000_000  # nanoseconds


class Turns:
    """The turns since the last ``clear()``, in a file that both processes map into memory."""

    def __init__(self, file: Path) -> None:
        if not file.exists():
            file.write_bytes(bytes(16))
        with file.open("r+b") as opened:
            self._words = memoryview(mmap.mmap(opened.fileno(), 16)).cast("Q")

    @property
    def longest(self) -> float:
        """Milliseconds of CPU time."""
        return self._words[0] / 1e6

    @property
    def long(self) -> int:
        """The number of turns above a millisecond."""
        return self._words[1]

    def clear(self) -> None:
        self._words[0] = self._words[1] = 0

    def add(self, took: int) -> None:
        """Count a turn of so many nanoseconds."""
        if took > _SLICE:
            self._words[1] += 1
        self._words[0] = max(self._words[0], took)


def time_turns(file: Path) -> None:
    """Time the turns of the loop that this process will run.

    The loop never sleeps then, so each turn begins at the end of the one before. CPU time is that
    of the loop's thread: other work of the machine does not count.
    """
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


def main() -> None:
    form = sys.argv.pop(1)
    if form == "plain":
        sys.meta_path.insert(0, PlainFinder())

    from ratelimit import engine  # after the finder
    from ratelimit.cli.main import main as command

    if engine.compiled() != (form == "compiled"):
        sys.exit(f"the {form} form is not there; python setup.py build_ext --inplace compiles")
    if backoff := os.environ.get("BENCHMARK_BACKOFF"):
        from ratelimit.store.redis import store as redis

        redis.BACKOFF = float(backoff), float(backoff)
    if turns := os.environ.get("BENCHMARK_TURNS"):
        time_turns(Path(turns))
    command(prog_name="ratelimit")


if __name__ == "__main__":
    main()
