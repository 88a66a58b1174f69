"""Which of two entries about a client holds: the order of blocks and lifts.

Each node, the store and each journal have at most one block and one lift per limit and key. All of
them merge entries by the same rules. So an entry may arrive twice, late, or from several nodes at
once, and after any fault all parts agree again once they are compared; a store that is set back in
time changes nothing:

- A lift ends every block whose order is not higher than its own, and no other.
- Of two blocks by hand, the one with the higher order holds.
- Of two blocks by the same limit, the one that ends later holds; one in shadow mode loses.
- Of two that differ in nothing else, the one that shows less of its string holds.

An order is the store's time in microseconds, but greater than that of any entry that the node has
of this client. A block that ends later holds whatever the orders, because nodes without a store
count alone: the 10 s of one node must not replace the hour of another. The cost is one case in
which a lift wins too much: a block by a limit that lost before the lift of the longer one arrived
does not come back.
"""

from __future__ import annotations

import hashlib

from ratelimit.large import LargeDict, OrderedSet
from ratelimit.model import EVERY_LIMIT, Block, Lift

MAX_ORDER = 1 << 53
"""Orders are below this, so that a Lua number is exact; as microseconds they last until 2255.
"""

MAX_LIFTS = 200_000
"""Lifts that are kept; beyond that, those that end first are dropped."""

UNKNOWN = 3600
"""Seconds for which a lift is kept if no entry is known that it could end."""

_DIGITS = 16


def beats(new: Block, old: Block) -> bool:
    """Return whether a block replaces another of the same limit and key."""
    first, second = _rank(new), _rank(old)
    return first > second if first != second else _tie(new) > _tie(old)


def _rank(block: Block) -> tuple[int, ...]:
    first = block.order if block.limit == EVERY_LIMIT else 0
    # In bytes, as ``entries.lua`` counts. A key that ends a text is a hash, thus ASCII.
    hidden = -(
        len(block.text.encode("utf-8", "replace")) - len(block.key) * block.text.endswith(block.key)
    )
    return first, not block.shadow, block.until, block.strikes, block.order, block.since, hidden


def _tie(block: Block) -> int:
    """Return a number as tie-break; ``common.lua`` computes the same."""
    text = f"{block.node}\n{block.by}\n{block.reason}".encode("utf-8", "replace")
    return int(hashlib.sha1(text, usedforsecurity=False).hexdigest()[:12], 16)


class Lifts:
    """The lifts, by limit and key; times are epoch seconds.

    ``dropped`` counts the lifts that were forgotten before their end because there were too many.
    """

    def __init__(self, most: int = MAX_LIFTS) -> None:
        self.most = most
        self.dropped = 0
        # Order and end by place; and the places, each after its end.
        self._lifts: LargeDict[str, tuple[int, int]] = LargeDict()
        self._ends = OrderedSet()

    def __len__(self) -> int:
        return len(self._ends)

    def get(self, limit: str, key: str) -> Lift | None:
        """Return the last lift of a client, or None."""
        known = self._lifts.get(f"{limit}\0{key}")
        return None if known is None else Lift(key, limit, *known)

    def after(self, last: Lift | None, count: int) -> list[Lift]:
        """Return up to ``count`` lifts after ``last``, in the order of their ends."""
        end = "" if last is None else _end(last.until, f"{last.limit}\0{last.key}")
        found = []
        for text in self._ends.after(end, count):
            limit, _, key = text[_DIGITS:].partition("\0")
            if (lift := self.get(limit, key)) is not None:
                found.append(lift)
        return found

    def take(self, lift: Lift) -> bool:
        """Merge a lift; return true if it changes the state."""
        place = f"{lift.limit}\0{lift.key}"
        known = self._lifts.get(place) or (0, 0)
        merged = max(known[0], lift.order), max(known[1], lift.until)
        if merged == known:
            return False
        self._ends.discard(_end(known[1], place))
        self._lifts[place] = merged
        self._ends.add(_end(merged[1], place))
        if len(self._ends) > self.most:
            self._drop_first()
            self.dropped += 1
        return True

    def drop(self, now: int, count: int) -> int:
        """Remove up to ``count`` ended lifts; return their number."""
        gone = 0
        end = _end(now + 1, "")
        while gone < count and (first := self._ends.first()) is not None and first < end:
            self._drop_first()
            gone += 1
        return gone

    def _drop_first(self) -> None:
        first = self._ends.first()
        if first is not None:
            self._ends.discard(first)
            self._lifts.pop(first[_DIGITS:])


def _end(until: int, place: str) -> str:
    """Return an end as text with the same sort order."""
    return f"{until:0{_DIGITS}d}{place}"
