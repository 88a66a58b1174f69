"""The check: find the client in the table, count its hits, decide.

A protocol asks with a ``Query`` and finds the verdict in an ``Outcome``. Nothing here waits or does
I/O, and an allowed request makes no Python object.
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
    HOT,
    LISTED_BITS,
    LOOK,
    MAPPED,
    MIXED,
    NONE,
    SIGHTS,
    TELL,
)
from ratelimit.engine.networks import Networks
from ratelimit.engine.outcome import DENYLIST, Outcome
from ratelimit.engine.query import Query
from ratelimit.engine.rule import Rule
from ratelimit.engine.sharing import Exchange
from ratelimit.engine.table import Table
from ratelimit.model import Limit, Verdict
from ratelimit.notation import SECOND

# Of C's int type when compiled.
_ALLOW = int(Verdict.ALLOW)
_THROTTLE = int(Verdict.THROTTLE)
_BLOCK = int(Verdict.BLOCK)
_DENYLIST = DENYLIST


_SIGHTS = SIGHTS  # of C's type when compiled

# A client's mark in the table, next to what layout.py has: the minute in which it was refused
# last, and the lists that it was looked up in.
_MINUTE_SHIFT = LISTED_BITS + 1
_MAX_MINUTE = 255
_GENERATION_SHIFT = _MINUTE_SHIFT + 8
_MAX_GENERATION = (1 << 32 - _GENERATION_SHIFT) - 1

_MAX_INDEX = (1 << 16) - 1
_DENY_WAIT = 3600
"""What a client on the deny list is told to wait, in seconds."""

_M32 = 0xFFFFFFFF
_M64 = 0xFFFFFFFFFFFFFFFF

Strike = Callable[[Rule, bytes, int, int, int, int], int]


class Engine:
    """The limits, the table, and the pass over both.

    Args:
        limits: what is enforced.
        capacity: clients that the table holds.
        strike: called when a client exceeds a limit that has a ladder, with the rule, the key as
            text that came as a string (else empty), the key's kind and upper and lower 64 bits,
            and the time in nanoseconds; returns the epoch second until which the client is blocked,
            or 0 to throttle it only.
        secret: 64 bytes that key the hashes; random by default.
        shared: how many clients of each limit can be shared with other nodes at a time.
        refresh: see ``Exchange``.

    ``exchanges`` are those of ``rules``, in the same order, if any client is shared.

    ``lists`` has the networks that are never counted or always refused (ALLOW, DENY), ``barred``
    those that are blocked by hand, with the epoch second until which; call ``relist()`` after
    every change.

    ``urgent`` says that the other nodes should hear of a client soon; its ``Exchange`` says when.
    ``ahead`` is how many seconds the time given to ``at()`` is ahead of this machine's clock,
    rounded down.

    ``seen`` has key and ``via`` of the last SIGHTS queries whose clients say that they speak for
    others, ``sights`` counts them. ``checks`` counts queries.
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
        self.exchanges: list[Exchange] = []
        self.shared = shared
        self.refresh = refresh
        self.index = 0
        self.lists = Networks()
        self.barred = Networks()
        self.listing = False
        self.generation = 0
        self.seen = memoryview(bytearray(24 * _SIGHTS)).cast("Q")
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
        self.until = 0
        self.wait = 0
        self.counted = 0
        self.sure = False
        self.apart = False
        self.exempt = False
        self.reload(limits)
        self.query = Query(self.rules[0])
        self.outcome = Outcome(self.rules[0])

    def reload(self, limits: Sequence[Limit]) -> list[Rule]:
        """Enforce other limits from now on; return the rules that know no client yet.

        One of the same name and window goes on with all that it has counted. Raises ValueError if
        there were too many others.
        """
        known = {rule.limit.name: rule for rule in self.rules}
        rules = []
        fresh: list[Rule] = []
        exchanges: list[Exchange] = []
        for limit in limits:
            rule = known.get(limit.name)
            if rule is None or rule.limit.window != limit.window:
                # Not an index that was used before: the table may still have clients of that.
                if self.index + len(fresh) > _MAX_INDEX:
                    raise ValueError("too many other limits since the start; restart")
                rule = Rule(limit, self.index + len(fresh))
                fresh.append(rule)
                if self.shared:
                    exchanges.append(Exchange(self.table, rule, self.shared, self.refresh))
            elif self.shared:
                exchanges.append(self.exchanges[rule.place])
            rules.append(rule)
        # Nothing has changed until here, and nothing fails from here on.
        for rule in self.rules:
            rule.place = 0  # of one that is no more, for it is not checked when it is used
        for place, (rule, limit) in enumerate(zip(rules, limits, strict=True)):
            rule.change(limit)
            rule.place = place
        self.exchanges = exchanges
        self.index += len(fresh)
        self.rules = rules
        return fresh

    def relist(self) -> None:
        """Look every client up in the lists again when it comes next."""
        self.listing = not (self.lists.empty and self.barred.empty)
        self.generation = self.generation % _MAX_GENERATION + 1

    def begin_minute(self) -> None:
        """Begin another minute of the rules' counts of clients."""
        self.minute_start = self.table.stamp
        self.minute_id = self.minute_id % _MAX_MINUTE + 1
        self.minute = 0
        for rule in self.rules:
            rule.minute()

    def at(self, now: int) -> None:
        """Set the time, in nanoseconds since the epoch, for the checks that follow.

        Time stands still while the clock is set back by up to a second: a window that already
        counted a moment must not see it again. After a greater step clients start anew.
        """
        if now < self.now and self.now - now < SECOND:
            return
        self.now = now
        self.table.at(now)
        self.minute = self.table.stamp - self.minute_start & _M32

    def ask(self, rule: Rule, key: bytes, hits: int) -> int:
        """Count the hits of the client whose key is written as ``key``; return the verdict.

        It is one of ``model.Verdict``, or DENYLIST.
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
        self.outcome.clear()
        self.judge(query, self.outcome)
        return self.outcome.verdict

    def judge(self, query: Query, outcome: Outcome) -> None:
        """Check a query, and keep its verdict in ``outcome`` if it is the most severe so far."""
        verdict = self.check(query)
        rule = query.rule
        if verdict == _ALLOW:
            if rule.headers and outcome.verdict == _ALLOW and not rule.shadow and not self.exempt:
                left = rule.rate - self.counted if rule.rate > self.counted else 0
                # Another group of the same request may have told of a tighter limit.
                if left < query.left and (not outcome.told or left < outcome.left):
                    outcome.told = True
                    outcome.left = left
                    outcome.rule = rule
                    outcome.wait = rule.refill
        elif rule.shadow and not self.sure:
            if verdict > outcome.shadow:
                outcome.shadow = verdict
                outcome.shadow_rule = rule
        elif verdict > outcome.verdict or (verdict == outcome.verdict and self.wait > outcome.wait):
            outcome.verdict = verdict
            outcome.rule = rule
            # Where one address is unlike its network, the edge must not remember the network.
            outcome.until = 0 if self.apart else self.until
            outcome.wait = self.wait
        if query.via > 0:
            self.sight(query)

    def expect(self, query: Query) -> None:
        """Have the table fetch what a query needs of it, with all others, at ``table.fetch()``."""
        self.mask(query.rule, query.kind, query.hi, query.lo)
        self.table.expect(self.hi, self.lo, query.kind << 16 | query.rule.index)

    def check(self, query: Query) -> int:
        """Count the hits of a client against a limit and return the verdict.

        A refusal leaves in ``wait`` the seconds to wait, and a block its end in ``until``; what was
        counted is in ``counted``. ``sure`` says that a list or a person refused, which holds in
        shadow too.
        """
        table = self.table
        rule = query.rule
        hits = query.hits
        self.checks += 1
        rule.at(self.now)
        slot = self.locate(rule, query.kind, query.hi, query.lo)
        if table.idle > self.minute:
            rule.seen += 1
        self.until = 0
        self.sure = False
        self.apart = False
        self.exempt = False
        if self.listing:
            listed = self.listed(query, slot)
            if listed == ALLOW:
                self.exempt = True
                rule.allowed += 1
                return _ALLOW
            if listed == DENY:
                self.sure = True
                self.wait = _DENY_WAIT
                rule.denied += 1
                return _DENYLIST
        if table.until(slot) > self.until:
            self.until = table.until(slot)
            self.sure = table.by_hand(slot) == 1
        if self.until > table.now:
            self.wait = self.until - table.now
            rule.blocked += 1
            return _BLOCK
        self.until = 0
        counted = table.count(slot, rule, hits)
        place = 0
        if self.shared:
            exchange = self.exchanges[rule.place]
            place = table.halves[2 * slot + HOT]
            if place > 0:
                counted += exchange.remote(place - 1, hits)
                if exchange.press(slot, place - 1, counted):
                    self.urgent = True
            elif counted > rule.share:
                exchange.heat(slot, TELL)
                self.urgent = True
        self.counted = counted
        if counted <= rule.rate:
            rule.allowed += 1
            return _ALLOW
        mark = table.mark(slot)
        if mark >> _MINUTE_SHIFT & _MAX_MINUTE != self.minute_id:
            rule.refused += 1
            mark &= ~(_MAX_MINUTE << _MINUTE_SHIFT)
            table.set_mark(slot, mark | self.minute_id << _MINUTE_SHIFT)
        if rule.ladder and hits > 0:
            text = query.data[query.text : query.text + query.text_size]
            self.until = self.strike(
                rule, text, query.kind, table.words[slot], table.words[slot + 1], self.now
            )
            if self.until > table.now:
                self.hold(rule, slot, self.until)
                self.wait = self.until - table.now
                rule.blocked += 1
                return _BLOCK
        if place > 0:
            self.wait = exchange.rest(slot, place - 1)
        else:
            self.wait = table.wait(slot, rule, table.alone, 0)
        rule.throttled += 1
        return _THROTTLE

    def sight(self, query: Query) -> None:
        """Remember who spoke and for whom, in the place of the one before that is longest ago."""
        at = 3 * (self.sights % _SIGHTS)
        if query.kind == ADDRESS:
            self.seen[at] = query.hi
            self.seen[at + 1] = query.lo
            self.seen[at + 2] = query.via
            self.sights += 1

    def slot(self, rule: Rule, key: bytes) -> int:
        """Return the slot of the client whose key is written as ``key``, an address or a string.

        The table has it from then on. A network is known by its address.
        """
        self.key.text(key, 0, len(key))
        return self.locate(rule, self.key.kind, self.key.hi, self.key.lo)

    def known(self, rule: Rule, key: bytes) -> int:
        """Return the slot of a client as ``slot()`` does, or -1 if the table has it not."""
        self.key.text(key, 0, len(key))
        self.mask(rule, self.key.kind, self.key.hi, self.key.lo)
        return self.table.peek(self.hi, self.lo, self.key.kind << 16 | rule.index)

    def hits(self, rule: Rule, slot: int) -> int:
        """Return a client's hits in the window that ends now, those at other nodes too."""
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
        """Block a client of a limit until an epoch second, which settles what it had done."""
        table = self.table
        table.block(slot, until, False)
        rule.at(self.now)
        table.settle(slot, rule)
        if self.shared and table.halves[2 * slot + HOT] > 0:
            exchange = self.exchanges[rule.place]
            exchange.settle(table.halves[2 * slot + HOT] - 1)

    def listed(self, query: Query, slot: int) -> int:
        """Return what the lists say of a client; the end of a block is in ``until``.

        What they say of a client is kept with it until they change.
        """
        table = self.table
        mark = table.mark(slot)
        if mark >> _GENERATION_SHIFT != self.generation:
            mark &= (1 << _GENERATION_SHIFT) - (1 << LISTED_BITS)
            mark |= self.generation << _GENERATION_SHIFT
            mark |= self.classify(query)
            table.set_mark(slot, mark)
        found = mark & (1 << LISTED_BITS) - 1
        if found < LOOK:
            return found
        self.apart = found == APART
        found = self.lists.value(query.hi, query.lo)
        if found != NONE:
            return found
        self.until = self.barred.value(query.hi, query.lo)
        self.sure = self.until > table.now
        return NONE

    def classify(self, query: Query) -> int:
        """Look up the network that is counted as a client."""
        rule = query.rule
        if query.kind != ADDRESS:
            return NONE
        self.mask(rule, query.kind, query.hi, query.lo)
        hi = self.hi
        lo = self.lo
        last_hi = hi
        last_lo = lo
        if hi == 0 and lo >> 32 == MAPPED:
            last_lo |= ~rule.ipv4_mask & _M32
        else:
            last_hi |= ~rule.hi_mask & _M64
            last_lo |= ~rule.lo_mask & _M64
        listed = self.lists.uniform(hi, lo, last_hi, last_lo)
        if DENY <= listed <= ALLOW:
            return listed
        barred = self.barred.uniform(hi, lo, last_hi, last_lo)
        if listed == MIXED or barred == MIXED:
            return APART
        return LOOK if barred > 0 else NONE

    def mask(self, rule: Rule, kind: int, hi: int, lo: int) -> None:
        """Cut a key to the limit's prefix, into ``hi`` and ``lo``."""
        if kind == ADDRESS:
            if hi == 0 and lo >> 32 == MAPPED:
                lo &= rule.ipv4_mask
            else:
                hi &= rule.hi_mask
                lo &= rule.lo_mask
        self.hi = hi
        self.lo = lo

    def locate(self, rule: Rule, kind: int, hi: int, lo: int) -> int:
        """Return the slot of the client with a key, cut to the limit's prefix."""
        self.mask(rule, kind, hi, lo)
        return self.table.find(self.hi, self.lo, kind << 16 | rule.index)

    def announce(self, query: Query) -> None:
        """Have the store hear of a client's hits, unless it is blocked anyway."""
        rule = query.rule
        rule.at(self.now)
        slot = self.locate(rule, query.kind, query.hi, query.lo)
        if self.table.idle > self.minute:
            rule.seen += 1  # when it is checked, it will have been seen just before
        if self.table.until(slot) <= self.table.now:
            exchange = self.exchanges[rule.place]
            exchange.reserve(slot, query.hits)
