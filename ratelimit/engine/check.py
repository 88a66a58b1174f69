"""The check: find a client in the table, count its hits, decide.

A protocol fills a ``Query`` and reads the verdict from an ``Outcome``. Nothing here waits or does
I/O, and an allowed request creates no Python object.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from ratelimit.engine.key import Key
from ratelimit.engine.layout import (
    ADDRESS,
    ALLOW,
    APART,
    DENY,
    DENYLIST,
    HOT,
    LISTED_BITS,
    LOOK,
    M32,
    M64,
    MAPPED,
    MIXED,
    NONE,
    SIGHTS,
    TELL,
)
from ratelimit.engine.networks import Networks
from ratelimit.engine.outcome import Outcome
from ratelimit.engine.query import Query
from ratelimit.engine.retry_after import RetryAfter
from ratelimit.engine.rule import Rule
from ratelimit.engine.sharing import Exchange
from ratelimit.engine.table import Table
from ratelimit.model import Limit, Verdict
from ratelimit.notation import SECOND

# Of C's int type when compiled.
_THROTTLE = int(Verdict.THROTTLE)
_BLOCK = int(Verdict.BLOCK)

# A client's mark in the table has, next to the bits in layout.py, the minute of its last refusal
# and the generation of the lists in which it was looked up.
_MINUTE_SHIFT = LISTED_BITS + 1
_MAX_MINUTE = 255
_GENERATION_SHIFT = _MINUTE_SHIFT + 8
_MAX_GENERATION = (1 << 32 - _GENERATION_SHIFT) - 1

_MAX_INDEX = (1 << 16) - 1
_DENY_WAIT = 3600
"""Seconds that a client on the deny list is told to wait."""

Strike = Callable[[Rule, bytes, int, int, int, int], int]


class Engine:
    """The limits, the table, and the check.

    Args:
        limits: the limits to enforce.
        capacity: clients for which the table has room.
        strike: called when a client exceeds a limit with a ladder, with the rule, the key if it
            came as a string (else empty), kind and upper and lower 64 bits of the key, and the time
            in nanoseconds. Returns the epoch second until which the client is blocked, or 0 to
            throttle it only.
        secret: 64 bytes that key the hashes; random by default.
        shared: clients of each limit that can be shared with other nodes at a time.
        refresh: see ``Exchange``.

    ``exchanges`` belong to ``rules``, in the same order, if clients are shared.

    ``lists`` has the networks of the allow list and the deny list (ALLOW, DENY), ``barred`` those
    blocked by hand, with the epoch second of the end; call ``relist()`` after every change.

    ``urgent`` is true if other nodes should hear of a client soon; its ``Exchange`` has the time.
    ``ahead`` is how many seconds the time given to ``at()`` is ahead of this machine's clock,
    rounded down.

    ``seen`` has key and ``via`` of the last SIGHTS queries with ``via``, ``sights`` counts them.
    ``checks`` counts queries.
    """

    def __init__(
        self,
        limits: Sequence[Limit],
        capacity: int,
        strike: Strike,
        secret: bytes | None = None,
        shared: int = 0,
        refresh: int = 0,
    ) -> None:
        secret = secret or secrets.token_bytes(64)
        self.rules: list[Rule] = []
        self.table = Table(capacity, secret[:48])
        self.retry_after = RetryAfter(self.table)
        self.exchanges: list[Exchange] = []
        self.shared = shared
        self.refresh = refresh
        self.index = 0
        self.lists = Networks()
        self.barred = Networks()
        self.listing = False
        self.generation = 0
        self.seen = memoryview(bytearray(24 * SIGHTS)).cast("Q")
        self.sights = 0
        self.minute_start = 0
        self.minute_id = 1
        self.minute = 0
        self.urgent = False
        self.ahead = 0
        self.key = Key(secret[48:])
        self.strike = strike
        self.now = 0
        self.checks = 0
        self.hi = 0
        self.lo = 0
        self.reload(limits)
        self.query = Query(self.rules[0])
        self.outcome = Outcome(self.rules[0])

    def reload(self, limits: Sequence[Limit]) -> list[Rule]:
        """Enforce new limits; return the rules that have no clients yet.

        A limit with the same name and window keeps its counts. Raises ValueError if there were too
        many different limits.
        """
        known = {rule.limit.name: rule for rule in self.rules}
        rules = []
        fresh: list[Rule] = []
        exchanges: list[Exchange] = []
        for limit in limits:
            rule = known.get(limit.name)
            if rule is None or rule.limit.window != limit.window:
                # A new index: the table may still have clients of an old one.
                if self.index + len(fresh) > _MAX_INDEX:
                    raise ValueError("too many other limits since the start; restart")
                rule = Rule(limit, self.index + len(fresh))
                fresh.append(rule)
                if self.shared:
                    exchanges.append(Exchange(self.table, rule, self.shared, self.refresh))
            elif self.shared:
                exchanges.append(self.exchanges[rule.place])
            rules.append(rule)
        # Nothing has changed up to here, and nothing fails from here on.
        for rule in self.rules:
            rule.place = 0  # of removed rules, because it is used unchecked
        for place, (rule, limit) in enumerate(zip(rules, limits, strict=True)):
            rule.change(limit)
            rule.place = place
        self.exchanges = exchanges
        self.index += len(fresh)
        self.rules = rules
        return fresh

    def relist(self) -> None:
        """Look up every client in the lists again at its next query."""
        self.listing = not (self.lists.empty and self.barred.empty)
        self.generation = self.generation % _MAX_GENERATION + 1

    def begin_minute(self) -> None:
        """Begin a new minute of the rules' counts of clients."""
        self.minute_start = self.table.stamp
        self.minute_id = self.minute_id % _MAX_MINUTE + 1
        self.minute = 0
        for rule in self.rules:
            rule.minute()

    def at(self, now: int) -> None:
        """Set the time, in epoch nanoseconds, for the following checks.

        If the clock is set back by up to a second, time stands still: a window must not count a
        moment twice. After a larger step, counts restart from zero.
        """
        if now < self.now and self.now - now < SECOND:
            return
        self.now = now
        self.table.at(now)
        self.minute = self.table.stamp - self.minute_start & M32

    def ask(self, rule: Rule, key: bytes, hits: int) -> int:
        """Count hits of the client with the text ``key``; return the verdict.

        The verdict is one of ``model.Verdict``, or DENYLIST.
        """
        self.key.text(key, 0, len(key))
        query = self.query
        query.rule = rule
        query.hits = hits
        query.kind = self.key.kind
        query.hi = self.key.hi
        query.lo = self.key.lo
        query.data = key
        query.text_size = len(key)
        self.aim(query)
        self.outcome.clear()
        self.judge(query, self.outcome)
        return self.outcome.verdict

    def aim(self, query: Query) -> None:
        """Mask the key of a query and find its place in the table, before ``judge()``."""
        table = self.table
        self.mask(query.rule, query.kind, query.hi, query.lo)
        table.aim(self.hi, self.lo, query.kind << 16 | query.rule.index)
        query.client_hi = self.hi
        query.client_lo = self.lo
        query.base = table.base
        query.tag = table.tag

    def judge(self, query: Query, outcome: Outcome) -> None:
        """Count the hits of an aimed query; add the verdict to the outcome of the request."""
        table = self.table
        rule = query.rule
        self.checks += 1
        rule.at(self.now)
        slot = self.visit(query)
        if table.idle > self.minute:
            rule.seen += 1
        if query.via > 0:
            self.sight(query)
        until = 0
        sure = False
        listed = NONE
        apart = False
        if self.listing:
            listed = self.listed(query, slot)
            if listed >= LOOK:
                apart = listed == APART
                listed = self.lists.value(query.hi, query.lo)
                if listed == NONE:
                    until = self.barred.value(query.hi, query.lo)
                    sure = True
        if table.until(slot) > until:
            until = table.until(slot)
            sure = table.by_hand(slot) == 1
        if listed == ALLOW:
            rule.allowed += 1
        elif listed == DENY:
            rule.denied += 1
            outcome.refuse(rule, DENYLIST, _DENY_WAIT, 0, True)
        elif until > table.now:
            rule.blocked += 1
            # If one address differs from its network, HAProxy must not store the network.
            outcome.refuse(rule, _BLOCK, until - table.now, 0 if apart else until, sure)
        else:
            self.count(query, outcome, slot, apart)

    def count(self, query: Query, outcome: Outcome, slot: int, apart: bool) -> None:
        """Count the hits of a client that is neither listed nor blocked."""
        rule = query.rule
        counted = self.table.count(slot, rule, query.hits)
        place = 0
        if self.shared:
            exchange = self.exchanges[rule.place]
            place = self.table.halves[2 * slot + HOT]
            if place > 0:
                counted += exchange.remote(place - 1, query.hits)
                if exchange.press(slot, place - 1, counted):
                    self.urgent = True
            elif counted > rule.share:
                exchange.heat(slot, TELL)
                self.urgent = True
        if counted > rule.rate:
            self.exceed(query, outcome, slot, apart, place)
        else:
            rule.allowed += 1
            if rule.headers:
                outcome.allow(rule, rule.rate - counted, query.left)

    def exceed(self, query: Query, outcome: Outcome, slot: int, apart: bool, place: int) -> None:
        """Block or throttle a client that has exceeded a limit.

        ``place`` is its place among the shared clients, from 1, or 0.
        """
        table = self.table
        rule = query.rule
        mark = table.mark(slot)
        if mark >> _MINUTE_SHIFT & _MAX_MINUTE != self.minute_id:
            rule.refused += 1
            mark &= ~(_MAX_MINUTE << _MINUTE_SHIFT)
            table.set_mark(slot, mark | self.minute_id << _MINUTE_SHIFT)
        until = 0
        if rule.ladder and query.hits > 0:
            text = query.data[query.text : query.text + query.text_size]
            until = self.strike(
                rule, text, query.kind, table.words[slot], table.words[slot + 1], self.now
            )
        if until > table.now:
            self.hold(rule, slot, until)
            rule.blocked += 1
            outcome.refuse(rule, _BLOCK, until - table.now, 0 if apart else until, False)
        else:
            rule.throttled += 1
            if place > 0:
                exchange = self.exchanges[rule.place]
                wait = exchange.retry_after(slot, place - 1)
            else:
                wait = self.retry_after.alone(slot, rule)
            outcome.refuse(rule, _THROTTLE, wait, 0, False)

    def sight(self, query: Query) -> None:
        """Store the key and ``via`` of a query, in place of the oldest."""
        at = 3 * (self.sights % SIGHTS)
        if query.kind == ADDRESS:
            self.seen[at] = query.hi
            self.seen[at + 1] = query.lo
            self.seen[at + 2] = query.via
            self.sights += 1

    def slot(self, rule: Rule, key: bytes) -> int:
        """Return the slot of the client with the text ``key``; add it to the table if missing.

        For a network, use its first address.
        """
        self.key.text(key, 0, len(key))
        self.mask(rule, self.key.kind, self.key.hi, self.key.lo)
        return self.table.find(self.hi, self.lo, self.key.kind << 16 | rule.index)

    def hits(self, rule: Rule, slot: int) -> int:
        """Return a client's hits in the current window, including those on other nodes."""
        table = self.table
        rule.at(self.now)
        counted = table.count(slot, rule, 0)
        if self.shared:
            exchange = self.exchanges[rule.place]
            place = table.halves[2 * slot + HOT]
            if place > 0:
                counted += exchange.remote(place - 1, 0)
        return counted

    def hold(self, rule: Rule, slot: int, until: int) -> None:
        """Block a client until an epoch second; its earlier hits are settled."""
        table = self.table
        table.block(slot, until, False)
        rule.at(self.now)
        table.settle(slot, rule)
        if self.shared and table.halves[2 * slot + HOT] > 0:
            exchange = self.exchanges[rule.place]
            exchange.settle(table.halves[2 * slot + HOT] - 1)

    def listed(self, query: Query, slot: int) -> int:
        """Return the value of a client in the lists, one of those in ``layout``.

        The value is cached in the client's mark until the lists change.
        """
        table = self.table
        mark = table.mark(slot)
        if mark >> _GENERATION_SHIFT != self.generation:
            mark &= (1 << _GENERATION_SHIFT) - (1 << LISTED_BITS)
            mark |= self.generation << _GENERATION_SHIFT
            mark |= self.classify(query)
            table.set_mark(slot, mark)
        return mark & (1 << LISTED_BITS) - 1

    def classify(self, query: Query) -> int:
        """Look up the network that is counted as one client."""
        rule = query.rule
        if query.kind != ADDRESS:
            return NONE
        hi = query.client_hi
        lo = query.client_lo
        last_hi = hi
        last_lo = lo
        if hi == 0 and lo >> 32 == MAPPED:
            last_lo |= ~rule.ipv4_mask & M32
        else:
            last_hi |= ~rule.hi_mask & M64
            last_lo |= ~rule.lo_mask & M64
        listed = self.lists.uniform(hi, lo, last_hi, last_lo)
        if DENY <= listed <= ALLOW:
            return listed
        barred = self.barred.uniform(hi, lo, last_hi, last_lo)
        if listed == MIXED or barred == MIXED:
            return APART
        return LOOK if barred > 0 else NONE

    def mask(self, rule: Rule, kind: int, hi: int, lo: int) -> None:
        """Mask a key with the limit's prefix, into ``hi`` and ``lo``."""
        if kind == ADDRESS:
            if hi == 0 and lo >> 32 == MAPPED:
                lo &= rule.ipv4_mask
            else:
                hi &= rule.hi_mask
                lo &= rule.lo_mask
        self.hi = hi
        self.lo = lo

    def visit(self, query: Query) -> int:
        """Return the slot of the client of an aimed query; add it to the table if missing."""
        ident = query.kind << 16 | query.rule.index
        return self.table.visit(query.client_hi, query.client_lo, ident, query.base, query.tag)

    def announce(self, query: Query) -> None:
        """Announce the hits of an aimed query to the store, unless its client is blocked."""
        rule = query.rule
        rule.at(self.now)
        slot = self.visit(query)
        if self.table.idle > self.minute:
            rule.seen += 1  # the check itself will find it just seen
        if self.table.until(slot) <= self.table.now:
            exchange = self.exchanges[rule.place]
            exchange.reserve(slot, query.hits)
