"""The command line of a benchmark: the same arguments for all of them."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import report
from benchmarks.harness.haproxy import MODES, Mode
from benchmarks.harness.programs import Programs, progress
from benchmarks.harness.report import Report


def mode_argument(parser: argparse.ArgumentParser, default: str = "") -> None:
    """Add the option that chooses one mode; the default is both."""
    text = f"only this mode ({default or 'both'})"
    parser.add_argument("--mode", choices=MODES, default=default, help=text)


def modes(options: argparse.Namespace) -> tuple[Mode, ...]:
    """Return the modes to measure."""
    return tuple(mode for mode in MODES if options.mode in ("", mode))


def main(
    name: str,
    doc: str | None,
    run: Callable[[Programs, argparse.Namespace], Report],
    *,
    rounds: tuple[int, int] | None = None,
    seconds: tuple[float, float] | None = None,
    arguments: Callable[[argparse.ArgumentParser], None] = lambda _: None,
) -> None:
    """Run the benchmark ``python -m benchmarks.NAME``, print its report, and write it with --json.

    ``rounds`` and ``seconds`` are the defaults of a whole run and of a quick run. ``arguments``
    adds further options; the name of the record contains each that was set, so that the record
    does not replace the one without it.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc)
    parser.add_argument("--quick", action="store_true", help="a short run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    for word, values, kind, what in (
        ("rounds", rounds, int, "turns of each variant"),
        ("seconds", seconds, float, "seconds of a turn"),
    ):
        if values:
            text = f"{what} ({values[0]:g}; quick: {values[1]:g})"
            parser.add_argument(f"--{word}", type=kind, metavar="N", help=text)
    common = set(vars(parser.parse_args([])))
    arguments(parser)
    options = parser.parse_args()
    for word, values in (("rounds", rounds), ("seconds", seconds)):
        if values and getattr(options, word) is None:
            setattr(options, word, values[options.quick])
    for word, value in vars(options).items():
        if word not in common and value != parser.get_default(word):
            name += f" --{word}" if value is True else f" --{word}={value}"
    began, load, clock = dt.datetime.now(dt.UTC), os.getloadavg()[0], time.monotonic()
    with Programs() as programs:
        found = run(programs, options)
    progress("")
    found.show()
    if options.json:
        took = round(time.monotonic() - clock, 1)
        record = report.Record(found, options.quick, began, took, round(load, 2))
        report.write(options.json, name, record)
