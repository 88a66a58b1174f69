"""A thread for work that may wait for a disk, such as an operation on a file."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

R = TypeVar("R")


class Thread:
    """A thread that runs one operation after another and does not keep the process alive."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._started = False

    def run(self, work: Callable[[], R]) -> asyncio.Future[R]:
        """Run ``work``; its result comes in a future, which need not be awaited."""
        if not self._started:
            self._started = True
            # Python waits at exit for the threads of a pool, even if a disk hangs.
            threading.Thread(target=self._main, name=self._name, daemon=True).start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

        def call() -> None:
            result: R | None = None
            failure: BaseException | None = None
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - passed on
                failure = error
            # The loop may be closed because the process ends.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, future, result, failure)

        self._work.put(call)
        return future

    def stop(self) -> None:
        """End the thread after its work."""
        self._work.put(None)

    def _main(self) -> None:
        while (work := self._work.get()) is not None:
            work()


def _settle(future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(result)
