"""Durations in buckets: nothing is lost, and a bound means what it says."""

from __future__ import annotations

from ratelimit.histogram import Histogram


def test_a_bound_is_above_what_it_counts() -> None:
    times = Histogram()
    for duration in (0, 4095, 4096, 5000, 1 << 40):
        times.add(duration)
    buckets = dict(times.buckets())
    assert buckets[4096] == 2
    assert buckets[8192] == 4
    assert max(buckets) == 1 << 32 and buckets[1 << 32] == 4
    assert times.count == 5
    assert times.total == 4095 + 4096 + 5000 + (1 << 40)


def test_buckets_rise() -> None:
    times = Histogram()
    for bits in range(63):
        times.add(1 << bits)
    bounds, counts = zip(*times.buckets(), strict=True)
    assert list(bounds) == sorted(set(bounds))
    assert list(counts) == sorted(counts)
