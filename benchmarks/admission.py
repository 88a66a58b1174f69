"""The latency that a check adds to a request, through HAProxy as shipped.

``python -m benchmarks.admission`` finds the most requests a second that HAProxy with the agent on
TCP can do, and then sends 10, 50 and 90 % of that (``paced.c``) in turns to HAProxy alone, to
HAProxy with the agent on TCP, and with it on a unix socket. Requests come at random, whatever the
answers, and are timed from when they were due: nothing is omitted while something stalls. What is
added is the difference to HAProxy alone of the same round, percentile by percentile.

Each HAProxy has one thread. They, the agent, the application and the clients share this machine, so
a percentile has in it what they wait for each other; with more cores than two there is less of it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import command, harness, wrk
from benchmarks.end_to_end import ALLOWING, APPLICATION, COMPARISON, SHIPPED, HAProxy
from benchmarks.flood import Crowd, Sender
from benchmarks.harness import Figure, Programs, Target
from benchmarks.report import Column, Report, Row, Table

if TYPE_CHECKING:
    import argparse

LOADS = (10, 50, 90)
"""Percent of the most that HAProxy with the agent can do."""

CLIENTS = 32
"""Connections that are kept alive."""

BOUNDS = {"p50": 80, "p99": 400}
"""Microseconds that may be added at half load over a unix socket."""

_ALONE, _TCP, _UNIX = "HAProxy alone", "agent, TCP", "agent, unix socket"
_PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


@dataclass(frozen=True)
class Sample:
    """One turn: microseconds by percentile, and how late its requests were sent (p99).

    ``lost`` is percent of the requests that are in no percentile: never sent, since 64 of their
    connection were without an answer, or refused by HAProxy, which counts alone where the agent
    takes longer than 50 ms. None should be; where the machine has other work, some are.
    """

    took: dict[str, float]
    late: float
    lost: float


def pace(program: str, haproxy: HAProxy, rate: int, seconds: int, seed: int) -> Sample:
    """Send ``rate`` requests a second for so long."""
    port = haproxy.address.rpartition(":")[2]
    crowd = Crowd("127.20.0.1", CLIENTS, rate)
    found = Sender(program, port, crowd, seed, seconds).result()
    if not found.allowed:
        sys.exit(f"{haproxy.name}: no request was admitted")
    took = sorted(found.took)
    of = {name: took[int(len(took) * share)] / 1e3 for name, share in _PERCENTILES.items()}
    whole = found.sent + found.withheld
    return Sample(of, found.late_p99_us, 100 * (whole - found.allowed) / whole)


def set_up(programs: Programs, shipped: Path) -> dict[str, HAProxy]:
    """Start everything; return each HAProxy by name."""
    backend, tcp = harness.free_address(), harness.free_address()
    unix = str(programs.folder / "spop.sock")
    haproxy = harness.require("haproxy")
    programs.start(
        "application", [haproxy, "-db", "-f", str(APPLICATION)], {"BENCH_LISTEN": backend}
    )
    found = {_ALONE: HAProxy(programs, "alone", COMPARISON, RATELIMIT_BACKEND=backend)}
    for name, address, where in ((_TCP, tcp, tcp), (_UNIX, unix, f"unix@{unix}")):
        short = "unix" if name == _UNIX else "tcp"
        agent = programs.agent(f"agent-{short}", "compiled", address, ALLOWING)
        settings = {"RATELIMIT_BACKEND": backend, "RATELIMIT_SPOP": where}
        found[name] = HAProxy(programs, short, shipped, agent, **settings)
    return found


def report(samples: dict[tuple[int, str], list[Sample]], note: str) -> Report:
    columns = tuple(Column(name, "less", 0) for name in _PERCENTILES)
    more = (Column("sent late, p99", digits=0), Column("lost, %", "less"))
    rows, added, targets = [], [], []
    for (percent, name), taken in samples.items():
        figures = {p: Figure.of(s.took[p] for s in taken) for p in _PERCENTILES}
        late = Figure.of(s.late for s in taken)
        lost = Figure.of(s.lost for s in taken)
        rows.append(Row.of(f"{name}, {percent} % load", *figures.values(), late, lost))
        if name == _ALONE:
            continue
        pairs = list(zip(taken, samples[percent, _ALONE], strict=True))
        gains = {
            p: Figure.of(s.took[p] - alone.took[p] for s, alone in pairs) for p in _PERCENTILES
        }
        added.append(Row.of(f"{name}, {percent} % load", *gains.values()))
        if name == _UNIX and percent == 50:
            for p, bound in BOUNDS.items():
                title = f"us added at half load, {p}, {name}"
                targets.append(Target(title, gains[p].median, bound, at_most=True))
            targets.append(Target(f"% lost at half load, {name}", lost.median, 0, at_most=True))
    return Report(
        (
            Table("us of a request", note, columns + more, tuple(rows)),
            Table("us added", "to HAProxy alone in the same round", columns, tuple(added)),
        ),
        tuple(targets),
    )


def run(programs: Programs, options: argparse.Namespace) -> Report:
    variants = set_up(programs, options.config)
    paced = programs.compiled("paced")
    most = options.most
    if not most:
        greatest = wrk.load(variants[_TCP].address, 2)
        most = greatest.requests / greatest.seconds
    samples: dict[tuple[int, str], list[Sample]] = {
        (percent, name): [] for percent in LOADS for name in variants
    }
    for number in range(options.rounds):
        for percent in LOADS:
            # Back and forth, so that none always comes after the same one.
            names = list(variants) if number % 2 == 0 else list(reversed(variants))
            for name in names:
                harness.progress(f"round {number + 1} of {options.rounds}: {percent} %, {name}")
                rate = max(1, round(most * percent / 100))
                taken = pace(paced, variants[name], rate, round(options.seconds), number)
                samples[percent, name].append(taken)
    note = f"{options.rounds} rounds of {options.seconds:g} s, {CLIENTS} connections, "
    note += f"100 % load is {most:,.0f} requests a second: median (least-greatest)"
    return report(samples, note)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=SHIPPED, help="another haproxy.cfg")
    parser.add_argument("--most", type=float, help="requests a second at 100 %% (measured)")


if __name__ == "__main__":
    command.main("admission", __doc__, run, rounds=(7, 3), seconds=(4, 1), arguments=arguments)
