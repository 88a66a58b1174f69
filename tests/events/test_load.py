"""When the load is said to be high, and low again; time is an argument."""

from __future__ import annotations

from collections.abc import Sequence

from ratelimit.events.load import GAP, Load, LoadChange


def told(load: Load, rates: Sequence[float], start: float = 1000) -> list[tuple[float, str]]:
    """Observe one rate a second; return when something was told, and what."""
    found = []
    for second, rate in enumerate(rates):
        change = load.observe(start + second, rate)
        if change is not None:
            found.append((start + second, change.name))
    return found


def test_high_once_after_hold() -> None:
    load = Load(100, 40, 5)
    assert told(load, [101] * 60) == [(1005, "high")]


def test_the_change_says_what_a_scaler_needs() -> None:
    load = Load(100, 40, 2)
    assert load.observe(10, 150) is None
    assert load.observe(11, 160) is None
    assert load.observe(12, 170) == LoadChange("high", 170, 100, 10)
    for now in (13, 14):
        assert load.observe(now, 39) is None
    assert load.observe(15, 38) == LoadChange("low", 38, 40, 13)


def test_a_dip_begins_the_hold_anew() -> None:
    load = Load(100, 40, 5)
    assert told(load, [101] * 5 + [100] + [101] * 6) == [(1011, "high")]


def test_between_the_thresholds_nothing_changes() -> None:
    load = Load(100, 40, 2)
    assert told(load, [101] * 3 + [40] * 50 + [99] * 50 + [101] * 50) == [(1002, "high")]


def test_low_then_high_again() -> None:
    load = Load(100, 40, 2)
    rates = [101] * 3 + [39] * 3 + [101] * 3
    assert told(load, rates) == [(1002, "high"), (1005, "low"), (1008, "high")]


def test_a_calm_fleet_is_not_told_to_shrink() -> None:
    assert told(Load(100, 40, 2), [0] * 100) == []


def test_low_of_0_is_never_told() -> None:
    assert told(Load(100, 0, 2), [101] * 3 + [0] * 100) == [(1002, "high")]


def test_off() -> None:
    assert told(Load(0, 0, 1), [1e9] * 100) == []


def test_what_was_not_seen_does_not_count_as_held() -> None:
    load = Load(100, 40, 3)
    assert load.observe(0, 101) is None
    assert load.observe(GAP + 1, 101) is None
    assert load.observe(GAP + 3, 101) is None
    assert load.observe(GAP + 4, 101) == LoadChange("high", 101, 100, GAP + 1)


def test_a_clock_set_back_begins_anew() -> None:
    load = Load(100, 40, 3)
    load.observe(1000, 101)
    load.observe(1002, 101)
    assert load.observe(500, 101) is None
    assert load.observe(502, 101) is None
    assert load.observe(503, 101) == LoadChange("high", 101, 100, 500)
