"""The store's time from samples of it; time is an argument."""

from __future__ import annotations

import random

import pytest

from ratelimit.store.redis.clock import LEAP, SAMPLES, SLEW, Clock

MS = 1_000_000
SECOND = 1000 * MS
START = 50 * SECOND


def ask(clock: Clock, at: int, ahead: int, there: int = MS // 10, back: int = MS // 10) -> None:
    """Let the clock sample a store that is ``ahead`` when the request arrives."""
    clock.sample(at, at + there + back, at + there + ahead)


def test_nothing_is_known_at_first() -> None:
    clock = Clock()
    assert not clock.known
    assert clock.offset(START) == 0


@pytest.mark.parametrize("ahead", [0, 5 * MS, -300 * SECOND, 1_700_000_000 * SECOND])
def test_the_first_sample_is_taken_at_once(ahead: int) -> None:
    clock = Clock()
    ask(clock, START, ahead)
    assert clock.known
    assert clock.offset(START) == ahead
    assert clock.error == MS // 10


def test_the_error_is_at_most_half_a_round_trip() -> None:
    clock = Clock()
    ask(clock, START, 0, there=40 * MS, back=0)
    assert abs(clock.offset(START)) == 20 * MS == clock.error


def test_the_shortest_round_trip_is_believed() -> None:
    clock = Clock()
    random.seed(1)
    for second in range(16):
        ask(clock, START + second * SECOND, 7 * MS, there=random.randrange(MS, 200 * MS))
    ask(clock, START + 16 * SECOND, 7 * MS)
    end = START + 60 * SECOND
    assert clock.offset(end) == 7 * MS
    ask(clock, end, 7 * MS, there=400 * MS)
    assert clock.offset(end + 60 * SECOND) == 7 * MS


def test_time_never_jumps_nor_stands_still_by_small_errors() -> None:
    clock = Clock()
    random.seed(2)
    last = None
    for step in range(200):
        at = START + step * SECOND
        ask(clock, at, 0, there=random.randrange(50 * MS), back=random.randrange(50 * MS))
        for part in range(0, 1000, 50):
            local = at + 100 * MS + part * MS * 9 // 10
            served = local + clock.offset(local)
            if last is not None:
                passed, before = local - last[0], served - last[1]
                assert abs(before - passed) <= passed * SLEW + 1
            last = (local, served)
    assert abs(clock.offset(at + SECOND)) < 25 * MS


def test_a_large_error_is_made_up_for_at_once() -> None:
    clock = Clock()
    ask(clock, START, 0)
    clock.forget()
    ask(clock, START + SECOND, LEAP + MS)
    assert clock.offset(START + SECOND) == LEAP + MS


@pytest.mark.parametrize("jump", [3600 * SECOND, -5 * SECOND])
def test_a_store_whose_clock_is_set_is_followed_at_once(jump: int) -> None:
    clock = Clock()
    for second in range(SAMPLES):
        ask(clock, START + second * SECOND, 0)
    at = START + SAMPLES * SECOND
    ask(clock, at, jump, there=2 * MS, back=2 * MS)
    assert clock.offset(at + 4 * MS) == jump
    ask(clock, at + SECOND, jump, there=900 * MS, back=0)
    assert clock.offset(at + 2 * SECOND) == jump, "a slow answer says nothing against it"


def test_a_smaller_error_is_made_up_for_slowly() -> None:
    clock = Clock()
    ask(clock, START, 0)
    clock.forget()
    ask(clock, START + SECOND, 10 * MS)
    at = START + SECOND
    assert clock.offset(at + MS) < MS
    assert clock.offset(at + SECOND) == pytest.approx(5 * MS, abs=MS // 100)
    assert clock.offset(at + 3 * SECOND) == 10 * MS


@pytest.mark.parametrize("drift", [100e-6, -100e-6])
def test_drift_is_measured_and_goes_on_while_the_store_is_away(drift: float) -> None:
    clock = Clock()
    for second in range(SAMPLES):
        ask(clock, START + second * SECOND, int(second * SECOND * drift))
    assert clock.drift == pytest.approx(drift, rel=0.1)
    later = START + 3600 * SECOND
    assert clock.offset(later) == pytest.approx(3600 * SECOND * drift, rel=0.1)


def test_drift_is_not_measured_over_bad_connections() -> None:
    clock = Clock()
    random.seed(3)
    for second in range(SAMPLES):
        ask(clock, START + second * SECOND, 0, there=random.randrange(50 * MS, 100 * MS))
    assert clock.drift == 0
