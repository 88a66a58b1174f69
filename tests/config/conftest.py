"""A configuration of a text, and what is wrong with it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ratelimit.config import Config, load
from ratelimit.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("RATELIMIT_"):
            monkeypatch.delenv(name)


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Config]:
    """Load a file of this text, by the name ``r.toml``."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "r.toml"

    def read_text(text: str) -> Config:
        path.write_text(text)
        return load(path.relative_to(tmp_path))

    return read_text


@pytest.fixture
def problems(read: Callable[[str], Config]) -> Callable[[str], list[str]]:
    """Return what is wrong with a file of this text."""

    def find(text: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            read(text)
        assert str(caught.value) == "\n".join(caught.value.problems)
        for problem in caught.value.problems:
            assert "\n" not in problem
        return caught.value.problems

    return find
