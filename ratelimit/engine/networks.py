"""Networks with a value each, with lookup in logarithmic time.

The address space is cut where any network begins or ends; a value applies from its cut to the next.
So networks may be nested, and a lookup is one binary search.
"""

from __future__ import annotations

from ratelimit.engine.layout import MIXED


class Networks:
    """A step function over the addresses of ``engine.key``.

    ``starts`` are the cuts in rising order, the first is 0: the upper and lower 64 bits of each.
    ``values`` has a 64-bit value for each; 0 means none, and 1 is reserved. ``empty`` is true if
    all values are 0.
    """

    def __init__(self, starts: bytes = bytes(16), values: bytes = bytes(8)) -> None:
        self.load(starts, values)

    def load(self, starts: bytes, values: bytes) -> None:
        """Replace all networks."""
        self.starts = memoryview(starts).cast("Q")
        self.values = memoryview(values).cast("Q")
        self.size = len(self.values)
        self.empty = self.size == 1 and self.values[0] == 0

    def place(self, hi: int, lo: int) -> int:
        """Return the index of the last cut that is not after an address."""
        low = 0
        high = self.size
        while high - low > 1:
            middle = (low + high) // 2
            start = self.starts[2 * middle]
            if start < hi or (start == hi and self.starts[2 * middle + 1] <= lo):
                low = middle
            else:
                high = middle
        return low

    def value(self, hi: int, lo: int) -> int:
        """Return the value of an address."""
        return self.values[self.place(hi, lo)]

    def uniform(self, hi: int, lo: int, last_hi: int, last_lo: int) -> int:
        """Return the value of all addresses in a range, or MIXED."""
        first = self.place(hi, lo)
        if first + 1 < self.size:
            start = self.starts[2 * first + 2]
            if start < last_hi or (start == last_hi and self.starts[2 * first + 3] <= last_lo):
                return MIXED
        return self.values[first]
