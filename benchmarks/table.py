"""What the table costs when it is full: time, evictions, memory.

``python -m benchmarks.table`` fills the table of 1,000,000 clients with ten times as many
addresses, and compares checks of known addresses before and after, and checks of addresses never
seen while there is room and when each evicts another.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from benchmarks import command, harness
from benchmarks.agent import ADDRESSES, CLIENTS, DEPTHS, PLACES, Bench, Frames, known, pin
from benchmarks.harness import Figure, Programs, Target
from benchmarks.report import Column, Report, Row, Table

if TYPE_CHECKING:
    import argparse

_MIB = 1 << 20
_NEW = 0x10000000  # 16.0.0.0: addresses that come once


def run(programs: Programs, options: argparse.Namespace) -> Report:
    rounds, seconds = options.rounds, options.seconds
    pin()
    depth = max(DEPTHS)
    frames = known()
    bench = Bench(programs, "compiled", "compiled", unix=False)
    bench.move(next(reversed(PLACES)))
    memory = [bench.program.rss()]
    bench.probe(frames)
    bench.load(frames, depth, checks=ADDRESSES)
    before = Figure.of(bench.load(frames, depth, seconds).cost for _ in range(rounds))
    new = []
    chunks = 10 * CLIENTS // ADDRESSES
    for number in range(chunks):
        first = _NEW + number * ADDRESSES
        chunk = Frames.of(range(first, first + ADDRESSES))
        new.append(bench.load(chunk, depth, checks=ADDRESSES).cost)
        if not number % 10:
            harness.progress(f"{number * ADDRESSES:,} addresses")
    memory.append(bench.program.rss())
    bench.load(frames, depth, checks=ADDRESSES)
    after = Figure.of(bench.load(frames, depth, seconds).cost for _ in range(rounds))
    bench.finish()
    filling, evicting = Figure.of(new[: chunks // 20]), Figure.of(new[-chunks // 20 :])
    table_bytes = int(re.findall(r'"table_bytes": (\d+)', bench.program.log.read_text())[0])
    note = f"{CLIENTS:,} clients, {chunks * ADDRESSES:,} addresses, {depth} in flight"
    columns = (Column("at the start", "less"), Column("after filling", "less"))
    table = Table(
        "table",
        note,
        columns,
        (
            Row.of("resident memory, MiB", *(size / _MIB for size in memory)),
            Row.of(f"CPU us a check, {ADDRESSES:,} known addresses", before, after),
            Row.of("CPU us a check, addresses never seen", filling, evicting),
        ),
        drawn=False,
    )
    targets = (
        Target("table, MB", table_bytes / 1e6, 128, at_most=True),
        Target("resident memory at the start to the table", memory[0] / table_bytes, 1, False),
        Target("memory, after to before", memory[1] / memory[0], 1.5, at_most=True),
        Target("CPU a check, known, after to before", after.median / before.median, 1.5, True),
        Target(
            "CPU a check, never seen, after to before", evicting.median / filling.median, 1.5, True
        ),
    )
    return Report((table,), targets)


if __name__ == "__main__":
    command.main("table", __doc__, run, rounds=(7, 3), seconds=(0.4, 0.2))
