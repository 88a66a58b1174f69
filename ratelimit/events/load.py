"""Detects that the load of the fleet is high, or low again.

The load is high once it has stayed above ``high`` for ``hold`` seconds, and low again once it has
stayed below ``low`` for as long. Each change is reported once; the initial state is low.
"""

from __future__ import annotations

from dataclasses import dataclass

GAP = 5.0
"""Seconds between observations after which earlier ones are ignored."""


@dataclass(frozen=True, slots=True)
class LoadChange:
    """A change of the load.

    Attributes:
        name: ``high`` or ``low``.
        rate: allowed requests per second of the fleet.
        threshold: the limit that was crossed, in requests per second.
        since: epoch seconds since when the rate has been beyond it.
    """

    name: str
    rate: float
    threshold: int
    since: float


class Load:
    """Watches a rate.

    Args:
        high: requests per second; 0 disables all changes.
        low: requests per second, less than ``high``; 0 disables ``low``.
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
        """Set new thresholds."""
        self.high = high
        self.low = low
        self.hold = hold

    def observe(self, now: float, rate: float) -> LoadChange | None:
        """Take the rate at ``now`` in epoch seconds; return a change, or None."""
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
        return LoadChange(name, rate, threshold, since)
