"""Finds the busiest clients of the table, a slice at a time.

A slice visits a number of sets and keeps the ``count`` highest scores in a heap of fixed size. The
table may change between slices; the result is read from the slots at the end. Only recently seen
clients are read; for the others the tags suffice, which are an eighth of the memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from ratelimit.engine.layout import M32, SET_WORDS, SLOT_WORDS, STAMP_BITS, SUM, UNTIL, WAYS
from ratelimit.engine.rule import Rule
from ratelimit.engine.table import Table
from ratelimit.notation import SECOND

_SCALE = 1 << 24  # scores are hits times a fraction with this denominator
_RECENT = 60 * SECOND


@dataclass(frozen=True, slots=True)
class Busy:
    """One of the busiest clients.

    ``kind``, ``hi`` and ``lo`` are those of ``engine.key``, ``index`` is that of the rule. ``hits``
    are those in the current window, and ``until`` is the epoch second at which its block ends.
    """

    kind: int
    hi: int
    lo: int
    index: int
    hits: int
    until: int


class Scan:
    """One scan of a table; ``done`` when finished.

    Args:
        table: the table; its time is that of the scan.
        rules: the rules whose clients to find, in any order.
        count: number of clients to find.
        sort: ``rate`` by hits per second, ``share`` by hits relative to the limit, ``blocked`` by
            end of block, only blocked clients.
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
        # By index; indices without a rule are never used.
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
        """Whether every set has been visited."""
        return self.place >= self.table.sets

    def slice(self, sets: int, now: int) -> None:
        """Visit a number of sets; ``now`` in nanoseconds is the table's time."""
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
                if tag != 0 and (stamp - tag & M32) <= self.horizon:
                    slot = base + WAYS + way * SLOT_WORDS
                    score = self.score(slot)
                    if score > 0:
                        self.keep(score, slot)
            self.place += 1

    def score(self, slot: int) -> int:
        """Return the score of a client, 0 to ignore it."""
        table = self.table
        index = table.words[slot + 2] & 0xFFFF
        if index >= len(self.factors) or self.factors[index] == 0:
            return 0
        until = table.halves[2 * slot + UNTIL]
        if self.blocked:
            return until if until > table.now else 0
        # The sum of the counters is the maximum.
        factor = self.factors[index]
        most = table.halves[2 * slot + SUM] * factor
        if self.size == self.count and most <= self.scores[0]:
            return 0
        return table.count(slot, self.rules[index], 0) * factor

    def keep(self, score: int, slot: int) -> None:
        """Add a client to the heap if its score is high enough."""
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
            # Down from the top, which had the lowest score.
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
        self.count = self.size + 1  # accept every score
        for i in range(self.size):
            slot = self.slots[i]
            score = self.score(slot)
            if score > 0:
                found[slot] = score
        self.count = count
        return sorted(found, key=found.__getitem__, reverse=True)

    def busy(self, slot: int) -> Busy | None:
        """Return a client; None if its slot now belongs to a new limit."""
        words = self.table.words
        ident = words[slot + 2] & M32
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
