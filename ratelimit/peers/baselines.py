"""The last counters of each entry of each HAProxy's stick tables, kept beyond a session.

HAProxy tells counters, not increments, and repeats them after a reconnection; an increment is the
difference to the last one. The table is set-associative and never grows, like ``engine.table``,
whose keyed hash it uses. A set has 576 contiguous bytes, so an update touches two cache lines:

    8 tags of 8 bytes: 32 bits of hash (never 0), 32 bits of the millisecond of the last update
    8 entries of 64 bytes, as 32-bit words:
        0-3    the key
        4      HAProxy and table
        5      requests open at the last update
        6-9    counters of 32 bits: requests, errors, failures, refusals
        10-13  counters of 64 bits: bytes received, bytes sent
        14     the requests before they fell, or 0; see ``counts``
        15     free

An entry without room replaces the stalest one of its set. HAProxy may still have the replaced one,
so ``since_loss`` tells whether an unknown entry may be an old one.
"""

from __future__ import annotations

from ratelimit.engine.layout import FETCHED, M32
from ratelimit.engine.table import Table, allocate

ENTRY_BYTES = 72
"""Memory of an entry, including everything; and half a byte."""

OPEN = 5
REQUESTS = 6
ERRORS = 7
FAILURES = 8
REFUSALS = 9
FORMER = 14
"""Positions of the counters of 32 bits in an entry, in 32-bit words."""

BYTES_IN = 5
BYTES_OUT = 6
"""Positions of the counters of 64 bits in an entry, in 64-bit words."""

_WAYS = 8
_ENTRY_WORDS = 8  # of 64 bits
_SET_WORDS = 72
_IDENT = 4  # position in an entry, in 32-bit words
_OPEN = OPEN  # of C's int type when compiled


class Baselines:
    """Last counters of up to ``capacity`` entries, rounded up to whole sets of eight.

    After ``visit()``, ``known`` tells whether the entry was found. If so, ``stamp`` has the
    millisecond of its last update before; if not, ``since_loss`` the milliseconds since the last
    update of any entry that its set has lost, 2^32 - 1 if none.

    ``expire`` is the longest time in milliseconds for which HAProxy keeps an unused entry.
    ``entries`` counts entries in use; ``lost`` those replaced that HAProxy may still have.
    """

    def __init__(self, capacity: int, table: Table) -> None:
        self.table = table
        self.sets = -(-capacity // _WAYS)
        self.memory = allocate(self.sets * _SET_WORDS * 8)
        self.words = self.memory.cast("Q")
        self.halves = self.memory.cast("I")
        # Of each set, the last update of the entries that it has lost; 0 for none.
        self.losses = allocate(4 * self.sets).cast("I")
        self.entries = 0
        self.lost = 0
        self.expire = 0
        self.stamp = 0
        self.since_loss = 0
        self.known = False
        self.base = 0
        self.tag = 0
        self.way = 0
        self.aims = memoryview(bytearray(16 * FETCHED)).cast("Q")
        self.expected = 0
        self.touched = 0

    @property
    def capacity(self) -> int:
        """Entries for which there is room."""
        return self.sets * _WAYS

    @property
    def size(self) -> int:
        """Bytes of the table."""
        return self.capacity * ENTRY_BYTES + 4 * self.sets

    def visit(self, hi: int, lo: int, ident: int, now: int) -> int:
        """Return the place of an entry, in 64-bit words; add it with zeros if it is missing.

        ``ident`` is a number for HAProxy and table, not 0; ``now`` is in milliseconds, and its
        lower 32 bits are recorded as the time of the last update.
        """
        now &= M32
        slot = self.peek(hi, lo, ident)
        base = self.base
        tag = self.tag
        if slot >= 0:
            self.words[base + self.way] = tag << 32 | now
            self.known = True
            return slot
        number = base // _SET_WORDS
        way = self.vacate(number, now)
        self.words[base + way] = tag << 32 | now
        slot = base + _WAYS + way * _ENTRY_WORDS
        self.words[slot] = hi
        self.words[slot + 1] = lo
        for i in range(2, _ENTRY_WORDS):
            self.words[slot + i] = 0
        self.halves[2 * slot + _IDENT] = ident
        self.known = False
        self.since_loss = M32
        if self.losses[number] > 0:
            self.since_loss = now - self.losses[number] & M32
        return slot

    def expect(self, hi: int, lo: int, ident: int) -> None:
        """Note an entry for ``fetch()``; more than FETCHED are ignored."""
        if self.expected < FETCHED:
            self.aim(hi, lo, ident)
            self.aims[2 * self.expected] = self.base
            self.aims[2 * self.expected + 1] = self.tag
            self.expected += 1

    def fetch(self) -> None:
        """Touch the memory that ``visit()`` will read for the noted entries; see ``Table.fetch()``.

        An entry is one cache line.
        """
        touched = self.touched
        for i in range(self.expected):
            base = self.aims[2 * i]
            touched ^= self.words[base]
        for i in range(self.expected):
            base = self.aims[2 * i]
            tag = self.aims[2 * i + 1]
            for way in range(_WAYS):
                if self.words[base + way] >> 32 == tag:
                    touched ^= self.words[base + _WAYS + way * _ENTRY_WORDS]
                    break
        self.touched = touched
        self.expected = 0

    def peek(self, hi: int, lo: int, ident: int) -> int:
        """Return the place of a known entry, or -1; ``stamp`` has its last update."""
        self.aim(hi, lo, ident)
        base = self.base
        tag = self.tag
        for way in range(_WAYS):
            if self.words[base + way] >> 32 == tag:
                slot = base + _WAYS + way * _ENTRY_WORDS
                if (
                    self.words[slot] == hi
                    and self.words[slot + 1] == lo
                    and self.halves[2 * slot + _IDENT] == ident
                ):
                    self.way = way
                    self.stamp = self.words[base + way] & M32
                    return slot
        return -1

    def aim(self, hi: int, lo: int, ident: int) -> None:
        """Compute the set of an entry and its tag, into ``base`` and ``tag``."""
        mixed = self.table.mix(hi, lo, ident)
        self.base = ((mixed >> 32) * self.sets >> 32) * _SET_WORDS
        self.tag = (mixed >> 8 & M32) | 1

    def vacate(self, number: int, now: int) -> int:
        """Return the way of a set for a new entry; note the loss of one that HAProxy may have."""
        base = number * _SET_WORDS
        way = self.stalest(base, now, False)
        if self.words[base + way] == 0:
            self.entries += 1
            return way
        slot = base + _WAYS + way * _ENTRY_WORDS
        if self.halves[2 * slot + _OPEN] > 0:
            # HAProxy keeps an entry as long as it has open requests. Finding another one reads
            # every entry of the set, which the tags alone usually avoid.
            way = self.stalest(base, now, True)
            slot = base + _WAYS + way * _ENTRY_WORDS
        stamp = self.words[base + way] & M32
        if self.halves[2 * slot + _OPEN] > 0:
            stamp = now
        if now - stamp & M32 < self.expire:
            self.lost += 1
            last = self.losses[number]
            if last == 0 or now - stamp & M32 < now - last & M32:
                self.losses[number] = max(stamp, 1)
        return way

    def stalest(self, base: int, now: int, closed: bool) -> int:
        """Return the way of a set that is empty or was not updated for longest.

        With ``closed``, entries with open requests come last.
        """
        stalest = 0
        longest = -1
        for way in range(_WAYS):
            word = self.words[base + way]
            if word == 0:
                return way
            idle = now - (word & M32) & M32
            if closed and self.halves[2 * (base + _WAYS + way * _ENTRY_WORDS) + _OPEN] == 0:
                idle += 1 << 32
            if idle > longest:
                stalest = way
                longest = idle
        return stalest
