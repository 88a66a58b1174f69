"""How often a counter decides differently from an exact sliding log.

``python -m benchmarks.accuracy`` sends one client's requests through the engine, normal and strict,
through a model of peers mode, a fixed window, and two buckets like HAProxy's ``http_req_rate``
(``freq_ctr`` in its source), each with a limit of 100 a second and no blocks. A decision is wrong
if the log of all requests of the last second, including refused ones, says otherwise. Times are
random and the same in every run. A burst begins once in each second, at a random moment.

In the model of peers mode, HAProxy decides by the last verdict that it knows and by its cap of
twice the rate, and tells the agent its count, which is really counted. A verdict takes a
millisecond to arrive.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from benchmarks.harness import command
from benchmarks.harness.arrivals import RATE, SECOND, bursts, poisson, steady
from benchmarks.harness.buckets import MILLISECOND, TwoBuckets
from benchmarks.harness.programs import Programs, progress
from benchmarks.harness.report import Column, Report, Table, Target
from ratelimit.limiter.limiter import Limiter
from ratelimit.model import Limit
from ratelimit.spop.respond import Responder
from tests.helpers import asking, wire
from tests.helpers.sticktable import Fed, Line

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    Loads = dict[str, Callable[[int, random.Random], Iterator[int]]]

START = 1_700_000_000 * SECOND
SECRET = bytes(range(64))
BOUND = 0.25
LATE = MILLISECOND
"""From a request to the arrival of the verdict that it causes."""


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


class Ours:
    """The engine, for one client that HAProxy asks about by SPOE."""

    def __init__(self, strict: bool) -> None:
        limit = Limit(rate=RATE, window=SECOND, block=(), strict=strict)
        self._responder = Responder(Limiter([limit], 8, SECRET).engine)
        self._frame = wire.notify(wire.message("default", key=wire.address("192.0.2.1")))

    def __call__(self, now: int) -> bool:
        self._responder.engine.at(now)
        self._responder.answer(self._frame, 0, len(self._frame))
        return b"deny" not in self._responder.take()


class Peers:
    """HAProxy and an agent that is its peer, for one client."""

    def __init__(self) -> None:
        self._fed = Fed(Limit(rate=RATE, window=SECOND, block=()))
        self._line = Line(self._fed)
        self._cap = TwoBuckets(2 * RATE)
        self._count = self._refused = 0
        self._end = 0  # milliseconds, of the verdict that HAProxy knows
        self._verdicts: deque[tuple[int, int]] = deque()  # when they arrive, and their ends

    def __call__(self, now: int) -> bool:
        while self._verdicts and self._verdicts[0][0] <= now:
            self._end = self._verdicts.popleft()[1]
        below = self._cap(now)
        allowed = below and now // MILLISECOND >= self._end
        self._count += 1
        self._refused += not allowed
        at = (now - asking.START) / SECOND
        self._line.tell(at, since=at, req=self._count, gpc0=self._refused)
        for verdict in self._fed.verdicts():
            self._verdicts.append((now + LATE, verdict.until // MILLISECOND))
        return allowed


COUNTERS: dict[str, Callable[[], Counter]] = {
    "engine": lambda: Ours(strict=False),
    "engine, strict": lambda: Ours(strict=True),
    "peers": Peers,
    "two buckets": lambda: TwoBuckets(RATE),
    "fixed window": FixedWindow,
}
OF_MODE = {"engine": "spoe", "engine, strict": "spoe", "peers": "peers"}
"""The counters of one mode only."""

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
    modes = command.modes(options)
    chosen = {name: make for name, make in COUNTERS.items() if OF_MODE.get(name, modes[0]) in modes}
    found: dict[str, dict[str, list[Errors]]] = {}
    for load, times_of in (LOADS | STEADY).items():
        found[load] = {name: [] for name in chosen}
        for number in range(options.rounds):
            progress(f"{load}, round {number + 1}")
            times = list(times_of(int(options.seconds), random.Random(number)))
            for name, make in chosen.items():
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
    return Report((Table.measured("counter", note, columns, rows),), tuple(targets(found)))


def targets(found: dict[str, dict[str, list[Errors]]]) -> Iterator[Target]:
    for name in OF_MODE:
        never = found["steady 99/s"].get(name)
        if never and name != "engine, strict":
            worst = max(error.refused for error in never)
            yield Target(f"steady 99/s, refused by the {name}", worst, 0)
    for load in LOADS:
        counters = found[load]
        if "engine" in counters:
            yield Target(f"{load}, engine to two buckets", _ratio(counters), BOUND)
        if "engine" in counters and "peers" in counters and load.startswith("bursts"):
            ours, theirs = (
                sum(error.refused for error in counters[name]) for name in ("peers", "engine")
            )
            yield Target(f"{load}, refused wrongly by peers, % in all rounds", ours, theirs)


def _ratio(counters: dict[str, list[Errors]]) -> float:
    """Return the engine's error to the two buckets', over all rounds."""
    ours, theirs = (sum(e.wrong for e in counters[name]) for name in ("engine", "two buckets"))
    return ours / theirs


if __name__ == "__main__":
    command.main(
        "accuracy",
        __doc__,
        run,
        rounds=(5, 2),
        seconds=(2000, 2000),
        arguments=command.mode_argument,
    )
