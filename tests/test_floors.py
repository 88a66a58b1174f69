"""The floors of the house: a file imports only from lower ones (ARCHITECTURE.md)."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest

from tests.forms import PACKAGE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FLOORS = [
    ["", "exceptions", "histogram", "large", "load", "model", "steps", "trusted_proxies"],
    ["nearest", "notation", "engine.constants", "orders", "signals", "spop", "spop.constants"],
    ["engine.key", "engine.networks", "engine.rule", "keys", "spop.codec"],
    [
        "engine.acknowledge",
        "engine.plan",
        "engine.table",
        "blocklist",
        "lists",
        "secret_files",
        "spop.frames",
        "strings",
        "trust",
    ],
    ["barred", "engine.exchange", "engine.scan"],
    ["engine.answer", "forwarders"],
    ["engine", "limiter", "spop.connection"],
    ["runtime.words", "typed"],
    ["runtime.figures"],
    ["merge", "store.secret", "supervisor", "tls", "turns", "writer"],
    ["logs"],
    ["ending"],
    ["bus", "demo", "haproxy", "ops.tokens", "runtime.edge", "store.entries", "systemd"],
    ["store.outbox", "store.signing"],
    ["runtime.maps"],
    ["runtime.mirror"],
    [
        "client",
        "handover",
        "runtime",
        "shown",
        "store.base",
        "store.clock",
        "store.url",
        "webhooks",
    ],
    ["store.explain", "store.file"],
    ["store.journal", "store.slots"],
    ["store.memory"],
    ["store.link"],
    ["store.sentinel"],
    ["store.routes"],
    ["store.life"],
    ["store.writing"],
    ["store.shared"],
    ["store.members"],
    ["store.look", "store.redis"],
    ["store"],
    ["accesslog", "alerts", "config"],
    ["doctor.facts", "doctor.findings", "report", "sync"],
    ["doctor.haproxy"],
    ["doctor.checks"],
    ["doctor"],
    ["agent", "busiest", "mapfiles", "replay"],
    ["edges"],
    ["reload"],
    ["control", "metrics"],
    [
        "ops.audit",
        "ops.call",
        "ops.connections",
        "ops.guesses",
        "ops.listing",
        "ops.models",
        "ops.page",
        "ops.stream",
    ],
    ["ops.problems"],
    ["ops.access", "ops.blocks", "ops.haproxy"],
    ["ops.handlers"],
    ["ops.routes"],
    ["ops.openapi", "ops.paths"],
    ["ops.server"],
    ["ops"],
    ["node"],
    ["service"],
    ["together"],
    ["operate"],
    ["commands", "commands.doctor", "commands.haproxy", "commands.trusted_proxies"],
    ["cli"],
    ["__main__"],
]
"""Modules of the package, from the ground up; the empty name is the package itself."""

FLOOR = {name: number for number, floor in enumerate(FLOORS) for name in floor}

SILENT = FLOOR["turns"]
"""Below this floor there is no clock, no socket and no event loop: time is an argument."""

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


def test_every_module_has_a_floor() -> None:
    assert sorted(FLOOR) == sorted(FILES)


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_go_down(module: str) -> None:
    for name in imports(FILES[module]):
        lower = inside(name)
        if lower is not None:
            assert FLOOR[lower] < FLOOR[module], f"{module} imports {lower}"


@pytest.mark.parametrize("module", sorted(name for name, floor in FLOOR.items() if floor < SILENT))
def test_time_and_sockets_stay_above(module: str) -> None:
    assert not OUTSIDE & {name.partition(".")[0] for name in imports(FILES[module])}
