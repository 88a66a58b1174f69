"""Compares two files of results: prints the figures that got worse or better.

``python -m benchmarks.compare OLD.json NEW.json`` computes the ratio of the medians of each figure
that can be better or worse; above 1 is worse. It prints the figures that changed beyond their
spread: the ranges of both files do not overlap, and the ratio differs from 1 by at least
``--least``. The exit status is 1 if a figure got worse or is missing.

Take both files on the same machine, one soon after the other, from runs of the same length.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import report
from benchmarks.harness.report import Better, Figure, Record

LEAST = 0.1


@dataclass(frozen=True)
class Name:
    """The name of a figure."""

    benchmark: str
    table: str
    row: str
    column: str

    def __str__(self) -> str:
        return f"{self.benchmark}, {self.table}, {self.row}, {self.column}"


@dataclass(frozen=True)
class Change:
    """A figure of both files."""

    name: Name
    better: Better
    old: Figure
    new: Figure

    @property
    def ratio(self) -> float:
        """How many times worse the new median is; 0/0 is 1."""
        pair = (self.new.median, self.old.median)
        worse, before = pair if self.better == "less" else pair[::-1]
        if before == worse:
            return 1.0
        return worse / before if before else math.inf

    def beyond(self, least: float) -> bool:
        """Tell whether the ranges do not overlap and the ratio differs from 1 by ``least``."""
        apart = self.new.low > self.old.high or self.new.high < self.old.low
        return apart and not 1 / (1 + least) < self.ratio < 1 + least

    def __str__(self) -> str:
        return f"{self.ratio:6.2f}  {self.name}: {self.old.text(3)} -> {self.new.text(3)}"


def figures(records: dict[str, Record]) -> Iterator[tuple[Name, Better, Figure]]:
    """Yield the figures that can get better or worse."""
    for benchmark, record in records.items():
        for table in record.report.tables:
            for row in table.rows:
                for column, cell in zip(table.columns, row.cells, strict=True):
                    if cell and column.better != "neither":
                        name = Name(benchmark, table.title, row.name, column.name)
                        yield name, column.better, cell


@dataclass(frozen=True)
class Comparison:
    """The figures that changed beyond their spread, worst first, and those of only one file."""

    count: int
    worse: list[Change]
    better: list[Change]
    gone: list[Name]
    added: list[Name]


def compare(old: dict[str, Record], new: dict[str, Record], least: float = LEAST) -> Comparison:
    """Compare the benchmarks that are in both; a figure is known by its names."""
    both = old.keys() & new.keys()
    before = {name: cell for name, _, cell in figures({n: old[n] for n in old if n in both})}
    found = figures({n: new[n] for n in new if n in both})
    after = {name: (better, cell) for name, better, cell in found}
    shared = [Change(n, way, before[n], cell) for n, (way, cell) in after.items() if n in before]
    changed = sorted((c for c in shared if c.beyond(least)), key=lambda c: c.ratio, reverse=True)
    return Comparison(
        count=len(shared),
        worse=[c for c in changed if c.ratio > 1],
        better=[c for c in changed if c.ratio < 1],
        gone=[name for name in before if name not in after],
        added=[name for name in after if name not in before],
    )


def warnings(old: dict[str, Record], new: dict[str, Record]) -> Iterator[str]:
    """Yield reasons why the files may not be comparable."""
    for name in old.keys() ^ new.keys():
        yield f"{name}: only in the {'old' if name in old else 'new'} file"
    for name in old.keys() & new.keys():
        before, after = old[name], new[name]
        if before.quick != after.quick:
            yield f"{name}: a quick run against a whole one"
        for what in sorted((before.machine.keys() | after.machine.keys()) - {"commit"}):
            one, other = (r.machine.get(what, "none") for r in (before, after))
            if one != other:
                yield f"{name}: {what} was {one} and is {other}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("old", type=Path, metavar="OLD.json")
    parser.add_argument("new", type=Path, metavar="NEW.json")
    parser.add_argument(
        "--least",
        type=float,
        default=LEAST,
        metavar="SHARE",
        help="the least change that counts, of the figure (%(default)s)",
    )
    options = parser.parse_args()
    if options.least < 0:
        parser.error("--least: not below 0")
    try:
        old, new = report.read(options.old), report.read(options.new)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for warning in warnings(old, new):
        print(f"note: {warning}")
    found = compare(old, new, options.least)
    for title, changes in (("better", found.better), ("WORSE", found.worse)):
        for change in changes:
            print(f"{title:6} {change}")
    for name in found.gone:
        print(f"GONE   {name}")
    for name in found.added:
        print(f"new    {name}")
    print(
        f"{found.count} figures in both: {len(found.worse)} worse, {len(found.better)} better, "
        f"{len(found.gone)} gone; worse is a ratio above {1 + options.least:g} beyond the spread"
    )
    return 1 if found.worse or found.gone else 0


if __name__ == "__main__":
    sys.exit(main())
