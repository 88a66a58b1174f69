"""Some random moments at which something breaks; ``python -m tests.chaos --help`` makes more.

``RATELIMIT_TEST_MOMENTS`` is how many, ``RATELIMIT_TEST_SEED`` repeats a run.
"""

from __future__ import annotations

import os

import pytest

from tests import chaos

pytestmark = pytest.mark.integration

MOMENTS = int(os.environ.get("RATELIMIT_TEST_MOMENTS", "4"))
SEED = int(os.environ.get("RATELIMIT_TEST_SEED", "1"))


def test_nothing_acknowledged_is_lost_and_nothing_lifted_returns() -> None:
    said: list[str] = []
    faults = chaos.run(MOMENTS, SEED, said.append)
    assert not faults, said
    assert len(said) == MOMENTS + 4
