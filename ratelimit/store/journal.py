"""What this node knows of blocks and lifts, kept in a file by a thread of its own.

It is all of the embedded store, and beside Redis it is the copy by which a node that was restarted
tells a store what that has lost. The event loop never waits for the disk: changes wait in an
outbox, and what the disk does not do in time is an outage. So is a file that was deleted or
replaced while it was open: it is made again from what the node holds, and until then nothing is
acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import structlog

from ratelimit.exceptions import StartError, StoreError
from ratelimit.limiter.strings import masked
from ratelimit.model import Entry
from ratelimit.store.base import Events, Merging, tell
from ratelimit.store.pending import Change, Outbox
from ratelimit.store.sqlite import BlockFile
from ratelimit.turns import paced

HANG = 3.0
"""Seconds in which the disk must have done what it was asked."""

SETTLED = 3600
"""Seconds for which a clock must have run steadily before anything is deleted by it: at the start
of a machine it may be years ahead until it is corrected."""

_BATCH = 250  # changes in one transaction
_LOOK = 1.0  # seconds between looks at whether the file is still there, and between attempts
_PURGE = 60.0  # seconds between removals of what is forgotten
_JUMP = 1.5  # seconds by which a clock is set rather than adjusted
_CLOSE_TIMEOUT = 2.0

_P = ParamSpec("_P")
_R = TypeVar("_R")

log = structlog.get_logger()


class Journal:
    """Writes to a file; ``events`` are of the owner, whose list it mirrors.

    Attributes:
        up: it can be written; ``problem`` says why not and what to do, in a line for operators.
        outbox: what is still to be written.

    ``on_state`` is called when one of these has changed, ``on_merged`` when the owner may have
    taken something from a file. ``now`` returns the epoch second that all nodes go by.
    """

    def __init__(
        self,
        file: BlockFile,
        events: Events,
        on_state: Callable[[], object],
        on_merged: Callable[[], object] = lambda: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.up = False
        self.problem = ""
        self.outbox = Outbox()
        self._file = file
        self._events = events
        self._on_state = on_state
        self._on_merged = on_merged
        self._now = now
        self._thread = _Thread()
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._open = False
        self._released: asyncio.Future[None] | None = None
        self._reopened = asyncio.Event()
        self._clock = -math.inf  # how far the clock was ahead of the monotonic one
        self._steady = 0.0  # monotonic time since which that has not changed
        self._purged = time.monotonic()

    @property
    def path(self) -> str:
        return str(self._file.path)

    async def start(self) -> None:
        """Open the file, made if it is not there, and load the list; StartError says why not."""
        try:
            self._set_back()
            await self._begin()
        except (StoreError, sqlite3.Error, OSError) as error:
            raise StartError(str(error)) from error
        self.up = True
        self._task = asyncio.create_task(self._run(), name="journal")

    async def close(self) -> None:
        """Write the rest and close the file, within a time limit, whatever the disk does."""
        self._stop.set()
        self.outbox.woken.set()
        if self._task is not None:
            released = self._released is not None
            await asyncio.wait([self._task], timeout=0 if released else _CLOSE_TIMEOUT)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            if len(self.outbox) and not released:
                log.warning("blocks are lost, for the disk is too slow", count=len(self.outbox))
        self.up = False
        closed = self._thread.run(self._file.close)
        self._thread.stop()
        await asyncio.wait([closed], timeout=_CLOSE_TIMEOUT)

    async def release(self, timeout: float) -> None:
        """Write what waits and close the file, so that another process can open it.

        What comes then waits. Raises StoreError after ``timeout`` seconds without that; in either
        case ``reopen()`` undoes it.
        """
        self._reopened.clear()
        self._released = asyncio.get_running_loop().create_future()
        self.outbox.woken.set()
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._released)
        except TimeoutError:
            raise StoreError(self.problem or f"{self.path}: not closed in time") from None

    def reopen(self) -> None:
        """Open the file again as soon as that is possible, and write what has waited."""
        self._released = None
        self._reopened.set()

    def adopt(self) -> None:
        """Take what an agent that has ended has left behind, soon."""
        self._purged = -math.inf
        self.outbox.woken.set()

    def put(self, entry: Entry) -> None:
        """Write an entry as soon as possible."""
        self.outbox.add(Change(entry))

    def submit(self, entry: Entry) -> Change:
        """Write an entry that somebody waits for; see ``Outbox.submit()``."""
        return self.outbox.submit(entry)

    async def written(self, change: Change, timeout: float) -> None:
        """Return when what was submitted is on the disk; see ``Outbox.written()``."""
        await self.outbox.written(change, timeout, lambda: self.problem)

    async def load(self) -> list[Entry]:
        """Read all that is not forgotten; StoreError if that fails."""
        return [
            entry
            for page in await self._do(list, self._file.pages(self._second()))
            for entry in page
        ]

    async def _run(self) -> None:
        while True:
            self.outbox.woken.clear()
            try:
                await self._step()
                if self._released is not None:
                    await self._rest(self._released)
            except StoreError as error:
                self._state(str(error))
            except StartError as error:
                self._state(f"{error}; trying again")
            except Exception as error:
                # A fault of ours: what waits is not lost, and the next attempt may succeed.
                if self.up:
                    log.exception("the journal failed")
                self._state(f"internal error: {error!r}")
            else:
                self._state("")
            if self._stop.is_set():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await (self.outbox.woken if self.up else self._stop).wait()

    async def _begin(self) -> None:
        """Open the file, made if it is not there, and merge it with the list."""
        await self._do(self._file.open)
        await self._compare()
        self._open = True

    async def _rest(self, released: asyncio.Future[None]) -> None:
        """Close the file, and wait until it is to be opened again."""
        self._open = False
        await self._do(self._file.close)
        if not released.done():
            released.set_result(None)
        await self._reopened.wait()

    async def _step(self) -> None:
        """Write what waits; make a lost file again; delete what is forgotten."""
        if not self._open:
            await self._begin()
        await self._keep_file()
        if self.outbox.overflowed or self._set_back():
            self.outbox.overflowed = False
            await self._compare()
        while changes := self.outbox.first(_BATCH):
            results = await self._do(self._file.write, [change.entry for change in changes])
            if await self._keep_file():
                # Nothing of it was acknowledged, so the owner need not have it.
                continue
            for change, result in zip(changes, results, strict=True):
                if isinstance(result, Exception):
                    entry = change.entry
                    log.error(
                        "an entry can't be kept",
                        limit=entry.limit,
                        key=ascii(masked(entry.key)),
                        why=str(result),
                    )
                    self.outbox.done(change, StoreError(f"it can't be kept: {result}"))
                else:
                    self.outbox.done(change, result)
            self._state("")
        now = time.monotonic()
        if now - self._purged >= _PURGE:
            self._purged = now
            if now - self._steady >= SETTLED:
                await self._do(self._file.purge, self._second())
            if await self._adopt():
                await self._compare()

    async def _keep_file(self) -> bool:
        """Make the file again from what is held if it was lost; true if that was so."""
        lost = await self._do(self._file.lost)
        if lost:
            self._state(f"{lost}; it is made again from what this node holds")
            await self._do(self._file.open)
            await self._compare()
        return bool(lost)

    async def _compare(self) -> None:
        """Merge what the file has with what the owner has, in both directions."""
        await self._adopt()
        merging = self._events.merge()
        await self._take(merging, self._file.pages(self._second()))
        await tell(merging.newer(), lambda newer: self._do(self._file.write, newer))
        for start in range(0, len(merging.outdated), _BATCH):
            await self._do(self._file.forget, merging.outdated[start : start + _BATCH])
        await self._do(self._file.drop)
        self._on_merged()

    async def _adopt(self) -> bool:
        """Merge what other files have that belong to this one; true if there were any."""
        return await self._take(self._events.merge(), self._file.adopt(self._second()))

    async def _take(self, merging: Merging, pages: Iterator[list[Entry]]) -> bool:
        found = False
        while (page := await self._do(next, pages, None)) is not None:
            found = True
            await paced(merging.take(page))
        return found

    def _second(self) -> int:
        return int(self._now())

    def _set_back(self) -> bool:
        """Note how the clock runs; true if it was set back, and more counts than it did before."""
        before, self._clock = self._clock, self._now() - time.monotonic()
        if abs(self._clock - before) > _JUMP:
            self._steady = time.monotonic()
        return self._clock < before - _JUMP

    def _state(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self.up = not problem
            self._on_state()

    async def _do(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Have the thread do something; StoreError if the disk fails, and a problem if it hangs."""
        future = self._thread.run(functools.partial(work, *args, **kwargs))
        while not (await asyncio.wait([future], timeout=HANG))[0]:
            if self._task is None:
                raise StartError(f"{self.path}: the disk has not answered within {HANG:.0f} s")
            self._state(f"{self.path}: the disk does not answer")
        try:
            return future.result()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"{self.path}: {error}; see to the disk, writing is tried again"
            ) from error


class _Thread:
    """A thread that does one thing after another, and does not keep the process from ending."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._started = False

    def run(self, work: Callable[[], _R]) -> asyncio.Future[_R]:
        """Do it; the result comes by a future, which need not be awaited."""
        if not self._started:
            self._started = True
            # A pool's threads are waited for at exit, also one that a disk holds up.
            threading.Thread(target=self._main, name="journal", daemon=True).start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_R] = loop.create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

        def call() -> None:
            result: _R | None = None
            failure: BaseException | None = None
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - passed on
                failure = error
            # The loop is closed if the process ends meanwhile.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, future, result, failure)

        self._work.put(call)
        return future

    def stop(self) -> None:
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
