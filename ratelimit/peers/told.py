"""The ends of the throttle verdicts that HAProxy was told, so that each is told only once.

A place has 64 bytes, as 64-bit words: the key (0, 1), kind of key and limit with the size of the
key in HAProxy's table (2), the end (3), and this key (4-7). A client has two possible places, and
takes that which ended first. A client that lost its place is told again at its next hit, which
does no harm.
"""

from __future__ import annotations

from ratelimit.engine.layout import M32
from ratelimit.engine.table import Table

MAX_KEY = 32
"""Bytes of the longest key of a table that can be a limit."""

_WORDS = 8
_IDENT = 2
_END = 3
_KEY = 4
_SIZE_SHIFT = 32
_QUEUED = 1 << 63  # in the word of the kind: HAProxy does not know this end yet


class Told:
    """Verdicts of up to ``capacity`` clients; ``queued`` of them must be told."""

    def __init__(self, capacity: int, table: Table) -> None:
        self.table = table
        self.places = 2 * -(-capacity // 2)
        memory = memoryview(bytearray(8 * _WORDS * self.places))
        self.octets = memory
        self.words = memory.cast("Q")
        self.queue = memoryview(bytearray(4 * self.places)).cast("I")
        self.head = 0
        self.queued = 0

    def tell(
        self, hi: int, lo: int, ident: int, end: int, data: bytes, start: int, size: int
    ) -> None:
        """Queue a verdict that ends at ``end`` (epoch nanoseconds), 0 for none.

        HAProxy's key are the ``size`` bytes of ``data`` from ``start`` on, at most MAX_KEY; without
        any, it is the address ``hi`` and ``lo``.
        """
        place = self.find(hi, lo, ident)
        if place < 0:
            place = (self.table.mix(hi, lo, ident) >> 32) * self.places >> 32
            if self.words[_WORDS * (place ^ 1) + _END] < self.words[_WORDS * place + _END]:
                place ^= 1
        first = _WORDS * place
        queued = self.words[first + _IDENT] & _QUEUED
        self.words[first] = hi
        self.words[first + 1] = lo
        self.words[first + _IDENT] = _QUEUED | size << _SIZE_SHIFT | ident
        self.words[first + _END] = end
        p = data
        for i in range(size):
            self.octets[8 * (first + _KEY) + i] = p[start + i]
        if queued == 0:
            # A place is queued once, so the queue has room.
            last = self.head + self.queued
            self.queue[last - self.places if last >= self.places else last] = place
            self.queued += 1

    def end(self, hi: int, lo: int, ident: int) -> int:
        """Return the end that a client's verdict has or is about to have; 0 for none."""
        place = self.find(hi, lo, ident)
        return self.words[_WORDS * place + _END] if place >= 0 else 0

    def forget(self, hi: int, lo: int, ident: int) -> None:
        """Forget a client's verdict, because another one has replaced it."""
        place = self.find(hi, lo, ident)
        if place >= 0:
            self.words[_WORDS * place + _END] = 0
            self.words[_WORDS * place + _IDENT] &= _QUEUED
            self.words[_WORDS * place] = 0
            self.words[_WORDS * place + 1] = 0

    def find(self, hi: int, lo: int, ident: int) -> int:
        """Return the place of a client, or -1."""
        place = (self.table.mix(hi, lo, ident) >> 32) * self.places >> 32
        for _ in range(2):
            first = _WORDS * place
            if (
                self.words[first] == hi
                and self.words[first + 1] == lo
                and self.words[first + _IDENT] & M32 == ident
            ):
                return place
            place ^= 1
        return -1

    def take(self, most: int) -> list[tuple[int, bytes, int]]:
        """Return up to ``most`` queued verdicts: limit (its index), HAProxy's key, and end."""
        taken = []
        for _ in range(min(most, self.queued)):
            place = self.queue[self.head]
            self.head = self.head + 1 if self.head + 1 < self.places else 0
            self.queued -= 1
            self.words[_WORDS * place + _IDENT] &= ~_QUEUED
            if self.words[_WORDS * place + _IDENT] > 0:
                taken.append(self.told(place))
        return taken

    def held(self, begin: int, stop: int, now: int) -> list[tuple[int, bytes, int]]:
        """Return the verdicts in the places from ``begin`` to ``stop`` that end after ``now``.

        For an HAProxy that knows none: there are ``places`` places.
        """
        return [
            self.told(place)
            for place in range(begin, min(stop, self.places))
            if self.words[_WORDS * place + _END] > now
        ]

    def told(self, place: int) -> tuple[int, bytes, int]:
        first = _WORDS * place
        size = self.words[first + _IDENT] >> _SIZE_SHIFT & 0xFF
        if size > 0:
            key = bytes(self.octets[8 * (first + _KEY) : 8 * (first + _KEY) + size])
        else:
            key = int(self.words[first]).to_bytes(8, "big")
            key += int(self.words[first + 1]).to_bytes(8, "big")
        return self.words[first + _IDENT] & 0xFFFF, key, self.words[first + _END]
