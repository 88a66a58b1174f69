"""How long a throttled client must wait: ``Retry-After``, and ``reset`` in the header fields."""

from __future__ import annotations

from ratelimit.engine.layout import FIRST_COUNTER, RING, SUM
from ratelimit.engine.rule import Rule
from ratelimit.engine.table import Table
from ratelimit.notation import SECOND

_SMALL = 1 << 20  # times a sub-window it fits 64 bits; see _MAX_WINDOW in rule.py


class RetryAfter:
    """Computes how long it takes until one hit fits if the client sends none before."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.none = memoryview(bytearray(4 * (RING + 1))).cast("I")

    def alone(self, slot: int, rule: Rule) -> int:
        """Return the seconds, at least 1, for a client that has no hits on other nodes."""
        return self.shared(slot, rule, self.none, 0)

    def shared(self, slot: int, rule: Rule, others: memoryview, start: int) -> int:
        """Return the seconds, at least 1, for a client that has hits on other nodes."""
        return (self.exact(slot, rule, others, start) + SECOND - 1) // SECOND

    def exact(self, slot: int, rule: Rule, others: memoryview, start: int) -> int:
        """Return the nanoseconds for a client.

        ``others`` has the counters of its hits on other nodes from ``start`` on, followed by their
        sum.
        """
        table = self.table
        first = 2 * slot + FIRST_COUNTER
        left = table.halves[2 * slot + SUM]
        left += others[start + RING]  # both together need more than 32 bits
        at = rule.oldest
        parts = 0
        counter = 0
        while parts < RING:
            parts += 1
            counter = table.halves[first + at] + others[start + at]
            left -= counter
            if left < rule.rate:
                break
            at = at + 1 if at + 1 < RING else 0
        until = parts * rule.sub_window - rule.elapsed
        if counter > 0 and not rule.strict:
            # A counter leaves the window gradually. The result is the largest share of this part of
            # the window that may remain, after rounding.
            room = 2 * (rule.rate - left) - 1
            if room < _SMALL:
                spare = rule.sub_window * room // (2 * counter)
            else:
                # The same, where the product does not fit 64 bits.
                spare = rule.sub_window // (2 * counter) * room
                spare += rule.sub_window % (2 * counter) * room // (2 * counter)
            until = until - spare + 1 if until > spare else 1
        return until
