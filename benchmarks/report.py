"""What a benchmark found: tables of figures, targets, and on which machine; as text and as JSON.

A file of results holds one record for each benchmark. A benchmark that runs again replaces its own
record and leaves the others, so that a file can be filled by several runs; each record says by
itself when, where and of which commit it is.
"""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from benchmarks.harness import ROOT, Figure, Target, find
from ratelimit import __version__, engine

Better = Literal["less", "more", "neither"]


@dataclass(frozen=True)
class Column:
    """What is told of each row; only figures of which less or more is better are compared."""

    name: str
    better: Better = "neither"
    digits: int = 2


@dataclass(frozen=True)
class Row:
    name: str
    cells: tuple[Figure | None, ...]

    @classmethod
    def of(cls, name: str, *cells: Figure | float | None) -> Row:
        """Return a row; a number is a figure that was taken once."""
        figures = (Figure.of([c]) if isinstance(c, int | float) else c for c in cells)
        return cls(name, tuple(figures))


@dataclass(frozen=True)
class Table:
    """Figures with spread; ``note`` says how they were taken, ``title`` is short and unique."""

    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    drawn: bool = True
    """Whether the rows of a column have the same unit, so that they can be bars of one plot."""

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        assert len(set(names)) == len(names), f"{self.title}: a row is there twice: {names}"
        assert all(len(row.cells) == len(self.columns) for row in self.rows), self.title

    def lines(self) -> list[list[str]]:
        """Return the table as text, its head first."""
        lines = [[self.title, *(column.name for column in self.columns)]]
        for row in self.rows:
            pairs = zip(row.cells, self.columns, strict=True)
            lines.append([row.name, *(c.text(column.digits) if c else "-" for c, column in pairs)])
        return lines


@dataclass(frozen=True)
class Report:
    """What a benchmark returns."""

    tables: tuple[Table, ...]
    targets: tuple[Target, ...] = ()

    def show(self) -> None:
        """Print the tables, the first column as text and the others as figures, and the targets."""
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

    def __add__(self, other: Report) -> Report:
        return Report(self.tables + other.tables, self.targets + other.targets)


def _machine() -> dict[str, str]:
    """Return what the figures depend on, by name."""
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
    """A report with what it depends on."""

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
    """Put a record into a file, in place of the one of that name, and leave the others.

    Each record is a line, so that a change of one is a change of that line.
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
    """Return figures with the six digits that a measurement can have at most."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _short(one) for name, one in value.items()}
    return [_short(one) for one in value] if isinstance(value, list) else value
