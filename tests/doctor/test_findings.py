"""A clock that differs is a fault beyond the tolerance and its own error."""

from __future__ import annotations

import pytest

from ratelimit.doctor.findings import CLOCK_TOLERANCE, State, clock_check


@pytest.mark.parametrize("side", [1, -1])
def test_a_clock_may_differ_by_the_tolerance_and_its_error(side: int) -> None:
    within = clock_check("store", side * (CLOCK_TOLERANCE + 0.4), 0.5, "blocks end wrongly")
    assert (within.state, within.fix) == (State.OK, "")
    beyond = clock_check("store", side * (CLOCK_TOLERANCE + 0.6), 0.5, "blocks end wrongly")
    assert beyond.state is State.BROKEN and "NTP" in beyond.fix
    told = "is 1.6 s ahead of" if side > 0 else "is 1.6 s behind"
    assert beyond.finding == f"{told} the local clock: blocks end wrongly"
