"""The pauses between attempts."""

from __future__ import annotations

from ratelimit.backoff import Backoff


def test_pauses_double_up_to_the_longest_until_an_attempt_succeeds() -> None:
    backoff = Backoff(1, 5, spread=0)
    assert [backoff.next() for _ in range(4)] == [1, 2, 4, 5]
    backoff.reset()
    assert backoff.next() == 1


def test_pauses_are_spread() -> None:
    pauses = [Backoff(8, 8).next() for _ in range(100)]
    assert 4 < min(pauses) < max(pauses) <= 8
    assert len(set(pauses)) > 50
