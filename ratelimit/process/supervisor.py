"""Runs what goes on next to the request path; a failure there ends no more than itself.

Each task has a name. One that fails is counted, logged and started again after a pause, which
doubles with each failure up to a limit. What an operator can see to, such as a file that can't be
opened, is a plain line in the log; a fault of this program comes with its traceback.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from ratelimit.exceptions import RatelimitError

FIRST_PAUSE = 0.1
"""Seconds from the first failure of a task to its next start; doubled with each one after it."""

LONGEST_PAUSE = 30.0
"""Seconds that the pause grows to."""

STEADY = 60.0
"""Seconds without a failure after which a task counts as well again, and its pause starts over."""

EXPECTED = (OSError, MemoryError, RatelimitError)
"""Failures whose text says all; any other is a fault of this program."""

LOOP = "callbacks"
"""The name under which the event loop's own callbacks are counted, the connections' among them."""

log = structlog.get_logger()


class Task:
    """What is known of a task; ``failures`` counts since the start, ``failed_at`` is epoch seconds.

    ``why`` is the reason of the last failure, empty before the first.
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
        """Why it failed; empty once there has been no failure for ``STEADY`` seconds."""
        return self.why if self._clock() - self._failed < STEADY else ""

    def failed(self, error: BaseException) -> None:
        """Count a failure, and log it unless the same one was logged within ``STEADY`` seconds."""
        expected = isinstance(error, EXPECTED)
        self.failures += 1
        self.failed_at = time.time()
        self.why = str(error) if expected and str(error) else repr(error)
        self._failed = self._clock()
        why, at = self._told
        if why != self.why or self._failed - at >= STEADY:
            self._told = self.why, self._failed
            log.error(
                "a task failed, and goes on",
                task=self.name,
                why=self.why,
                failures=self.failures,
                **{} if expected else {"exc_info": error},
            )

    def attempt(self, step: Callable[[], object]) -> None:
        """Call a step; a failure is counted, and keeps no other step from its turn."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - failed() logs it
            self.failed(error)


class Supervisor:
    """The tasks of a node by name. ``sleep`` and ``clock`` count seconds."""

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
        """Return what is known of a task, of a new one too."""
        return self.tasks.setdefault(name, Task(name, self._clock))

    def start(
        self, name: str, run: Callable[[], Awaitable[object]], longest: float = LONGEST_PAUSE
    ) -> None:
        """Run a task until it returns or ``close()`` ends it; the pause grows to ``longest``."""
        keep = self._keep(self.task(name), run, longest)
        self._running.append(asyncio.create_task(keep, name=name))

    async def close(self) -> None:
        """End all tasks."""
        for running in self._running:
            running.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._running.clear()

    def unhandled(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        """Take what the loop says of a callback that failed; see ``loop.set_exception_handler``."""
        error = context.get("exception")
        if error is None or isinstance(error, EXPECTED):
            loop.default_exception_handler(dict(context))
        else:
            self.task(LOOP).failed(error)

    async def _keep(self, task: Task, run: Callable[[], Awaitable[object]], longest: float) -> None:
        pause = FIRST_PAUSE
        while True:
            began = self._clock()
            try:
                await run()
            except asyncio.CancelledError as error:
                current = asyncio.current_task()
                if current is None or current.cancelling():
                    raise
                # Something inside was cancelled, by mistake, and not this.
                task.failed(error)
            except Exception as error:  # noqa: BLE001 - failed() logs it
                task.failed(error)
            else:
                return
            if self._clock() - began >= STEADY:
                pause = FIRST_PAUSE
            await self._sleep(pause)
            pause = min(2 * pause, longest)
