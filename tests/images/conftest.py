"""Nothing here runs without the images."""

from __future__ import annotations

import pytest

from tests.images import engine


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    engine.build()
