"""What several nodes with one Redis let through, and what it costs; without HAProxy.

``python -m benchmarks.fleet`` starts agents and a Redis on loopback and sends them NOTIFY frames as
the HAProxy of each node would.

Accuracy: clients at a half to thirty times their limit, each spread over the nodes evenly or with
70 % on one of them, in steady or random (Poisson) arrivals, and 100,000 light clients beside. Each
is measured until its block is in force on all nodes, or for three windows. The times of all its
hits are kept: a refusal is false if the window that ends with it holds no more than the limit, less
what the weighting of a window's oldest part can be off. A strict limit weights nothing.

Cost: 100,000 light clients with 100 heavy ones, the same load in turns on nodes with Redis and on
nodes without; then the worst case, in which every client is at 0.9 of its limit. CPU times are the
programs' own, as the kernel's scheduler accounts them.

Outages: Redis hung for 10 seconds under load, and Redis gone for as many attempts to reach it as
an hour has. ``tests/store/test_sync.py`` has that hour's ticks and blocks.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from benchmarks import command, harness
from benchmarks.fleet_accuracy import run_accuracy
from benchmarks.fleet_load import (
    HEAVY,
    HEAVY_CLIENTS,
    LIGHT,
    LIGHT_CLIENTS,
    RATE,
    Fleet,
    Usage,
    frames_of,
    load,
    streams_to,
)
from benchmarks.fleet_outages import run_gone, run_hang
from benchmarks.harness import Figure, Programs, Target
from benchmarks.report import Column, Report, Row, Table
from ratelimit.engine.layout import ANSWER_BYTES, RECORD_BYTES
from tests.helpers.servers import PROGRAM, Server

if TYPE_CHECKING:
    import argparse

    from benchmarks.agent import Frames

_MIX = "mix, 100,000 a second"
_WORST = "worst, 500 clients"


def run_cost(programs: Programs, server: Server, quick: bool) -> Report:
    """Compare nodes that share a Redis with nodes that share nothing, and look for the worst."""
    nodes = 4
    rounds, seconds = (3, 1.0) if quick else (7, 1.5)
    fleets = {
        "memory": Fleet(programs, "memory", nodes, None, "10ms"),
        "redis": Fleet(programs, "redis", nodes, server, "10ms"),
    }
    light = frames_of(LIGHT, LIGHT_CLIENTS)
    heavy = frames_of(HEAVY, HEAVY_CLIENTS)
    heavy_rate = 0.9 * RATE * HEAVY_CLIENTS
    loads: dict[str, list[tuple[Frames, float]]] = {
        "light, 100,000 a second": [(light, 100_000)],
        _MIX: [(light, 100_000 - heavy_rate), (heavy, heavy_rate)],
        "mix, 400,000 a second": [(light, 400_000 - heavy_rate), (heavy, heavy_rate)],
        _WORST: [(frames_of(HEAVY, 500), 0.9 * RATE * 500)],
    }
    if quick:
        loads = {name: parts for name, parts in loads.items() if name in (_MIX, _WORST)}
    rows = []
    targets = []
    for name, parts in loads.items():
        taken: dict[str, list[Usage]] = {kind: [] for kind in fleets}
        excess = 0
        for number in range(rounds):
            harness.progress(f"{name}, round {number + 1} of {rounds}")
            for kind, fleet in fleets.items():
                streams = [s for frames, rate in parts for s in streams_to(fleet, frames, rate)]
                taken[kind].append(load(fleet, streams, seconds))
                excess += sum(stream.excess for stream in streams)
                for stream in streams:
                    stream.sock.close()
        figures = {kind: Figure.of(u.agent_us for u in taken[kind]) for kind in fleets}
        pairs = zip(taken["memory"], taken["redis"], strict=True)
        ratio = Figure.of(redis.agent_us / memory.agent_us for memory, redis in pairs)
        commands = Figure.of(u.per_check(u.commands) for u in taken["redis"])
        cpu = Figure.of(u.redis_us for u in taken["redis"])
        octets = Figure.of(u.per_check(u.octets) for u in taken["redis"])
        # What a client takes on the wire, the request and its answer; without hot ones, heartbeats.
        client = (
            Figure.of(
                u.redis_us * (RECORD_BYTES + ANSWER_BYTES) / u.per_check(u.octets)
                for u in taken["redis"]
            )
            if octets.median > 1
            else None
        )
        rows.append(
            Row.of(
                name,
                Figure.of(u.checks / seconds for u in taken["redis"]),
                commands,
                cpu,
                octets,
                client,
                figures["redis"],
                figures["memory"],
                ratio,
            )
        )
        if name == _WORST:
            targets.append(Target(f"Redis CPU us a check, {name}", cpu.median, 5, at_most=True))
        else:
            title = f"Redis commands a check, {name}"
            targets.append(Target(title, commands.median, 0.01, at_most=True))
        if name.startswith("mix"):
            title = f"agent CPU with Redis to memory, {name}"
            targets.append(Target(title, ratio.median, 1.25, at_most=True))
        targets.append(Target(f"bytes of refusals, {name}", excess, 0, at_most=True))
    for fleet in fleets.values():
        fleet.stop()
    note = f"{nodes} nodes at 10 ms, {rounds} rounds of {seconds:g} s: median (least-greatest). "
    note += (
        f"The mix has {HEAVY_CLIENTS} clients at 0.9 of their limit, the worst case has no other"
    )
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
    return Report((Table("cost", note, columns, tuple(rows)),), tuple(targets))


PARTS = {
    "accuracy": (run_accuracy, "what is admitted"),
    "cost": (run_cost, "what it costs"),
    "hang": (run_hang, "answers while Redis hangs"),
    "gone": (run_gone, "memory while Redis is gone"),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    chosen = parser.add_mutually_exclusive_group()
    for name, (_, what) in PARTS.items():
        chosen.add_argument(f"--{name}", action="store_true", help=f"only {what}")


def run(programs: Programs, options: argparse.Namespace) -> Report:
    if PROGRAM is None:
        sys.exit("there is no redis-server: apt-get install redis-server")
    wanted = [name for name in PARTS if getattr(options, name)] or list(PARTS)
    found = Report(())
    with contextlib.ExitStack() as stack:
        server = Server(programs.folder)
        stack.callback(server.kill)
        server.start()
        for name in wanted:
            measure, _ = PARTS[name]
            found += measure(programs, server, options.quick)
    return found


if __name__ == "__main__":
    command.main("fleet", __doc__, run, arguments=arguments)
