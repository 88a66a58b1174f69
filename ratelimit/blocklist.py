"""Who is blocked until when, and how many strikes each has; off the request path.

An entry stays ``forget`` seconds after its block has ended, since the next block is chosen by the
strikes before it. The number of entries is bounded: a new one takes the place of one whose block
has ended; without any such, a client is throttled instead of blocked, which ``refused`` counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import fields
from operator import attrgetter
from typing import Any

from sortedcontainers import SortedList

from ratelimit.model import Block, Limit
from ratelimit.notation import format_duration

MAX_ENTRIES = 200_000
_LOOKED_AT = 100

_packed = attrgetter(*(field.name for field in fields(Block)))
"""Returns a block as a plain tuple, which the garbage collector need not look into: it would stop
all answers for as long as it takes to walk through 200,000 objects."""


class Blocklist:
    """Blocks by limit and key; all times are epoch seconds. ``node`` is who makes them."""

    def __init__(self, node: str = "", max_entries: int = MAX_ENTRIES) -> None:
        self.node = node
        self.max_entries = max_entries
        self.refused = 0
        # Each limit's entries stand in the order of their last strike. They are forgotten from the
        # first on, so one may stay longer than it must, by no more than the longest block.
        self._entries: dict[str, dict[str, tuple[Any, ...]]] = {}
        self._size = 0
        # The same keys in order, for who reads the list a page at a time while it changes.
        self._sorted: dict[str, SortedList] = {}
        # How many entries end at each second, from the time on at which active() was asked last.
        self._ends: dict[int, int] = {}

    def __len__(self) -> int:
        return self._size

    def get(self, limit: str, key: str) -> Block | None:
        """Return the client's last block, which may have ended."""
        found = self._entries.get(limit, {}).get(key)
        return None if found is None else Block(*found)

    def __iter__(self) -> Iterator[Block]:
        for entries in self._entries.values():
            yield from itertools.starmap(Block, entries.values())

    def after(self, limit: str, key: str, count: int) -> list[Block]:
        """Return up to ``count`` entries that follow a limit and key, in the order of both."""
        found: list[Block] = []
        for name in sorted(self._sorted):
            if name >= limit and len(found) < count:
                low = key if name == limit else None
                keys = self._sorted[name].irange(low, inclusive=(False, False))
                wanted = itertools.islice(keys, count - len(found))
                found += [Block(*self._entries[name][key]) for key in wanted]
        return found

    def put(self, block: Block) -> bool:
        """Take an entry as it is, from the store; false if there is no room for it."""
        entries = self._entries.setdefault(block.limit, {})
        old = entries.pop(block.key, None)
        if old is not None:
            self._count(Block(*old), -1)
        else:
            if self._size >= self.max_entries and not self._make_room(block.since):
                self.refused += 1
                return False
            self._sorted.setdefault(block.limit, SortedList()).add(block.key)
            self._size += 1
        entries[block.key] = _packed(block)
        self._count(block, 1)
        return True

    def active(self, now: int) -> int:
        """Return how many blocks are in force; those of limits in shadow never are."""
        for end in [end for end in self._ends if end <= now]:
            del self._ends[end]
        return sum(self._ends.values())

    def _count(self, block: Block, change: int) -> None:
        if not block.shadow and (change > 0 or block.until in self._ends):
            self._ends[block.until] = self._ends.get(block.until, 0) + change

    def _make_room(self, now: int) -> bool:
        """Drop an entry whose block has ended, of those that were made first."""
        for entries in self._entries.values():
            for entry in itertools.islice(entries.values(), _LOOKED_AT):
                block = Block(*entry)
                if block.until <= now:
                    self.remove(block.limit, block.key)
                    return True
        return False

    def remove(self, limit: str, key: str) -> Block | None:
        """Take an entry off; return it if there was one."""
        entry = self._entries.get(limit, {}).pop(key, None)
        if entry is None:
            return None
        block = Block(*entry)
        self._sorted[limit].remove(key)
        self._size -= 1
        self._count(block, -1)
        return block

    def strike(self, limit: Limit, key: str, now: int) -> Block | None:
        """Block a client that exceeded a limit; None if there is no room for it.

        The first strike earns the first length of the limit's ladder, and so on; past its end the
        last one is repeated.
        """
        last = self.get(limit.name, key)
        strikes = 1
        if (
            last is not None
            and last.shadow == limit.shadow
            and now - max(last.since, last.until) < limit.forget
        ):
            strikes = last.strikes + 1
        block = Block(
            key=key,
            limit=limit.name,
            reason=f"over {limit.rate} in {format_duration(limit.window)}",
            strikes=strikes,
            since=now,
            until=now + limit.block[min(strikes, len(limit.block)) - 1],
            node=self.node,
            shadow=limit.shadow,
        )
        return block if self.put(block) else None

    def limits(self) -> list[str]:
        """Return the names of the limits that there are entries of."""
        return list(self._entries)

    def of(self, limit: str) -> Iterator[Block]:
        """Yield the entries of a limit, the one made first first."""
        yield from itertools.starmap(Block, self._entries.get(limit, {}).values())

    def forget(self, limit: str, seconds: int, now: int) -> None:
        """Drop the entries of a limit whose block ended so many seconds ago."""
        entries = self._entries.get(limit, {})
        while entries:
            block = Block(*next(iter(entries.values())))
            if now - max(block.since, block.until) < seconds:
                return
            self.remove(limit, block.key)
