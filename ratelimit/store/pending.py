"""Changes of the blocklist that wait for the store or the journal; no I/O."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from ratelimit.exceptions import StoreError
from ratelimit.limiter.entry_order import beats
from ratelimit.model import Block, Entry, Lift

MAX_UNWRITTEN = 100_000
"""Changes that may wait; further ones are refused, see ``Outbox.dropped``."""

_FRESH = 1.0
"""Seconds in which an operator's change supersedes whatever the store has by then."""


class Change:
    """A block or a lift to write; ``waiters`` receive the result.

    ``asked`` is the monotonic time of the change, ``tried`` whether it was sent before, and
    ``held`` the entry in the store after it was written.
    """

    __slots__ = ("asked", "entry", "held", "tried", "waiter", "waiters")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.asked = time.monotonic()
        self.tried = False
        self.held: Entry | None = None
        self.waiter: asyncio.Future[bool] | None = None
        self.waiters: list[asyncio.Future[bool]] = []

    @property
    def fresh(self) -> bool:
        """Whether the change is newer than the store's entry, whatever the clocks say."""
        return not self.tried and time.monotonic() - self.asked < _FRESH

    def tell(self, result: bool | StoreError) -> None:
        """Pass the result to the waiters: whether a lift found a block, or an error."""
        for waiter in self.waiters:
            if waiter.done():
                continue
            if isinstance(result, StoreError):
                waiter.set_exception(result)
            else:
                waiter.set_result(result)


_Place = tuple[str, str, type[Entry]]
"""A limit, a key, and the kind of the change."""


class Outbox:
    """Changes to be written, in order; for each client at most a lift and a block after it.

    Changes for which a caller waits come first: others may be as many as the whole list.

    ``dropped`` counts changes without room, and ``overflowed`` is set by them: then the owner's
    whole list must be compared. ``woken`` is set by each change.
    """

    def __init__(self, size: int = MAX_UNWRITTEN) -> None:
        self.dropped = 0
        self.overflowed = False
        self.woken = asyncio.Event()
        self._size = size
        self._changes: dict[_Place, Change] = {}
        self._awaited: dict[_Place, None] = {}

    def __len__(self) -> int:
        return len(self._changes)

    @property
    def has_waiters(self) -> bool:
        """Whether a caller waits for a change."""
        return bool(self._awaited)

    def add(self, change: Change) -> bool:
        """Add a change; return false if there is no room."""
        place, kind = (change.entry.limit, change.entry.key), type(change.entry)
        same, replaced = self._changes.get((*place, kind)), []
        if same is not None:
            if _is_newer(same.entry, change.entry):
                same.waiters += change.waiters
                self._await((*place, kind), same)
                return True
            replaced.append(self._pop((*place, kind)))
        if kind is Lift:
            block = self._changes.get((*place, Block))
            if block is not None and block.entry.order <= change.entry.order:
                replaced.append(self._pop((*place, Block)))
        if not replaced and len(self._changes) >= self._size:
            self.dropped += 1
            self.overflowed = True
            return False
        for old in replaced:
            change.waiters += [waiter for waiter in old.waiters if not waiter.done()]
        self._changes[*place, kind] = change
        self._await((*place, kind), change)
        self.woken.set()
        return True

    def submit(self, entry: Entry) -> Change:
        """Add an entry for which a caller waits. Raises StoreError, ``unsent``, if there is no
        room.
        """
        change = Change(entry)
        change.waiter = asyncio.get_running_loop().create_future()
        change.waiters.append(change.waiter)
        if not self.add(change):
            raise StoreError("too many changes wait for the store", unsent=True)
        return change

    @staticmethod
    async def written(change: Change, timeout: float, why: Callable[[], str]) -> tuple[Entry, bool]:
        """Wait until a submitted change is written; return the entry in the store and the result.

        Raises StoreError after ``timeout`` seconds, with the text from ``why``; the change stays
        queued.
        """
        assert change.waiter is not None  # noqa: S101 - it was submitted
        try:
            async with asyncio.timeout(timeout):
                found = await change.waiter
        except TimeoutError:
            raise StoreError(why() or "the store did not answer in time") from None
        return change.held or change.entry, found

    def entries(self) -> list[Entry]:
        """Return all waiting entries, the oldest first."""
        return [change.entry for change in self._changes.values()]

    def first(self, count: int) -> list[Change]:
        """Return up to ``count`` changes of one kind, those first for which a caller waits, and
        then the oldest; they stay queued.
        """
        changes: dict[_Place, Change] = {}
        first: type[Entry] | None = None
        for place in itertools.chain(self._urgent(), self._changes):
            first = first or place[2]
            if len(changes) == count or place[2] is not first:
                break
            changes[place] = self._changes[place]
        return list(changes.values())

    def _urgent(self) -> Iterator[_Place]:
        for place in self._awaited:
            # A lift of the same client was there before.
            lift = (*place[:2], Lift)
            if lift != place and lift in self._changes:
                yield lift
            yield place

    def _pop(self, place: _Place) -> Change:
        self._awaited.pop(place, None)
        return self._changes.pop(place)

    def _await(self, place: _Place, change: Change) -> None:
        if change.waiters:
            self._awaited[place] = None

    def done(self, change: Change, result: bool | StoreError) -> None:
        """Remove a change that was written or can't be, unless a newer one has replaced it."""
        place = change.entry.limit, change.entry.key, type(change.entry)
        if self._changes.get(place) is change:
            self._pop(place)
        change.tell(result)

    def shift(self, seconds: int, forget: Callable[[str], int]) -> list[Entry]:
        """Correct all times after a change of the clock; return entries for the owner to merge.

        ``forget`` returns for how many seconds strikes of a limit are remembered.
        """
        told: list[Entry] = []
        changes, self._changes = self._changes, {}
        for (limit, key, kind), change in changes.items():
            old = change.entry
            order = max(old.order + seconds * 1_000_000, old.order + 1)
            if isinstance(old, Block):
                # The entry with wrong times is on lists already, and a later end would win.
                until = max(old.until, old.until + seconds) + forget(limit)
                lift = Change(Lift(key, limit, old.order, until))
                self._changes.setdefault((limit, key, Lift), lift)
                since, until = max(0, old.since + seconds), max(0, old.until + seconds)
                change.entry = replace(old, since=since, until=until, order=order)
                told.append(lift.entry)
            else:
                change.entry = replace(old, order=order)
            self._changes[limit, key, kind] = change
            told.append(change.entry)
        return told


def _is_newer(entry: Entry, other: Entry) -> bool:
    if isinstance(entry, Block) and isinstance(other, Block):
        return beats(entry, other)
    return entry.order > other.order
