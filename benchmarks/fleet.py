"""What several nodes with one Redis allow, and the cost; without HAProxy.

``python -m benchmarks.fleet`` starts agents and a Redis on loopback and sends them NOTIFY frames as
the HAProxy of each node would.

Accuracy: clients at a half to thirty times their limit, each spread over the nodes evenly or with
70 % on one of them, in steady or random (Poisson) arrivals, next to 100,000 light clients. Each is
measured until its block is in force on all nodes, or for three windows. The times of all its hits
are kept: a refusal is false if the window that ends with it has no more hits than the limit, minus
the possible error of the weighting of a window's oldest part. A strict limit weights nothing. With
``--mode=peers`` a model of HAProxy decides by the verdicts that the agents have told it, and tells
them the hits; only the accuracy has this mode.

Cost: 100,000 light clients with 100 heavy ones, the same load in turns on nodes with Redis and on
nodes without; then the worst case, with every client at 0.9 of its limit. CPU times are the
programs' own, as the kernel's scheduler accounts them.

Outages: Redis hangs for 10 seconds under load; and Redis is gone for as many attempts to reach it
as an hour has. ``tests/store/test_sync.py`` has the ticks and blocks of such an hour.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from benchmarks.fleet_accuracy import run_accuracy
from benchmarks.fleet_outages import run_gone, run_hang
from benchmarks.harness import command
from benchmarks.harness.fleet import (
    HEAVY,
    HEAVY_CLIENTS,
    HEAVY_RATE,
    LIGHT,
    LIGHT_CLIENTS,
    Fleet,
    Stream,
    Usage,
    load,
)
from benchmarks.harness.programs import Programs, progress
from benchmarks.harness.report import Column, Figure, Report, Table, Target
from ratelimit.engine.layout import ANSWER_BYTES, RECORD_BYTES
from tests.helpers.servers import Server

_NODES = 4
_MIX = "mix, 100,000 a second"
_WORST = "worst, 500 clients"

LOADS: dict[str, Callable[[Fleet], list[Stream]]] = {
    "light, 100,000 a second": lambda fleet: fleet.streams(LIGHT, LIGHT_CLIENTS, 100_000),
    _MIX: lambda fleet: fleet.mix(100_000 - HEAVY_RATE * HEAVY_CLIENTS),
    "mix, 400,000 a second": lambda fleet: fleet.mix(400_000 - HEAVY_RATE * HEAVY_CLIENTS),
    _WORST: lambda fleet: fleet.streams(HEAVY, 500, HEAVY_RATE * 500),
}


def run_cost(programs: Programs, server: Server, quick: bool) -> Report:
    """Compare nodes that share a Redis with nodes that share nothing, and find the worst case."""
    rounds, seconds = (3, 1.0) if quick else (7, 1.5)
    alone = Fleet(programs, "memory", _NODES, None)
    sharing = Fleet(programs, "redis", _NODES, server)
    rows = {}
    targets = []
    for name in (_MIX, _WORST) if quick else LOADS:
        memory: list[Usage] = []
        redis: list[Usage] = []
        excess = 0
        for number in range(rounds):
            progress(f"{name}, round {number + 1} of {rounds}")
            for fleet, taken in ((alone, memory), (sharing, redis)):
                streams = LOADS[name](fleet)
                taken.append(load(fleet, streams, seconds))
                excess += sum(stream.excess for stream in streams)
        pairs = zip(memory, redis, strict=True)
        ratio = Figure.of(with_it.agent_us / without.agent_us for without, with_it in pairs)
        commands = Figure.of(u.commands_a_check for u in redis)
        cpu = Figure.of(u.redis_us for u in redis)
        octets = Figure.of(u.octets_a_check for u in redis)
        # The bytes of a client on the wire are its record and the answer. Without heavy clients,
        # there are only heartbeats.
        client_bytes = RECORD_BYTES + ANSWER_BYTES
        clients = [u.redis_us * client_bytes / u.octets_a_check for u in redis]
        rows[name] = (
            [u.checks / seconds for u in redis],
            commands,
            cpu,
            octets,
            clients if octets.median > 1 else None,
            [u.agent_us for u in redis],
            [u.agent_us for u in memory],
            ratio,
        )
        if name == _WORST:
            targets.append(Target(f"Redis CPU us a check, {name}", cpu.median, 5))
        else:
            targets.append(Target(f"Redis commands a check, {name}", commands.median, 0.01))
        if name.startswith("mix"):
            targets.append(Target(f"agent CPU with Redis to memory, {name}", ratio.median, 1.25))
        targets.append(Target(f"bytes of refusals, {name}", excess, 0))
    alone.stop()
    sharing.stop()
    note = f"{_NODES} nodes at 10 ms, {rounds} rounds of {seconds:g} s: median (least-greatest). "
    note += f"The mix has {HEAVY_CLIENTS} clients at 0.9 of their limit, the worst case has no "
    note += "other clients"
    columns = (
        Column("checks a second", digits=0),
        Column("Redis commands a check", "less", 4),
        Column("Redis CPU us a check", "less"),
        Column("bytes a check", "less", 1),
        Column("Redis CPU us a client sent", "less"),
        Column("agent CPU us a check, Redis", "less"),
        Column("agent CPU us a check, memory", "less"),
        Column("Redis to memory", "less"),
    )
    return Report((Table.of("cost", note, columns, rows),), tuple(targets))


PARTS = {
    "accuracy": (run_accuracy, "what is allowed"),
    "cost": (run_cost, "the cost"),
    "hang": (run_hang, "answers while Redis hangs"),
    "gone": (run_gone, "memory while Redis is gone"),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    chosen = parser.add_mutually_exclusive_group()
    for name, (_, what) in PARTS.items():
        chosen.add_argument(f"--{name}", action="store_true", help=f"only {what}")
    command.mode_argument(parser, default="spoe")


def run(programs: Programs, options: argparse.Namespace) -> Report:
    server, _ = programs.redis()
    if options.mode == "peers":
        if not options.accuracy:
            sys.exit("only --accuracy has --mode=peers")
        return run_accuracy(programs, server, options.quick, options.mode)
    wanted = [name for name in PARTS if getattr(options, name)] or list(PARTS)
    return Report.joined([PARTS[name][0](programs, server, options.quick) for name in wanted])


if __name__ == "__main__":
    command.main("fleet", __doc__, run, arguments=arguments)
