"""Each module of ``ratelimit/`` has a file of tests of its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.forms import PACKAGE

TESTS = Path(__file__).parent

WITHOUT = {
    "__main__": "starts the command line; tests/cli and tests/integration run it",
    "api/call": "declarations",
    "app": "the assembly; tests/integration, tests/api and tests/store run it",
    "config/values": "types of fields; config/test_problems gives each a wrong value",
    "doctor/haproxy": "judges one HAProxy; doctor/test_judge plants the faults",
    "engine/layout": "declarations",
    "engine/query": "declarations",
    "exceptions": "declarations",
    "model": "declarations",
    "node/operations": "all that the API can do; tests/api runs it",
    "peers/constants": "declarations; peers/test_definition holds the data types",
    "peers/listener": "declarations",
    "peers/sources": "what counts know of HAProxies; peers/test_counts runs it",
    "spop/constants": "declarations",
}
"""Modules without a file of tests, and why."""

MODULES = [
    path.relative_to(PACKAGE).with_suffix("").as_posix()
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
]


def file_of(module: str) -> Path:
    """Return the place of the tests of a module."""
    folder, _, name = module.rpartition("/")
    return TESTS / folder / f"test_{name}.py"


@pytest.mark.parametrize("module", sorted({*MODULES, *WITHOUT}))
def test_each_module_has_a_file_of_tests_or_a_reason_for_none(module: str) -> None:
    assert module in MODULES, "the module is gone; remove its reason"
    there = file_of(module).is_file()
    assert there != (module in WITHOUT), f"{file_of(module)}: move tests there, or give a reason"
