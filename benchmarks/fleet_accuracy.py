"""What a fleet admits of clients at several times their limit; see ``fleet.py``."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import harness
from benchmarks.fleet_clients import Client, measure
from benchmarks.fleet_load import (
    LIGHT,
    LIGHT_CLIENTS,
    RATE,
    Fleet,
    Meter,
    Usage,
    frames_of,
    streams_to,
)
from benchmarks.harness import Figure, Programs, Target
from benchmarks.report import Column, Report, Row, Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.helpers.servers import Server

RATIOS = (0.5, 0.9, 1.1, 2, 10, 30)
BOUNDS = {2: 0.02, 10: 0.06, 30: 0.2}
"""What may be admitted above the limit by 4 nodes at 10 ms, by times of the limit; a mean."""

LIGHT_RATE = 20_000
"""Checks a second of all light clients, beside those that are measured."""

INEXACT = 3
"""Hits that the weighting of a window's oldest part can be off by, if arrivals are random."""

_RUNS = 10  # clients of each kind
_STAGGER = 3.0  # seconds: together at most so many hits at a time as the agents answer at once
_BLOCK_MS = 30


@dataclass(frozen=True)
class Kind:
    """A kind of client: times its limit, spread evenly or not, at even moments or random ones."""

    ratio: float
    even: bool
    steady: bool

    def __str__(self) -> str:
        spread, moments = "even" if self.even else "uneven", "steady" if self.steady else "random"
        return f"{self.ratio:g}x, {spread}, {moments}"


@dataclass(frozen=True)
class Setting:
    """A fleet; ``strict`` is that of its limit."""

    nodes: int
    interval: str
    strict: bool = False

    def __str__(self) -> str:
        return f"{self.nodes} at {self.interval}{', strict' * self.strict}"

    @property
    def kinds(self) -> list[Kind]:
        """A client of a single node is not spread."""
        spreads = (True,) if self.nodes == 1 else (True, False)
        return [Kind(r, e, s) for r in RATIOS for e in spreads for s in (True, False)]


MAIN = Setting(4, "10ms")
SETTINGS = [Setting(n, i) for i in ("10ms", "5ms", "50ms", "0") for n in (1, 2, 4, 8)]
SETTINGS += [Setting(n, "0", strict=True) for n in (4, 8)]
QUICK = [MAIN, Setting(4, "0")]


@dataclass(frozen=True)
class Result:
    """What became of the clients, by kind, and what it took."""

    setting: Setting
    clients: dict[Kind, list[Client]]
    usage: Usage
    late: float
    slowest: float
    refusals_of_light: int

    def of(self, *ratios: float) -> list[Client]:
        return [c for kind, those in self.clients.items() if kind.ratio in ratios for c in those]

    @property
    def spreads(self) -> Figure | None:
        return _milliseconds(self.of(*RATIOS))

    def targets(self) -> Iterable[Target]:
        title = str(self.setting)
        below = self.of(0.5, 0.9)
        # At random moments, a client at 0.9 of its limit on the mean exceeds it at times.
        always = [c for c in below if c.ratio == 0.5 or c.steady]
        refused = sum(c.was_refused for c in always)
        yield Target(f"clients refused though always below, {title}", refused, 0, True)
        if not self.setting.strict:
            false = sum(c.was_refused and c.held <= RATE - INEXACT for c in below)
            yield Target(f"clients falsely refused at 0.5 and 0.9, {title}", false, 0, True)
        light = self.refusals_of_light
        yield Target(f"bytes of refusals to light clients, {title}", light, 0, True)
        missed = sum(c.was_refused and not c.done for c in self.of(*RATIOS))
        yield Target(f"clients whose block did not reach all nodes, {title}", missed, 0, True)
        if self.setting == MAIN:
            for kind, those in self.clients.items():
                if kind.ratio in BOUNDS:
                    name = f"above the limit, {title}, {kind}"
                    yield Target(name, _above(those), BOUNDS[int(kind.ratio)], True)
            if self.spreads is not None:
                yield Target(f"ms to the block on all, {title}", self.spreads.high, _BLOCK_MS, True)
        if self.setting.interval == "0":
            # Near the limit the edge of a window passes through the hits, unless strict.
            ratios = RATIOS if self.setting.strict else RATIOS[3:]
            most = max(c.worst for c in self.of(*ratios))
            name = f"hits in the worst window, {title}, from {ratios[0]:g}x on"
            yield Target(name, most, RATE, True)


def _above(clients: Iterable[Client]) -> float:
    """Return what was admitted above the limit in the worst window, as a part of it; a mean."""
    return statistics.mean(max(0, c.worst / RATE - 1) for c in clients)


def _milliseconds(clients: Iterable[Client]) -> Figure | None:
    """Return how long blocks took from the first refusal to all nodes, of those that did."""
    times = [1000 * c.spread for c in clients if c.was_refused and c.done]
    return Figure.of(times) if times else None


def _run(programs: Programs, server: Server, setting: Setting, number: int) -> Result:
    limit = f"strict = {str(setting.strict).lower()}"
    nodes = setting.nodes
    fleet = Fleet(programs, f"fleet{number}", nodes, server, setting.interval, limit=limit)
    order = random.Random(number)
    kinds = [kind for kind in setting.kinds for _ in range(_RUNS)]
    clients = [
        Client(i, kind.ratio, kind.even, kind.steady, nodes, order.uniform(0, _STAGGER))
        for i, kind in enumerate(kinds)
    ]
    by_kind: dict[Kind, list[Client]] = {kind: [] for kind in setting.kinds}
    for kind, client in zip(kinds, clients, strict=True):
        by_kind[kind].append(client)
    order.shuffle(clients)
    streams = streams_to(fleet, frames_of(LIGHT, LIGHT_CLIENTS), LIGHT_RATE)
    meter = Meter(fleet)
    checks, late, slowest = measure(fleet, clients, streams)
    usage = meter.usage(checks)
    for stream in streams:
        stream.sock.close()
    fleet.stop()
    refusals = sum(stream.excess for stream in streams)
    return Result(setting, by_kind, usage, late, slowest, refusals)


def run_accuracy(programs: Programs, server: Server, quick: bool) -> Report:
    """Measure what fleets of several sizes and intervals admit."""
    settings = QUICK if quick else SETTINGS
    results = []
    for number, setting in enumerate(settings):
        harness.progress(f"{setting} ({number + 1} of {len(settings)})")
        results.append(_run(programs, server, setting, number))
    note = f"{_RUNS} clients of each kind, limit {RATE} in 1 s, {LIGHT_CLIENTS:,} light clients "
    note += f"with {LIGHT_RATE:,} checks a second beside. "
    main = next(result for result in results if result.setting == MAIN)
    tables = (_kinds(main, note), _fleets(results, note), _costs(results, note))
    return Report(tables, tuple(target for result in results for target in result.targets()))


def _kinds(result: Result, note: str) -> Table:
    columns = (
        Column("admitted in the worst window, mean", "less", 1),
        Column("range", digits=0),
        Column("blocked, %", digits=0),
        Column("ms to the block on all", "less", 1),
    )
    rows = [
        Row.of(
            str(kind),
            statistics.mean(c.worst for c in clients),
            Figure.of(float(c.worst) for c in clients),
            100 * statistics.mean(c.was_refused for c in clients),
            _milliseconds(clients),
        )
        for kind, clients in result.clients.items()
    ]
    return Table("times its limit", f"{note}{result.setting}", columns, tuple(rows))


def _fleets(results: list[Result], note: str) -> Table:
    above = [ratio for ratio in RATIOS if ratio > 1]
    columns = (
        *(Column(f"above the limit at {ratio:g}x, %", "less", 1) for ratio in above),
        Column("ms to the block on all", "less", 1),
        Column("refused at 0.9x", digits=0),
        Column(f"with more than {RATE} hits", digits=0),
        Column(f"with {RATE - INEXACT + 1} to {RATE}", digits=0),
        Column("with fewer", "less", 0),
    )
    rows = []
    for result in results:
        held = [client.held for client in result.of(0.9) if client.was_refused]
        rows.append(
            Row.of(
                str(result.setting),
                *(100 * _above(result.of(ratio)) for ratio in above),
                result.spreads,
                len(held),
                sum(hits > RATE for hits in held),
                sum(RATE - INEXACT < hits <= RATE for hits in held),
                sum(hits <= RATE - INEXACT for hits in held),
            )
        )
    text = f"{note}The mean of what is admitted above the limit in the worst window; clients "
    text += "refused at 0.9 of it, by all hits of the window before, from an exact log"
    return Table("nodes, admitted", text, columns, tuple(rows), drawn=False)


def _costs(results: list[Result], note: str) -> Table:
    columns = (
        Column("checks", digits=0),
        Column("Redis commands a check", "less", 4),
        Column("Redis CPU us a check", "less"),
        Column("bytes a check", "less", 1),
        Column("agent CPU us a check", "less"),
        Column("hits late by ms", digits=0),
        Column("slowest answer, ms", "less", 1),
    )
    rows = [
        Row.of(
            str(result.setting),
            result.usage.checks,
            result.usage.per_check(result.usage.commands),
            result.usage.redis_us,
            result.usage.per_check(result.usage.octets),
            result.usage.agent_us,
            1000 * result.late,
            1000 * result.slowest,
        )
        for result in results
    ]
    return Table("nodes, cost", f"{note}What the runs cost", columns, tuple(rows), drawn=False)
