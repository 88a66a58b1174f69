"""Which HAProxies the benchmarks find."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks.harness import versions
from benchmarks.harness.programs import Programs
from tests import matrix


def haproxy(folder: Path, number: str) -> str:
    """Write a program that says that it is an HAProxy of a version."""
    path = folder / "haproxy"
    path.write_text(f"#!/bin/sh\necho 'HAProxy version {number}-1 2026/01/01'\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A machine with HAProxy 3.2, and a cache with 2.8, 3.2 and 3.4."""
    machine = tmp_path / "machine"
    machine.mkdir()
    program = haproxy(machine, "3.2.1")
    monkeypatch.setattr(versions, "require", lambda _: program)
    cached = ("haproxy-2.8", "haproxy-3.2", "haproxy-3.4")
    monkeypatch.setattr(versions, "is_there", lambda entry: entry.name in cached)
    monkeypatch.setattr(
        versions, "command", lambda entry, to: Path(haproxy(to, f"{entry.version}9"))
    )
    return program


def test_all_that_are_there_are_found_in_order(there: str, tmp_path: Path) -> None:
    found = versions.haproxies(tmp_path)
    assert list(found) == ["2.8", "3.2", "3.4"]
    assert found["3.2"] == there, "the machine's own one is taken"
    assert {number: versions.version(program) for number, program in found.items()} == {
        number: number for number in found
    }


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    made = Programs()
    made.folder = tmp_path
    return made


def test_one_is_chosen_by_its_version(there: str, programs: Programs) -> None:
    versions.choose(programs, argparse.Namespace(haproxy=""))
    assert programs.haproxy == ""
    versions.choose(programs, argparse.Namespace(haproxy="3.4"))
    assert versions.version(programs.haproxy) == "3.4"


def test_one_that_is_not_there_is_an_error(there: str, programs: Programs) -> None:
    with pytest.raises(SystemExit, match=r"no HAProxy 2\.6; there are 2\.8"):
        versions.choose(programs, argparse.Namespace(haproxy="2.6"))


def test_a_server_is_in_the_cache_when_it_is_complete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(matrix, "CACHE", tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    by_name = {entry.name: entry for entry in matrix.ENTRIES}
    names = ("haproxy-2.8", "haproxy-3.4")
    assert [matrix.is_there(by_name[name]) for name in names] == [False, False]
    (tmp_path / matrix.WHEEL).mkdir()
    (tmp_path / "experimental.done").touch()
    assert [matrix.is_there(by_name[name]) for name in names] == [True, True]
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert [matrix.is_there(by_name[name]) for name in names] == [True, False]
