"""Collections for hundreds of thousands, compared with Python's own."""

from __future__ import annotations

import gc
import random

from hypothesis import given
from hypothesis import strategies as st

from ratelimit import large
from ratelimit.large import LargeDict, OrderedSet

texts = st.text("ab\0é", max_size=3)


@given(st.lists(st.tuples(st.booleans(), texts), max_size=200), texts, st.integers(0, 9))
def test_an_ordered_set_is_one_in_order(
    changes: list[tuple[bool, str]], text: str, count: int
) -> None:
    kept, model = OrderedSet(), set[str]()
    for adds, one in changes:
        if adds:
            assert kept.add(one) is (one not in model)
            model.add(one)
        else:
            assert kept.discard(one) is (one in model)
            model.discard(one)
    everything = sorted(model)
    assert list(kept.since("")) == everything
    assert len(kept) == len(model)
    assert kept.first() == (everything[0] if everything else None)
    assert (text in kept) is (text in model)
    assert list(kept.since(text)) == [one for one in everything if one >= text]
    assert kept.count_since(text) == sum(one >= text for one in everything)
    assert kept.after(text, count) == [one for one in everything if one > text][:count]


def test_an_ordered_set_of_many_has_small_leaves_whatever_comes_and_goes() -> None:
    rnd = random.Random(1)
    names = [f"{n:05d}" for n in range(20_000)]
    kept, model = OrderedSet(), set[str]()
    for _ in range(3):
        for name in rnd.sample(names, 12_000):
            kept.add(name)
            model.add(name)
        for name in rnd.sample(sorted(model), len(model) - 200):
            kept.discard(name)
            model.discard(name)
        assert list(kept.since("")) == sorted(model)
        # None is so full that a change would copy much, and they are no more than there must be.
        assert max(kept._counts) <= large._MOST
        assert len(kept._leaves) <= 1 + len(kept) // large._FEW * 2


def test_the_garbage_collector_has_nothing_to_look_at() -> None:
    kept, values = OrderedSet(), LargeDict[str, bytes]()
    gc.collect()
    before = len(gc.get_objects())
    for n in range(5000):
        kept.add(str(n))
        values[str(n)] = b"x"
    assert len(gc.get_objects()) - before < 20
    assert not any(map(gc.is_tracked, values._parts))


def test_a_large_dictionary_is_one_in_parts() -> None:
    kept: LargeDict[str, int] = LargeDict()
    for n in range(10_000):
        kept[str(n)] = n
    kept["7"] = 8
    assert (kept.get("7"), kept.get("10000"), len(kept)) == (8, None, 10_000)
    assert (kept.pop("7"), kept.pop("7"), "7" in kept, "8" in kept) == (8, None, False, True)
    assert sorted(kept, key=int) == [str(n) for n in range(10_000) if n != 7]
    assert max(map(len, kept._parts)) < 1000, "each grows by itself, which takes no time"
