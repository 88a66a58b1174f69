"""The settings that are measured are settings of the shipped files."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from benchmarks import changes, harness, settings
from benchmarks.changes import BASE, CFG, Edit
from benchmarks.harness import Figure
from benchmarks.settings import Sample

if TYPE_CHECKING:
    from pathlib import Path


def test_haproxy_takes_every_setting_without_a_warning(tmp_path: Path) -> None:
    haproxy = harness.require("haproxy")
    for number, setting in enumerate(changes.offered(haproxy)):
        folder = tmp_path / str(number)
        changes.write(setting, folder)
        command = [haproxy, "-c", "-f", str(folder / CFG)]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        assert said.returncode == 0, (setting.name, said.stderr)
        assert "WARNING" not in said.stderr, (setting.name, said.stderr)


def test_every_edit_fits_the_shipped_files(tmp_path: Path) -> None:
    for number, setting in enumerate(changes.SETTINGS):
        changes.write(setting, tmp_path / str(number))


@pytest.mark.parametrize(("old", "count"), [("backend", 2), ("frontend", 0)])
def test_an_edit_that_does_not_fit_is_an_error(tmp_path: Path, old: str, count: int) -> None:
    (tmp_path / CFG).write_text("backend a\nbackend b\n")
    with pytest.raises(SystemExit, match=f"'{old}' is there {count} times"):
        Edit(CFG, old, "").apply(tmp_path)


def test_a_setting_is_compared_round_by_round() -> None:
    shipped = [Sample(100, 9, 1, 1, 4), Sample(50, 18, 2, 1, 4), Sample(100, 9, 1, 1, 4)]
    other = [Sample(50, 18, 2, 1, 6), Sample(50, 18, 2, 1, 6), Sample(75, 9, 1, 1, 6)]
    table = settings.table({BASE.name: shipped, "other": other}, "how")
    cells = dict(zip((column.name for column in table.columns), table.rows[1].cells, strict=True))
    assert cells["to as shipped"] == Figure(0.75, 0.5, 1)
    assert cells["both to as shipped"] == Figure(1, 1, 2)
    assert cells["CPU us, both"] == Figure(20, 10, 20)
