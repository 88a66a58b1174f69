"""A flood of 20,000 requests a second beside visitors, through HAProxy as shipped.

``python -m benchmarks.flood`` sends what 500 visitors ask for, all the time, and in every second
turn what 100 attackers do, each from an address of its own (``paced.c``). Visitors' answers are
timed from when their requests were due, and each turn with the flood is compared with the one
before it. How much of the flood got how far, its clients and the agent count. Run by root, all of
them come before what else the machine does, and the visitors' client, which measures, first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import command, harness
from benchmarks.end_to_end import APPLICATION, SHIPPED, HAProxy
from benchmarks.harness import Figure, Target
from benchmarks.report import Column, Report, Row, Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from benchmarks.harness import Program, Programs

TURN = 9
"""Seconds. Each time a block ends, an attacker gets its limit through once more; so the share of
the flood that gets through depends on its length. In four turns that happens twice, in sixteen
three times."""

_GRACE = 5  # seconds beyond its time after which a load is ended


@dataclass(frozen=True)
class Crowd:
    """Clients of one kind: their first address, and their requests a second in all."""

    source: str
    clients: int
    rate: int


VISITORS = Crowd("127.10.0.1", 500, 500)
ATTACKERS = Crowd("127.66.0.1", 100, 20_000)


@dataclass(frozen=True)
class Load:
    """What a crowd got in one turn; ``took`` is nanoseconds of each admitted request."""

    sent: int
    allowed: int
    refused: int
    failed: int
    withheld: int
    leaked: int
    late_p99_us: float
    took: array[int]


class Sender:
    """A crowd under way, in a process of its own; ``measures`` if its times are what counts."""

    def __init__(
        self,
        program: str,
        port: str,
        crowd: Crowd,
        seed: int,
        seconds: float = TURN,
        measures: bool = True,
    ) -> None:
        self._seconds = seconds
        command = [program, port, crowd.source, str(crowd.clients), str(crowd.rate)]
        self._process = subprocess.Popen(
            [*command, str(seconds), str(seed)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        if measures:
            harness.put_first(self._process)

    def result(self) -> Load:
        try:
            output, _ = self._process.communicate(timeout=self._seconds + _GRACE)
        finally:
            self._process.kill()
        if self._process.returncode:
            sys.exit(f"{self._process.args!r} failed")
        line, _, took = output.partition(b"\n")
        return Load(**json.loads(line), took=array("I", took))


@dataclass(frozen=True)
class Turn:
    """What came of a turn; CPU in cores."""

    visitors: Load
    attackers: Load | None
    haproxy: float
    agent: float
    application: float


class Arena:
    """HAProxy as shipped, an agent with an empty configuration, and an application."""

    def __init__(self, programs: Programs, config: Path, threads: int) -> None:
        backend, spop = harness.free_address(), harness.free_address()
        haproxy = harness.find("haproxy") or "haproxy"
        self.application = programs.start(
            "application", [haproxy, "-db", "-f", str(APPLICATION)], {"BENCH_LISTEN": backend}
        )
        self.agent = programs.agent("agent", "compiled", spop)
        self.haproxy = HAProxy(
            programs,
            "haproxy",
            config,
            self.agent,
            RATELIMIT_BACKEND=backend,
            RATELIMIT_SPOP=spop,
            RATELIMIT_THREADS=str(threads),
        )
        self._paced = programs.compiled("paced")
        self._turns = 0

    def turn(self, flood: bool) -> Turn:
        self._turns += 1
        programs: list[Program] = [self.haproxy.program, self.agent, self.application]
        port = self.haproxy.address.rpartition(":")[2]
        before = [program.cpu() for program in programs]
        begin = time.monotonic()
        visitors = Sender(self._paced, port, VISITORS, self._turns)
        attackers = None
        if flood:
            attackers = Sender(self._paced, port, ATTACKERS, -self._turns, measures=False)
        loads = [sender.result() for sender in (visitors, attackers) if sender]
        seconds = time.monotonic() - begin
        after = [program.cpu() for program in programs]
        cores = [(a - b) / seconds / 1e9 for a, b in zip(after, before, strict=True)]
        return Turn(loads[0], loads[1] if flood else None, *cores)


def latency(turns: Sequence[Turn], share: float) -> float:
    """Return a percentile of the visitors' answers in all these turns, in milliseconds."""
    took = sorted(value for turn in turns for value in turn.visitors.took)
    return took[int(len(took) * share)] / 1e6


def report(quiet: list[Turn], floods: list[Turn], checks: int, order: str) -> Report:
    """Return what came of turns, in pairs, and of how many checks the agent did in them.

    ``order`` says what these programs come before.
    """
    visits = [turn.visitors for turn in quiet + floods]
    attacks = [turn.attackers for turn in floods if turn.attackers]
    sent = sum(load.sent for load in attacks)
    asked = checks - sum(load.sent for load in visits)
    lost = sum(load.failed + load.withheld for load in visits)
    ratio = Figure.of(
        latency([with_it], 0.99) / latency([without], 0.99)
        for with_it, without in zip(floods, quiet, strict=True)
    )
    both = (("alone", quiet), ("beside the flood", floods))
    visitors = Table(
        "visitors",
        f"{len(quiet)} turns of {TURN} s each, {order}; milliseconds from when a request was"
        " due; attackers earn their blocks in the slowest turns",
        (
            Column("p50", "less"),
            Column("p99", "less"),
            Column("p99.9", "less"),
            Column("p99 of all turns at once", "less"),
        ),
        tuple(
            Row.of(
                name,
                *(
                    Figure.of(latency([turn], share) for turn in turns)
                    for share in (0.5, 0.99, 0.999)
                ),
                latency(turns, 0.99),
            )
            for name, turns in both
        ),
    )
    work = Table(
        "turns",
        "requests a second; how late the clients sent them, p99 in milliseconds; cores used",
        (
            Column("visits", digits=0),
            Column("late"),
            Column("flood", digits=0),
            Column("late, flood"),
            Column("HAProxy", "less"),
            Column("agent", "less"),
            Column("application", "less"),
        ),
        tuple(
            Row.of(
                name,
                Figure.of(turn.visitors.sent / TURN for turn in turns),
                Figure.of(turn.visitors.late_p99_us / 1000 for turn in turns),
                Figure.of(load.sent / TURN for load in attacks) if turns is floods else None,
                Figure.of(load.late_p99_us / 1000 for load in attacks) if turns is floods else None,
                Figure.of(turn.haproxy for turn in turns),
                Figure.of(turn.agent for turn in turns),
                Figure.of(turn.application for turn in turns),
            )
            for name, turns in both
        ),
    )
    counts = {
        "sent": sent,
        "reached the agent": asked,
        "admitted": sum(load.allowed for load in attacks),
        "got no answer": sum(load.failed for load in attacks),
        "not sent, too many without an answer": sum(load.withheld for load in attacks),
    }
    flood = Table(
        "requests of the flood",
        "how far they got",
        (Column("count", digits=0), Column("%", "less")),
        tuple(Row.of(name, count, 100 * count / sent) for name, count in counts.items()),
    )
    return Report(
        (visitors, work, flood),
        (
            Target("flood, requests a second", sent / len(floods) / TURN, 19_500, at_most=False),
            Target("visitors refused", sum(load.refused for load in visits), 0, at_most=True),
            Target("visitors' requests that failed", lost, 0, at_most=True),
            Target("visitors' p99 beside the flood : alone", ratio.median, 1.5, at_most=True),
            Target("share of the flood that reached the agent", asked / sent, 0.03, at_most=True),
            Target(
                "flood admitted beyond the limit",
                sum(load.leaked for load in attacks),
                0,
                at_most=True,
            ),
        ),
    )


def run(programs: Programs, options: argparse.Namespace) -> Report:
    order = harness.take_precedence()
    arena = Arena(programs, options.config, options.threads)
    turns: list[tuple[Turn, Turn]] = []
    for number in range(options.rounds):
        harness.progress(f"round {number + 1} of {options.rounds}")
        turns.append((arena.turn(flood=False), arena.turn(flood=True)))
    arena.agent.stop()
    quiet, floods = zip(*turns, strict=True)
    return report(list(quiet), list(floods), arena.agent.checks(), order)


def arguments(parser: argparse.ArgumentParser) -> None:
    cores = os.cpu_count() or 1
    parser.add_argument("--config", type=Path, default=SHIPPED, help="another haproxy.cfg")
    parser.add_argument("--threads", type=int, default=cores, help="of HAProxy (one a core)")


if __name__ == "__main__":
    command.main("flood", __doc__, run, rounds=(16, 4), arguments=arguments)
