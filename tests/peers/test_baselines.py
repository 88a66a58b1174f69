"""The last counters of the entries of HAProxy's tables."""

from __future__ import annotations

import pytest

from ratelimit.engine.table import Table
from ratelimit.peers.baselines import ENTRY_BYTES, Baselines

NOW = 1_700_000_000_000
EXPIRE = 60_000


def baselines(capacity: int) -> Baselines:
    made = Baselines(capacity, Table(8, bytes(range(48))))
    made.expire = EXPIRE
    return made


def test_a_million_entries_take_72_megabytes_and_a_half() -> None:
    made = baselines(1_000_000)
    assert made.capacity == 1_000_000
    assert made.size == 1_000_000 * ENTRY_BYTES + 500_000 == 72_500_000


def test_entries_are_told_apart_by_every_part_of_their_key() -> None:
    made = baselines(800)
    keys = [(1, 2, 3), (2, 1, 3), (1, 2, 4), (1 << 32, 2, 3), (1, 2 << 32, 3)]
    places = [made.visit(*key, NOW) for key in keys]
    assert not made.known
    assert len(set(places)) == len(keys)
    for key, place in zip(keys, places, strict=True):
        assert made.visit(*key, NOW + 5) == made.peek(*key) == place
        assert made.known
    assert made.entries == len(keys)
    assert made.peek(1, 2, 5) == -1


@pytest.mark.parametrize("start", [NOW, (1 << 32) - 10])
def test_an_entry_knows_its_last_update(start: int) -> None:
    made = baselines(8)
    made.visit(0, 1, 1, start)
    made.visit(0, 1, 1, start + 20)
    assert made.stamp == start & 0xFFFFFFFF
    made.visit(0, 1, 1, start + 30)
    assert made.stamp == start + 20 & 0xFFFFFFFF


def test_the_stalest_entry_of_a_set_goes_first_and_its_loss_is_remembered() -> None:
    made = baselines(8)
    for n in range(8):
        made.visit(0, n, 1, NOW + 1000 * n)
    assert made.lost == 0
    made.visit(0, 8, 1, NOW + 10_000)
    assert (made.known, made.lost) == (False, 1)
    assert made.since_loss == 10_000, "the first may be at HAProxy, with counts of ten seconds ago"
    assert made.peek(0, 0, 1) == -1
    made.visit(0, 9, 1, NOW + 12_000)
    assert made.since_loss == 11_000, "and the second"


def test_what_haproxy_has_forgotten_is_no_loss() -> None:
    made = baselines(8)
    for n in range(8):
        made.visit(0, n, 1, NOW)
    made.visit(0, 8, 1, NOW + EXPIRE)
    assert made.lost == 0
    assert made.since_loss == (1 << 32) - 1
    assert made.entries == 8
