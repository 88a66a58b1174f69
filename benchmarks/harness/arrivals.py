"""Times of a client's requests, in nanoseconds from the start."""

from __future__ import annotations

import random
from collections.abc import Iterator

RATE = 100
"""The limit, in requests a second."""

SECOND = 1_000_000_000


def poisson(rate: float, seconds: int, rng: random.Random) -> Iterator[int]:
    """Yield times of requests that know nothing of each other."""
    now = rng.random() / rate
    while now < seconds:
        yield round(now * SECOND)
        now += rng.expovariate(rate)


def bursts(rate: float, length: float, seconds: int, rng: random.Random) -> Iterator[int]:
    """Yield times of one burst in each second; it ends before the next second begins."""
    for second in range(seconds):
        start = second + rng.random() * (1 - length)
        yield from (round((start + n / rate) * SECOND) for n in range(round(rate * length)))


def steady(rate: float, seconds: int, rng: random.Random) -> Iterator[int]:
    """Yield times in equal distance."""
    phase = rng.random()
    yield from (round((phase + n / rate) * SECOND) for n in range(round(rate * seconds)))
