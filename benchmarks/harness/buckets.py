"""HAProxy's ``http_req_rate``, as its stick tables count it (``freq_ctr`` in its source)."""

from __future__ import annotations

MILLISECOND = 1_000_000


class TwoBuckets:
    """``http_req_rate(1s)``: this period, and the remaining part of the last one.

    Tells whether the request at a time in nanoseconds is one of at most ``rate``. Time is in
    milliseconds. A period begins at the end of the one before it or, after two periods without a
    request, with the next request, rounded down to an even millisecond.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._start = -2000
        self._now = 0
        self._last = 0

    def __call__(self, now: int) -> bool:
        now //= MILLISECOND
        if now - self._start >= 1000:
            self._last, self._now = self._now, 0
            self._start += 1000
            if now - self._start >= 1000:
                self._last, self._start = 0, now
            self._start &= ~1
        self._now += 1
        return self._now + self._last * (self._start + 1000 - now) // 1000 <= self._rate
