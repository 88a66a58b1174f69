"""Which form of the compiled modules the tests run on.

By default it is what ``import`` finds: the extensions where they were built. ``RATELIMIT_PURE=1``
takes the plain modules although extensions stand beside them, and
``RATELIMIT_REQUIRE_EXTENSIONS=1`` refuses to run on anything but extensions.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ratelimit import engine
from tests.helpers.forms import PlainFinder, stale_extensions
from tests.helpers.network import IS_ROOT, Network

PURE = os.environ.get("RATELIMIT_PURE", "") not in ("", "0")
REQUIRED = os.environ.get("RATELIMIT_REQUIRE_EXTENSIONS", "") not in ("", "0")

DESCRIPTORS = 4096
"""Enough for a thousand connections with both ends; most shells begin with 1,024 in all."""

# Where Debian has HAProxy, and only root's shell looks.
os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin"

if PURE:
    sys.meta_path.insert(0, PlainFinder())


def pytest_configure() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, DESCRIPTORS)), hard))
    if not PURE and (stale := stale_extensions()):
        raise pytest.UsageError(
            f"{', '.join(stale)}: edited since the extensions were built; pip install -e ."
        )
    if not PURE and REQUIRED and not engine.compiled():
        raise pytest.UsageError(
            "RATELIMIT_REQUIRE_EXTENSIONS is set, and there are none; pip install -e ."
        )


def pytest_report_header() -> list[str]:
    lines = [f"ratelimit: {'compiled' if engine.compiled() else 'pure'}"]
    if not IS_ROOT:
        lines.append("tests marked root are left out: only root can make the networks they need")
    return lines


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what can't run here: comparisons with one form alone, and what only root can do."""
    left_out = set()
    if not engine.compiled():
        left_out.add("both_forms")
    if not IS_ROOT:
        left_out.add("root")
    gone = [item for item in items if any(map(item.get_closest_marker, left_out))]
    config.hook.pytest_deselected(items=gone)
    items[:] = [item for item in items if item not in gone]


@pytest.fixture
def network() -> Iterator[Network]:
    """A network of the test's own; the test is marked ``root``."""
    made = Network()
    try:
        made.make()
        yield made
    finally:
        made.remove()


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds or leaves state in the user's folders."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))


@pytest.fixture(autouse=True)
def _own_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents that run side by side have each an API on a free port."""
    monkeypatch.setenv("RATELIMIT_OPS__LISTEN", "127.0.0.1:0")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="rl-") as name:
        yield Path(name)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The file of an agent with a small table, on a unix socket."""
    path = tmp_path / "ratelimit.toml"
    path.write_text(f'[agent]\nlisten = ["unix://{tmp_path}/spop.sock"]\nmax_clients = 1000\n')
    return path
