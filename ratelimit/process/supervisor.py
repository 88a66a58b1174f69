"""Runs background tasks; a failure of one does not affect the others or the request path.

A failed task is counted, logged and restarted after a pause, which doubles with each failure up to
a limit. An expected error, such as a file that can't be opened, is logged in one line; an internal
error has a traceback.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from ratelimit.backoff import Backoff
from ratelimit.exceptions import RatelimitError

FIRST_PAUSE = 0.1
"""Seconds from the first failure of a task to its restart; doubled with each further failure."""

LONGEST_PAUSE = 30.0
"""Longest pause in seconds."""

STEADY = 60.0
"""Seconds without a failure after which a task counts as healthy and its pause is reset."""

EXPECTED = (OSError, MemoryError, RatelimitError)
"""Errors whose text is sufficient; any other is an internal error."""

LOOP = "callbacks"
"""Name under which failed callbacks of the event loop are counted."""

log = structlog.get_logger()


class Task:
    """State of a task; ``failures`` counts since the start, ``failed_at`` is in epoch seconds.

    ``why`` is the text of the last failure, empty before the first.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.failures = 0
        self.failed_at = 0.0
        self.why = ""
        self._clock = clock
        self._failed = 0.0
        self._told = ("", 0.0)

    @property
    def problem(self) -> str:
        """Text of the last failure; empty after ``STEADY`` seconds without a failure."""
        return self.why if self._clock() - self._failed < STEADY else ""

    def failed(self, error: BaseException) -> None:
        """Count a failure; log it unless the same one was logged within ``STEADY`` seconds."""
        expected = isinstance(error, EXPECTED)
        self.failures += 1
        self.failed_at = time.time()
        self.why = str(error) if expected and str(error) else repr(error)
        self._failed = self._clock()
        why, at = self._told
        if why != self.why or self._failed - at >= STEADY:
            self._told = self.why, self._failed
            log.error(
                "a task failed and will be restarted",
                task=self.name,
                why=self.why,
                failures=self.failures,
                **{} if expected else {"exc_info": error},
            )

    def attempt(self, step: Callable[[], object]) -> None:
        """Call a step; count a failure instead of raising it."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - failed() logs it
            self.failed(error)


class Supervisor:
    """The tasks of a node by name; ``sleep`` and ``clock`` use seconds."""

    def __init__(
        self,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tasks: dict[str, Task] = {}
        self._sleep = sleep
        self._clock = clock
        self._running: list[asyncio.Task[None]] = []

    def task(self, name: str) -> Task:
        """Return the state of a task; create it if necessary."""
        return self.tasks.setdefault(name, Task(name, self._clock))

    def start(
        self, name: str, run: Callable[[], Awaitable[object]], longest: float = LONGEST_PAUSE
    ) -> None:
        """Run a task until it returns or ``close()``; pauses grow up to ``longest`` seconds."""
        keep = self._keep(self.task(name), run, longest)
        self._running.append(asyncio.create_task(keep, name=name))

    async def close(self) -> None:
        """Cancel all tasks."""
        for running in self._running:
            running.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._running.clear()

    def unhandled(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        """Handle a failed callback; for ``loop.set_exception_handler``."""
        error = context.get("exception")
        if error is None or isinstance(error, EXPECTED):
            loop.default_exception_handler(dict(context))
        else:
            self.task(LOOP).failed(error)

    async def _keep(self, task: Task, run: Callable[[], Awaitable[object]], longest: float) -> None:
        backoff = Backoff(FIRST_PAUSE, longest, spread=0)
        while True:
            began = self._clock()
            try:
                await run()
            except asyncio.CancelledError as error:
                current = asyncio.current_task()
                if current is None or current.cancelling():
                    raise
                # The task itself was not cancelled; something inside it was.
                task.failed(error)
            except Exception as error:  # noqa: BLE001 - failed() logs it
                task.failed(error)
            else:
                return
            if self._clock() - began >= STEADY:
                backoff.reset()
            await self._sleep(backoff.next())
