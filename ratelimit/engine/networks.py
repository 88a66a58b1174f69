"""Networks of addresses with a value each, searched in the logarithm of their number.

The address space is cut where any network begins or ends; a value holds from its cut to the next.
So networks may lie within each other, and a search is one bisection whatever the prefixes.
"""

from __future__ import annotations

from ratelimit.engine.layout import MIXED


class Networks:
    """A step function over the addresses, as ``engine.key`` writes them.

    ``starts`` are the cuts in rising order, the first of them 0: the upper and the lower 64 bits
    of each. ``values`` has one of 64 bits for each; 0 stands for none, and 1 is not to be used.
    ``empty`` says that all are 0.
    """

    def __init__(self, starts: bytes = bytes(16), values: bytes = bytes(8)) -> None:
        self.load(starts, values)

    def load(self, starts: bytes, values: bytes) -> None:
        """Take other networks."""
        self.starts = memoryview(starts).cast("Q")
        self.values = memoryview(values).cast("Q")
        self.size = len(self.values)
        self.empty = self.size == 1 and self.values[0] == 0

    def place(self, hi: int, lo: int) -> int:
        """Return the number of the last cut that is not after an address."""
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
        """Return the value of all addresses from one to another, or MIXED."""
        first = self.place(hi, lo)
        if first + 1 < self.size:
            start = self.starts[2 * first + 2]
            if start < last_hi or (start == last_hi and self.starts[2 * first + 3] <= last_lo):
                return MIXED
        return self.values[first]
