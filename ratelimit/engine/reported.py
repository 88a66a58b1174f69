"""Counts hits that were answered before they were reported, perhaps many at once and late.

A check decides about a hit before it happens. Here the hits have happened, during a time that is
known only roughly, and the question is from when on the next one fits.
"""

from __future__ import annotations

from ratelimit.engine.check import Engine
from ratelimit.engine.layout import HOT, NONE, RING
from ratelimit.engine.outcome import Outcome
from ratelimit.engine.query import Query
from ratelimit.engine.retry_after import RetryAfter
from ratelimit.engine.rule import Rule

_COARSE = 16  # binary digits of nanoseconds left out, so that their product with hits fits 64 bits


class Reported:
    """Reported hits, counted by an engine; set the time of the engine first."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.waits = RetryAfter(engine.table)
        # Of the hits that are spread: the ages of the newest and oldest, and how many.
        self.newest = 0
        self.oldest = 0
        self.all = 0

    def spread(self, query: Query, begin: int, end: int) -> None:
        """Count the hits of an aimed query that happened before the present part of the window.

        They are taken to have happened evenly between ``begin`` and ``end``, in epoch nanoseconds.
        Hits older than the window are dropped; those of the present part remain in the query. If
        ``end`` is the present, at least one remains. Nothing changes for a client that is
        blocked or on a list: its hits do not count.
        """
        engine = self.engine
        table = engine.table
        rule = query.rule
        now = engine.now
        rule.at(now)
        self.newest = now - end >> _COARSE if end < now else 0
        self.oldest = now - begin >> _COARSE if begin < now else 0
        if self.oldest <= rule.elapsed >> _COARSE:
            return
        if self.oldest == self.newest:
            self.oldest += 1
        slot = engine.visit(query)
        if table.idle > engine.minute:
            rule.seen += 1  # the check itself will find it just seen
        if table.until(slot) > table.now:
            return
        if engine.listing and engine.lists.value(query.hi, query.lo) != NONE:
            return
        self.all = query.hits
        age = rule.elapsed
        here = self.newer(age)
        if here == 0 and self.newest == 0:
            here = min(self.all, 1)
        placed = here
        for parts in range(1, RING):
            age += rule.sub_window
            newer = self.newer(age)
            if newer > placed:
                table.add(slot, rule, newer - placed, parts)
                placed = newer
        place = table.halves[2 * slot + HOT]
        if engine.shared and place > 0 and placed > here:
            exchange = engine.exchanges[rule.place]
            exchange.remote(place - 1, placed - here)
        query.hits = here

    def judge(self, query: Query, outcome: Outcome) -> int:
        """Count the hits of an aimed query; return when the next one fits, in epoch nanoseconds.

        0 if it fits now, or if a block or list decides. The outcome has the verdict on the hits.
        """
        engine = self.engine
        table = engine.table
        rule = query.rule
        outcome.clear()
        engine.judge(query, outcome)
        ident = query.kind << 16 | rule.index
        slot = table.search(query.client_hi, query.client_lo, ident, query.base, query.tag)
        if slot < 0 or table.until(slot) > table.now:
            return 0
        return self.free(rule, slot)

    def free(self, rule: Rule, slot: int) -> int:
        """Return when a hit of a client fits, in epoch nanoseconds; 0 if it fits now."""
        engine = self.engine
        if engine.hits(rule, slot) < rule.rate:
            return 0
        table = engine.table
        place = table.halves[2 * slot + HOT]
        if engine.shared and place > 0:
            exchange = engine.exchanges[rule.place]
            return engine.now + exchange.exact(slot, place - 1)
        return engine.now + self.waits.exact(slot, rule, self.waits.none, 0)

    def newer(self, age: int) -> int:
        """Return how many of the spread hits are at most ``age`` nanoseconds old."""
        age >>= _COARSE
        if age <= self.newest:
            return 0
        length = self.oldest - self.newest
        # Rounded up, because a report comes with a hit: a single one is the newest.
        return (self.all * min(age - self.newest, length) + length - 1) // length
