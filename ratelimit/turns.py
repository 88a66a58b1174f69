"""Shares the event loop among long work: each turn of the loop runs one slice.

Everything that walks over a collection of unbounded size does so in ``Steps``. However many walks
and API requests are in progress, each turn of the loop runs one slice, so that a check waits for
one slice at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from ratelimit.steps import Steps, T

SLICE = 0.000_5
"""Seconds of a slice; the step in progress is completed."""


class _Turns:
    """Work that waits for a turn of a loop, in order of arrival."""

    latest: ClassVar[_Turns | None] = None

    @classmethod
    def here(cls) -> _Turns:
        """Return the instance of the running loop."""
        loop = asyncio.get_running_loop()
        if cls.latest is None or cls.latest.loop is not loop:
            cls.latest = cls(loop)
        return cls.latest

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._waiting: deque[Callable[[], object]] = deque()

    def add(self, work: Callable[[], object]) -> None:
        self._waiting.append(work)
        if len(self._waiting) == 1:
            self.loop.call_soon(self._next)

    def _next(self) -> None:
        work = self._waiting[0]
        try:
            work()
        finally:
            self._waiting.popleft()
            if self._waiting:
                self.loop.call_soon(self._next)


def call(work: Callable[[], object]) -> None:
    """Run ``work`` in its own turn of the loop; it must take at most a slice and not block."""
    _Turns.here().add(work)


async def turn() -> None:
    """Wait for a turn of the loop; the caller may then work for one slice."""
    mine = asyncio.get_running_loop().create_future()
    call(functools.partial(_wake, mine))
    await mine


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def advance(steps: Steps[None]) -> bool:
    """Run steps for one slice; return true if they are finished."""
    end = time.perf_counter() + SLICE
    return all(time.perf_counter() < end for _ in steps)


async def paced(steps: Steps[T]) -> T:
    """Run all steps in slices; return the result."""
    with contextlib.closing(steps):
        while True:
            await turn()
            end = time.perf_counter() + SLICE
            while time.perf_counter() < end:
                try:
                    next(steps)
                except StopIteration as stop:
                    result: T = stop.value
                    return result
