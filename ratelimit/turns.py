"""Shares the event loop among work that takes long: one slice of it in each turn of the loop.

Whatever walks over something that grows does so in ``Steps``. However many of them are under way,
and however many requests of operators wait, a turn of the loop has one slice, so that checks wait
for one slice at most.
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
"""Seconds after which the work under way lets other work go; the step that is begun ends first."""


class _Turns:
    """Who waits for a turn of a loop, in the order in which they came."""

    latest: ClassVar[_Turns | None] = None

    @classmethod
    def here(cls) -> _Turns:
        """Return those of the loop that runs."""
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
    """Do something in a turn of the loop of its own; it takes a slice at most, and never waits."""
    _Turns.here().add(work)


async def turn() -> None:
    """Wait for a turn of the loop of one's own, for a slice of work until one waits again."""
    mine = asyncio.get_running_loop().create_future()
    call(functools.partial(_wake, mine))
    await mine


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def advance(steps: Steps[None]) -> bool:
    """Do a slice of the work; true if all of it is done."""
    end = time.perf_counter() + SLICE
    return all(time.perf_counter() < end for _ in steps)


async def paced(steps: Steps[T]) -> T:
    """Do the work in slices, each in a turn of its own; return its result."""
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
