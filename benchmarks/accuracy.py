"""How often a counter decides otherwise than an exact sliding log would.

``python -m benchmarks.accuracy`` sends one client's requests through the engine, as it is and
strict, a fixed window, and the two buckets that are HAProxy's ``http_req_rate`` (``freq_ctr`` in
its source), each with a limit of 100 a second and no blocks. A request is decided wrongly if the
log of all requests of the last second, refused ones too, says otherwise. Times are random and the
same in every run.

A burst begins once in each second, at a random moment of it.

``--haproxy`` instead holds the model of the two buckets against the count of a real HAProxy.
"""

from __future__ import annotations

import http.client
import random
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from benchmarks import command, harness
from benchmarks.harness import Figure, Programs, Target
from benchmarks.report import Column, Report, Row, Table
from ratelimit.limiter.limiter import Limiter
from ratelimit.model import Limit
from ratelimit.spop.respond import Responder
from tests.helpers import wire

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    Loads = dict[str, Callable[[int, random.Random], Iterator[int]]]

RATE = 100
SECOND = 1_000_000_000
MILLISECOND = 1_000_000
START = 1_700_000_000 * SECOND
SECRET = bytes(range(64))
BOUND = 0.25


class Counter(Protocol):
    """Tells whether a request at a time in nanoseconds is let through."""

    def __call__(self, now: int) -> bool: ...


class SlidingLog:
    """The exact one: all requests of the window that ends now."""

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
    """HAProxy's ``http_req_rate(1s)``: this period, and the last one by what of it is left.

    Time goes by milliseconds. A period begins when the one before it ends, or, after two without
    a request, with the next request, rounded down to an even millisecond.
    """

    def __init__(self) -> None:
        self._start = -2000
        self._now = 0
        self._last = 0

    def __call__(self, now: int) -> bool:
        return self.count(now // MILLISECOND) <= RATE

    def count(self, now: int) -> int:
        """Count a request at a time in milliseconds and return the rate."""
        if now - self._start >= 1000:
            self._last, self._now = self._now, 0
            self._start += 1000
            if now - self._start >= 1000:
                self._last, self._start = 0, now
            self._start &= ~1
        self._now += 1
        return self._now + self._last * (self._start + 1000 - now) // 1000


class Ours:
    """The engine, asked as for one client."""

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
    """Shares of all requests."""

    allowed: float
    refused: float

    @property
    def both(self) -> float:
        return self.allowed + self.refused


def measure(times: list[int], counter: Counter) -> Errors:
    """Return how often a counter let through, and refused, what the log would not."""
    exact = SlidingLog()
    allowed = refused = 0
    for at in times:
        now = START + at
        right, found = exact(now), counter(now)
        allowed += found and not right
        refused += right and not found
    return Errors(allowed / len(times), refused / len(times))


def run(programs: Programs, options: argparse.Namespace) -> Report:
    """Measure every counter under every load."""
    if options.haproxy:
        return run_haproxy(programs, 5 if options.quick else 20)
    found: dict[str, dict[str, list[Errors]]] = {}
    for load, arrivals in (LOADS | STEADY).items():
        found[load] = {name: [] for name in COUNTERS}
        for number in range(options.rounds):
            harness.progress(f"{load}, round {number + 1}")
            times = list(arrivals(int(options.seconds), random.Random(number)))
            for name, make in COUNTERS.items():
                found[load][name].append(measure(times, make()))
    rows = tuple(
        Row.of(
            f"{load}: {name}",
            *(
                Figure.of(100 * getattr(e, kind) for e in errors)
                for kind in ("both", "allowed", "refused")
            ),
        )
        for load, counters in found.items()
        for name, errors in counters.items()
    )
    columns = (
        Column("wrong, %", "less", 3),
        Column("let through, %", "less", 3),
        Column("refused, %", "less", 3),
    )
    note = f"a limit of {RATE} a second, {options.rounds} rounds of {options.seconds:g} s of the "
    note += "client's time; requests decided otherwise than by an exact sliding log"
    targets = [
        Target(f"{load}, engine to two buckets", _ratio(found[load]), BOUND, at_most=True)
        for load in LOADS
    ]
    never = max(error.refused for error in found["steady 99/s"]["engine"])
    targets.append(Target("steady 99/s, refused by the engine", never, 0, at_most=True))
    return Report((Table("counter", note, columns, rows),), tuple(targets))


def _ratio(counters: dict[str, list[Errors]]) -> float:
    """Return the engine's error to the two buckets', over all rounds."""
    ours, theirs = (sum(e.both for e in counters[name]) for name in ("engine", "two buckets"))
    return ours / theirs


HAPROXY = """
defaults
    mode http
    timeout client 10s
    timeout connect 1s
    timeout server 1s
frontend web
    bind {address}
    http-request track-sc0 src table rates
    http-request return status 200 hdr rate %[sc0_http_req_rate] hdr now %[date(0,ms)]
backend rates
    stick-table type ip size 1k expire 1m store http_req_rate(1s)
"""


def run_haproxy(programs: Programs, seconds: int) -> Report:
    """Send a real HAProxy a load of each kind and hold what it counted against the model."""
    path = harness.require("haproxy")
    found = []
    for load, arrivals in LOADS.items():
        address = harness.free_address()
        config = programs.folder / "haproxy.cfg"
        config.write_text(HAPROXY.format(address=address))
        program = programs.start("haproxy", [path, "-db", "-f", str(config)])
        harness.progress(load)
        connection = http.client.HTTPConnection(address, timeout=5)
        harness.wait_for(program, connection.connect)
        model, differences = TwoBuckets(), []
        start = time.monotonic() + 0.1
        for at in arrivals(seconds, random.Random(0)):
            time.sleep(max(0, start + at / SECOND - time.monotonic()))
            connection.request("GET", "/")
            answer = connection.getresponse()
            answer.read()
            rate, now = (int(answer.headers[name]) for name in ("rate", "now"))
            differences.append(rate - model.count(now))
        connection.close()
        program.stop()
        found.append(differences)
    rows = tuple(
        Row.of(
            load,
            len(differences),
            Figure.of(differences),
            100 * sum(not d for d in differences) / len(differences),
        )
        for load, differences in zip(LOADS, found, strict=True)
    )
    # HAProxy's own clock and the one it tells may be a millisecond apart, and what an even one is.
    worst = max(abs(d) for differences in found for d in differences)
    table = Table(
        "model",
        f"HAProxy's http_req_rate less the model's, after each request; {seconds} s a load",
        (Column("requests", digits=0), Column("difference", digits=0), Column("equal, %")),
        rows,
    )
    target = Target("greatest difference, requests", worst, 1, at_most=True)
    return Report((table,), (target,))


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--haproxy", action="store_true", help="hold the model against HAProxy")


if __name__ == "__main__":
    command.main("accuracy", __doc__, run, rounds=(5, 2), seconds=(2000, 2000), arguments=arguments)
