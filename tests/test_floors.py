"""The floors of the house: a package imports only from lower ones (ARCHITECTURE.md)."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest

from tests.helpers.forms import PACKAGE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FLOORS = [
    ["backoff", "exceptions", "histogram", "large", "model", "steps", "tls"],
    ["files", "notation", "turns"],
    ["process", "wire"],
    ["engine"],
    ["limiter", "spop"],
    ["haproxy", "peers", "store"],
    ["agent", "events"],
    ["config"],
    ["node", "replay"],
    ["api"],
    ["app", "doctor"],
    ["serve"],
    ["cli"],
    ["__main__"],
]
"""The packages, and the modules next to them, from the ground up."""

FLOOR = {name: number for number, floor in enumerate(FLOORS) for name in floor}

SILENT = ["engine", "limiter", "peers", "spop", "wire"]
"""In these there is no clock, no socket and no event loop: time is an argument."""

OUTSIDE = {"aiohttp", "asyncio", "select", "selectors", "socket", "ssl", "threading", "time"}

FILES = {
    ".".join(
        part for part in path.relative_to(PACKAGE).with_suffix("").parts if part != "__init__"
    ): path
    for path in PACKAGE.rglob("*.py")
}


def imports(path: Path) -> Iterator[str]:
    """Yield the full names of the modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            assert node.module is not None
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name for name in submodules if inside(name) in FILES]
            yield from found or [node.module]


def inside(name: str) -> str | None:
    """Return ``engine.key`` for ``ratelimit.engine.key``, and None for modules of others."""
    package, _, rest = name.partition(".")
    return rest if package == PACKAGE.name else None


def top(module: str) -> str:
    """Return ``engine`` for ``engine.key``, and the name of a module that is in no package."""
    return module.partition(".")[0]


def test_every_package_has_a_floor() -> None:
    assert sorted(FLOOR) == sorted({top(module) for module in FILES} - {""})


@pytest.mark.parametrize("module", sorted(set(FILES) - {""}))
def test_imports_go_down(module: str) -> None:
    for name in imports(FILES[module]):
        lower = inside(name)
        if lower and top(lower) != top(module):
            assert FLOOR[top(lower)] < FLOOR[top(module)], f"{module} imports {lower}"


@pytest.mark.parametrize("module", sorted(name for name in FILES if top(name) in SILENT))
def test_time_and_sockets_stay_above(module: str) -> None:
    assert not OUTSIDE & {name.partition(".")[0] for name in imports(FILES[module])}
