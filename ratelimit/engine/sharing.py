"""Shares the counts of clients near their limit with the other nodes.

Most clients stay far below their limit and concern only one node. With N nodes and a limit of L, a
client that has at most L / 2N hits in the window on every node has at most L / 2 in all
(distributed threshold monitoring: Cormode, Muthukrishnan and Yi, "Algorithms for Distributed
Functional Monitoring", 2008). A client with more hits on some node is *hot*: every node that knows
it exchanges its counters with the store, until it has been quiet for two windows.

For each hot client there are two rings next to the table's own, with the same ticks: ``sent``, the
own hits that the store has received, and ``remote``, the hits of other nodes in the store's last
answer. The contents of a batch count as sent, whether or not an answer arrives: an outage may hide
hits from other nodes, but none is counted twice.

A block settles a client's hits: earlier hits no longer count on any node. So hits have an *epoch*,
which a block begins; the store keeps those of the latest epoch it has received. A node with an
earlier epoch, because it was disconnected or had evicted the client, takes the store's epoch and
sends its hits again.

A record of a batch has 96 bytes, integers little-endian: key (16), epoch (4), tick (8) and 17
counters of 32 bits, the i-th for the i-th tick before. The store's answer has 80 bytes per record,
the same without the key: the sums of all nodes.
"""

from __future__ import annotations

from ratelimit.engine.layout import (
    ANSWER_BYTES,
    EPOCH,
    FIRST_COUNTER,
    HALF,
    HOT,
    M32,
    MISSED,
    NOTICE_BYTES,
    RECORD_BYTES,
    RING,
    TELL,
    TELL_NEAR,
    TOLD,
    TOLD_NEAR,
    WEIGHT_BITS,
)
from ratelimit.engine.retry_after import RetryAfter
from ratelimit.engine.rule import Rule
from ratelimit.engine.table import Table
from ratelimit.wire.writer import Writer

_MAX_RECORDS = 1000  # per batch: 96,000 bytes, a few milliseconds of the store's time
_MAX_RESERVED = 1 << 14  # per batch, if answers wait for it
_LOOKED_AT = 4000  # clients visited per batch: less than half a millisecond
_LEAST = 16  # clients visited by a batch of a round, at least
_INTERVAL = 10_000_000  # nanoseconds between batches
_NEAR = 3  # within so many intervals of its limit, a client's hits are sent at once
_ROUNDS = 1200  # per window, at most
_MAX_REFRESH = 1000  # milliseconds between rounds, at most
_KIND = 0x7F  # the bits of a notice with the kind of key
_IS_NEAR = 0x80  # the bit of a notice for a client near its limit
_SMALL = 1 << 19  # times two sub-windows it fits 64 bits; see _MAX_WINDOW in rule.py
_AGES = 1 << 31  # milliseconds; a greater age is a time in the future
_MAX_OTHERS = 1 << 27  # hits of a tick on other nodes; 17 of them fit into the sum
_MAX_UNSENT = 1 << 27  # hits
_MILLISECOND = 1_000_000  # nanoseconds

# A shared client has _WORDS numbers of 64 bits: its slot in the table, and at these offsets
_WORDS = 6
_TICK = 1  # the tick of its rings
_LAST = 2  # the tick of its last hit
_HI = 3  # upper and
_LO = 4  # lower half of its key
_IDENT = 5  # kind and limit, because another client may have its slot by now

# and _HALVES numbers of 32 bits: a ring of 17 counters of sent hits, and at these offsets
_HALVES = 41
_REMOTE = 17  # a ring of 17 counters of hits on other nodes
_SUM = 34  # the sum of that ring; follows it, as RetryAfter expects
_UNSENT = 35  # hits that no batch has carried
_ASKED = 36  # the millisecond of its last batch
_TELL = 37  # whether other nodes must be notified of it
_RESERVED = 38  # hits that are sent before the table counts them
_DUE = 39  # the millisecond of its next batch; 0 for the next round
_QUEUED = 40  # whether it is in the queue of due clients


class Exchange:
    """The hot clients of one limit, at most ``capacity``.

    Every ``refresh`` milliseconds, more with a long window, a round of batches carries all of them,
    whether or not they have new hits. A ``refresh`` of 0 means that every client is shared, and
    that every batch carries those with new hits. A client that could exceed its limit before the
    next round is exchanged every ``interval`` nanoseconds, and nearer its limit after half of the
    remaining time. ``due`` is the time, as in ``Rule.at()``, at which the next batch must be
    packed, or 0 for the next round. A client's place here, counted from 1, is stored in its slot of
    the table. ``overflow`` counts clients that should be hot and found no room, so that this node
    counts them alone; such a client is counted again every two windows.
    """

    def __init__(self, table: Table, rule: Rule, capacity: int, refresh: int) -> None:
        self.table = table
        self.waits = RetryAfter(table)
        self.rule = rule
        self.capacity = capacity
        # With a window of a day, rounds as frequent as with a short one would repeat the same data.
        most = min(rule.limit.window // _MILLISECOND // _ROUNDS, _MAX_REFRESH)
        self.refresh = max(refresh, most) if refresh > 0 else 0
        self.interval = _INTERVAL
        self.due = 0
        self.words = memoryview(bytearray(8 * _WORDS * capacity)).cast("Q")
        self.halves = memoryview(bytearray(4 * _HALVES * capacity)).cast("I")
        # The first ``size`` are places in use, in any order, followed up to ``used`` by free ones;
        # later ones were never in use.
        self.places = memoryview(bytearray(4 * capacity)).cast("I")
        self.size = 0
        self.used = 0
        # The round: start in milliseconds, number of places left, and index of the next.
        self.round = 0
        self.left = 0
        self.next = 0
        # Places that a batch must carry before the next round: a ring with ``queued`` entries.
        self.queue = memoryview(bytearray(4 * capacity)).cast("I")
        self.head = 0
        self.queued = 0
        self.most = _MAX_RECORDS if refresh > 0 else min(capacity, _MAX_RESERVED)
        self.flying = memoryview(bytearray(4 * self.most)).cast("I")
        self.flown = 0
        self.writer = Writer(RECORD_BYTES * self.most)
        self.notices = Writer(NOTICE_BYTES * _MAX_RECORDS)
        self.overflow = 0

    def heat(self, slot: int, told: int) -> None:
        """Start to share the client in a slot of the table.

        ``told`` is TELL to notify the other nodes, or TOLD if another node has notified this one.
        """
        table = self.table
        rule = self.rule
        if self.size >= self.capacity:
            missed = table.halves[2 * slot + MISSED]
            if missed == 0 or (rule.tick - missed) & M32 > 2 * RING:
                self.overflow += 1
                table.halves[2 * slot + MISSED] = max(rule.tick & M32, 1)
            return
        table.halves[2 * slot + MISSED] = 0
        if self.size == self.used:
            self.places[self.used] = self.used
            self.used += 1
        place = self.places[self.size]
        self.size += 1
        first = _WORDS * place
        self.words[first] = slot
        self.words[first + _TICK] = rule.tick
        self.words[first + _LAST] = rule.tick
        self.words[first + _HI] = table.words[slot]
        self.words[first + _LO] = table.words[slot + 1]
        self.words[first + _IDENT] = table.words[slot + 2] & M32
        for i in range(_HALVES):
            self.halves[_HALVES * place + i] = 0
        self.halves[_HALVES * place + _UNSENT] = 1
        # If every client is shared, no notices are needed.
        self.halves[_HALVES * place + _TELL] = told if self.refresh > 0 else TOLD_NEAR
        self.plan(place, 0)
        table.halves[2 * slot + HOT] = place + 1

    def warm(self, notices: bytes, now: int) -> None:
        """Share the clients of another node's notices; ``now`` as in ``pack()``.

        A client that this node does not know has no hits here and is ignored, unless it is near its
        limit: then it must not get a separate share here if it comes. An incomplete notice is
        ignored.
        """
        self.rule.at(now)
        for n in range(len(notices) // NOTICE_BYTES):
            start = NOTICE_BYTES * n
            hi = self.number(notices, start, 8)
            lo = self.number(notices, start + 8, 8)
            kind = self.number(notices, start + 16, 1)
            ident = (kind & _KIND) << 16 | self.rule.index
            slot = self.table.peek(hi, lo, ident)
            if slot < 0:
                if kind <= _KIND or self.size >= self.capacity:
                    continue
                slot = self.table.find(hi, lo, ident)
            place = self.table.halves[2 * slot + HOT]
            if place == 0:
                self.heat(slot, TOLD)
            elif self.halves[_HALVES * (place - 1) + _UNSENT] > 0:
                # It is near its limit, and the other node lacks our hits.
                self.plan(place - 1, 0)

    def notice(self) -> bytes:
        """Return the notices for other nodes: 17 bytes per client, key and kind.

        The highest bit of the kind means that the client is near its limit.
        """
        return self.notices.take()

    def press(self, slot: int, place: int, counted: int) -> bool:
        """Plan the next exchange of a client with ``counted`` hits in all.

        As long as no node has more unsent hits than its part of the rest of the limit, all of them
        together have not exceeded it. The client must also not exceed the limit before the next
        round at its present rate, measured over the present part of the window and the one before.
        Returns whether a batch is due sooner than before.
        """
        rule = self.rule
        mine = _HALVES * place
        left = 0
        if counted < rule.rate:
            left = rule.rate - counted
        if counted > rule.near and self.halves[mine + _TELL] == TOLD:
            # Nodes that it has reached since the first notice must share it too.
            self.halves[mine + _TELL] = TELL_NEAR
        last = rule.bucket - 1 if rule.bucket > 0 else RING - 1
        own = 2 * slot + FIRST_COUNTER
        recent = self.table.halves[own + rule.bucket] + self.table.halves[own + last]
        recent += self.halves[mine + _REMOTE + rule.bucket] + self.halves[mine + _REMOTE + last]
        unsent = self.halves[mine + _UNSENT]
        if left > 0 and 2 * unsent * (rule.nodes - 1) > left:
            return self.plan(place, 0)
        if recent == 0:
            return False
        # Nanoseconds until the limit is reached.
        period = rule.elapsed + rule.sub_window
        near = _NEAR * self.interval
        horizon = near + self.refresh * _MILLISECOND
        if left < _SMALL:
            until = left * period // recent
        elif period // recent < horizon:
            # The same, if the product does not fit into 64 bits.
            until = left * (period // recent) + left * (period % recent) // recent
        else:
            return False
        if until >= horizon:
            return False
        # Beyond the limit there is nothing more to miss.
        wait = self.interval
        if left > 0 and unsent > 0 and until < near:
            wait = 0
        elif left > 0 and until < 2 * self.interval:
            wait = until // 2
        return self.plan(place, wait)

    def plan(self, place: int, wait: int) -> bool:
        """Plan a client for a batch in ``wait`` nanoseconds; return whether it is due sooner."""
        at = self.rule.now + wait
        millisecond = at // _MILLISECOND & M32
        first = _HALVES * place
        planned = self.halves[first + _DUE]
        if planned == 0 or (planned - millisecond) & M32 < _AGES:
            self.halves[first + _DUE] = max(millisecond, 1)
        if self.halves[first + _QUEUED] == 0:
            self.enqueue(place)
        if 0 < self.due <= at:
            return False
        self.due = at
        return True

    def enqueue(self, place: int) -> None:
        end = self.head + self.queued
        self.queue[end if end < self.capacity else end - self.capacity] = place
        self.queued += 1
        self.halves[_HALVES * place + _QUEUED] = 1

    def dequeue(self) -> int:
        place = self.queue[self.head]
        self.head = self.head + 1 if self.head + 1 < self.capacity else 0
        self.queued -= 1
        self.halves[_HALVES * place + _QUEUED] = 0
        return place

    def reserve(self, slot: int, hits: int) -> None:
        """Send ``hits`` of a client with the next batch, before the table counts them.

        The store's answer then has the hits of other nodes before these, so that each hit can be
        checked exactly. Hits for which the next batch has no room are sent after the table has
        counted them.
        """
        place = self.table.halves[2 * slot + HOT]
        queued = place > 0 and self.halves[_HALVES * (place - 1) + _QUEUED] == 1
        if self.queued >= self.most and not queued:
            return
        if place == 0:
            self.heat(slot, TOLD_NEAR)
            place = self.table.halves[2 * slot + HOT]
            if place == 0:
                return
        place -= 1
        self.words[_WORDS * place + _LAST] = self.rule.tick
        reserved = self.halves[_HALVES * place + _RESERVED] + hits
        self.halves[_HALVES * place + _RESERVED] = min(reserved, _MAX_UNSENT)
        self.plan(place, 0)

    def remote(self, place: int, hits: int) -> int:
        """Add ``hits`` of a client; return its hits on other nodes in the current window.

        The weighted part of both is rounded once: together with ``Table.count()`` the result is
        what a single node would have counted.
        """
        table = self.table
        rule = self.rule
        first = _HALVES * place
        slot = self.words[_WORDS * place]
        if self.words[_WORDS * place + _TICK] != rule.tick:
            self.advance(place)
        if hits > 0:
            self.words[_WORDS * place + _LAST] = rule.tick
            if self.refresh > 0:
                unsent = self.halves[first + _UNSENT] + min(hits, _MAX_UNSENT)
                self.halves[first + _UNSENT] = min(unsent, _MAX_UNSENT)
            elif (
                table.halves[2 * slot + FIRST_COUNTER + rule.bucket]
                > self.halves[first + rule.bucket]
            ):
                # These were not reserved, because the store did not answer in time.
                self.plan(place, 0)
        oldest = self.halves[first + _REMOTE + rule.oldest]
        if oldest == 0:
            return self.halves[first + _SUM]
        here = table.halves[2 * slot + FIRST_COUNTER + rule.oldest]
        total = self.halves[first + _SUM] - oldest
        total += (here + oldest) * rule.weight + HALF >> WEIGHT_BITS
        return total - (here * rule.weight + HALF >> WEIGHT_BITS)

    def retry_after(self, slot: int, place: int) -> int:
        """Return the seconds to wait, including hits on other nodes."""
        return self.waits.shared(slot, self.rule, self.halves, _HALVES * place + _REMOTE)

    def exact(self, slot: int, place: int) -> int:
        """Return the nanoseconds to wait, including hits on other nodes."""
        return self.waits.exact(slot, self.rule, self.halves, _HALVES * place + _REMOTE)

    def advance(self, place: int) -> None:
        """Clear the counters that have left the rings."""
        rule = self.rule
        first = _HALVES * place
        last = self.words[_WORDS * place + _TICK]
        at = last % RING
        steps = RING
        if last <= rule.tick:
            steps = min(steps, rule.tick - last)
        for _ in range(steps):
            at = at + 1 if at + 1 < RING else 0
            self.halves[first + at] = 0
            self.halves[first + _SUM] -= self.halves[first + _REMOTE + at]
            self.halves[first + _REMOTE + at] = 0
        self.words[_WORDS * place + _TICK] = rule.tick

    def wait(self, now: int) -> int:
        """Return the nanoseconds from ``now`` to the next round; 0 if there is none."""
        if self.size == 0 or self.refresh == 0:
            return 0
        since = (now // _MILLISECOND - self.round) & M32
        return (self.refresh - since) * _MILLISECOND if since < self.refresh else 1

    def pack(self, now: int) -> bytes:
        """Return the next batch at ``now`` (nanoseconds), empty if there is nothing to exchange.

        Blocked clients are omitted: their hits do not count. Clients for which there is no time or
        room go with the next batch, for which ``due`` is then ``now``.
        """
        self.rule.at(now)
        self.flown = 0
        self.due = 0
        self.pack_due(now)
        self.pack_round(now)
        return self.writer.take()

    def pack_due(self, now: int) -> None:
        """Add the queued clients that are due."""
        looked = 0
        queued = self.queued
        while looked < queued:
            # If answers wait for a batch, it must carry all of them.
            if self.flown == self.most or (looked == _LOOKED_AT and self.refresh > 0):
                self.due = now
                return
            looked += 1
            place = self.dequeue()
            if self.halves[_HALVES * place + _DUE] == 0:
                continue  # the round has sent it, or it is blocked
            if self.later(_HALVES * place, now):
                self.enqueue(place)
            else:
                self.send(place, now)

    def pack_round(self, now: int) -> None:
        """Add the next clients of the round, and drop clients that are no longer hot.

        These have been quiet for two windows, or have left the table.
        """
        rule = self.rule
        milliseconds = now // _MILLISECOND & M32
        if self.left == 0 and (milliseconds - self.round) & M32 >= self.refresh:
            self.round = milliseconds
            self.left = self.size
        # Age in milliseconds of an exchange at the start of this round.
        age = (milliseconds - self.round) & M32
        looked = 0
        most = _LOOKED_AT
        if self.refresh == 0:
            # Only to drop some: more than there can be new ones.
            most = 2 * self.flown + _LEAST
        while self.left > 0:
            if self.flown == self.most or looked == most:
                if self.refresh > 0:
                    self.due = now
                return
            if self.size == 0:
                self.left = 0
                return
            looked += 1
            self.left -= 1
            if self.next >= self.size:
                self.next = 0
            place = self.places[self.next]
            first = _HALVES * place
            quiet = rule.tick > self.words[_WORDS * place + _LAST] + 2 * RING
            if self.halves[first + _QUEUED] == 0 and (
                quiet or not self.owns(place, self.words[_WORDS * place])
            ):
                self.drop(self.next)
                continue
            self.next += 1
            if self.refresh > 0 and (milliseconds - self.halves[first + _ASKED]) & M32 > age:
                self.send(place, now)

    def send(self, place: int, now: int) -> None:
        """Add a client to the batch, unless it has left the table or is blocked."""
        table = self.table
        slot = self.words[_WORDS * place]
        first = _HALVES * place
        self.halves[first + _DUE] = 0
        if not self.owns(place, slot) or table.until(slot) > table.now:
            return
        self.halves[first + _UNSENT] = 0
        self.halves[first + _ASKED] = now // _MILLISECOND & M32
        self.record(place, slot)
        self.tell(place, slot)
        self.flying[self.flown] = place
        self.flown += 1

    def later(self, first: int, now: int) -> bool:
        """Return whether a client is due after the batch of ``now``; update ``due``."""
        milliseconds = now // _MILLISECOND
        wait = (self.halves[first + _DUE] - milliseconds) & M32
        if wait == 0 or wait >= _AGES:
            return False
        at = (milliseconds + wait) * _MILLISECOND
        if self.due == 0 or at < self.due:
            self.due = at
        return True

    def record(self, place: int, slot: int) -> None:
        """Write a client's record, and count its hits as sent."""
        table = self.table
        rule = self.rule
        writer = self.writer
        if table.words[slot + 3] != rule.tick:
            table.advance(slot, rule)
        if self.words[_WORDS * place + _TICK] != rule.tick:
            self.advance(place)
        writer.little(table.words[slot], 8)
        writer.little(table.words[slot + 1], 8)
        writer.little(table.halves[2 * slot + EPOCH], 4)
        writer.little(rule.tick, 8)
        at = rule.bucket
        for _ in range(RING):
            own = table.halves[2 * slot + FIRST_COUNTER + at]
            if at == rule.bucket:
                own += self.halves[_HALVES * place + _RESERVED]
            sent = self.halves[_HALVES * place + at]
            delta = 0
            if own > sent:  # it is less if reserved hits were not counted
                delta = own - sent
                self.halves[_HALVES * place + at] = own
            writer.little(delta, 4)
            at = at - 1 if at > 0 else RING - 1
        self.halves[_HALVES * place + _RESERVED] = 0

    def tell(self, place: int, slot: int) -> None:
        """Write a client's notice, if necessary."""
        if self.notices.room() < NOTICE_BYTES:
            return
        told = self.halves[_HALVES * place + _TELL]
        kind = self.table.words[slot + 2] >> 16 & _KIND
        if told == TELL:
            self.halves[_HALVES * place + _TELL] = TOLD
            # The other nodes send their hits only after this notice.
            self.plan(place, self.interval)
        elif told == TELL_NEAR:
            self.halves[_HALVES * place + _TELL] = TOLD_NEAR
            kind |= _IS_NEAR
        else:
            return
        self.notices.little(self.table.words[slot], 8)
        self.notices.little(self.table.words[slot + 1], 8)
        self.notices.byte(kind)

    def learn(self, answers: bytes, begin: int = 0) -> None:
        """Process the store's answers to the last batch, or to its records from ``begin`` on.

        Raises ValueError if the length is wrong.
        """
        rule = self.rule
        table = self.table
        count = len(answers) // ANSWER_BYTES
        if len(answers) % ANSWER_BYTES > 0 or begin + count > self.flown:
            raise ValueError(f"{len(answers)} bytes for {self.flown} records of {ANSWER_BYTES}")
        for n in range(count):
            place = self.flying[begin + n]
            slot = self.words[_WORDS * place]
            if not self.owns(place, slot):
                continue  # it has left the table meanwhile
            start = ANSWER_BYTES * n
            epoch = self.number(answers, start, 4)
            if epoch < table.halves[2 * slot + EPOCH]:
                continue  # it was blocked meanwhile
            if self.words[_WORDS * place + _TICK] != rule.tick:
                self.advance(place)
            if epoch > table.halves[2 * slot + EPOCH]:
                self.settle(place)
                table.halves[2 * slot + EPOCH] = epoch
                self.halves[_HALVES * place + _UNSENT] = 1
                self.plan(place, 0)
            first = _HALVES * place
            tick = self.number(answers, start + 4, 8)
            ahead = 0
            for i in range(RING):
                total = self.number(answers, start + 12 + 4 * i, 4)
                if tick > rule.tick + i:
                    # Hits of a node whose time is slightly ahead count for this tick.
                    ahead += total
                    continue
                if tick < i or rule.tick - (tick - i) >= RING:
                    break
                at = (tick - i) % RING
                if tick - i == rule.tick:
                    total += ahead
                sent = self.halves[first + at]
                others = min(total - sent, _MAX_OTHERS) if total > sent else 0
                self.halves[first + _SUM] += others - self.halves[first + _REMOTE + at]
                self.halves[first + _REMOTE + at] = others
            if self.refresh > 0:
                counted = table.count(slot, rule, 0) + self.remote(place, 0)
                self.press(slot, place, counted)

    def settle(self, place: int) -> None:
        """Clear the remote and sent counters of a client, because a new epoch begins."""
        first = _HALVES * place
        self.halves[first + _DUE] = 0
        self.halves[first + _SUM] = 0
        self.halves[first + _UNSENT] = 0
        self.halves[first + _RESERVED] = 0
        for i in range(RING):
            self.halves[first + i] = 0
            self.halves[first + _REMOTE + i] = 0
        if self.halves[first + _TELL] > TOLD:
            # On the way to its limit again, it may reach nodes that do not share it.
            self.halves[first + _TELL] = TOLD

    def owns(self, place: int, slot: int) -> bool:
        """Return whether a slot of the table still has the client of a place.

        Places of other limits have the same numbers, so the number in the slot is not sufficient.
        """
        table = self.table
        first = _WORDS * place
        return (
            table.halves[2 * slot + HOT] == place + 1
            and table.words[slot] == self.words[first + _HI]
            and table.words[slot + 1] == self.words[first + _LO]
            and table.words[slot + 2] & M32 == self.words[first + _IDENT]
        )

    def drop(self, index: int) -> None:
        """Stop sharing the client at ``places[index]``."""
        table = self.table
        place = self.places[index]
        slot = self.words[_WORDS * place]
        if self.owns(place, slot):
            table.halves[2 * slot + HOT] = 0
        self.size -= 1
        self.places[index] = self.places[self.size]
        self.places[self.size] = place

    def number(self, data: bytes, start: int, size: int) -> int:
        """Return a little-endian integer of ``size`` bytes."""
        p = data
        value = 0
        for i in range(size):
            value = value << 8 | p[start + size - 1 - i]
        return value
