"""The blocklist: the last block of each client and limit; not on the request path.

An entry is kept ``forget`` seconds after the end of its block, because the length of the next block
depends on the strikes before it. The number of entries is bounded: a new entry replaces the ended
one that would be forgotten first. If all entries are active, there is no room; the client is
throttled instead of blocked, which ``refused`` counts.

No operation takes long, whatever the number of entries. Entries are kept as bytes, which the
garbage collector does not visit.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Iterator
from dataclasses import fields
from operator import attrgetter

from ratelimit.large import LargeDict, OrderedSet
from ratelimit.limiter.entry_order import UNKNOWN, Lifts, beats
from ratelimit.model import Block, Lift

MAX_ENTRIES = 200_000
_PAGE = 20  # entries per read, 0.1 ms of work
_LAST = 10**12  # later than any time

_values = attrgetter(*(field.name for field in fields(Block)))


class Blocklist:
    """Blocks by limit and key; times are epoch seconds. ``node`` is the name in new blocks.

    ``forget`` returns for how many seconds after its end a block of a limit counts as a strike.
    ``on_drop`` is called with each ended entry that is dropped.
    """

    def __init__(self, node: str = "", max_entries: int = MAX_ENTRIES) -> None:
        self.node = node
        self.max_entries = max_entries
        self.refused = 0
        self.lifts = Lifts()
        self.forget: Callable[[str], int] = lambda limit: 0
        self.on_drop: Callable[[Block], object] = lambda block: None
        self._order = 0
        # By place, see _place(); sorted by limit and key.
        self._entries: LargeDict[str, bytes] = LargeDict()
        self._places = OrderedSet()
        # Keys by limit and shadow, each after the end of its block. Each set is in the order in
        # which its entries are forgotten, whatever ``forget`` returns.
        self._ends: dict[tuple[str, bool], OrderedSet] = {}

    def __len__(self) -> int:
        return len(self._places)

    def get(self, limit: str, key: str) -> Block | None:
        """Return the last block of a client, which may have ended, or None."""
        found = self._entries.get(_place(limit, key))
        return None if found is None else _unpacked(found)

    def __iter__(self) -> Iterator[Block]:
        """Yield all entries; the list may change meanwhile."""
        return self._pages("")

    def of(self, limit: str) -> Iterator[Block]:
        """Yield the entries of a limit, sorted by key; the list may change meanwhile."""
        for block in self._pages(_place(limit, "")):
            if block.limit != limit:
                return
            yield block

    def after(self, limit: str, key: str, count: int) -> list[Block]:
        """Return up to ``count`` entries after a limit and key, sorted by both."""
        return self._page(_place(limit, key), count)

    def next_order(self, limit: str, key: str, now: int) -> int:
        """Return the order of a new entry; ``now`` is in epoch nanoseconds."""
        self._order = max(now // 1000, self._order + 1)
        for one in (self.get(limit, key), self.lifts.get(limit, key)):
            if one is not None and one.order >= self._order:
                self._order = one.order + 1
        return self._order

    def take(self, block: Block, now: int) -> bool:
        """Merge an entry; return true if it changes the state of the client.

        False if the known entry is newer or if there is no room.
        """
        lifted = self.lifts.get(block.limit, block.key)
        if lifted is not None and block.order <= lifted.order:
            return False
        known = self.get(block.limit, block.key)
        return (known is None or beats(block, known)) and self.put(block, now)

    def lift(self, lift: Lift) -> bool:
        """Merge a lift; return true if it changes the state of the client."""
        known = self.get(lift.limit, lift.key)
        if known is not None and known.order <= lift.order:
            self.remove(lift.limit, lift.key)
        return self.lifts.take(lift)

    def lift_of(self, limit: str, key: str, now: int) -> Lift:
        """Return a lift of a client; ``now`` is in epoch nanoseconds."""
        known, before = self.get(limit, key), self.lifts.get(limit, key)
        until = now // 1_000_000_000 + UNKNOWN
        if before is not None:
            until = max(until, before.until)
        if known is not None:
            until = max(until, max(known.since, known.until) + self.forget(limit))
        return Lift(key, limit, self.next_order(limit, key, now), until)

    def put(self, block: Block, now: int) -> bool:
        """Store an entry in place of any other; return false if there is no room."""
        if not self.has_room(block.limit, block.key, now):
            self.refused += 1
            return False
        self.remove(block.limit, block.key)
        place = _place(block.limit, block.key)
        self._entries[place] = marshal.dumps(_values(block))
        self._places.add(place)
        self._ends.setdefault((block.limit, block.shadow), OrderedSet()).add(_end(block))
        return True

    def remove(self, limit: str, key: str) -> Block | None:
        """Remove an entry; return it, or None."""
        block = self.get(limit, key)
        if block is None:
            return None
        place = _place(limit, key)
        self._entries.pop(place)
        self._places.discard(place)
        ends = self._ends[limit, block.shadow]
        ends.discard(_end(block))
        if not ends:
            del self._ends[limit, block.shadow]
        return block

    def has_room(self, limit: str, key: str, now: int) -> bool:
        """Return whether there is room for an entry of a client."""
        return (
            _place(limit, key) in self._entries
            or len(self._places) < self.max_entries
            or self._make_room(now)
        )

    def active(self, now: int) -> int:
        """Return the number of active blocks, without those in shadow mode."""
        later = _written(now + 1)
        return sum(
            ends.count_since(later) for (_, shadow), ends in self._ends.items() if not shadow
        )

    def drop(self, now: int, count: int) -> int:
        """Remove up to ``count`` forgotten entries and lifts; return their number."""
        gone = self.lifts.drop(now, count)
        for limit, shadow in list(self._ends):
            forgotten = now - self.forget(limit)
            while gone < count and (ends := self._ends.get((limit, shadow))) is not None:
                end, key = _read(ends)
                if end > forgotten:
                    break
                self._drop(limit, key)
                gone += 1
        return gone

    def _make_room(self, now: int) -> bool:
        """Remove the ended entry that would be forgotten first."""
        ended = []
        for (limit, _), ends in self._ends.items():
            end, key = _read(ends)
            if end <= now:
                ended.append((end + self.forget(limit), limit, key))
        if ended:
            self._drop(*min(ended)[1:])
        return bool(ended)

    def _drop(self, limit: str, key: str) -> None:
        block = self.remove(limit, key)
        if block is not None:
            self.on_drop(block)

    def _page(self, place: str, count: int) -> list[Block]:
        places = self._places.after(place, count)
        packed = map(self._entries.get, places)
        return [_unpacked(one) for one in packed if one is not None]

    def _pages(self, place: str) -> Iterator[Block]:
        while page := self._page(place, _PAGE):
            yield from page
            place = _place(page[-1].limit, page[-1].key)


def _unpacked(entry: bytes) -> Block:
    return Block(*marshal.loads(entry))  # noqa: S302 - data of this module


def _place(limit: str, key: str) -> str:
    return f"{limit}\0{key}"  # limit names have no character up to this one


def _end(block: Block) -> str:
    return _written(max(block.since, block.until)) + block.key


def _written(time: int) -> str:
    """Return a time as text with the same sort order."""
    return f"{max(0, min(time, _LAST)):013d}"


def _read(ends: OrderedSet) -> tuple[int, str]:
    """Return the first end of a block, and its key."""
    first = ends.first()
    assert first is not None  # noqa: S101 - empty sets are removed
    return int(first[:13]), first[13:]
