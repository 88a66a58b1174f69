"""NOTIFY frames to ACK frames (SPOE.txt, sections 3.2.6, 3.2.7 and 3.4).

For each message of a read, in order: find the client in the table, count, decide; with the last of
its frame, append the ACK. Nothing here waits or does I/O, and an allowed request makes no Python
object. What is not a NOTIFY stops the pass and is left to ``spop.connection``.
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
    FETCHED,
    HOT,
    LISTED_BITS,
    LOOK,
    MIXED,
    NONE,
    SECOND,
    SIGHTS,
    TELL,
)
from ratelimit.engine.networks import Networks
from ratelimit.engine.rule import Rule
from ratelimit.engine.sharing import Exchange
from ratelimit.engine.table import Table
from ratelimit.model import Limit, Verdict
from ratelimit.spop.ack import Acknowledge
from ratelimit.spop.parse import CHECKED, KEYLESS, UNKNOWN, WRITTEN, Message, Plan

# Of C's int type when compiled.
_ALLOW = int(Verdict.ALLOW)
_THROTTLE = int(Verdict.THROTTLE)
_BLOCK = int(Verdict.BLOCK)
_DENYLIST = 3  # always refused

_MAPPED = 0xFFFF

_SIGHTS = SIGHTS  # of C's type when compiled

_FEW = 3  # messages: for fewer, fetching costs what it saves

_MAX_NOTES = 64
_MAX_NOTE = 64  # bytes

# A client's mark in the table, beside what constants.py has: the minute in which it was refused
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
        limits: what is enforced; a message of one's name asks for it.
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
    rounded down. ``fetching`` says whether the table is fetched ahead of the checks, which changes
    nothing but their speed.

    ``seen`` has key and ``via`` of the last SIGHTS messages whose clients say that they speak for
    others, ``sights`` counts them.

    ``checks`` counts messages answered, ``unknown`` those whose name is no limit, ``keyless`` those
    without a usable key or hits. ``notes`` holds the first of these as (problem, name), for the
    log.
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
        # Plain Python waits for its own objects, not for the table.
        self.fetching = not __file__.endswith(".py")
        self.ahead = 0
        self.key = Key(secret[48:])
        self.ack = Acknowledge()
        self.strike = strike
        self.now = 0
        self.checks = 0
        self.unknown = 0
        self.keyless = 0
        self.notes: dict[tuple[str, str], bool] = {}
        self.hi = 0
        self.lo = 0
        self.until = 0
        self.wait = 0
        self.counted = 0
        self.sure = False
        self.apart = False
        self.exempt = False
        self.worst = 0
        self.worst_until = 0
        self.worst_wait = 0
        self.told = False
        self.least = 0
        self.watched = 0
        self.reload(limits)
        self.worst_rule = self.watched_rule = self.rules[0]
        self.plan = Plan(self.rules[0], self.key)

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

    def answer(self, data: bytes, start: int, max_frame_size: int) -> int:
        """Answer the NOTIFY frames from ``data[start:]``; return where the pass stopped.

        It stops at what is not a whole NOTIFY frame, or when the output is full: call ``take()``,
        and again if any progress was made. SpopError tells of a frame that breaks the protocol;
        answers to those before it are still there to be taken.
        """
        plan = self.plan
        plan.begin(data, start, max_frame_size)
        self.worst = _ALLOW
        self.told = False
        self.watched = _ALLOW
        count = FETCHED
        while count == FETCHED:
            count = plan.read(self.rules, self.ack.room())
            if self.fetching and count >= _FEW:
                self.fetch(count)
            for i in range(count):
                self.respond(plan.messages[i])
        if plan.error is not None:
            raise plan.error
        return plan.pos

    def reserve(self, data: bytes, start: int, max_frame_size: int) -> None:
        """Have the store hear of the messages that ``answer()`` would answer, before it does.

        What breaks the protocol ends that; ``answer()`` will say so.
        """
        plan = self.plan
        plan.begin(data, start, max_frame_size)
        count = FETCHED
        while count == FETCHED:
            count = plan.read(self.rules, len(data))
            for i in range(count):
                message = plan.messages[i]
                if message.state == CHECKED:
                    self.announce(message)

    def fetch(self, count: int) -> None:
        """Have the processor fetch at once what the messages read need of the table.

        A table is larger than any cache; without this each check would wait for memory by itself,
        for longer than all else takes that it does.
        """
        for i in range(count):
            message = self.plan.messages[i]
            if message.state == CHECKED:
                self.mask(message.rule, message.kind, message.hi, message.lo)
                self.table.expect(self.hi, self.lo, message.kind << 16 | message.rule.index)
        self.table.fetch()

    def take(self) -> bytes:
        """Return the ACK frames written since the last call."""
        return self.ack.take()

    def respond(self, message: Message) -> None:
        """Check a message, and append the answer if its frame ends with it."""
        if message.state == CHECKED:
            self.judge(message)
            if message.via > 0:
                self.sight(message)
        elif message.state == UNKNOWN:
            self.unknown += 1
            self.note("unknown message", message)
        elif message.state == KEYLESS:
            self.keyless += 1
            self.note("no usable key or hits", message)
        if message.ends:
            self.acknowledge(message)
            self.worst = _ALLOW
            self.told = False
            self.watched = _ALLOW

    def acknowledge(self, message: Message) -> None:
        ack = self.ack
        ack.begin(self.plan.data, message.ids, message.ids_size)
        if self.worst != _ALLOW:
            until = self.worst_until
            if until > 0:
                # HAProxy compares it with its own clock, which is this machine's.
                until = max(until - self.ahead, 1)
            if self.worst == _THROTTLE:
                ack.refuse(b"throttle", self.worst_wait, 0)
            elif self.worst == _BLOCK:
                ack.refuse(b"block", self.worst_wait, until)
            else:
                ack.refuse(b"denylist", self.worst_wait, 0)
            ack.tell(self.worst_rule, 0, self.worst_wait)
        else:
            if self.told:
                ack.tell(self.worst_rule, self.least, self.worst_wait)
            if self.watched == _BLOCK:
                ack.watch(b"block:", self.watched_rule)
            elif self.watched == _THROTTLE:
                ack.watch(b"throttle:", self.watched_rule)
        ack.end()

    def judge(self, message: Message) -> None:
        """Check one message, and keep its verdict if it is the most severe of the frame so far."""
        verdict = self.check(message)
        rule = message.rule
        if verdict == _ALLOW:
            if rule.headers and self.worst == _ALLOW and not rule.shadow and not self.exempt:
                left = rule.rate - self.counted if rule.rate > self.counted else 0
                # Another group of the same request may have told of a tighter limit.
                if left < message.left and (not self.told or left < self.least):
                    self.told = True
                    self.least = left
                    self.worst_rule = rule
                    self.worst_wait = rule.refill
        elif rule.shadow and not self.sure:
            if verdict > self.watched:
                self.watched = verdict
                self.watched_rule = rule
        elif verdict > self.worst or (verdict == self.worst and self.wait > self.worst_wait):
            self.worst = verdict
            self.worst_rule = rule
            # Where one address is unlike its network, the edge must not remember the network.
            self.worst_until = 0 if self.apart else self.until
            self.worst_wait = self.wait

    def check(self, message: Message) -> int:
        """Count the hits of a client against a limit and return the verdict.

        A refusal leaves in ``wait`` the seconds to wait, and a block its end in ``until``; what was
        counted is in ``counted``. ``sure`` says that a list or a person refused, which holds in
        shadow too.
        """
        table = self.table
        rule = message.rule
        hits = message.hits
        self.checks += 1
        rule.at(self.now)
        slot = self.locate(rule, message.kind, message.hi, message.lo)
        if table.idle > self.minute:
            rule.seen += 1
        self.until = 0
        self.sure = False
        self.apart = False
        self.exempt = False
        if self.listing:
            listed = self.listed(message, slot)
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
            if message.text_size == WRITTEN:
                text = message.written
            else:
                text = self.plan.data[message.text : message.text + message.text_size]
            self.until = self.strike(
                rule, text, message.kind, table.words[slot], table.words[slot + 1], self.now
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

    def sight(self, message: Message) -> None:
        """Remember who spoke and for whom, in the place of the one before that is longest ago."""
        at = 3 * (self.sights % _SIGHTS)
        if message.kind == ADDRESS:
            self.seen[at] = message.hi
            self.seen[at + 1] = message.lo
            self.seen[at + 2] = message.via
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

    def listed(self, message: Message, slot: int) -> int:
        """Return what the lists say of a client; the end of a block is in ``until``.

        What they say of a client is kept with it until they change.
        """
        table = self.table
        mark = table.mark(slot)
        if mark >> _GENERATION_SHIFT != self.generation:
            mark &= (1 << _GENERATION_SHIFT) - (1 << LISTED_BITS)
            mark |= self.generation << _GENERATION_SHIFT
            mark |= self.classify(message)
            table.set_mark(slot, mark)
        found = mark & (1 << LISTED_BITS) - 1
        if found < LOOK:
            return found
        self.apart = found == APART
        found = self.lists.value(message.hi, message.lo)
        if found != NONE:
            return found
        self.until = self.barred.value(message.hi, message.lo)
        self.sure = self.until > table.now
        return NONE

    def classify(self, message: Message) -> int:
        """Look up the network that is counted as a client."""
        rule = message.rule
        if message.kind != ADDRESS:
            return NONE
        self.mask(rule, message.kind, message.hi, message.lo)
        hi = self.hi
        lo = self.lo
        last_hi = hi
        last_lo = lo
        if hi == 0 and lo >> 32 == _MAPPED:
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
            if hi == 0 and lo >> 32 == _MAPPED:
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

    def announce(self, message: Message) -> None:
        """Have the store hear of a client's hits, unless it is blocked anyway."""
        rule = message.rule
        rule.at(self.now)
        slot = self.locate(rule, message.kind, message.hi, message.lo)
        if self.table.idle > self.minute:
            rule.seen += 1  # when it is checked, it will have been seen just before
        if self.table.until(slot) <= self.table.now:
            exchange = self.exchanges[rule.place]
            exchange.reserve(slot, message.hits)

    def note(self, problem: str, message: Message) -> None:
        """Remember the name of a message that could not be checked, for whoever logs."""
        if len(self.notes) < _MAX_NOTES:
            end = message.name + min(message.name_size, _MAX_NOTE)
            name = self.plan.data[message.name : end]
            self.notes.setdefault((problem, name.decode("ascii", "backslashreplace")), False)
