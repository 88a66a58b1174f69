"""Makes a page with plots of a file of results, and fills the tables of the documentation.

``python -m benchmarks.page`` reads ``benchmarks/results/results.json`` and writes the page to
``build/results``: ``README.md`` and a plot of each table whose rows can be compared. In
``docs/benchmarks.md`` it fills the space between ``<!-- figures: BENCHMARK, TABLE -->`` and
``<!-- end -->``, so no figure there is typed by hand, and it copies the plots that a document shows
to ``benchmarks/results``. A benchmark without results leaves a line that says so, and
``choice, modes`` is the table of ``choice.py``. With another FILE it writes only the page.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import choice
from benchmarks.__main__ import BENCHMARKS
from benchmarks.harness import report
from benchmarks.harness.programs import ROOT
from benchmarks.harness.report import Figure, Record, Table

RESULTS = ROOT / "benchmarks" / "results" / "results.json"
PAGE = ROOT / "build" / "results"
DOCUMENT = ROOT / "docs" / "benchmarks.md"

CHOICE = "choice", "modes"

_MISSING = "*No results are published yet.*"
_ACROSS = 4  # plots in a row
_SHOWN = re.compile(r"benchmarks/results/([a-z0-9-]+\.svg)")
_BLOCK = re.compile(r"(<!-- figures: ([^,\n]+), ([^\n]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_BUSY = (
    "**The machine had other work**: rates are too low and waits too long. CPU times and ratios\n"
    "are affected less.\n"
)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table, its head first; the first column is text, the others are figures."""
    head, *rows = lines
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *rows))


def slug(*words: str) -> str:
    """Return a file's name for a table."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


def page(records: dict[str, Record]) -> str:
    """Return the text of the page."""
    first = next(iter(records.values()))
    parts = [
        "# Results\n",
        "Made by `python -m benchmarks.page`. `docs/benchmarks.md` says how the figures are taken",
        "and what limits them. Each is the median of its rounds, with minimum and maximum.\n",
        markdown([["machine", ""], *([k, v] for k, v in _same(first.machine).items())]),
    ]
    for name, record in records.items():
        length = "a quick run" if record.quick else "a whole run"
        when = f"{record.began:%Y-%m-%d %H:%M} UTC"
        parts += [
            f"## {name}\n",
            f"`python -m benchmarks.{name}`, {length} of {record.seconds:.0f} s on {when}, load",
            f"{record.load:g} before it, commit {record.machine['commit']}.\n",
        ]
        if record.load > 1:
            parts.append(_BUSY)
        if (machine := _same(record.machine)) != _same(first.machine):
            other = "; ".join(f"{k} {v}" for k, v in machine.items() if first.machine.get(k) != v)
            parts.append(f"On another machine: {other}.\n")
        for table in record.report.tables:
            parts += [f"{table.note}.\n", markdown(table.lines())]
            if _drawn(table):
                parts.append(f"![{name}, {table.title}]({slug(name, table.title)}.svg)\n")
        if record.report.targets:
            rows = []
            for target in record.report.targets:
                bound = f"at {'most' if target.at_most else 'least'} {target.bound:g}"
                verdict = "reached" if target.reached else "**missed**"
                rows.append([target.name, f"{target.value:.3g}", bound, verdict])
            parts.append(markdown([["target", "value", "bound", ""], *rows]))
    return "\n".join(parts)


def _same(machine: dict[str, str]) -> dict[str, str]:
    """Leave out the commit, which each record has of its own."""
    return {name: value for name, value in machine.items() if name != "commit"}


def _drawn(table: Table) -> list[int]:
    """Return the columns of a table that are drawn."""
    numbers = range(len(table.columns)) if table.drawn else ()
    return [n for n in numbers if table.columns[n].better != "neither"]


def draw(table: Table, file: Path) -> None:
    """Draw a table: a bar for each row, its spread as a line, the columns side by side."""
    import matplotlib as mpl

    mpl.use("Agg")
    # The same figures give the same file: no random names, no date.
    mpl.rcParams.update({"svg.hashsalt": "ratelimit", "svg.fonttype": "none", "font.size": 8})
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    numbers = _drawn(table)
    down, across = -(-len(numbers) // _ACROSS), min(_ACROSS, len(numbers))
    size = (2.5 + 2.2 * across, down * (0.8 + 0.2 * len(table.rows)))
    figure, panels = plt.subplots(
        down, across, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axes in panels.flat[len(numbers) :]:
        axes.set_visible(False)
    for axes, number in zip(panels.flat, numbers, strict=False):
        column = table.columns[number]
        there = [(place, row.cells[number]) for place, row in enumerate(table.rows)]
        cells = [(place, cell) for place, cell in there if cell is not None]
        axes.barh(
            [place for place, _ in cells],
            [cell.median for _, cell in cells],
            xerr=_spread([cell for _, cell in cells]),
            color="#4c78a8" if column.better == "less" else "#54a24b",
            ecolor="#333333",
        )
        axes.set_title(f"{column.name}\n({column.better} is better)", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_yticks(range(len(table.rows)), [row.name for row in table.rows])
    panels[0][0].invert_yaxis()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def _spread(cells: Sequence[Figure]) -> list[list[float]]:
    below = [cell.median - cell.low for cell in cells]
    return [below, [cell.high - cell.median for cell in cells]]


def fill(text: str, records: dict[str, Record]) -> str:
    """Return a document with the tables that its comments name.

    Raises KeyError if there is no such benchmark, or its results have no such table.
    """

    def table(found: re.Match[str]) -> str:
        start, name, title, end = found.groups()
        if (name, title) == CHOICE:
            lines = choice.lines(records)
        elif name in records:
            tables = {table.title: table for table in records[name].report.tables}
            lines = tables[title].lines()
        elif name in BENCHMARKS:
            return f"{start}{_MISSING}\n{end}"
        else:
            raise KeyError(name)
        return f"{start}{markdown(lines)}{end}"

    return _BLOCK.sub(table, text)


def shown() -> set[str]:
    """Return the names of the plots that a document shows."""
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    return {name for file in documents for name in _SHOWN.findall(file.read_text())}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=RESULTS, metavar="FILE")
    file: Path = parser.parse_args().file
    try:
        records = report.read(file)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not records:
        parser.error(f"{file}: holds no results")
    PAGE.mkdir(parents=True, exist_ok=True)
    for name, record in records.items():
        for table in record.report.tables:
            if _drawn(table):
                draw(table, PAGE / f"{slug(name, table.title)}.svg")
    (PAGE / "README.md").write_text(page(records))
    print(f"The page is {os.path.relpath(PAGE / 'README.md')}.")
    if file == RESULTS:
        try:
            filled = fill(DOCUMENT.read_text(), records)
        except KeyError as error:
            parser.error(f"{DOCUMENT}: there is no benchmark or table {error}")
        DOCUMENT.write_text(filled)
        if missing := filled.count(_MISSING):
            print(f"{os.path.relpath(DOCUMENT)} has {missing} tables without results.")
        for plot in shown():
            shutil.copy(PAGE / plot, RESULTS.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
