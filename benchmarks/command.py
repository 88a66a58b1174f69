"""How a benchmark is run from a shell: the same arguments for all of them."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import report
from benchmarks.harness import Programs, progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.report import Report


def main(
    name: str,
    doc: str | None,
    run: Callable[[Programs, argparse.Namespace], Report],
    *,
    rounds: tuple[int, int] | None = None,
    seconds: tuple[float, float] | None = None,
    arguments: Callable[[argparse.ArgumentParser], None] = lambda _: None,
) -> None:
    """Run the benchmark ``python -m benchmarks.NAME``, print its report, and write it if asked to.

    ``rounds`` and ``seconds`` are for a whole run and for a quick one; a benchmark that has them
    finds them in its options, and they can be set. ``arguments`` adds what it has beside: a record
    that was taken with one of them has that in its name, so that it replaces no other.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc)
    parser.add_argument("--quick", action="store_true", help="a short run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="put the results there too")
    for word, values, kind, what in (
        ("rounds", rounds, int, "how often each has its turn"),
        ("seconds", seconds, float, "seconds a turn"),
    ):
        if values:
            whole, quick = values
            text = f"{what} ({whole:g}; quick: {quick:g})"
            parser.add_argument(f"--{word}", type=kind, metavar="N", help=text)
    before = set(vars(parser.parse_args([])))
    arguments(parser)
    options = parser.parse_args()
    for word, values in (("rounds", rounds), ("seconds", seconds)):
        if values and getattr(options, word) is None:
            setattr(options, word, values[options.quick])
    for word, value in vars(options).items():
        if word not in before and value != parser.get_default(word):
            name += f" --{word}" if value is True else f" --{word}={value}"
    began, load, clock = dt.datetime.now(dt.UTC), os.getloadavg()[0], time.monotonic()
    with Programs() as programs:
        found = run(programs, options)
    progress("")
    found.show()
    if options.json:
        took = time.monotonic() - clock
        record = report.Record(found, options.quick, began, round(took, 1), round(load, 2))
        report.write(options.json, name, record)
