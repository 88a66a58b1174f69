"""The journal: this node's blocks and lifts in a file, written by a separate thread.

It is the whole embedded store. With Redis it is a copy with which a restarted node restores what a
store has lost. The event loop never waits for the disk: changes wait in an outbox, and a disk that
is too slow is an outage. So is a file that was deleted or replaced while open; it is created again
from memory, and until then no change is confirmed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import structlog

from ratelimit.exceptions import StartError, StoreError
from ratelimit.limiter.string_keys import masked
from ratelimit.model import Entry
from ratelimit.process.thread import Thread
from ratelimit.store.base import Events, NoList, tell
from ratelimit.store.pending import MAX_UNWRITTEN, Outbox
from ratelimit.store.sqlite import BlockFile
from ratelimit.turns import paced

if TYPE_CHECKING:
    from ratelimit.limiter.merge import Merge

HANG = 3.0
"""Seconds in which the disk must have finished an operation."""

START_HANG = 15.0
"""The same at the start, when the whole machine may start and disks be busiest. A node that gives
up does not run, or runs without a journal. systemd allows 30 s for the whole start.
"""

SETTLED = 3600
"""Seconds for which the clock must have been steady before anything is deleted by it: after a boot
it may be years ahead until it is corrected.
"""

_BATCH = 250  # changes per transaction
_LOOK = 1.0  # seconds between checks of the file, and between attempts
_PURGE = 60.0  # seconds between deletions of forgotten entries
_JUMP = 1.5  # seconds from which on a clock change is a jump
_CLOSE_TIMEOUT = 2.0

_P = ParamSpec("_P")
_R = TypeVar("_R")

log = structlog.get_logger()


class Journal:
    """Writes the owner's list to a file; ``events`` are the owner's callbacks.

    Attributes:
        up: whether the file can be written; ``problem`` says why not and what to do, in one line.
        outbox: changes to be written.

    ``on_state`` is called when one of these changes, ``on_merged`` when the owner may have merged
    entries of a file. ``now`` returns the epoch second of the fleet's common clock. ``most`` is the
    number of changes that may wait; beyond that, the whole list is compared.
    """

    def __init__(
        self,
        file: BlockFile,
        events: Events,
        on_state: Callable[[], object],
        on_merged: Callable[[], object] = lambda: None,
        now: Callable[[], float] = time.time,
        most: int = MAX_UNWRITTEN,
    ) -> None:
        self.up = False
        self.problem = ""
        self.outbox = Outbox(most)
        self._file = file
        self._events = events
        self._on_state = on_state
        self._on_merged = on_merged
        self._now = now
        self._thread = Thread("journal")
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._open = False
        self._released: asyncio.Future[None] | None = None
        self._reopened = asyncio.Event()
        self._clock = -math.inf  # the clock minus the monotonic clock
        self._steady = 0.0  # monotonic time since which that is constant
        self._purged = time.monotonic()

    @property
    def path(self) -> str:
        return str(self._file.path)

    async def start(self) -> None:
        """Open or create the file and load the list. Raises StartError."""
        try:
            self._set_back()
            await self._begin()
        except (StoreError, sqlite3.Error, OSError) as error:
            raise StartError(str(error)) from error
        self.up = True
        self._task = asyncio.create_task(self._run(), name="journal")

    async def close(self) -> None:
        """Write pending changes and close the file, within a time limit."""
        self._stop.set()
        self.outbox.woken.set()
        if self._task is not None:
            released = self._released is not None
            await asyncio.wait([self._task], timeout=0 if released else _CLOSE_TIMEOUT)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            if len(self.outbox) and not released:
                log.warning("blocks were lost because the disk is too slow", count=len(self.outbox))
        self.up = False
        closed = self._thread.run(self._file.close)
        self._thread.stop()
        await asyncio.wait([closed], timeout=_CLOSE_TIMEOUT)

    async def release(self, timeout: float) -> None:
        """Write pending changes and close the file, so that another process can open it.

        Further changes wait. Raises StoreError after ``timeout`` seconds; in either case
        ``reopen()`` undoes it.
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
        """Open the file again as soon as possible, and write pending changes."""
        self._released = None
        self._reopened.set()

    def adopt(self) -> None:
        """Merge the files of agents that have ended, soon."""
        self._purged = -math.inf
        self.outbox.woken.set()

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
                # An internal error: pending changes are kept, and the next attempt may succeed.
                if self.up:
                    log.exception("internal error in the journal")
                self._state(f"internal error: {error!r}")
            else:
                self._state("")
            if self._stop.is_set():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await (self.outbox.woken if self.up else self._stop).wait()

    async def _begin(self) -> None:
        """Open or create the file and merge it with the list."""
        await self._do(self._file.open)
        await self._compare()
        self._on_merged()
        self._open = True

    async def _rest(self, released: asyncio.Future[None]) -> None:
        """Close the file, and wait for ``reopen()``."""
        self._open = False
        await self._do(self._file.close)
        if not released.done():
            released.set_result(None)
        await self._reopened.wait()

    async def _step(self) -> None:
        """Write pending changes; restore a lost file; delete forgotten entries."""
        if not self._open:
            await self._begin()
        await self._keep_file()
        if self._set_back():
            await self._compare()
        while len(self.outbox) or self.outbox.overflowed:
            if self.outbox.overflowed:
                self.outbox.overflowed = False
                await self._compare()
            elif await self._write():
                self._state("")
            else:
                await self._keep_file()
        now = time.monotonic()
        if now - self._purged >= _PURGE:
            self._purged = now
            if now - self._steady >= SETTLED:
                await self._do(self._file.purge, self._second())
            if await self._adopt():
                await self._compare()
                self._on_merged()

    async def _write(self) -> bool:
        """Write the next pending changes; return false if the file was lost."""
        changes = self.outbox.first(_BATCH)
        results = await self._do(self._file.write, [change.entry for change in changes])
        if await self._do(self._file.lost):
            return False  # nothing was confirmed, so the owner may not have it
        for change, result in zip(changes, results, strict=True):
            if isinstance(result, Exception):
                entry = change.entry
                log.error(
                    "an entry can't be stored",
                    limit=entry.limit,
                    key=ascii(masked(entry.key)),
                    why=str(result),
                )
                self.outbox.done(change, StoreError(f"the entry can't be stored: {result}"))
            else:
                self.outbox.done(change, result)
        return True

    async def _keep_file(self) -> None:
        """Create the file again if it was lost."""
        lost = await self._do(self._file.lost)
        if lost:
            self._state(f"{lost}; it is created again from memory")
            await self._do(self._file.open)
            await self._compare()
            self._on_merged()

    async def _compare(self) -> None:
        """Merge the file with the owner's list, in both directions."""
        if await self._adopt():
            self._on_merged()
        merging = self._events.merge()
        await self._take(merging, self._file.pages(self._second()))
        await tell(merging.newer(), self._tell)
        for start in range(0, len(merging.outdated), _BATCH):
            await self._do(self._file.forget, merging.outdated[start : start + _BATCH])
        await self._do(self._file.drop)

    async def _tell(self, newer: Sequence[Entry]) -> None:
        """Write what the file lacks, and what a caller waits for."""
        await self._do(self._file.write, newer)
        if self.up and self.outbox.has_waiters:
            await self._write()

    async def _adopt(self) -> bool:
        """Merge other files that belong to this one; return true if there were any."""
        return await self._take(self._events.merge(), self._file.adopt(self._second()))

    async def _take(self, merging: Merge | NoList, pages: Iterator[list[Entry]]) -> bool:
        found = False
        while (page := await self._do(next, pages, None)) is not None:
            found = True
            await paced(merging.take(page))
        return found

    def _second(self) -> int:
        return int(self._now())

    def _set_back(self) -> bool:
        """Record the clock; return true if it was set back, so that fewer entries are forgotten."""
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
        """Run an operation in the thread. Raises StoreError; a hung disk is reported meanwhile."""
        future = self._thread.run(functools.partial(work, *args, **kwargs))
        limit = START_HANG if self._task is None else HANG
        while not (await asyncio.wait([future], timeout=limit))[0]:
            if self._task is None:
                raise StartError(f"{self.path}: no answer from the disk within {limit:.0f} s")
            self._state(f"{self.path}: the disk does not answer")
        try:
            return future.result()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.path}: {error}; check the disk, writing is retried") from error
