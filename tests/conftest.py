"""Which form of the compiled modules the tests run on.

By default it is what ``import`` finds: the extensions where they were built. ``RATELIMIT_PURE=1``
takes the plain modules although extensions stand beside them, and
``RATELIMIT_REQUIRE_EXTENSIONS=1`` refuses to run on anything but extensions.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest

from ratelimit import engine
from tests.forms import PlainFinder, stale_extensions

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


def pytest_report_header() -> str:
    return f"ratelimit: {'compiled' if engine.compiled() else 'pure'}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the comparisons where there is nothing to compare."""
    if engine.compiled():
        return
    comparisons = [item for item in items if item.get_closest_marker("both_forms")]
    config.hook.pytest_deselected(items=comparisons)
    items[:] = [item for item in items if item not in comparisons]


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds or leaves state in the user's folders."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))


@pytest.fixture(autouse=True)
def _own_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents that run side by side have each an API on a free port."""
    monkeypatch.setenv("RATELIMIT_OPS__LISTEN", "127.0.0.1:0")
