"""When the load of the fleet has been high, or low again, for long enough to say so.

There is one event when the load has stayed above ``high`` for ``hold`` seconds, and then none until
it has stayed below ``low`` for as long. A fleet begins calm: it is never told that the load is low
before it was high.
"""

from __future__ import annotations

from dataclasses import dataclass

GAP = 5.0
"""Seconds without an observation after which what came before says nothing about now."""


@dataclass(frozen=True, slots=True)
class Change:
    """The load has become another.

    Attributes:
        name: ``high`` or ``low``.
        rate: allowed requests a second of the fleet, lately.
        threshold: what it is above or below.
        since: epoch seconds from which on it has been.
    """

    name: str
    rate: float
    threshold: int
    since: float


class Load:
    """Watches a rate.

    Args:
        high: requests a second; 0 to say nothing ever.
        low: requests a second, less than ``high``; 0 never to say that it is low.
        hold: seconds.
    """

    def __init__(self, high: int, low: int, hold: float) -> None:
        self.high = high
        self.low = low
        self.hold = hold
        self.is_high = False
        self._since: float | None = None
        self._seen = 0.0

    def change(self, high: int, low: int, hold: float) -> None:
        """Watch for other rates from now on."""
        self.high = high
        self.low = low
        self.hold = hold

    def observe(self, now: float, rate: float) -> Change | None:
        """Take the rate at a time in epoch seconds; return what has changed by it."""
        if not 0 <= now - self._seen <= GAP:
            self._since = None
        self._seen = now
        if not self.high or not (rate < self.low if self.is_high else rate > self.high):
            self._since = None
            return None
        if self._since is None:
            self._since = now
        if now - self._since < self.hold:
            return None
        since, self._since = self._since, None
        self.is_high = not self.is_high
        name, threshold = ("high", self.high) if self.is_high else ("low", self.low)
        return Change(name, rate, threshold, since)
