"""The page of results, and that what is published agrees with it."""

from __future__ import annotations

import dataclasses
import datetime as dt
from pathlib import Path

import pytest

from benchmarks import choice, page
from benchmarks.__main__ import BENCHMARKS
from benchmarks.harness import report
from benchmarks.harness.report import Column, Figure, Record, Report, Row, Table, Target

TABLE = Table(
    "one core",
    "two rounds",
    (Column("CPU us", "less", 1), Column("busy, %", digits=0)),
    (Row.of("compiled", Figure(1.5, 1, 2), 99), Row.of("plain", 20, None)),
)
RECORD = Record(
    Report((TABLE,), (Target("CPU us", 1.5, 1, at_most=True),)),
    quick=True,
    began=dt.datetime(2026, 1, 2, 3, 4, tzinfo=dt.UTC),
    seconds=12.3,
    load=0.5,
    machine={"CPU": "one", "commit": "abc"},
)
MARKDOWN = (
    "| one core | CPU us | busy, % |\n"
    "| --- | ---: | ---: |\n"
    "| compiled | 1.5 (1.0-2.0) | 99 |\n"
    "| plain | 20.0 | - |\n"
)


def test_a_page_tells_what_was_measured_where_and_what_was_missed() -> None:
    text = page.page({"agent": RECORD})
    assert MARKDOWN in text
    assert "a quick run of 12 s on 2026-01-02 03:04 UTC" in text
    assert "commit abc" in text
    assert "| CPU us | 1.5 | at most 1 | **missed** |" in text
    assert "![agent, one core](agent-one-core.svg)" in text
    assert "other work" not in text
    assert "other work" in page.page({"agent": dataclasses.replace(RECORD, load=1.5)})


def test_a_document_takes_only_the_figures_that_it_names() -> None:
    before = "a\n<!-- figures: agent, one core -->\nold\n<!-- end -->\nb\n"
    filled = page.fill(before, {"agent": RECORD})
    assert filled == f"a\n<!-- figures: agent, one core -->\n{MARKDOWN}<!-- end -->\nb\n"
    assert page.fill(filled, {"agent": RECORD}) == filled
    with pytest.raises(KeyError, match="two cores"):
        page.fill(before.replace("one core", "two cores"), {"agent": RECORD})


def test_a_benchmark_without_results_leaves_a_line() -> None:
    before = "<!-- figures: flood, visitors -->\nold\n<!-- end -->\n"
    filled = page.fill(before, {"agent": RECORD})
    assert "\n*No results are published yet.*\n" in filled
    with pytest.raises(KeyError, match="fload"):
        page.fill(before.replace("flood", "fload"), {"agent": RECORD})


def test_the_choice_of_a_mode_takes_figures_that_there_are() -> None:
    columns = tuple(Column(mode, "less", 0) for mode in ("spoe", "peers"))
    row = Row.of("one HAProxy, 3,000 a second", Figure(100, 99, 101), 103)
    table = Table("within a second", "", columns, (row,))
    record = dataclasses.replace(RECORD, report=Report((table,)))
    found = {line[0]: line[1:] for line in choice.lines({"admitted": record})}
    title = "most admitted in a second, limit of 100, one client at 3,000 a second"
    assert found[title] == ["100 (99-101)", "103", "-", "SPOE"]
    assert found["us added to a request at half load, p50"] == ["-", "-", "-", "peers"]
    other = dataclasses.replace(table, columns=(columns[0], Column("other")))
    record = dataclasses.replace(RECORD, report=Report((other,)))
    with pytest.raises(KeyError, match="peers"):
        choice.lines({"admitted": record})


def test_the_figures_of_the_choice_are_of_benchmarks() -> None:
    values = [value for one in choice.CHOICES for value in one.values]
    places = [value for value in values if isinstance(value, choice.Place)]
    assert {place.benchmark for place in places} <= set(BENCHMARKS)


def test_what_is_published_is_what_was_measured() -> None:
    records = report.read(page.RESULTS)
    document = page.DOCUMENT.read_text()
    assert page.fill(document, records) == document


def test_only_what_a_document_shows_is_committed() -> None:
    folder = page.RESULTS.parent
    committed = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert set(committed) == {page.RESULTS.name, *page.shown()}
    assert sum(committed.values()) < 300_000


def test_a_file_of_results_has_a_line_for_each_record(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    row = Row.of("compiled", Figure(1.23456789, 1, 2), 99)
    exact = dataclasses.replace(
        RECORD, report=Report((dataclasses.replace(TABLE, rows=(row,)),), ())
    )
    report.write(file, "agent", exact)
    report.write(file, "fleet", RECORD)
    assert len(file.read_text().splitlines()) == 2
    found = report.read(file)
    assert found["fleet"] == RECORD
    cell = found["agent"].report.tables[0].rows[0].cells[0]
    assert cell == Figure(1.23457, 1, 2)
