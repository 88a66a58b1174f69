"""What counts as slower, and what the command says of it."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.harness import report
from benchmarks.harness.report import Column, Figure, Record, Report, Row, Table, Target

COLUMNS = (Column("CPU us", "less"), Column("a second", "more"), Column("busy, %"))
MACHINE = {"CPU": "one", "commit": "abc"}


def record(*cells: Figure | float | None, row: str = "agent", quick: bool = False) -> Record:
    table = Table("load", "how", COLUMNS, (Row.of(row, *cells),))
    began = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return Record(Report((table,)), quick, began, 1.0, 0.1, MACHINE)


def figure(low: float, median: float, high: float) -> Figure:
    return Figure(median, low, high)


BEFORE = record(figure(9, 10, 11), figure(90, 100, 110), 50)


@pytest.mark.parametrize(
    ("cells", "worse", "better"),
    [
        ((figure(9, 10, 11), figure(90, 100, 110), 50), [], []),
        ((figure(12, 13, 14), figure(90, 100, 110), 50), ["CPU us"], []),
        ((figure(6, 7, 8), figure(90, 100, 110), 50), [], ["CPU us"]),
        ((figure(9, 10, 11), figure(70, 80, 85), 50), ["a second"], []),
        ((figure(9, 10, 11), figure(120, 130, 140), 50), [], ["a second"]),
        # The ranges meet: it may be the spread.
        ((figure(10.5, 13, 14), figure(60, 80, 91), 50), [], []),
        # Apart, but by less than is to count.
        ((figure(10.9, 10.95, 10.99), figure(90, 100, 110), 50), [], []),
        # Neither less nor more is better.
        ((figure(9, 10, 11), figure(90, 100, 110), 5000), [], []),
        # The worst comes first.
        ((figure(14, 15, 16), figure(20, 25, 30), 50), ["a second", "CPU us"], []),
    ],
)
def test_only_what_is_beyond_the_spread_counts(
    cells: tuple[Figure | float, ...], worse: list[str], better: list[str]
) -> None:
    found = compare.compare({"agent": BEFORE}, {"agent": record(*cells)})
    assert [change.name.column for change in found.worse] == worse
    assert [change.name.column for change in found.better] == better
    assert (found.count, found.gone, found.added) == (2, [], [])


def test_the_least_change_can_be_chosen() -> None:
    old, new = {"agent": record(100, 100, 1)}, {"agent": record(104, 100, 1)}
    assert not compare.compare(old, new).worse
    assert [round(c.ratio, 2) for c in compare.compare(old, new, 0.03).worse] == [1.04]


def test_zero_is_no_trap() -> None:
    nothing, something = {"agent": record(0, 0, 0)}, {"agent": record(1, 1, 1)}
    assert not compare.compare(nothing, nothing).worse
    appeared = compare.compare(nothing, something)
    assert [(c.name.column, c.ratio) for c in appeared.worse] == [("CPU us", float("inf"))]
    assert [(c.name.column, c.ratio) for c in appeared.better] == [("a second", 0.0)]


def test_what_is_in_one_file_only_is_named() -> None:
    found = compare.compare(
        {"agent": record(1, 1, 1), "old": BEFORE},
        {"agent": record(1, None, 1, row="agent"), "new": BEFORE},
    )
    assert [str(name) for name in found.gone] == ["agent, load, agent, a second"]
    assert not found.added


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
    return compare.main()


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    report.write(old, "agent", BEFORE)
    report.write(new, "agent", record(figure(14, 15, 16), figure(90, 100, 110), 50, quick=True))
    assert run(monkeypatch, old, old) == 0
    assert "2 figures in both: 0 worse, 0 better, 0 gone" in capsys.readouterr().out
    assert run(monkeypatch, old, new) == 1
    shown = capsys.readouterr().out
    assert "agent: a quick run against a whole one" in shown
    assert "WORSE    1.50  agent, load, agent, CPU us: 10.000 (9.000-11.000) -> 15.000" in shown
    assert run(monkeypatch, new, old) == 0
    assert run(monkeypatch, old, new, "--least", "0.6") == 0


@pytest.mark.parametrize("content", [None, b"{", b'{"agent": {"report": 1}}'])
def test_a_file_that_holds_no_results_is_an_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
) -> None:
    file = tmp_path / "none.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, file, file)
    assert exit_.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_record_replaces_its_own_alone(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    whole = Report(BEFORE.report.tables, (Target("CPU us", 10, 11, at_most=True),))
    first = Record(whole, False, BEFORE.began, 2.0, 0.5, MACHINE)
    report.write(file, "agent", BEFORE)
    report.write(file, "table", BEFORE)
    report.write(file, "agent", first)
    assert report.read(file) == {"agent": first, "table": BEFORE}
