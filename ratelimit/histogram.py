"""How long things took, counted in a fixed number of buckets, cheaply enough for each read."""

from __future__ import annotations

_FIRST = 12  # the first bound is 2^12 ns, 4.1 µs,
_LAST = 32  # and the last 2^32 ns, 4.3 s; each is twice the one before


class Histogram:
    """Durations in nanoseconds, told apart by their number of bits.

    ``total`` is the sum of all, in nanoseconds.
    """

    __slots__ = ("_counts", "total")

    def __init__(self) -> None:
        self._counts = [0] * 64
        self.total = 0

    def add(self, duration: int) -> None:
        """Count a duration, at least 0 and less than 2^63."""
        self._counts[duration.bit_length()] += 1
        self.total += duration

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self._counts)

    def buckets(self) -> list[tuple[int, int]]:
        """Return bounds in nanoseconds, and how many durations were below each."""
        return [(1 << bits, sum(self._counts[: bits + 1])) for bits in range(_FIRST, _LAST + 1)]
