"""Hits that are reported after they were answered: when they happened, and when the next fits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit.limiter.limiter import Sharing
from ratelimit.model import Limit
from ratelimit.notation import SECOND
from tests.helpers.asking import START
from tests.helpers.sticktable import CLIENT, Fed, Line, table


def test_late_hits_are_counted_where_they_happened() -> None:
    fed = Fed(Limit(rate=1000, window=16 * SECOND))
    line = Line(fed)
    line.tell(0, req=1)
    line.tell(8, since=0, req=801)
    assert fed.hits() == 801
    # A tenth of a second of them leaves with each tenth that passes, by a part of the window.
    for passed in range(1, 9):
        fed.counts.at(START + (16 + passed) * SECOND, 0)
        assert fed.hits() == pytest.approx(800 - 100 * passed, abs=1)


def test_hits_older_than_the_window_are_dropped() -> None:
    fed = Fed(Limit(rate=1000, window=SECOND))
    line = Line(fed)
    line.tell(0, req=1)
    line.tell(10, since=0, req=1001)
    assert fed.hits() == pytest.approx(100, abs=2)


def test_a_single_late_hit_is_the_newest() -> None:
    fed = Fed(Limit(rate=1000, window=SECOND))
    line = Line(fed)
    line.tell(0, req=1)
    line.tell(50, since=0, req=2)
    assert fed.hits() == 1


def test_late_hits_of_a_blocked_client_do_not_count() -> None:
    fed = Fed(Limit(rate=10, window=60 * SECOND, block=(20,)))
    line = Line(fed)
    line.tell(0, req=11)
    assert fed.limiter.blocks == 1
    line.tell(10, since=0, req=500)
    assert fed.hits() == 0
    assert fed.limiter.engine.rules[0].blocked == 2


def test_a_client_with_its_whole_limit_waits_exactly_until_one_hit_fits() -> None:
    fed = Fed(Limit(rate=5, window=SECOND, block=()))
    line = Line(fed)
    for n in range(5):
        line.tell(n * 0.1, req=n + 1)
    (verdict,) = fed.verdicts()
    fed.counts.at(verdict.until - 1, 0)
    assert fed.hits() == 5
    fed.counts.at(verdict.until, 0)
    assert fed.hits() == 4
    assert fed.limiter.engine.rules[0].throttled == 0, "none was refused"


def test_late_hits_are_shared_with_other_nodes() -> None:
    fed = Fed(Limit(rate=100, window=16 * SECOND), sharing=Sharing.HOT)
    fed.limiter.divide(2, True)
    line = Line(fed)
    line.tell(0, req=40)
    (exchange,) = fed.limiter.engine.exchanges
    exchange.pack(START)
    line.tell(4, since=0, req=80)
    batch = exchange.pack(START + 4 * SECOND)
    counters = memoryview(batch[28:96]).cast("I")
    assert sum(counters) == 40
    assert sum(n > 0 for n in counters) >= 4, "in the parts in which they happened"


def test_a_client_on_the_allow_list_is_never_told_to_wait() -> None:
    fed = Fed(Limit(rate=2, block=()), allow=(CLIENT,))
    line = Line(fed)
    for n in range(10):
        line.tell(n * 0.01, req=5 * n + 5)
    assert fed.verdicts() == []


COARSE = 1_000_000 + 3 * (1 << 16)
"""Nanoseconds to which times are rounded: baselines to a millisecond, ages to 2^16 ns."""


@settings(max_examples=100, deadline=None)
@given(
    window=st.sampled_from([100_000_000, SECOND, 3600 * SECOND, 86_400 * SECOND]),
    phase=st.floats(0, 1, exclude_max=True),
    length=st.floats(0, 3),
    hits=st.one_of(st.integers(1, 300), st.sampled_from([1 << 27])),
)
def test_no_hit_is_lost_or_made_by_the_distribution(
    window: int, phase: float, length: float, hits: int
) -> None:
    fed = Fed(Limit(rate=10_000_000, window=window, block=(), strict=True))
    line = Line(fed, table(expire=10 * 86_400))
    first = phase * window / SECOND
    passed = length * window / SECOND
    line.tell(first, req=0)
    line.tell(first + passed, since=first, req=hits)
    # A strict window has a part more, whose hits count whole.
    if length <= 1:
        assert fed.hits() == hits
    else:
        share = hits / length
        slack = 2 + share * COARSE / window
        assert share - slack <= fed.hits() <= share * 17 / 16 + slack
