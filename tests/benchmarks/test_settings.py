"""The settings that are measured are settings of the shipped files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import settings
from benchmarks.harness.programs import require
from benchmarks.harness.report import Figure
from benchmarks.settings import CFG, FIRST, LAST, Edit, Sample


@pytest.mark.integration
def test_haproxy_takes_every_setting_without_a_warning(tmp_path: Path) -> None:
    haproxy = require("haproxy")
    for number, setting in enumerate(settings.offered(haproxy)):
        folder = tmp_path / str(number)
        settings.write(setting, folder)
        command = [haproxy, "-c", "-f", str(folder / CFG)]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        assert said.returncode == 0, (setting.name, said.stderr)
        assert "WARNING" not in said.stderr, (setting.name, said.stderr)


def test_every_edit_fits_the_shipped_files(tmp_path: Path) -> None:
    for number, setting in enumerate(settings.SETTINGS):
        settings.write(setting, tmp_path / str(number))


@pytest.mark.parametrize(("old", "count"), [("backend", 2), ("frontend", 0)])
def test_an_edit_that_does_not_fit_is_an_error(tmp_path: Path, old: str, count: int) -> None:
    (tmp_path / CFG).write_text("backend a\nbackend b\n")
    with pytest.raises(SystemExit, match=f"'{old}' is there {count} times"):
        Edit(CFG, old, "").apply(tmp_path)


def test_a_setting_is_compared_round_by_round_with_first_and_last() -> None:
    first = [Sample(100, 9, 1, 1, 4), Sample(60, 18, 2, 1, 4), Sample(100, 9, 1, 1, 4)]
    last = [Sample(100, 9, 1, 1, 4), Sample(40, 27, 3, 1, 4), Sample(100, 9, 1, 1, 4)]
    other = [Sample(50, 18, 2, 1, 6), Sample(50, 20, 5, 1, 6), Sample(75, 9, 1, 1, 6)]
    table = settings.table({FIRST.name: first, "other": other, LAST.name: last}, "how")
    names = [column.name for column in table.columns]
    rates, costs = names.index("to as shipped"), names.index("both to as shipped")
    assert [row.cells[rates] for row in table.rows] == [
        Figure(1, 1, 1.2),
        Figure(0.75, 0.5, 1),
        Figure(1, 0.8, 1),
    ]
    assert [row.cells[costs] for row in table.rows] == [
        Figure(1, 0.8, 1),
        Figure(1, 1, 2),
        Figure(1, 1, 1.2),
    ]
