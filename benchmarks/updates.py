"""The CPU cost of a request in peers mode in the agent, without HAProxy.

``python -m benchmarks.updates`` connects to an agent as HAProxy does, and sends pre-built updates
of a count table: two for each request, one when it begins and one when it has ended, with other
clients' in between. The agent and this program have a core each, if there are two. CPU times are
the agent's own, user and system, as the kernel's scheduler accounts them.

The tables are that of the shipped configuration, and one with all counters that limits can use.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import dataclass

from benchmarks.harness import command
from benchmarks.harness.edge import ALL_COUNTERS, RATED, Edge, counts, key
from benchmarks.harness.haproxy import ALLOWING
from benchmarks.harness.programs import Programs, free_address, pin, progress
from benchmarks.harness.report import Column, Figure, Report, Table, Target
from benchmarks.harness.spop import CLIENTS, KNOWN, PLACES
from tests.helpers.peers_wire import update

FEW = 20_000
MANY = 500_000
LOADS = {
    f"{FEW:,} clients in turn": (FEW, RATED),
    f"{MANY:,} clients in turn": (MANY, RATED),
    f"{FEW:,} clients in turn, all counters": (FEW, ALL_COUNTERS),
}
RATE = 1_000_000
COST = 0.6
"""Updates a second, at least; CPU microseconds of a request, at most."""

_BETWEEN = 64
"""Requests that begin before one ends."""

_COUNT = b"\xf1\xf2\xf3"  # in a template, the number of the round
_ROUND = 2288  # of the first; these numbers take three bytes


@dataclass(frozen=True)
class Sample:
    """One load: updates, seconds, and the CPU nanoseconds of the agent."""

    updates: int
    seconds: float
    cpu: int


def values(types: tuple[int, ...], begins: bool) -> list[int | bytes]:
    """Return the values of an update when a request begins or has ended."""
    told: dict[int, list[int | bytes]] = {9: [_COUNT], 10: [10, _COUNT, 0], 22: [1_000_000]}
    if begins:
        told[6] = [1]
    else:
        told |= {13: [80_000], 15: [500_000]}
    return [value for kind in types for value in told.get(kind, [0])]


def template(clients: int, types: tuple[int, ...]) -> bytes:
    """Return two updates for each client, with a place for the counter."""
    begins, ends = (
        [update(n, key(KNOWN + n), *values(types, begin)) for n in range(clients)]
        for begin in (True, False)
    )
    ends = ends[-_BETWEEN:] + ends[:-_BETWEEN]
    return b"".join(part for pair in zip(begins, ends, strict=True) for part in pair)


def filled(data: bytes, number: int) -> bytes:
    """Return updates with a counter that takes three bytes."""
    low, high = (number - 240) & 15 | 0xF0, (number - 240) >> 4
    return data.replace(_COUNT, bytes((low, (high - 128) & 0x7F | 0x80, (high - 128) >> 7)))


def run(programs: Programs, options: argparse.Namespace) -> Report:
    pin()
    path = str(programs.folder / "peers")
    config = f'peers = ["unix://{path}"]\nmax_clients = {CLIENTS}\n{ALLOWING}'
    agent = programs.agent("updates", "compiled", free_address(), config)
    agent.pin(PLACES[next(reversed(PLACES))])
    numbers = itertools.count(_ROUND)

    def load(edge: Edge, clients: int, types: tuple[int, ...], seconds: float) -> Sample:
        """Send whole rounds for a time; each has one request of each client."""
        rounds = prepared[clients, types]
        cpu, start, sent = agent.cpu(), time.perf_counter(), 0
        while not sent or time.perf_counter() - start < seconds:
            edge.send(filled(rounds, next(numbers)))
            sent += 2 * clients
        edge.finish()  # the agent confirms it once it has read all
        return Sample(sent, time.perf_counter() - start, agent.cpu() - cpu)

    progress("preparing")
    prepared = {load: template(*load) for load in LOADS.values()}
    rows: dict[str, list[Figure | None]] = {}
    targets = []
    for number, (name, (clients, types)) in enumerate(LOADS.items()):
        progress(name)
        # Another HAProxy for each, because a table keeps its types.
        edge = Edge(path, counts(types), f"edge{number}")
        edge.finish()
        load(edge, clients, types, 0)
        samples = [load(edge, clients, types, options.seconds) for _ in range(options.rounds)]
        edge.sock.close()
        rate = Figure.of(sample.updates / sample.seconds for sample in samples)
        cost = Figure.of(2 * sample.cpu / sample.updates / 1000 for sample in samples)
        rows[name] = [rate, cost]
        if clients == FEW:
            title = f"updates a second, {name}"
            targets.append(Target(title, rate.median, RATE, at_most=False))
            targets.append(Target(f"CPU us a request, {name}", cost.median, COST))
    columns = (Column("updates a second", "more", 0), Column("CPU us a request", "less", 3))
    sizes = sorted(len(data) / 2 / load[0] for load, data in prepared.items())
    note = f"one session, unix socket, {sizes[0]:.0f} to {sizes[-1]:.0f} bytes an update"
    return Report((Table.of("updates", note, columns, rows),), tuple(targets))


if __name__ == "__main__":
    command.main("updates", __doc__, run, rounds=(7, 3), seconds=(1.0, 0.5))
