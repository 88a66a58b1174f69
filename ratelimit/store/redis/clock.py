"""The store's time, from samples of it; no I/O.

Cristian's algorithm: a request left at local time ``sent``, its answer came at ``received`` and
says the store's time. So the store's clock is ahead of ours by ``store - (sent + received) / 2``,
wrong by at most half of what the round trip took. Of the last samples the one with the shortest
round trip is believed. Somebody may set the store's clock: then a sample and the believed one can't
both be right, and those before it are forgotten.

Local time is the monotonic clock, which nobody sets: a node whose wall clock jumps does not notice.
The served time follows the believed one without jumps: it runs up to ``SLEW`` faster or slower
until both agree, and leaps only at the start and when they are more than ``LEAP`` apart. The drift
between both clocks is measured and goes on being applied while the store is away.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

SAMPLES = 64
"""One a second; the last quarter of them says the offset, all of them the drift."""

SLEW = 0.005
"""The most that served time runs faster or slower than the local clock; 5 ms a second."""

LEAP = 500_000_000
"""Nanoseconds of error that are too many to make up for slowly."""

_MAX_DRIFT = 500e-6  # what a kernel corrects at most; more is a wrong measurement
_DRIFT_ERROR = 50e-6


@dataclass(frozen=True, slots=True)
class _Sample:
    at: int  # local time, in the middle of the round trip
    offset: int
    error: int


class Clock:
    """The store's time by the local monotonic clock; all in nanoseconds.

    Attributes:
        known: there has been a sample, ever.
        drift: how much faster the store's clock runs than ours; 1e-6 is a microsecond a second.
        error: bound of the error of the believed sample.
    """

    def __init__(self) -> None:
        self.known = False
        self.drift = 0.0
        self.error = 0
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES)
        self._best = _Sample(0, 0, 0)
        # Served time is `_served` plus local time at local time `_at`, and from there heads for
        # what the best sample says.
        self._served = 0
        self._at = 0

    def sample(self, sent: int, received: int, store: int) -> None:
        """Learn from one request what the store's time is."""
        middle = (sent + received) // 2
        sample = _Sample(middle, store - middle, (received - sent + 1) // 2)
        apart = abs(sample.offset - self._believed(middle)) - sample.error - self.error
        if self._samples and apart > LEAP:
            self.forget()
        self._samples.append(sample)
        if self.known:
            self._served, self._at = self.offset(received), received
        recent = list(self._samples)[-(SAMPLES // 4) :]
        self._best = min(recent, key=lambda sample: sample.error)
        self.error = self._best.error
        self._measure_drift()
        wanted = self._believed(received)
        if not self.known or abs(wanted - self._served) > LEAP:
            self._served, self._at = wanted, received
        self.known = True

    def forget(self) -> None:
        """Another store may answer from now on: keep the time, but trust no old sample."""
        self._samples.clear()

    def offset(self, local: int) -> int:
        """Return what to add to local time to get the store's; 0 until that is known."""
        wanted = self._believed(local)
        most = int(max(0, local - self._at) * SLEW)
        return self._served + max(-most, min(most, wanted - self._served))

    def _believed(self, local: int) -> int:
        return self._best.offset + int((local - self._best.at) * self.drift)

    def _measure_drift(self) -> None:
        """Compare the best of the oldest samples with the best of the newest."""
        if len(self._samples) < SAMPLES:
            return
        samples = list(self._samples)
        old = min(samples[: SAMPLES // 4], key=lambda sample: sample.error)
        between = self._best.at - old.at
        if between > 0 and (old.error + self._best.error) / between <= _DRIFT_ERROR:
            drift = (self._best.offset - old.offset) / between
            self.drift = max(-_MAX_DRIFT, min(_MAX_DRIFT, drift))
