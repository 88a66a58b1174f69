"""What waits for the store."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from ratelimit.model import Block, Entry, Lift
from ratelimit.store import StoreError
from ratelimit.store.pending import Change, Outbox
from tests.store.conftest import FORGET, block, lift, run


def put(outbox: Outbox, entry: Entry) -> Change:
    change = Change(entry)
    outbox.add(change)
    return change


def test_the_last_word_counts() -> None:
    outbox = Outbox()
    put(outbox, block("a", 1))
    put(outbox, block("b", 1))
    last = put(outbox, block("a", 2))
    assert [change.entry.key for change in outbox.first(10)] == ["b", "a"]
    assert outbox.first(10)[1] is last


def test_older_news_does_not_take_the_place_of_newer() -> None:
    outbox = Outbox()
    old, new = block("a", limit="*"), block("a", limit="*")
    newer = put(outbox, new)
    put(outbox, old)
    assert outbox.first(10) == [newer]
    first, second = lift("b"), lift("b")
    newest = put(outbox, second)
    put(outbox, first)
    assert outbox.first(10) == [newer]
    outbox.done(newer, True)
    assert outbox.first(10) == [newest]


def test_a_lift_comes_before_a_later_block_and_instead_of_an_earlier() -> None:
    outbox = Outbox()
    put(outbox, block("a"))
    ended = put(outbox, lift("a"))
    later = put(outbox, block("a", since=1))
    assert outbox.first(10) == [ended]
    outbox.done(ended, True)
    assert outbox.first(10) == [later]
    put(outbox, lift("a", after=2))
    assert len(outbox) == 1
    put(outbox, lift("a", after=3))
    assert len(outbox) == 1


def test_every_waiter_of_save_lift_save_is_told() -> None:
    async def main() -> None:
        outbox = Outbox()
        first = outbox.submit(block("a", limit="*"))
        assert outbox.first(10) == [first], "is being written while the others come"
        ended = outbox.submit(lift("a", "*", after=1))
        again = outbox.submit(block("a", limit="*", since=2))
        outbox.done(first, True)
        assert outbox.first(10) == [ended]
        outbox.done(ended, True)
        assert outbox.first(10) == [again]
        outbox.done(again, True)
        for change in (first, ended, again):
            assert await outbox.written(change, 0.01, str) == (change.entry, True)

    run(main)


def test_a_waiter_is_told_why_it_waits_in_vain() -> None:
    async def main() -> None:
        outbox = Outbox(1)
        change = outbox.submit(block("a"))
        with pytest.raises(StoreError, match="the disk") as caught:
            await outbox.written(change, 0, lambda: "the disk")
        assert not caught.value.unsent and len(outbox) == 1
        with pytest.raises(StoreError, match="too many") as caught:
            outbox.submit(block("b"))
        assert caught.value.unsent
        # Nothing is left of one that waits no longer.
        for _ in range(3):
            again = outbox.submit(block("a", limit="default", since=1))
            with pytest.raises(StoreError):
                await outbox.written(again, 0, str)
        (last,) = outbox.first(1)
        assert len(last.waiters) <= 2
        bad = outbox.submit(block("a", since=2))
        outbox.done(bad, StoreError("no"))
        with pytest.raises(StoreError, match="no"):
            await outbox.written(bad, 1, str)

    run(main)


def test_one_kind_at_a_time() -> None:
    outbox = Outbox()
    for key in "abc":
        put(outbox, block(key))
    put(outbox, lift("d"))
    assert [change.entry.key for change in outbox.first(2)] == ["a", "b"]
    assert [change.entry.key for change in outbox.first(9)] == ["a", "b", "c"]


def test_what_a_caller_waits_for_comes_first_and_after_the_lift_of_its_client() -> None:
    async def main() -> None:
        outbox = Outbox()
        for key in "abc":
            put(outbox, block(key))
        put(outbox, lift("c"))
        put(outbox, block("c"))
        outbox.submit(lift("d"))
        outbox.submit(block("b"))
        outbox.submit(block("c"))
        assert outbox.has_waiters
        written = []
        while len(outbox):
            for change in outbox.first(2):
                written.append((type(change.entry).__name__, change.entry.key))
                outbox.done(change, True)
        blocks = [("Block", key) for key in "bca"]
        assert written == [("Lift", "d"), blocks[0], ("Lift", "c"), *blocks[1:]]
        assert not outbox.has_waiters

    run(main)


def test_what_was_replaced_meanwhile_stays() -> None:
    outbox = Outbox()
    old = put(outbox, block("a", 1))
    new = put(outbox, block("a", 2))
    outbox.done(old, True)
    assert outbox.first(1) == [new]


def test_it_is_bounded() -> None:
    outbox = Outbox(2)
    for key in "aabbc":
        put(outbox, block(key))
    assert len(outbox) == 2
    assert outbox.dropped == 1
    assert outbox.overflowed
    assert outbox.add(Change(block("a")))
    assert not outbox.add(Change(lift("c")))


def test_what_was_made_by_a_wrong_clock_is_corrected() -> None:
    for seconds in (-100_000, 100_000):
        outbox = Outbox()
        entry = replace(block("a"), since=200_000, until=200_060, order=200_000_000_000)
        put(outbox, entry)
        earlier = put(outbox, Lift("b", "default", 200_000_000_000, 210_000)).entry
        told = outbox.shift(seconds, lambda limit: FORGET)
        end, moved, ended = told
        assert isinstance(moved, Block) and isinstance(end, Lift) and isinstance(ended, Lift)
        assert (moved.since, moved.until) == (200_000 + seconds, 200_060 + seconds)
        # A later end would win otherwise, on this node and on all that have heard of it.
        assert end.order == entry.order < moved.order
        assert end.until >= max(entry.until, moved.until) + FORGET
        assert ended.order > earlier.order
        assert [change.entry for change in outbox.first(1)] == [end]
        assert len(outbox) == 3


def test_what_a_person_does_is_fresh_for_a_moment() -> None:
    change = Change(block("a"))
    assert change.fresh
    change.tried = True
    assert not change.fresh
    old = Change(block("a"))
    old.asked -= 60
    assert not old.fresh


def test_a_change_wakes_the_writer() -> None:
    async def main() -> None:
        outbox = Outbox()
        async with asyncio.timeout(1):
            outbox.add(Change(block("a")))
            await outbox.woken.wait()

    run(main)
