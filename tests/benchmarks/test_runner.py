"""The runner goes on when a benchmark fails, and says so."""

from __future__ import annotations

import datetime as dt
import importlib.util
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as runner
from benchmarks.harness import report
from benchmarks.harness.report import Record, Report, Target


def test_every_benchmark_is_there() -> None:
    for name in runner.BENCHMARKS:
        assert importlib.util.find_spec(f"benchmarks.{name.split()[0]}"), name


def test_a_benchmark_that_fails_or_takes_too_long_is_told(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    assert runner.measure("not_there", file, quick=True, limit=30) == "ended with 1"
    assert runner.measure("accuracy", file, quick=True, limit=0.01) == "took more than 0.01 s"
    assert not file.exists()


def run(
    monkeypatch: pytest.MonkeyPatch, file: Path, outcomes: dict[str, str], *arguments: str
) -> int:
    """Run benchmarks of which each ends as it is told, and writes a record if that is well."""

    def measure(name: str, file: Path, quick: bool, limit: float) -> str:
        assert (quick, limit) == (True, 120)
        if not outcomes[name]:
            target = Target("checks", 1, 2, at_most=False)
            began = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
            report.write(file, name, Record(Report((), (target,)), True, began, 1, 0, {}))
        return outcomes[name]

    monkeypatch.setattr(runner, "measure", measure)
    monkeypatch.setattr(runner, "BENCHMARKS", tuple(outcomes))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--json", str(file), *arguments])
    return runner.main()


def test_the_others_run_when_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "folder" / "results.json"
    outcomes = {"first": "", "second": "ended with 3", "third": ""}
    assert run(monkeypatch, file, outcomes) == 1
    shown = capsys.readouterr().out
    assert "FAILED   second ended with 3" in shown
    assert "third: MISSED   checks: 1, at least 2" in shown
    assert list(report.read(file)) == ["first", "third"]
    assert run(monkeypatch, file, outcomes, "third") == 0
    assert run(monkeypatch, file, outcomes, "second", "first") == 1


def test_a_name_stands_for_all_parts_of_a_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "results.json"
    outcomes = {"fleet --cost": "", "fleet --hang": "", "table": ""}
    assert run(monkeypatch, file, outcomes, "fleet") == 0
    assert list(report.read(file)) == ["fleet --cost", "fleet --hang"]
    assert run(monkeypatch, file, outcomes, "table", "fleet --cost") == 0
    assert set(report.read(file)) == set(outcomes)


def test_a_name_that_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, tmp_path / "results.json", {"first": ""}, "other")
    assert exit_.value.code == 2
    assert "there is no other; there are first" in capsys.readouterr().err
