"""A limit as numbers for the request path: its window, its name, its share of the fleet."""

from __future__ import annotations

import pytest

from ratelimit.engine.rule import Rule
from ratelimit.model import Limit
from tests.helpers.asking import Asked


@pytest.mark.parametrize("limit", [Limit(name=""), Limit(name="n" * 65), Limit(window=15)])
def test_a_limit_that_the_engine_can_not_keep_is_refused(limit: Limit) -> None:
    with pytest.raises(ValueError, match=r"must have 1 to 64 bytes|must have 16 to"):
        Asked(limit)


def test_a_new_minute_begins_without_clients_and_remembers_the_last() -> None:
    rule = Rule(Limit(), 0)
    rule.seen, rule.refused = 7, 3
    rule.minute()
    assert (rule.seen, rule.refused, rule.seen_before, rule.refused_before) == (0, 0, 7, 3)


def test_a_blown_fuse_outlives_a_change_of_its_limit() -> None:
    rule = Rule(Limit(rate=10), 3)
    rule.allowed = 5
    rule.blow(True)
    rule.change(Limit(rate=20))
    assert (rule.rate, rule.fused, rule.allowed, rule.index) == (20, True, 5, 3)
    rule.blow(False)
    assert not rule.fused
