"""The cost of a full table: time, evictions, memory.

``python -m benchmarks.table`` fills the table of 1,000,000 clients with ten times as many
addresses. It compares checks of known addresses before and after, and checks of new addresses while
the table has room and when each evicts another.
"""

from __future__ import annotations

import argparse

from benchmarks.harness import command
from benchmarks.harness.programs import MIB, Programs, pin, progress
from benchmarks.harness.report import Column, Figure, Report, Table, Target
from benchmarks.harness.spop import ADDRESSES, CLIENTS, DEPTH, PLACES, Bench, Frames, known

_NEW = 0x10000000  # 16.0.0.0: addresses that come once
_CHUNKS = 10 * CLIENTS // ADDRESSES


def run(programs: Programs, options: argparse.Namespace) -> Report:
    pin()
    bench = Bench(programs, "compiled")
    bench.move(next(reversed(PLACES)))
    memory = [bench.program.rss()]
    bench.probe(known())

    def warm() -> Figure:
        bench.load(known(), DEPTH, checks=ADDRESSES)
        rounds = range(options.rounds)
        return Figure.of(bench.load(known(), DEPTH, options.seconds).cost for _ in rounds)

    before = warm()
    new = []
    for first in range(_NEW, _NEW + _CHUNKS * ADDRESSES, ADDRESSES):
        progress(f"{first - _NEW:,} addresses")
        chunk = Frames.of(range(first, first + ADDRESSES))
        new.append(bench.load(chunk, DEPTH, checks=ADDRESSES).cost)
    memory.append(bench.program.rss())
    after = warm()
    bench.finish()
    filling, evicting = Figure.of(new[: _CHUNKS // 20]), Figure.of(new[-_CHUNKS // 20 :])
    table_bytes = int(bench.program.logged(r'"table_bytes": (\d+)')[0])
    table = Table.of(
        "table",
        f"{CLIENTS:,} clients, {_CHUNKS * ADDRESSES:,} addresses, {DEPTH} in flight",
        (Column("at the start", "less"), Column("after filling", "less")),
        {
            "resident memory, MiB": [size / MIB for size in memory],
            f"CPU us a check, {ADDRESSES:,} known addresses": (before, after),
            "CPU us a check, addresses never seen": (filling, evicting),
        },
        drawn=False,
    )
    ratio = evicting.median / filling.median
    targets = (
        Target("table, MB", table_bytes / 1e6, 128),
        Target("resident memory at the start to the table", memory[0] / table_bytes, 1, False),
        Target("memory, after to before", memory[1] / memory[0], 1.5),
        Target("CPU a check, known, after to before", after.median / before.median, 1.5),
        Target("CPU a check, never seen, after to before", ratio, 1.5),
    )
    return Report((table,), targets)


if __name__ == "__main__":
    command.main("table", __doc__, run, rounds=(7, 3), seconds=(0.4, 0.2))
