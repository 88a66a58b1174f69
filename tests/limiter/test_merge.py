"""Two lists, each compared with the other."""

from __future__ import annotations

import itertools
import random

import pytest

from ratelimit.limiter.limiter import Limiter
from ratelimit.limiter.merge import Merge
from ratelimit.model import EVERY_LIMIT, Block, Entry, Lift, Limit
from ratelimit.steps import finish

NOW = 1_700_000_000


def entries(limiter: Limiter) -> set[Entry]:
    lifts = limiter.blocklist.lifts.after(None, 1000)
    return {*limiter.blocklist, *lifts}


@pytest.mark.parametrize("seed", range(20))
def test_two_lists_agree_after_each_has_told_the_other(seed: int) -> None:
    rnd = random.Random(seed)
    here, there = (Limiter([Limit()], 8, node=node) for node in ("here", "there"))
    for limiter in (here, there):
        limiter.tick(NOW * 10**9)
        for n in range(300):
            place = rnd.choice(["default", EVERY_LIMIT]), f"192.0.2.{rnd.randrange(100)}"
            order = limiter.blocklist.next_order(*place, (NOW + n) * 10**9)
            if rnd.random() < 0.3:
                limiter.lift_now(*place, (NOW + n) * 10**9)
            else:
                ends = NOW + rnd.randrange(1, 1000)
                node = limiter.blocklist.node
                limiter.apply(Block(place[1], place[0], "", 1, NOW, ends, "", node, order=order))
    assert entries(here) != entries(there)
    for one, other in ((here, there), (there, here), (here, there)):
        merge = Merge(one)
        finish(merge.take(list(entries(other))))
        newer = [entry for page in merge.newer() for entry in page]
        assert not set(newer) & entries(other)
        finish(other.load(newer))
    assert entries(here) == entries(there)
    assert not newer, "the last time there was nothing to tell"


def test_what_a_comparison_knew_is_dropped_in_small_steps() -> None:
    limiter = Limiter([Limit()], 8)
    limiter.tick(NOW * 10**9)
    blocks = [Block(f"10.0.{n}.1", "default", "", 1, NOW, NOW + 9, order=1) for n in range(250)]
    lifts = [Lift(f"10.1.{n}.1", "default", 1, NOW + 9) for n in range(250)]
    merge = Merge(limiter)
    finish(merge.take([*blocks, *lifts]))
    left = [len(merge._blocks) + len(merge._lifts) for _ in merge.newer()]
    assert max(before - after for before, after in itertools.pairwise(left)) < 25
    assert left[0] == 500 and left[-1] == 0


def test_an_empty_list_is_told_everything_in_small_steps() -> None:
    limiter = Limiter([Limit()], 8)
    limiter.tick(NOW * 10**9)
    for n in range(1000):
        limiter.apply(Block(str(n), "default", "", 1, NOW, NOW + 9, order=1))
        limiter.lift_now("default", f"lifted {n}", NOW * 10**9)
    pages = list(Merge(limiter).newer())
    assert max(map(len, pages)) <= 64
    assert {entry for page in pages for entry in page} == entries(limiter)
    assert sum(map(len, pages)) == 2000
