from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from ratelimit.engine.layout import MIXED
from ratelimit.engine.networks import Networks
from ratelimit.limiter.lists import Range, cut
from ratelimit.steps import finish

_M64 = (1 << 64) - 1
_LAST = (1 << 128) - 1


def networks(ranges: list[Range]) -> Networks:
    return Networks(*finish(cut(sorted(ranges))))


def value(made: Networks, address: int) -> int:
    return made.value(address >> 64, address & _M64)


def uniform(made: Networks, first: int, last: int) -> int:
    return made.uniform(first >> 64, first & _M64, last >> 64, last & _M64)


def test_without_networks_no_address_has_a_value() -> None:
    made = Networks()
    assert value(made, 0) == value(made, _LAST) == 0
    assert uniform(made, 0, _LAST) == 0


def test_the_first_and_the_last_address_of_all() -> None:
    made = networks([(0, 0, 7), (_LAST, _LAST, 9)])
    assert [value(made, address) for address in (0, 1, _LAST - 1, _LAST)] == [7, 0, 0, 9]
    assert value(networks([(0, _LAST, 5)]), 1 << 100) == 5


small = st.integers(0, 40)


@given(st.lists(st.tuples(small, small, st.integers(2, 5)), max_size=8), st.integers(0, 127 - 6))
def test_any_ranges_as_they_are_defined(drawn: list[tuple[int, int, int]], shift: int) -> None:
    # Around the border between the two halves of an address, too.
    ranges = [
        (min(a, b) << shift, ((max(a, b) + 1) << shift) - 1, number) for a, b, number in drawn
    ]
    made = networks(ranges)
    expected = [
        max((number for a, b, number in drawn if min(a, b) <= n <= max(a, b)), default=0)
        for n in range(42)
    ]
    for n in range(42):
        assert value(made, n << shift) == value(made, ((n + 1) << shift) - 1) == expected[n]
    for first in range(0, 42, 5):
        for last in range(first, 42, 3):
            part = set(expected[first : last + 1])
            found = uniform(made, first << shift, ((last + 1) << shift) - 1)
            assert found == (part.pop() if len(part) == 1 else MIXED)


def test_a_hundred_thousand_networks_take_less_than_five_megabytes() -> None:
    rnd = random.Random(1)
    starts = sorted(rnd.sample(range(1 << 24), 100_000))
    made = finish(cut((start << 8, (start << 8) + 255, 2) for start in starts))
    assert sum(map(len, made)) < 5_000_000
