"""The busiest clients of the table, found a slice at a time.

A slice looks at so many sets and keeps the ``count`` highest scores in a heap of fixed size. The
table goes on changing between slices: what is told at the end is what the slots hold then. Only
clients seen lately are looked into; of the others the tags tell enough, an eighth of the memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from ratelimit.engine.layout import SET_WORDS, SLOT_WORDS, STAMP_BITS, SUM, UNTIL, WAYS
from ratelimit.engine.rule import Rule
from ratelimit.engine.table import Table
from ratelimit.notation import SECOND

_SCALE = 1 << 24  # scores are hits times a fraction with this denominator
_RECENT = 60 * SECOND
_M32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Busy:
    """A client among the busiest.

    ``kind``, ``hi`` and ``lo`` are those of ``engine.key``, ``index`` that of the rule. ``hits``
    are in the window that ends now, and ``until`` is the epoch second at which its block ends.
    """

    kind: int
    hi: int
    lo: int
    index: int
    hits: int
    until: int


class Scan:
    """One pass over a table; ``done`` says that it is over.

    Args:
        table: what is looked at; its time is that of the pass.
        rules: those that clients may be known by, whatever their order.
        count: how many clients are wanted.
        sort: ``rate`` by hits a second, ``share`` by hits to the limit, ``blocked`` by the end of
            the block, blocked clients only.
    """

    def __init__(self, table: Table, rules: Sequence[Rule], count: int, sort: str) -> None:
        self.table = table
        self.count = count
        self.blocked = sort == "blocked"
        self.place = 0
        self.size = 0
        self.scores = memoryview(array("Q", bytes(8 * count)))
        self.slots = memoryview(array("Q", bytes(8 * count)))
        self.known = list(rules)
        # By index; those that no rule has are never asked for.
        self.rules = [rules[0]] * (1 + max(rule.index for rule in rules))
        self.factors = memoryview(array("Q", bytes(8 * len(self.rules))))
        horizon = _RECENT
        for rule in rules:
            self.rules[rule.index] = rule
            window = rule.limit.window
            horizon = max(horizon, window)
            share = _SCALE // rule.limit.rate
            rate = _SCALE * SECOND // window
            self.factors[rule.index] = max(share if sort == "share" else rate, 1)
        self.horizon = (horizon >> STAMP_BITS) + 1

    @property
    def done(self) -> bool:
        """Whether every set has been looked at."""
        return self.place >= self.table.sets

    def slice(self, sets: int, now: int) -> None:
        """Look at so many sets more, at a time in nanoseconds that the table has already."""
        table = self.table
        for rule in self.known:
            rule.at(now)
        words = table.words
        end = min(self.place + sets, table.sets)
        stamp = table.stamp
        while self.place < end:
            base = self.place * SET_WORDS
            for way in range(WAYS):
                tag = words[base + way]
                if tag != 0 and (stamp - tag & _M32) <= self.horizon:
                    slot = base + WAYS + way * SLOT_WORDS
                    score = self.score(slot)
                    if score > 0:
                        self.keep(score, slot)
            self.place += 1

    def score(self, slot: int) -> int:
        """Return how high a client stands, 0 for not at all."""
        table = self.table
        index = table.words[slot + 2] & 0xFFFF
        if index >= len(self.factors) or self.factors[index] == 0:
            return 0
        until = table.halves[2 * slot + UNTIL]
        if self.blocked:
            return until if until > table.now else 0
        # The whole sum is the most that it can be.
        factor = self.factors[index]
        most = table.halves[2 * slot + SUM] * factor
        if self.size == self.count and most <= self.scores[0]:
            return 0
        return table.count(slot, self.rules[index], 0) * factor

    def keep(self, score: int, slot: int) -> None:
        """Take a client among the highest, if it belongs there."""
        scores = self.scores
        slots = self.slots
        if self.size < self.count:
            # Up from the end of the heap.
            at = self.size
            self.size += 1
            while at > 0 and scores[(at - 1) // 2] > score:
                above = (at - 1) // 2
                scores[at] = scores[above]
                slots[at] = slots[above]
                at = above
        elif score > scores[0]:
            # Down from its top, where the lowest was.
            at = 0
            while True:
                below = 2 * at + 1
                if below >= self.size:
                    break
                if below + 1 < self.size and scores[below + 1] < scores[below]:
                    below += 1
                if scores[below] >= score:
                    break
                scores[at] = scores[below]
                slots[at] = slots[below]
                at = below
        else:
            return
        scores[at] = score
        slots[at] = slot

    def order(self) -> list[int]:
        """Return the slots of the clients found, the busiest first."""
        found = {}
        count = self.count
        self.count = self.size + 1  # no score is too low now
        for i in range(self.size):
            slot = self.slots[i]
            score = self.score(slot)
            if score > 0:
                found[slot] = score
        self.count = count
        return sorted(found, key=found.__getitem__, reverse=True)

    def busy(self, slot: int) -> Busy | None:
        """Return what there is to say of a client; None if its slot is now one of a new limit."""
        words = self.table.words
        ident = words[slot + 2] & _M32
        index = ident & 0xFFFF
        if index >= len(self.rules):
            return None
        return Busy(
            ident >> 16,
            words[slot],
            words[slot + 1],
            index,
            self.table.count(slot, self.rules[index], 0),
            self.table.until(slot),
        )
