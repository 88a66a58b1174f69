"""How many requests of one client are admitted above its limit, by SPOE and by peers.

``python -m benchmarks.admitted`` limits one client to 100 requests a second, through real
HAProxies, and compares the modes in turns.

Within a second: a limit that does not block. The client sends at 2 to 30 times its limit over one
kept-alive connection to one HAProxy; then over four connections to four HAProxies, which have two
agents that share a Redis. The figure is the most answers other than refusals that the client
received within any second. In peers mode the verdict arrives after some further requests.

In a flood: a limit that blocks, as shipped. The client sends 20,000 requests a second and more over
64 connections to an HAProxy with several threads. The figure is the number of requests that are
admitted before the block. In peers mode, HAProxy's own cap of twice the rate bounds it.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import IPv4Address

from benchmarks.harness import command, versions
from benchmarks.harness.arrivals import RATE
from benchmarks.harness.fleet import await_sharing
from benchmarks.harness.haproxy import Guard, HAProxy, Mode
from benchmarks.harness.http import Crowd, Sender
from benchmarks.harness.programs import Programs, rounds
from benchmarks.harness.report import Column, Report, Table, Target

MARGINS = {200: 2, 1_000: 2, 3_000: 5}
"""Requests a second, and how many more than by SPOE may be admitted by peers."""

FLOODS = (20_000, 60_000)
THREADS = (1, 2, 4)
CONNECTIONS = 64

CAP = 2 * RATE
"""The most requests of a flood that an HAProxy may admit before the block."""

_NODES = 2
_FLOOD_SECONDS = 2
_FIRST = 0x7F320000  # 127.50.0.0

_COUNTING = f"[limits.default]\nrate = {RATE}\nblock = []\n"
_BLOCKING = f"[limits.default]\nrate = {RATE}\n"
_ONE, _FOUR = "one HAProxy", "four HAProxies, two agents"


def most(times: Sequence[float]) -> int:
    """Return the most of these times, in seconds, that are within less than a second."""
    ordered = sorted(times)
    first = found = 0
    for last, at in enumerate(ordered):
        while ordered[first] <= at - 1:
            first += 1
        found = max(found, last - first + 1)
    return found


@dataclass(frozen=True)
class Turn:
    """The requests a second that were sent, and the times at which those admitted were answered."""

    rate: float
    admitted: tuple[float, ...]


@dataclass(frozen=True)
class Way:
    """HAProxies of a mode in front of which one client sends."""

    name: str
    mode: Mode
    haproxies: tuple[HAProxy, ...]


class Setup:
    """All HAProxies, and clients that no HAProxy has seen before."""

    def __init__(self, programs: Programs, modes: Sequence[Mode]) -> None:
        self._programs = programs
        self._paced = programs.compiled("paced")
        self._clients: Iterator[int] = itertools.count(_FIRST)
        self._server, _ = programs.redis()
        _, address = programs.application()
        self._backend = {"RATELIMIT_BACKEND": address}
        self.counting = [way for mode in modes for way in (self._one(mode), self._four(mode))]
        self.blocking = [way for mode in modes for way in self._blocking(mode)]

    def _one(self, mode: Mode) -> Way:
        guard = Guard(self._programs, f"{mode}-one", _COUNTING)
        return Way(_ONE, mode, (guard.haproxy(mode, f"{mode}-one", **self._backend),))

    def _four(self, mode: Mode) -> Way:
        store = f'[store]\nurl = "{self._server.url}"\nprefix = "{mode}"\n'
        names = [f"{mode}-node{number}" for number in range(_NODES)]
        guards = [Guard(self._programs, name, _COUNTING + store) for name in names]
        for guard in guards:
            await_sharing(self._server, guard.spop, RATE // (2 * _NODES) + 1)
        haproxies = tuple(
            guard.haproxy(mode, f"{name}-{number}", **self._backend)
            for guard, name in zip(guards, names, strict=True)
            for number in range(2)
        )
        return Way(_FOUR, mode, haproxies)

    def _blocking(self, mode: Mode) -> Iterator[Way]:
        guard = Guard(self._programs, f"{mode}-block", _BLOCKING)
        for threads in THREADS:
            settings = {"RATELIMIT_THREADS": str(threads), **self._backend}
            haproxy = guard.haproxy(mode, f"{mode}-{threads}-threads", **settings)
            yield Way(f"nbthread {threads}", mode, (haproxy,))

    def turn(self, way: Way, rate: float, connections: int, seconds: float) -> Turn:
        """Send the requests of a new client, ``connections`` to each HAProxy."""
        client = next(self._clients)
        crowd = Crowd(str(IPv4Address(client)), connections, rate / len(way.haproxies), step=0)
        senders = [
            Sender(self._paced, haproxy.address, crowd, client * 4 + number, seconds)
            for number, haproxy in enumerate(way.haproxies)
        ]
        results = [sender.result() for sender in senders]
        answered = tuple(
            request.due + request.took
            for result in results
            for request in result.requests()
            if request.status == HTTPStatus.OK
        )
        return Turn(sum(result.sent for result in results) / seconds, answered)


Samples = dict[tuple[str, float, Mode], list[Turn]]


def within_a_second(samples: Samples, modes: Sequence[Mode]) -> Report:
    """Report the most that were admitted within any second, by row and mode."""
    rows: dict[str, list[list[int]]] = {}
    targets = []
    for name, rate in dict.fromkeys((name, rate) for name, rate, _ in samples):
        found = [[most(t.admitted) for t in samples[name, rate, mode]] for mode in modes]
        title = f"{name}, {rate:,.0f} a second"
        rows[title] = found
        if len(found) > 1:
            spoe, peers = (max(some) for some in found)
            bound = spoe + MARGINS[int(rate)]
            targets.append(Target(f"admitted in a second by peers, {title}", peers, bound))
    columns = [Column(mode, "less", 0) for mode in modes]
    note = f"one client with a limit of {RATE} a second that does not block; the most requests "
    note += "admitted within any second"
    return Report((Table.of("within a second", note, columns, rows),), tuple(targets))


def in_a_flood(samples: Samples, modes: Sequence[Mode]) -> Report:
    """Report how many requests were admitted before the block, by row and mode."""
    rows: dict[str, list[Sequence[float]]] = {}
    targets = []
    for name, rate in dict.fromkeys((name, rate) for name, rate, _ in samples):
        turns = [samples[name, rate, mode] for mode in modes]
        found = [[len(turn.admitted) for turn in some] for some in turns]
        title = f"{name}, {rate:,.0f} a second"
        rows[title] = [*found, [turn.rate for some in turns for turn in some]]
        if "peers" in modes:
            worst = max(found[modes.index("peers")])
            targets.append(Target(f"admitted before the block by peers, {title}", worst, CAP))
    columns = [Column(mode, "less", 0) for mode in modes]
    note = f"one client with {CONNECTIONS} connections, a limit of {RATE} a second, and blocks as "
    note += "shipped; the requests admitted before the block"
    columns.append(Column("sent a second", digits=0))
    return Report((Table.of("in a flood", note, columns, rows),), tuple(targets))


def run(programs: Programs, options: argparse.Namespace) -> Report:
    versions.choose(programs, options)
    modes = command.modes(options)
    setup = Setup(programs, modes)
    counted: Samples = {}
    flooded: Samples = {}
    steps = [(counted, way, rate, 1) for rate in MARGINS for way in setup.counting]
    steps += [(flooded, way, rate, CONNECTIONS) for rate in FLOODS for way in setup.blocking]
    for taken, way, rate, connections in rounds(options.rounds, steps):
        seconds = options.seconds if taken is counted else _FLOOD_SECONDS
        turn = setup.turn(way, rate, connections, seconds)
        taken.setdefault((way.name, rate, way.mode), []).append(turn)
    return Report.joined([within_a_second(counted, modes), in_a_flood(flooded, modes)])


def arguments(parser: argparse.ArgumentParser) -> None:
    command.mode_argument(parser)
    versions.arguments(parser)


if __name__ == "__main__":
    command.main("admitted", __doc__, run, rounds=(5, 1), seconds=(3, 3), arguments=arguments)
