"""Whether answers wait while the agent takes 100,000 networks anew.

``python -m benchmarks.reload`` sends an agent a steady load, one frame at a time on each of a few
connections, by turns with a reload and without one. Each answer is timed; those of both kinds of
turn meet what else the machine does, so what a reload adds is the difference. The networks are in
a file of theirs or in the configuration itself. Then it compares what an agent without lists and
one with them need in memory.
"""

from __future__ import annotations

import random
import select
import signal
import time
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from benchmarks import command, harness
from benchmarks.harness import Figure, Program, Programs, Target
from benchmarks.report import Column, Report, Row, Table
from tests.helpers import wire

if TYPE_CHECKING:
    import argparse
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

NETWORKS = 100_000
CONNECTIONS = 8
RATE = 2000  # checks a second on all connections
_TURN = 2.0  # seconds
_SLOW = 5  # milliseconds
_MIB = 1 << 20


def networks(count: int, seed: int) -> list[str]:
    """Return different networks, of which none is one that the load comes from."""
    rnd = random.Random(seed)
    found: set[IPv4Network] = set()
    while len(found) < count:
        prefix = rnd.randrange(16, 33)
        address = rnd.randrange(0x20000000, 0xE0000000) >> (32 - prefix) << (32 - prefix)
        found.add(IPv4Network((address, prefix)))
    return [str(network) for network in found]


class Load:
    """Frames at a steady rate, each of a client of its own; answers are timed one by one."""

    def __init__(self, address: str) -> None:
        self._socks = [harness.connect(address) for _ in range(CONNECTIONS)]
        self._sent: dict[socket.socket, float] = {}
        self._next = 0

    def run(self, seconds: float) -> list[float]:
        """Return how many milliseconds the answer to each frame took."""
        clock = time.perf_counter
        found: list[float] = []
        begin = clock()
        count = 0
        while (now := clock()) - begin < seconds or self._sent:
            due = int((now - begin) * RATE) - count
            for sock in self._socks:
                if due > 0 and now - begin < seconds and sock not in self._sent:
                    self._next += 1
                    key = b"\x06" + (0x0A000000 + self._next % 100_000).to_bytes(4)
                    self._sent[sock] = clock()
                    sock.sendall(wire.notify(wire.message("default", key=key)))
                    count += 1
                    due -= 1
            for sock in select.select(self._socks, [], [], 0.0002)[0]:
                sock.recv(1 << 16)
                found.append(1000 * (clock() - self._sent.pop(sock)))
        return found

    def close(self) -> None:
        for sock in self._socks:
            sock.close()


def turn(program: Program, load: Load, number: int) -> tuple[list[float], float]:
    """Return how many milliseconds each answer of a turn took, and the seconds of its reload.

    With ``number`` 0 there is none, else it is the agent's so manieth.
    """
    start = time.perf_counter()
    if number:
        program.process.send_signal(signal.SIGHUP)
    answers: list[float] = []
    took = 0.0
    waits = number > 0
    while waits or time.perf_counter() - start < _TURN:
        answers += load.run(0.05)
        if program.log.read_text().count("configuration reloaded") >= number and waits:
            waits = False
            took = time.perf_counter() - start
    return answers, took


@dataclass
class Way:
    """How an agent is given its networks, and what was found of it."""

    name: str
    write: Callable[[Path, list[str]], str]
    quiet: list[list[float]] = field(default_factory=list)
    during: list[list[float]] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    memory: float = 0

    def figures(self) -> Iterator[Figure | float]:
        pairs = list(zip(self.quiet, self.during, strict=True))
        for turns in (self.quiet, self.during):
            yield Figure.of(max(answers) for answers in turns)
        yield Figure.of(max(during) - max(quiet) for quiet, during in pairs)
        for turns in (self.quiet, self.during):
            every = [took for answers in turns for took in answers]
            yield 1e6 * sum(took > _SLOW for took in every) / len(every)
        yield Figure.of(self.took)
        yield self.memory


_ROWS = (
    "slowest answer of a turn without a reload, ms",
    "slowest answer of a turn with one, ms",
    "the one above the other, ms",
    f"answers slower than {_SLOW} ms without, per million",
    f"answers slower than {_SLOW} ms with one, per million",
    "a reload, s",
    "memory for the lists, MiB",
)


def _in_file(folder: Path, found: list[str]) -> str:
    file = folder / "deny.lst"
    file.write_text("\n".join(found))
    return f'deny_files = ["{file}"]'


def _in_configuration(_: Path, found: list[str]) -> str:
    return "deny = [\n" + "".join(f'    "{network}",\n' for network in found) + "]"


def run(programs: Programs, options: argparse.Namespace) -> Report:
    rounds = options.rounds
    ways = (Way("in a file", _in_file), Way("in the configuration", _in_configuration))
    bare = programs.agent("bare", "compiled", harness.free_address())
    for way in ways:
        name = way.name.replace(" ", "-")
        address = harness.free_address()

        def lists(seed: int, way: Way = way) -> str:
            return f"[lists]\n{way.write(programs.folder, networks(NETWORKS, seed))}\n"

        program = programs.agent(name, "compiled", address, lists(0))
        file = programs.folder / f"{name}.toml"
        head = file.read_text().partition("[lists]")[0]
        load = Load(address)
        load.run(1)
        for number in range(1, rounds + 1):
            harness.progress(f"{way.name}: reload {number} of {rounds}")
            file.write_text(head + lists(number))
            # In turns, one right after the other, each first as often as the other.
            for reloads in (True, False) if number % 2 else (False, True):
                answers, took = turn(program, load, number if reloads else 0)
                (way.during if reloads else way.quiet).append(answers)
                if reloads:
                    way.took.append(took)
        way.memory = (program.rss() - bare.rss()) / _MIB
        load.close()
        program.stop()
    cells = zip(*(way.figures() for way in ways), strict=True)
    table = Table(
        "reload",
        f"{NETWORKS:,} networks, {RATE:,} checks a second, {rounds} reloads of each",
        tuple(Column(way.name, "less") for way in ways),
        tuple(Row.of(name, *row) for name, row in zip(_ROWS, cells, strict=True)),
        drawn=False,
    )
    targets = []
    for way in ways:
        _, _, delay, _, _, seconds, memory = way.figures()
        for name, value, bound in (
            ("answers delayed by a reload, ms", delay, 5),
            ("a reload, s", seconds, 2),
            ("memory for the lists, MiB", memory, 64),
        ):
            found = value.median if isinstance(value, Figure) else value
            targets.append(Target(f"{way.name}: {name}", found, bound, at_most=True))
    return Report((table,), tuple(targets))


if __name__ == "__main__":
    command.main("reload", __doc__, run, rounds=(15, 5))
