"""The counters that are compared with an exact log."""

from __future__ import annotations

import random

from benchmarks import accuracy
from benchmarks.accuracy import OF_MODE, START, Errors, Peers, SlidingLog, measure
from benchmarks.harness.arrivals import RATE, SECOND, steady
from benchmarks.harness.buckets import TwoBuckets


def test_the_log_counts_the_second_before() -> None:
    log = SlidingLog()
    assert all(log(START + n) for n in range(RATE))
    assert not log(START + SECOND - 1)
    assert log(START + SECOND + RATE)


def test_peers_never_refuse_a_client_below_its_limit() -> None:
    times = list(steady(RATE - 1, 20, random.Random(1)))
    assert measure(times, Peers()).refused == 0


def test_peers_refuse_once_the_verdict_has_arrived() -> None:
    peers = Peers()
    millisecond = SECOND // 1000
    found = [peers(START + n * millisecond) for n in range(400)]
    first = found.index(False)
    assert RATE <= first <= RATE + 1
    assert not any(found[first:])


def test_peers_refuse_by_the_cap_before_a_verdict_arrives() -> None:
    peers = Peers()
    assert sum(peers(START + n) for n in range(1000)) == 2 * RATE


def test_two_buckets_never_show_more_than_twice_the_window() -> None:
    buckets = TwoBuckets(2 * RATE)
    burst = [second + n for second in (0, SECOND // 2, SECOND, 2 * SECOND) for n in range(50)]
    assert all(buckets(START + at) for at in burst)


def test_the_modes_are_judged_if_they_were_measured() -> None:
    loads = (*accuracy.LOADS, *accuracy.STEADY)
    both = {load: {name: [Errors(1, 2)] for name in (*OF_MODE, "two buckets")} for load in loads}
    titles = [target.name for target in accuracy.targets(both)]
    assert "bursts of 1000/s for 80 ms, refused wrongly by peers, % in all rounds" in titles
    assert "steady 99/s, refused by the peers" in titles
    alone = {load: {name: [Errors(1, 2)] for name in ("peers", "two buckets")} for load in loads}
    assert [t.name for t in accuracy.targets(alone)] == ["steady 99/s, refused by the peers"]
