"""The store's time, from samples; no I/O.

Cristian's algorithm: a request was sent at local time ``sent``, and its answer with the store's
time arrived at ``received``. So the store's clock is ahead by ``store - (sent + received) / 2``,
with an error of at most half of the round trip. Of the last samples the one with the shortest round
trip is used. If the store's clock was set, a new sample contradicts the used one, and earlier
samples are dropped.

Local time is the monotonic clock, so that a jump of the wall clock has no effect. The served time
follows the best sample without jumps: it runs up to ``SLEW`` faster or slower until both agree, and
jumps only at the start and if they differ by more than ``LEAP``. The drift between both clocks is
measured and still applied while the store is down.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

SAMPLES = 64
"""One per second; the last quarter gives the offset, all of them the drift."""

SLEW = 0.005
"""Maximum by which served time runs faster or slower than the local clock; 5 ms per second."""

LEAP = 500_000_000
"""Error in nanoseconds above which served time jumps."""

_MAX_DRIFT = 500e-6  # a kernel's maximum correction; more is a measurement error
_DRIFT_ERROR = 50e-6


@dataclass(frozen=True, slots=True)
class _Sample:
    at: int  # local time, in the middle of the round trip
    offset: int
    error: int


class Clock:
    """The store's time by the local monotonic clock; all values in nanoseconds.

    Attributes:
        known: whether there has been any sample.
        drift: by how much the store's clock runs faster; 1e-6 is a microsecond per second.
        error: maximum error of the sample in use.
    """

    def __init__(self) -> None:
        self.known = False
        self.drift = 0.0
        self.error = 0
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES)
        self._best = _Sample(0, 0, 0)
        # Served time is `_served` plus local time at local time `_at`; from there it approaches the
        # best sample.
        self._served = 0
        self._at = 0

    def sample(self, sent: int, received: int, store: int) -> None:
        """Add a sample of the store's time."""
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
        """Keep the time but drop all samples, because another store may answer now."""
        self._samples.clear()

    def offset(self, local: int) -> int:
        """Return what to add to local time to get the store's; 0 until known."""
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
