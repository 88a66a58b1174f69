"""What holds of two facts about a client, in whatever order and however often they arrive."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from ratelimit.limiter.blocklist import Blocklist
from ratelimit.limiter.entry_order import Lifts, beats
from ratelimit.model import EVERY_LIMIT, Block, Entry, Lift

if TYPE_CHECKING:
    from collections.abc import Iterable


NOW = 1_700_000_000

small = st.integers(0, 3)
blocks = st.builds(
    lambda strikes, since, length, order, node, shadow: Block(
        "a", "default", "", strikes, NOW + since, NOW + since + length, "", node, shadow, order
    ),
    small, small, small, st.integers(1, 6), st.sampled_from("xy"), st.booleans(),
)  # fmt: skip
by_hand = st.builds(lambda block: replace(block, limit=EVERY_LIMIT, shadow=False), blocks)


def lift(limit: str) -> st.SearchStrategy[Lift]:
    return st.builds(
        lambda order, until: Lift("a", limit, order, NOW + until), st.integers(1, 6), small
    )


def merged(entries: Iterable[Entry]) -> tuple[Block | None, Lift | None]:
    """Return what is known after all of them arrived."""
    known, limit = Blocklist(), ""
    for entry in entries:
        limit = entry.limit
        known.lift(entry) if isinstance(entry, Lift) else known.take(entry, NOW)
    return known.get(limit, "a"), known.lifts.get(limit, "a")


def of_orders(entries: list[Entry]) -> None:
    expected = merged(entries)
    for order in itertools.islice(itertools.permutations(entries), 24):
        assert merged(order) == expected
        assert merged([*order, *order]) == expected
        # And if each is first merged on some other node, and that tells what it knows.
        for at in range(len(order)):
            parts = (merged(order[:at]), merged(order[at:]))
            assert merged(one for part in parts for one in part if one is not None) == expected


@given(st.lists(by_hand | lift(EVERY_LIMIT), min_size=1, max_size=4))
def test_what_people_do_is_the_same_in_any_order(entries: list[Entry]) -> None:
    of_orders(entries)


@given(st.lists(blocks, min_size=1, max_size=4))
def test_strikes_are_the_same_in_any_order(entries: list[Entry]) -> None:
    of_orders(entries)


@given(st.lists(blocks, min_size=1, max_size=3), lift("default"))
def test_no_strike_is_left_that_was_lifted(strikes: list[Block], lifted: Lift) -> None:
    later = {one for one in strikes if one.order > lifted.order}
    entries: list[Entry] = [*strikes, lifted]
    for order in itertools.permutations(entries):
        block, known = merged(order)
        assert known == lifted
        # It may be that none is left, if one that was lifted had taken the place of the others.
        assert block in later | {None}
    block, _ = merged([lifted, *strikes])
    assert (block is None) == (not later)


@given(blocks, blocks)
def test_one_of_two_different_blocks_beats_the_other(one: Block, other: Block) -> None:
    assert beats(one, other) + beats(other, one) == (one != other)


def test_lifts_are_bounded_and_those_that_end_first_go() -> None:
    lifts = Lifts(100)
    kept = [Lift(str(n), "default", 1, NOW + n) for n in range(1000)]
    random.Random(1).shuffle(kept)
    for one in kept:
        assert lifts.take(one)
    assert (len(lifts), lifts.dropped) == (100, 900)
    left = sorted(kept, key=lambda one: one.until)[-100:]
    assert [lift for lift in kept if lifts.get("default", lift.key)] == [
        one for one in kept if one in left
    ]
    pages, last = [], None
    while page := lifts.after(last, 7):
        pages += page
        last = page[-1]
    assert pages == left
    assert lifts.drop(NOW + 949, 1000) == 50
    assert lifts.drop(NOW + 10_000, 20) == 20
    assert len(lifts) == 30
    assert not lifts.take(pages[-1])
    assert lifts.take(replace(pages[-1], until=NOW + 5000)), "the later end holds"
    assert len(lifts) == 30


def test_orders_rise_whatever_the_clock_does() -> None:
    known = Blocklist()
    one = known.next_order("default", "a", NOW * 10**9)
    assert one == NOW * 10**6
    assert known.next_order("default", "b", 0) == one + 1
    known.take(Block("a", "default", "", 1, NOW, NOW + 9, order=one + 10**9), NOW)
    assert known.next_order("default", "a", 0) == one + 10**9 + 1
    known.lift(Lift("c", "default", one + 10**10, NOW + 9))
    assert known.next_order("default", "c", 0) == one + 10**10 + 1


def test_a_lift_lasts_as_long_as_what_it_ends() -> None:
    known = Blocklist()
    known.forget = lambda limit: 0 if limit == EVERY_LIMIT else 86_400
    assert known.lift_of("default", "a", NOW * 10**9).until == NOW + 3600, "nothing is known"
    known.put(Block("a", "default", "", 1, NOW, NOW + 9, order=1), NOW)
    first = known.lift_of("default", "a", NOW * 10**9)
    assert first.until == NOW + 9 + 86_400
    known.lift(first)
    assert known.lift_of("default", "a", NOW * 10**9).until == first.until
