"""The results of a benchmark: tables of figures and targets, as text and as JSON.

A file of results has one record for each benchmark, with its time, machine and commit. A further
run of a benchmark replaces only its own record, so several runs can fill one file.
"""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from benchmarks.harness.programs import ROOT, find
from ratelimit import __version__, engine

Better = Literal["less", "more", "neither"]


@dataclass(frozen=True)
class Figure:
    """The median of several rounds, with minimum and maximum."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Figure:
        listed = sorted(values)
        return cls(statistics.median(listed), listed[0], listed[-1])

    def text(self, digits: int) -> str:
        if self.low == self.high:
            return f"{self.median:,.{digits}f}"
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}-{self.high:,.{digits}f})"


@dataclass(frozen=True)
class Target:
    """A bound for a figure: an upper one, or with ``at_most=False`` a lower one."""

    name: str
    value: float
    bound: float
    at_most: bool = True

    @property
    def reached(self) -> bool:
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def __str__(self) -> str:
        sign = "at most" if self.at_most else "at least"
        verdict = "reached" if self.reached else "MISSED"
        return f"{verdict:8} {self.name}: {self.value:.3g}, {sign} {self.bound:g}"


@dataclass(frozen=True)
class Column:
    """A column of a table; only figures that are better when ``less`` or ``more`` are compared."""

    name: str
    better: Better = "neither"
    digits: int = 2


Cell = Figure | float | Iterable[float] | None
"""A figure, a number that was taken once, those of several rounds, or nothing."""


@dataclass(frozen=True)
class Row:
    name: str
    cells: tuple[Figure | None, ...]

    @classmethod
    def of(cls, name: str, *cells: Cell) -> Row:
        return cls(name, tuple(map(_figure, cells)))


def _figure(cell: Cell) -> Figure | None:
    if cell is None or isinstance(cell, Figure):
        return cell
    values = [cell] if isinstance(cell, int | float) else list(cell)
    return Figure.of(values) if values else None


@dataclass(frozen=True)
class Table:
    """Figures with spread; ``note`` says how they were taken, ``title`` is short and unique."""

    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    drawn: bool = True
    """Whether the rows of a column have the same unit, so that a plot can show them as bars."""

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        assert len(set(names)) == len(names), f"{self.title}: a row is there twice: {names}"
        assert all(len(row.cells) == len(self.columns) for row in self.rows), self.title

    @classmethod
    def of(
        cls,
        title: str,
        note: str,
        columns: Sequence[Column],
        rows: Mapping[str, Iterable[Cell]],
        drawn: bool = True,
    ) -> Table:
        """Return a table of the cells of each row, by the name of the row."""
        found = tuple(Row.of(name, *cells) for name, cells in rows.items())
        return cls(title, note, tuple(columns), found, drawn)

    @classmethod
    def measured(
        cls,
        title: str,
        note: str,
        columns: Mapping[str, Column],
        samples: Mapping[str, Iterable[object]],
    ) -> Table:
        """Return a table of the samples of each row.

        ``columns`` are by the attribute of a sample; without a value (None) the cell is empty.
        """
        rows = {
            name: [[v for s in taken if (v := getattr(s, what)) is not None] for what in columns]
            for name, taken in samples.items()
        }
        return cls.of(title, note, list(columns.values()), rows)

    def lines(self) -> list[list[str]]:
        """Return the table as text, its head first."""
        lines = [[self.title, *(column.name for column in self.columns)]]
        for row in self.rows:
            pairs = zip(row.cells, self.columns, strict=True)
            lines.append([row.name, *(c.text(column.digits) if c else "-" for c, column in pairs)])
        return lines


@dataclass(frozen=True)
class Report:
    """The result of a benchmark."""

    tables: tuple[Table, ...]
    targets: tuple[Target, ...] = ()

    @classmethod
    def joined(cls, reports: Sequence[Report]) -> Report:
        """Return the tables and targets of all reports."""
        tables = tuple(table for report in reports for table in report.tables)
        return cls(tables, tuple(target for report in reports for target in report.targets))

    def show(self) -> None:
        """Print the tables and the targets."""
        for table in self.tables:
            lines = table.lines()
            widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
            print(f"{table.note}\n")
            for first, *others in lines:
                cells = [c.rjust(width) for c, width in zip(others, widths[1:], strict=True)]
                print("  ".join([first.ljust(widths[0]), *cells]).rstrip())
            print()
        for target in self.targets:
            print(target)


def _machine() -> dict[str, str]:
    """Return the properties of machine and software that affect the figures, by name."""
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = {
        "CPU": model[1] if model else platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "uvloop": importlib.metadata.version("uvloop"),
        "ratelimit": f"{__version__}, {'compiled' if engine.compiled() else 'plain'}",
        "commit": _output("git", "describe", "--always", "--dirty", "--abbrev=12"),
    }
    for program in ("haproxy", "redis-server", "nginx", "wrk"):
        if path := find(program):
            words = re.search(r"(?:version |v=|nginx/|wrk )([\w.]+)", _output(path, "-v"))
            found[program] = words[1] if words else "of an unknown version"
    return found


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return (done.stdout + done.stderr).strip()


@dataclass(frozen=True)
class Record:
    """A report with the conditions of its run."""

    report: Report
    quick: bool
    began: dt.datetime
    seconds: float
    load: float
    """The machine's load average when the benchmark began."""

    machine: dict[str, str] = field(default_factory=_machine)


_RECORDS = TypeAdapter(dict[str, Record])


def read(file: Path) -> dict[str, Record]:
    """Return the records of a file by the name of their benchmark.

    Raises OSError, or ValueError if the file does not hold results.
    """
    return _RECORDS.validate_json(file.read_bytes())


def write(file: Path, name: str, record: Record) -> None:
    """Write a record to a file; it replaces the record of that name, and the others stay.

    Each record is a line, so that a diff shows the changed records.
    """
    records = read(file) if file.exists() else {}
    records[name] = record
    found = _RECORDS.dump_python(records, mode="json")
    lines = [
        f"{json.dumps(name)}:{json.dumps(_short(one), separators=(',', ':'))}"
        for name, one in found.items()
    ]
    file.write_text("{" + ",\n".join(lines) + "}\n")


def _short(value: Any) -> Any:
    """Return the value with its figures rounded to six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _short(one) for name, one in value.items()}
    return [_short(one) for one in value] if isinstance(value, list) else value
