"""The latency that the limiter adds to a request, through HAProxy as shipped, in both modes.

``python -m benchmarks.admission`` finds the most requests a second that all can do: HAProxy alone,
HAProxy with its own stick-table limiter, HAProxy that asks the agent by SPOE on TCP and on a unix
socket, and HAProxy that has the agent as a peer. Then it sends 10, 50 and 90 % of that to each in
turns (``paced.c``). Requests come at random, whatever the answers, and are timed from when they
were due: a stall is counted in full. The added latency is the difference to HAProxy alone in the
same round, percentile by percentile. The figure is the median of many short rounds: a stall of the
machine spoils a few rounds, but not the median.

In peers mode no request waits for the agent. So its latency should not be distinguishable from that
of the stick table: the medians should differ by no more than the middle half of the stick table's
own rounds.

Each HAProxy has one thread and shares one core with its agent; the application and the clients have
the others. So the messages between the two stay in one cache, and no other core must wake up for
them. ``--free`` lets the kernel place the programs. Run by root, all of them have priority over
other work of the machine, and the clients, which measure, over the others.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Collection
from dataclasses import dataclass

from benchmarks.harness import command, versions
from benchmarks.harness.haproxy import ALLOWING, COMPARISON, NEVER, SHIPPED, Guard, HAProxy
from benchmarks.harness.http import Crowd, Sender, wrk
from benchmarks.harness.programs import CORES, Programs, free_address, rounds, take_precedence
from benchmarks.harness.report import Column, Figure, Report, Table, Target

LOADS = (10, 50, 90)
"""Percent of the most that all can do."""

CLIENTS = 32
"""Connections that are kept alive."""

BOUNDS = {"p50": 80, "p99": 400}
"""Microseconds that may be added at half load over a unix socket."""

_ALONE, _STICK = "HAProxy alone", "stick table"
_TCP, _UNIX, _PEERS = "SPOE, TCP", "SPOE, unix socket", "peers"
_PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


@dataclass(frozen=True)
class Sample:
    """One turn: microseconds by percentile, and how late its requests were sent (p99).

    ``lost`` is the percentage of requests that are in no percentile: never sent, since 64 of their
    connection had no answer, or refused by HAProxy, which counts itself if the agent takes longer
    than 50 ms. There should be none; on a machine with other work there are some.
    """

    took: dict[str, float]
    late: float
    lost: float


def pace(program: str, haproxy: HAProxy, rate: float, seconds: float, seed: int) -> Sample:
    """Send ``rate`` requests a second for so long."""
    crowd = Crowd("127.20.0.1", CLIENTS, max(1, round(rate)))
    found = Sender(program, haproxy.address, crowd, seed, seconds).result()
    took = found.took()
    if not took:
        sys.exit(f"{haproxy.name}: no request was admitted")
    of = {name: took[int(len(took) * share)] / 1e3 for name, share in _PERCENTILES.items()}
    whole = found.sent + found.withheld
    return Sample(of, found.late_p99_us, 100 * (whole - found.allowed) / whole)


def capacity(paced: str, variants: Collection[HAProxy]) -> float:
    """Return the most requests a second of which none of these loses more than a hundredth.

    It is less than the throughput with wrk, where the search begins: wrk sends its requests when
    it has its answers, so they come together and are read together. Requests at random cost more.
    """
    greatest = [wrk(haproxy.address, 2) for haproxy in variants]
    rate = min(load.requests / load.seconds for load in greatest)
    while any(pace(paced, haproxy, rate, 2, 0).lost > 1 for haproxy in variants):
        rate *= 0.9
    return rate


def set_up(programs: Programs, modes: Collection[str]) -> dict[str, HAProxy]:
    """Start everything; return each HAProxy by name."""
    _, address = programs.application()
    backend = {"RATELIMIT_BACKEND": address}
    rate = str(NEVER)
    found = {
        _ALONE: HAProxy(programs, "alone", COMPARISON, **backend),
        _STICK: HAProxy(programs, "stick", COMPARISON, BENCH_RATE=rate, **backend),
    }
    if "spoe" in modes:
        spop = free_address()
        agent = programs.agent("agent-tcp", "compiled", spop, ALLOWING)
        found[_TCP] = HAProxy(programs, "tcp", SHIPPED, agent, RATELIMIT_SPOP=spop, **backend)
        found[_UNIX] = Guard(programs, "agent-unix", ALLOWING).haproxy("spoe", "unix", **backend)
    if "peers" in modes:
        found[_PEERS] = Guard(programs, "agent", ALLOWING).haproxy("peers", "peers", **backend)
    return found


def report(samples: dict[tuple[int, str], list[Sample]], note: str) -> Report:
    columns = tuple(Column(name, "less", 0) for name in _PERCENTILES)
    more = (Column("sent late, p99", digits=0), Column("lost, %", "less"))
    rows, added, targets = {}, {}, []
    for (percent, name), taken in samples.items():
        row = f"{name}, {percent} % load"
        figures = [Figure.of(s.took[p] for s in taken) for p in _PERCENTILES]
        lost = Figure.of(s.lost for s in taken)
        rows[row] = [*figures, Figure.of(s.late for s in taken), lost]
        if name == _ALONE:
            continue
        pairs = list(zip(taken, samples[percent, _ALONE], strict=True))
        gains = {
            p: Figure.of(s.took[p] - alone.took[p] for s, alone in pairs) for p in _PERCENTILES
        }
        added[row] = gains.values()
        if name == _UNIX and percent == 50:
            for p, bound in BOUNDS.items():
                title = f"us added at half load, {p}, {name}"
                targets.append(Target(title, gains[p].median, bound))
            targets.append(Target(f"% lost at half load, {name}", lost.median, 0))
        if name == _PEERS and percent == 50:
            targets += [distance(p, taken, samples[percent, _STICK]) for p in BOUNDS]
    return Report(
        (
            Table.of("us of a request", note, columns + more, rows),
            Table.of("us added", "to HAProxy alone in the same round", columns, added),
        ),
        tuple(targets),
    )


def distance(percentile: str, peers: list[Sample], stick: list[Sample]) -> Target:
    """Compare the distance of two medians with the middle half of the stick table's rounds."""
    own = sorted(sample.took[percentile] for sample in stick)
    low, middle, high = statistics.quantiles(own, n=4)
    above = statistics.median(sample.took[percentile] for sample in peers) - middle
    return Target(f"us above the stick table at half load, {percentile}", above, high - low)


def run(programs: Programs, options: argparse.Namespace) -> Report:
    versions.choose(programs, options)
    order = take_precedence()
    pinned = len(CORES) > 1 and not options.free
    if pinned:
        os.sched_setaffinity(0, CORES[:-1])  # for all that is started from here, too
    variants = set_up(programs, command.modes(options))
    for program in [p for v in variants.values() for p in (v.program, v.agent) if p and pinned]:
        program.pin(CORES[-1])
    paced = programs.compiled("paced")
    most = capacity(paced, variants.values())
    samples: dict[tuple[int, str], list[Sample]] = {
        (percent, name): [] for percent in LOADS for name in variants
    }
    for percent, name in rounds(options.rounds, samples):
        taken = samples[percent, name]
        taken.append(pace(paced, variants[name], most * percent / 100, options.seconds, len(taken)))
    note = f"{options.rounds} rounds of {options.seconds:g} s, {CLIENTS} connections, "
    note += f"100 % load is {most:,.0f} requests a second, "
    note += f"{'pinned, ' if pinned else ''}{order}: median (least-greatest)"
    return report(samples, note)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--free", action="store_true", help="let the kernel place the programs")
    command.mode_argument(parser)
    versions.arguments(parser)


if __name__ == "__main__":
    command.main(
        "admission", __doc__, run, rounds=(40, 10), seconds=(0.5, 0.5), arguments=arguments
    )
