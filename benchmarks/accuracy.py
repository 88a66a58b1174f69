"""How often a counter decides differently from an exact sliding log.

``python -m benchmarks.accuracy`` sends one client's requests through the engine, normal and strict,
a fixed window, and two buckets like HAProxy's ``http_req_rate`` (``freq_ctr`` in its source), each
with a limit of 100 a second and no blocks. A decision is wrong if the log of all requests of the
last second, including refused ones, says otherwise. Times are random and the same in every run. A
burst begins once in each second, at a random moment.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from benchmarks.harness import command
from benchmarks.harness.arrivals import RATE, SECOND, bursts, poisson, steady
from benchmarks.harness.programs import Programs, progress
from benchmarks.harness.report import Column, Report, Table, Target
from ratelimit.limiter.limiter import Limiter
from ratelimit.model import Limit
from ratelimit.spop.respond import Responder
from tests.helpers import wire

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    Loads = dict[str, Callable[[int, random.Random], Iterator[int]]]

MILLISECOND = 1_000_000
START = 1_700_000_000 * SECOND
SECRET = bytes(range(64))
BOUND = 0.25


class Counter(Protocol):
    """Tells whether a request at a time in nanoseconds is allowed."""

    def __call__(self, now: int) -> bool: ...


class SlidingLog:
    """The exact counter: all requests of the window that ends now."""

    def __init__(self) -> None:
        self._times: deque[int] = deque()

    def __call__(self, now: int) -> bool:
        times = self._times
        times.append(now)
        while times[0] <= now - SECOND:
            times.popleft()
        return len(times) <= RATE


class FixedWindow:
    """Requests of the clock's second."""

    def __init__(self) -> None:
        self._second = 0
        self._count = 0

    def __call__(self, now: int) -> bool:
        if now // SECOND != self._second:
            self._second = now // SECOND
            self._count = 0
        self._count += 1
        return self._count <= RATE


class TwoBuckets:
    """HAProxy's ``http_req_rate(1s)``: this period, and the remaining part of the last one.

    Time is in milliseconds. A period begins at the end of the one before it or, after two periods
    without a request, with the next request, rounded down to an even millisecond.
    """

    def __init__(self) -> None:
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
        return self._now + self._last * (self._start + 1000 - now) // 1000 <= RATE


class Ours:
    """The engine, for one client."""

    def __init__(self, strict: bool) -> None:
        limit = Limit(rate=RATE, window=SECOND, block=(), strict=strict)
        self._responder = Responder(Limiter([limit], 8, SECRET).engine)
        self._frame = wire.notify(wire.message("default", key=wire.address("192.0.2.1")))

    def __call__(self, now: int) -> bool:
        self._responder.engine.at(now)
        self._responder.answer(self._frame, 0, len(self._frame))
        return b"deny" not in self._responder.take()


COUNTERS: dict[str, Callable[[], Counter]] = {
    "engine": lambda: Ours(strict=False),
    "engine, strict": lambda: Ours(strict=True),
    "two buckets": TwoBuckets,
    "fixed window": FixedWindow,
}


LOADS: Loads = {
    "Poisson, 0.9 of the limit": lambda s, rng: poisson(0.9 * RATE, s, rng),
    "Poisson, 1.0 of the limit": lambda s, rng: poisson(1.0 * RATE, s, rng),
    "Poisson, 1.1 of the limit": lambda s, rng: poisson(1.1 * RATE, s, rng),
    "bursts of 300/s for 250 ms": lambda s, rng: bursts(300, 0.25, s, rng),
    "bursts of 1000/s for 80 ms": lambda s, rng: bursts(1000, 0.08, s, rng),
}
STEADY: Loads = {
    "steady 99/s": lambda s, rng: steady(99, s, rng),
    "steady 100/s": lambda s, rng: steady(100, s, rng),
}


@dataclass(frozen=True)
class Errors:
    """Percent of all requests."""

    allowed: float
    refused: float

    @property
    def wrong(self) -> float:
        return self.allowed + self.refused


def measure(times: list[int], counter: Counter) -> Errors:
    """Return how often a counter allowed and refused requests, other than the log."""
    exact = SlidingLog()
    allowed = refused = 0
    for at in times:
        now = START + at
        right, found = exact(now), counter(now)
        allowed += found and not right
        refused += right and not found
    return Errors(100 * allowed / len(times), 100 * refused / len(times))


def run(programs: Programs, options: argparse.Namespace) -> Report:
    """Measure every counter under every load."""
    found: dict[str, dict[str, list[Errors]]] = {}
    for load, times_of in (LOADS | STEADY).items():
        found[load] = {name: [] for name in COUNTERS}
        for number in range(options.rounds):
            progress(f"{load}, round {number + 1}")
            times = list(times_of(int(options.seconds), random.Random(number)))
            for name, make in COUNTERS.items():
                found[load][name].append(measure(times, make()))
    columns = {
        "wrong": Column("wrong, %", "less", 3),
        "allowed": Column("let through, %", "less", 3),
        "refused": Column("refused, %", "less", 3),
    }
    rows = {
        f"{load}: {name}": errors
        for load, counters in found.items()
        for name, errors in counters.items()
    }
    note = f"a limit of {RATE} a second, {options.rounds} rounds of {options.seconds:g} s of the "
    note += "client's time; decisions that differ from those of an exact sliding log"
    targets = [
        Target(f"{load}, engine to two buckets", _ratio(found[load]), BOUND) for load in LOADS
    ]
    never = max(error.refused for error in found["steady 99/s"]["engine"])
    targets.append(Target("steady 99/s, refused by the engine", never, 0))
    return Report((Table.measured("counter", note, columns, rows),), tuple(targets))


def _ratio(counters: dict[str, list[Errors]]) -> float:
    """Return the engine's error to the two buckets', over all rounds."""
    ours, theirs = (sum(e.wrong for e in counters[name]) for name in ("engine", "two buckets"))
    return ours / theirs


if __name__ == "__main__":
    command.main("accuracy", __doc__, run, rounds=(5, 2), seconds=(2000, 2000))
