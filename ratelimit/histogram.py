"""A histogram of durations, cheap enough for each read of a socket."""

from __future__ import annotations

_FIRST = 12  # the first bound is 2^12 ns, 4.1 µs;
_LAST = 32  # the last is 2^32 ns, 4.3 s; each is twice the previous one


class Histogram:
    """Durations in nanoseconds, in buckets by number of bits.

    ``total`` is their sum in nanoseconds.
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
        """The number of durations."""
        return sum(self._counts)

    def buckets(self) -> list[tuple[int, int]]:
        """Return the bounds in nanoseconds, and the number of durations below each."""
        return [(1 << bits, sum(self._counts[: bits + 1])) for bits in range(_FIRST, _LAST + 1)]
