"""The latency that a check adds to a request, through HAProxy as shipped.

``python -m benchmarks.admission`` finds the most requests a second that all of three can do:
HAProxy alone, HAProxy with the agent on TCP, and with it on a unix socket. Then it sends 10, 50 and
90 % of that to each in turns (``paced.c``). Requests come at random, whatever the answers, and are
timed from when they were due: nothing is omitted while something stalls. What is added is the
difference to HAProxy alone of the same round, percentile by percentile, and the median of many
short rounds: what stalls the machine now and then spoils a few of them, not the median.

Each HAProxy has one thread, and shares one core with its agent; the application and the clients
have the others. So what the two say to each other stays in one cache, and no other core has to be
woken up for it. ``--free`` leaves all of it to the kernel. Run by root, all of them come before
what else the machine does, and the clients, who measure, first.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import command, harness, wrk
from benchmarks.end_to_end import ALLOWING, APPLICATION, COMPARISON, SHIPPED, HAProxy
from benchmarks.flood import Crowd, Sender
from benchmarks.harness import CORES, Figure, Programs, Target
from benchmarks.report import Column, Report, Row, Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection

LOADS = (10, 50, 90)
"""Percent of the most that all three can do."""

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


def pace(program: str, haproxy: HAProxy, rate: int, seconds: float, seed: int) -> Sample:
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


def capacity(paced: str, variants: Collection[HAProxy]) -> float:
    """Return the most requests a second of which none of these loses more than a hundredth.

    It is less than wrk gets through, where the search begins: wrk asks again when it is answered,
    so that its requests come together and are read together. Those that come at random cost more.
    """
    greatest = [wrk.load(haproxy.address, 2) for haproxy in variants]
    rate = min(load.requests / load.seconds for load in greatest)
    while any(pace(paced, haproxy, round(rate), 2, 0).lost > 1 for haproxy in variants):
        rate *= 0.9
    return rate


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
    order = harness.take_precedence()
    pinned = len(CORES) > 1 and not options.free
    if pinned:
        os.sched_setaffinity(0, CORES[:-1])  # for all that is started from here, too
    variants = set_up(programs, options.config)
    for program in [p for v in variants.values() for p in (v.program, v.agent) if p and pinned]:
        os.sched_setaffinity(program.pid, CORES[-1:])
    paced = programs.compiled("paced")
    most = options.most or capacity(paced, variants.values())
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
                taken = pace(paced, variants[name], rate, options.seconds, number)
                samples[percent, name].append(taken)
    note = f"{options.rounds} rounds of {options.seconds:g} s, {CLIENTS} connections, "
    note += f"100 % load is {most:,.0f} requests a second, "
    note += f"{'pinned, ' if pinned else ''}{order}: median (least-greatest)"
    return report(samples, note)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=SHIPPED, help="another haproxy.cfg")
    parser.add_argument("--free", action="store_true", help="no program has a core of its own")
    parser.add_argument("--most", type=float, help="requests a second at 100 %% (measured)")


if __name__ == "__main__":
    command.main(
        "admission", __doc__, run, rounds=(60, 15), seconds=(0.5, 0.5), arguments=arguments
    )
