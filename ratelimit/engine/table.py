"""The table of clients, in memory that is allocated once and never grows.

The table is set-associative: a keyed hash of client and limit selects a set of eight ways, and a
new client takes an empty way or that of the client not seen for longest. The hash is multilinear
over 32-bit words (Lemire and Kaser, "Strongly universal string hashing is fast", 2014), so that an
attacker without the key can't target a set. A multiplication then scatters neighbouring addresses,
which a linear hash would keep in sequence.

A set is 1,024 contiguous bytes, so a check touches at most three cache lines and one page:

    8 tags of 8 bytes: 32 bits of hash (never 0), 32 bits of the time of the last visit
    8 slots of 120 bytes, as 64-bit words:
        0, 1   the key
        2      kind of key and limit | mark for users of the table (32 bits each)
        3      the tick of the newest counter
        4      sum of the counters | epoch second until which the client is blocked (32 bits each)
        5-14   17 counters of 32 bits, a ring by tick | place among the hot clients, 0 for none,
               in the second 32 bits of word 13
        14     epoch of its hits: the end of the last block that settled earlier hits, as an epoch
               second or slightly more; 0 before the first | tick in which there was no room for
               it among the hot clients, or 0 (32 bits each)

Eviction loses no block: a blocked client is evicted last, and then the end of its block is kept in
``orphans`` until the client returns or the block ends.
"""

from __future__ import annotations

import contextlib
import mmap

from ratelimit.engine.layout import (
    BY_HAND,
    CLIENT_BYTES,
    EPOCH,
    FETCHED,
    FIRST_COUNTER,
    HALF,
    HOT,
    M32,
    M64,
    RING,
    SET_WORDS,
    SLOT_WORDS,
    STAMP_BITS,
    SUM,
    UNTIL,
    WAYS,
    WEIGHT_BITS,
)
from ratelimit.engine.rule import Rule
from ratelimit.notation import SECOND

_MAX_COUNTER = 1 << 27  # 17 of them fit into the sum; more than any rate
_SPREAD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, made odd


class Table:
    """Counters and ends of blocks of up to ``capacity`` clients, rounded up to whole sets.

    ``secret`` is 48 bytes. Set the time before use. ``entries`` counts ways in use, ``evictions``
    evicted clients. ``idle`` is how long the last found client was not seen, in units of ``stamp``;
    2^32 - 1 for a new one.
    """

    def __init__(self, capacity: int, secret: bytes) -> None:
        self.sets = -(-capacity // WAYS)
        self.memory = allocate(self.sets * WAYS * CLIENT_BYTES)
        self.words = self.memory.cast("Q")
        self.halves = self.memory.cast("I")
        self.m0, self.m1, self.m2, self.m3, self.m4, self.m5 = (
            int.from_bytes(secret[i : i + 8], "little") for i in range(0, 48, 8)
        )
        self.now = 0
        self.stamp = 0
        self.base = 0
        self.tag = 0
        self.way = 0
        self.aims = memoryview(bytearray(16 * FETCHED)).cast("Q")
        self.expected = 0
        self.touched = 0
        self.idle = 0
        self.entries = 0
        self.evictions = 0
        self.orphans: dict[tuple[int, int, int], int] = {}

    @property
    def capacity(self) -> int:
        """Clients for which the table has room."""
        return self.sets * WAYS

    @property
    def size(self) -> int:
        """Bytes of the table."""
        return self.memory.nbytes

    def at(self, now: int) -> None:
        """Set the time, in epoch nanoseconds."""
        self.now = now // SECOND
        self.stamp = now >> STAMP_BITS & M32

    def find(self, hi: int, lo: int, ident: int) -> int:
        """Return the slot of a client, adding it if missing, and record the visit."""
        self.aim(hi, lo, ident)
        return self.visit(hi, lo, ident, self.base, self.tag)

    def visit(self, hi: int, lo: int, ident: int, base: int, tag: int) -> int:
        """Do the work of ``find()`` for a client whose place is known from ``aim()``."""
        slot = self.search(hi, lo, ident, base, tag)
        if slot < 0:
            self.way = self.vacate(base)
            slot = base + WAYS + self.way * SLOT_WORDS
            self.words[slot] = hi
            self.words[slot + 1] = lo
            self.words[slot + 2] = ident
            for i in range(3, SLOT_WORDS):
                self.words[slot + i] = 0
            self.idle = M32
            if self.orphans:
                kept = self.orphans.pop((hi, lo, ident), 0)
                self.block(slot, kept >> 1, kept & 1 == 1)
                if kept & 1 == 0:
                    self.halves[2 * slot + EPOCH] = kept >> 1
        else:
            self.idle = self.stamp - (self.words[base + self.way] & M32) & M32
        self.words[base + self.way] = tag << 32 | self.stamp
        return slot

    def aim(self, hi: int, lo: int, ident: int) -> None:
        """Compute the set of a client and its tag, into ``base`` and ``tag``."""
        mixed = self.mix(hi, lo, ident)
        self.base = ((mixed >> 32) * self.sets >> 32) * SET_WORDS
        self.tag = (mixed >> 8 & M32) | 1

    def mix(self, hi: int, lo: int, ident: int) -> int:
        """Return the keyed hash of a client, 64 bits."""
        mixed = (
            self.m0
            + self.m1 * (hi >> 32)
            + self.m2 * (hi & M32)
            + self.m3 * (lo >> 32)
            + self.m4 * (lo & M32)
            + self.m5 * ident
        ) & M64
        return (mixed ^ mixed >> 32) * _SPREAD & M64

    def expect(self, base: int, tag: int) -> None:
        """Note the place of a client for ``fetch()``; more than ``FETCHED`` are ignored."""
        if self.expected < FETCHED:
            self.aims[2 * self.expected] = base
            self.aims[2 * self.expected + 1] = tag
            self.expected += 1

    def fetch(self) -> None:
        """Touch the memory that ``visit()`` and ``count()`` will read for the noted clients.

        These reads do not depend on each other, so a processor does many in parallel if nothing
        else is between them.
        """
        touched = self.touched
        for i in range(self.expected):
            base = self.aims[2 * i]
            touched ^= self.words[base]
        for i in range(self.expected):
            base = self.aims[2 * i]
            tag = self.aims[2 * i + 1]
            for way in range(WAYS):
                if self.words[base + way] >> 32 == tag:
                    # They span at most three cache lines.
                    slot = base + WAYS + way * SLOT_WORDS
                    touched ^= self.words[slot] ^ self.words[slot + 8]
                    touched ^= self.words[slot + SLOT_WORDS - 1]
                    break
        # Stored, so that the compiler does not remove the reads.
        self.touched = touched
        self.expected = 0

    def peek(self, hi: int, lo: int, ident: int) -> int:
        """Return the slot of a known client, or -1."""
        self.aim(hi, lo, ident)
        return self.search(hi, lo, ident, self.base, self.tag)

    def search(self, hi: int, lo: int, ident: int, base: int, tag: int) -> int:
        """Return the slot of a known client, or -1; ``way`` has its way."""
        for way in range(WAYS):
            if self.words[base + way] >> 32 == tag:
                slot = base + WAYS + way * SLOT_WORDS
                if (
                    self.words[slot] == hi
                    and self.words[slot + 1] == lo
                    and self.words[slot + 2] & M32 == ident
                ):
                    self.way = way
                    return slot
        return -1

    def vacate(self, base: int) -> int:
        """Return the way of a set for a new client; keep the block of an evicted one."""
        way = self.stalest(base, False)
        if self.words[base + way] == 0:
            self.entries += 1
            return way
        self.evictions += 1
        if self.until(base + WAYS + way * SLOT_WORDS) > self.now:
            # Prefer to evict a client that is not blocked. This reads every slot of the set, which
            # the tags alone usually avoid.
            way = self.stalest(base, True)
            slot = base + WAYS + way * SLOT_WORDS
            if self.until(slot) > self.now:
                key = (self.words[slot], self.words[slot + 1], self.words[slot + 2] & M32)
                self.orphans[key] = self.until(slot) << 1 | self.by_hand(slot)
        return way

    def stalest(self, base: int, unblocked: bool) -> int:
        """Return the way of a set that is empty or was not visited for longest.

        With ``unblocked``, blocked clients come last.
        """
        stalest = 0
        longest = -1
        for way in range(WAYS):
            word = self.words[base + way]
            if word == 0:
                return way
            idle = self.stamp - (word & M32) & M32
            if unblocked and self.until(base + WAYS + way * SLOT_WORDS) <= self.now:
                idle += 1 << 32
            if idle > longest:
                stalest = way
                longest = idle
        return stalest

    def count(self, slot: int, rule: Rule, hits: int) -> int:
        """Add ``hits`` to a client and return its hits in the current window."""
        first = 2 * slot + FIRST_COUNTER
        if self.words[slot + 3] != rule.tick:
            self.advance(slot, rule)
        counter = self.halves[first + rule.bucket]
        if hits > _MAX_COUNTER - counter:
            hits = _MAX_COUNTER - counter
        self.halves[first + rule.bucket] = counter + hits
        total = self.halves[2 * slot + SUM] + hits
        self.halves[2 * slot + SUM] = total
        oldest = self.halves[first + rule.oldest]
        return total - oldest + (oldest * rule.weight + HALF >> WEIGHT_BITS)

    def add(self, slot: int, rule: Rule, hits: int, parts: int) -> None:
        """Add ``hits`` to the part of the window that is ``parts`` before the present, 0 to 16."""
        if self.words[slot + 3] != rule.tick:
            self.advance(slot, rule)
        at = rule.bucket + RING - parts
        at = 2 * slot + FIRST_COUNTER + (at - RING if at >= RING else at)
        hits = min(hits, _MAX_COUNTER - self.halves[at])
        self.halves[at] += hits
        self.halves[2 * slot + SUM] += hits

    def advance(self, slot: int, rule: Rule) -> None:
        """Clear the counters that have left the ring since the last visit."""
        first = 2 * slot + FIRST_COUNTER
        last = self.words[slot + 3]
        if last > rule.tick or rule.tick - last >= RING:
            # Longer ago than the window, or in the future because the clock was set back.
            self.halves[2 * slot + SUM] = 0
            for i in range(RING):
                self.halves[first + i] = 0
        else:
            at = last % RING
            total = self.halves[2 * slot + SUM]
            for _ in range(rule.tick - last):
                at = at + 1 if at + 1 < RING else 0
                total -= self.halves[first + at]
                self.halves[first + at] = 0
            self.halves[2 * slot + SUM] = total
        self.words[slot + 3] = rule.tick

    def until(self, slot: int) -> int:
        """Return the epoch second at which the client's block ends or ended; 0 without one."""
        return self.halves[2 * slot + UNTIL]

    def by_hand(self, slot: int) -> int:
        """Return 1 if the client's block was made by hand, else 0."""
        return self.mark(slot) // BY_HAND & 1

    def block(self, slot: int, until: int, by_hand: bool) -> None:
        """Store the end of a block, an epoch second; 0 unblocks the client."""
        self.halves[2 * slot + UNTIL] = until
        mark = self.mark(slot)
        mark &= ~BY_HAND
        if by_hand:
            mark |= BY_HAND
        self.set_mark(slot, mark)

    def mark(self, slot: int) -> int:
        """Return the 32-bit mark of a client; 0 for a new one."""
        return self.words[slot + 2] >> 32

    def set_mark(self, slot: int, mark: int) -> None:
        """Set the 32-bit mark of a client."""
        self.words[slot + 2] = self.words[slot + 2] & M32 | mark << 32

    def settle(self, slot: int, rule: Rule) -> None:
        """Clear a client's hits because it is blocked; later hits have a new epoch."""
        first = 2 * slot + FIRST_COUNTER
        self.halves[2 * slot + SUM] = 0
        for i in range(RING):
            self.halves[first + i] = 0
        self.words[slot + 3] = rule.tick
        # All nodes derive the same epoch from the block. A block that ends before an earlier,
        # removed one begins a new epoch too.
        self.halves[2 * slot + EPOCH] = (
            max(self.until(slot), self.halves[2 * slot + EPOCH] + 1) & M32
        )

    def forget(self, begin: int, stop: int) -> None:
        """Forget the hits of the clients in some sets, and that they are shared; blocks stay."""
        for number in range(begin, min(stop, self.sets)):
            for way in range(WAYS):
                slot = number * SET_WORDS + WAYS + way * SLOT_WORDS
                for i in range(RING):
                    self.halves[2 * slot + FIRST_COUNTER + i] = 0
                self.halves[2 * slot + SUM] = 0
                self.halves[2 * slot + HOT] = 0

    def sweep(self) -> None:
        """Remove orphans whose blocks have ended."""
        if not self.orphans:
            return
        self.orphans = {key: kept for key, kept in self.orphans.items() if kept >> 1 > self.now}


def allocate(size: int) -> memoryview:
    """Return zeroed memory with all pages allocated, in huge pages if possible."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, size, flags=flags)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # If the kernel refuses, small pages work too, but slower.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    for page in range(0, size, mmap.PAGESIZE):
        memory[page] = 0
    return memoryview(memory)
