"""The delay of answers while the agent reads 100,000 networks again.

``python -m benchmarks.reload`` sends an agent a steady load, one frame at a time on each of a few
connections, in turns with a reload and without one. Other work of the machine affects both kinds of
turn, so the difference is the delay by a reload. The networks are in a file of their own or in the
configuration. Then it compares the memory of an agent without lists and of one with them.
"""

from __future__ import annotations

import argparse
import itertools
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import command
from benchmarks.harness.programs import MIB, Program, Programs, free_address, progress
from benchmarks.harness.report import Column, Figure, Report, Table, Target
from benchmarks.harness.spop import ADDRESSES, KNOWN, NETWORKS, Probe, networks

CONNECTIONS = 8
RATE = 2000  # checks a second on all connections
_TURN = 2.0  # seconds
_SLOW = 5  # milliseconds


class Load:
    """Frames at a steady rate, each of another client; answers are timed one by one."""

    def __init__(self, address: str) -> None:
        probes = [Probe(address) for _ in range(CONNECTIONS)]
        self._probes = {probe.sock: probe for probe in probes}
        self._clients = itertools.cycle(range(KNOWN, KNOWN + ADDRESSES))

    def run(self, seconds: float) -> list[float]:
        """Return the milliseconds of each answer."""
        probes = self._probes.values()
        for probe in probes:
            probe.seconds = []
        begin = time.perf_counter()
        count = 0
        while (now := time.perf_counter() - begin) < seconds or any(p.asked for p in probes):
            due = int(now * RATE) - count if now < seconds else 0
            for probe in itertools.islice((p for p in probes if p.asked is None), max(due, 0)):
                probe.send(next(self._clients))
                count += 1
            for sock in select.select(list(self._probes), [], [], 0.0002)[0]:
                self._probes[sock].receive()
        return [1000 * took for probe in probes for took in probe.seconds]


def turn(program: Program, load: Load, number: int) -> tuple[list[float], float]:
    """Return the milliseconds of each answer of a turn, and the seconds of its reload.

    ``number`` counts the reloads of the agent; with 0 the turn has none.
    """
    start = time.perf_counter()
    if number:
        program.process.send_signal(signal.SIGHUP)
    answers: list[float] = []
    took = 0.0
    while (number and not took) or time.perf_counter() - start < _TURN:
        answers += load.run(0.05)
        if not took and len(program.logged("configuration reloaded")) >= number > 0:
            took = time.perf_counter() - start
    return answers, took


@dataclass
class Way:
    """A place of the networks, and the results with it: milliseconds of each answer of a turn."""

    name: str
    write: Callable[[Path, list[str]], str]
    quiet: list[list[float]] = field(default_factory=list)
    during: list[list[float]] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    memory: float = 0

    def figures(self) -> dict[str, Figure]:
        """Return the results by the name of their row."""
        pairs = zip(self.quiet, self.during, strict=True)
        return {
            "slowest answer of a turn without a reload, ms": Figure.of(map(max, self.quiet)),
            "slowest answer of a turn with one, ms": Figure.of(map(max, self.during)),
            "the second minus the first, ms": Figure.of(max(b) - max(a) for a, b in pairs),
            f"answers slower than {_SLOW} ms without, per million": _slow(self.quiet),
            f"answers slower than {_SLOW} ms with one, per million": _slow(self.during),
            "a reload, s": Figure.of(self.took),
            "memory for the lists, MiB": Figure.of([self.memory]),
        }


def _slow(turns: list[list[float]]) -> Figure:
    """Return how many of a million answers are slow."""
    answers = list(itertools.chain.from_iterable(turns))
    return Figure.of([1e6 * sum(took > _SLOW for took in answers) / len(answers)])


def _in_file(folder: Path, found: list[str]) -> str:
    file = folder / "deny.lst"
    file.write_text("\n".join(found))
    return f'deny_files = ["{file}"]'


def _in_configuration(_: Path, found: list[str]) -> str:
    return "deny = [\n" + "".join(f'    "{network}",\n' for network in found) + "]"


def measure(programs: Programs, way: Way, rounds: int, bare: int) -> None:
    """Measure turns with and without a reload, and the memory above that of a bare agent."""

    def lists(seed: int) -> str:
        return f"[lists]\n{way.write(programs.folder, networks(NETWORKS, seed))}\n"

    name, address = way.name.replace(" ", "-"), free_address()
    program = programs.agent(name, "compiled", address, lists(0))
    file = programs.folder / f"{name}.toml"
    head = file.read_text().partition("[lists]")[0]
    load = Load(address)
    load.run(1)
    for number in range(1, rounds + 1):
        progress(f"{way.name}: reload {number} of {rounds}")
        file.write_text(head + lists(number))
        # One right after the other, each first as often as the other.
        for reloads in (True, False) if number % 2 else (False, True):
            answers, took = turn(program, load, number if reloads else 0)
            (way.during if reloads else way.quiet).append(answers)
            way.took += [took] * reloads
    way.memory = (program.rss() - bare) / MIB
    program.stop()


def run(programs: Programs, options: argparse.Namespace) -> Report:
    ways = (Way("in a file", _in_file), Way("in the configuration", _in_configuration))
    bare = programs.agent("bare", "compiled", free_address())
    for way in ways:
        measure(programs, way, options.rounds, bare.rss())
    found = [way.figures() for way in ways]
    table = Table.of(
        "reload",
        f"{NETWORKS:,} networks, {RATE:,} checks a second, {options.rounds} reloads of each",
        [Column(way.name, "less") for way in ways],
        {row: [figures[row] for figures in found] for row in found[0]},
        drawn=False,
    )
    targets = []
    for way, figures in zip(ways, found, strict=True):
        _, _, delay, _, _, seconds, memory = (figure.median for figure in figures.values())
        targets += [
            Target(f"{way.name}: answers delayed by a reload, ms", delay, 5),
            Target(f"{way.name}: a reload, s", seconds, 2),
            Target(f"{way.name}: memory for the lists, MiB", memory, 64),
        ]
    return Report((table,), tuple(targets))


if __name__ == "__main__":
    command.main("reload", __doc__, run, rounds=(15, 5))
