"""A flood of 20,000 requests a second next to normal visitors, through HAProxy as shipped.

``python -m benchmarks.flood`` sends the requests of 500 visitors all the time, and in every second
turn those of 100 attackers, each from an address of its own (``paced.c``). Visitors' answers are
timed from when their requests were due, and each turn with the flood is compared with the one
before it. The clients and the agent count how far the flood got. Run by root, all programs have
priority over other work of the machine, and the visitors' client, which measures, over the others.

HAProxy asks the agent by SPOE, or with ``--mode=peers`` has it as a peer: then the agent hears of
the requests, and some pass before its verdict arrives.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.harness import command, versions
from benchmarks.harness.haproxy import Guard, Mode
from benchmarks.harness.http import Api, Crowd, Paced, Sender
from benchmarks.harness.programs import Programs, progress, take_precedence
from benchmarks.harness.report import Column, Figure, Report, Table, Target

TURN = 9
"""Seconds. An attacker passes its limit once more at the end of each block, so the share of the
flood that passes depends on the length: twice in four turns, three times in sixteen."""

BEYOND: dict[Mode, float] = {"spoe": 0, "peers": 2}
"""Percent of the admitted requests of the flood that may be beyond the limit: two of a hundred."""

VISITORS = Crowd("127.10.0.1", 500, 500)
ATTACKERS = Crowd("127.66.0.1", 100, 20_000)


@dataclass(frozen=True)
class Turn:
    """The results of a turn; CPU in cores."""

    visitors: Paced
    attackers: Paced | None
    haproxy: float
    agent: float
    application: float

    @property
    def p99(self) -> float:
        return latency([self], 0.99)


def latency(turns: Sequence[Turn], share: float) -> float:
    """Return a percentile of the visitors' answers in all these turns, in milliseconds."""
    took = sorted(value for turn in turns for value in turn.visitors.took())
    return took[int(len(took) * share)] / 1e6


class Arena:
    """HAProxy as shipped with a thread for each core, an agent, and an application."""

    def __init__(self, programs: Programs, mode: Mode) -> None:
        self.application, backend = programs.application()
        guard = Guard(programs, "agent", "")
        self.agent = guard.program
        settings = {"RATELIMIT_BACKEND": backend, "RATELIMIT_THREADS": str(os.cpu_count() or 1)}
        self.haproxy = guard.haproxy(mode, "haproxy", **settings)
        self._paced = programs.compiled("paced")
        self._turns = 0

    def turn(self, flood: bool) -> Turn:
        self._turns += 1
        programs = [self.haproxy.program, self.agent, self.application]
        address = self.haproxy.address
        before = [program.cpu() for program in programs]
        begin = time.monotonic()
        senders = [Sender(self._paced, address, VISITORS, self._turns, TURN)]
        if flood:
            attack = Sender(self._paced, address, ATTACKERS, -self._turns, TURN, measures=False)
            senders.append(attack)
        loads = [sender.result() for sender in senders]
        seconds = time.monotonic() - begin
        after = [program.cpu() for program in programs]
        cores = [(a - b) / seconds / 1e9 for a, b in zip(after, before, strict=True)]
        return Turn(loads[0], loads[1] if flood else None, *cores)


def costs(turns: Sequence[Turn]) -> list[list[float]]:
    """Return the load of turns and the use of CPU: each a list over the turns."""
    attacks = [turn.attackers for turn in turns if turn.attackers]
    return [
        [turn.visitors.sent / TURN for turn in turns],
        [turn.visitors.late_p99_us / 1000 for turn in turns],
        [load.sent / TURN for load in attacks],
        [load.late_p99_us / 1000 for load in attacks],
        [turn.haproxy for turn in turns],
        [turn.agent for turn in turns],
        [turn.application for turn in turns],
    ]


def report(mode: Mode, quiet: list[Turn], floods: list[Turn], counted: int, order: str) -> Report:
    """Return the results of pairs of turns, in which the agent counted so many requests."""
    visits = [turn.visitors for turn in quiet + floods]
    attacks = [turn.attackers for turn in floods if turn.attackers]
    sent = sum(load.sent for load in attacks)
    asked = counted - sum(load.sent for load in visits)
    lost = sum(load.failed + load.withheld for load in visits)
    ratio = Figure.of(b.p99 / a.p99 for a, b in zip(quiet, floods, strict=True))
    turns = {"alone": quiet, "next to the flood": floods}
    percentiles = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    visitors = Table.of(
        "visitors",
        f"{len(quiet)} turns of {TURN} s each, {order}; milliseconds from when a request was"
        " due; attackers earn their blocks in the slowest turns",
        [*(Column(p, "less") for p in percentiles), Column("p99 of all turns at once", "less")],
        {
            name: [
                *([latency([turn], share) for turn in some] for share in percentiles.values()),
                latency(some, 0.99),
            ]
            for name, some in turns.items()
        },
    )
    work = Table.of(
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
        {name: costs(some) for name, some in turns.items()},
    )
    counts = {
        "sent": sent,
        "reached the agent": asked,
        "admitted": sum(load.allowed for load in attacks),
        "got no answer": sum(load.failed for load in attacks),
        "not sent, too many without an answer": sum(load.withheld for load in attacks),
    }
    flood = Table.of(
        "requests of the flood",
        "how far they got",
        (Column("count", digits=0), Column("%", "less")),
        {name: (count, 100 * count / sent) for name, count in counts.items()},
    )
    leaked = sum(load.leaked for load in attacks)
    beyond = 100 * leaked / max(1, sum(load.allowed for load in attacks))
    return Report(
        (visitors, work, flood),
        (
            Target("flood, requests a second", sent / len(floods) / TURN, 19_500, at_most=False),
            Target("visitors refused", sum(load.refused for load in visits), 0),
            Target("visitors' requests that failed", lost, 0),
            Target("visitors' p99 next to the flood : alone", ratio.median, 1.5),
            Target("share of the flood that reached the agent", asked / sent, 0.03),
            Target("flood admitted beyond the limit, % of what was admitted", beyond, BEYOND[mode]),
        ),
    )


def run(programs: Programs, options: argparse.Namespace) -> Report:
    versions.choose(programs, options)
    (mode,) = command.modes(options)
    order = take_precedence()
    arena = Arena(programs, mode)
    quiet, floods = [], []
    for number in range(options.rounds):
        progress(f"round {number + 1} of {options.rounds}")
        quiet.append(arena.turn(flood=False))
        floods.append(arena.turn(flood=True))
    counted = Api(arena.agent).metric("ratelimit_verdicts_total")
    return report(mode, quiet, floods, counted, order)


def arguments(parser: argparse.ArgumentParser) -> None:
    command.mode_argument(parser, default="spoe")
    versions.arguments(parser)


if __name__ == "__main__":
    command.main("flood", __doc__, run, rounds=(16, 4), arguments=arguments)
