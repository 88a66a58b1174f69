"""What waits for the store, and entries as text."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ratelimit.model import Block
from ratelimit.store.outbox import Change, Outbox, block_from_json, block_to_json
from tests.store.conftest import block


def put(outbox: Outbox, key: str, entry: Block | None = None) -> Change:
    change = Change("default", key, entry)
    outbox.add(change)
    return change


def test_the_last_word_counts() -> None:
    outbox = Outbox()
    put(outbox, "a", block("a", 1))
    put(outbox, "b", block("b", 1))
    last = put(outbox, "a", block("a", 2))
    assert [change.key for change in outbox.first(10)] == ["b", "a"]
    assert outbox.first(10)[1] is last


def test_a_lift_comes_before_a_later_block_and_instead_of_an_earlier() -> None:
    outbox = Outbox()
    put(outbox, "a", block("a"))
    lift = put(outbox, "a")
    later = put(outbox, "a", block("a"))
    assert outbox.first(10) == [lift]
    outbox.written([lift], [True])
    assert outbox.first(10) == [later]
    put(outbox, "a")
    assert len(outbox) == 1
    put(outbox, "a")
    assert len(outbox) == 1


def test_one_kind_at_a_time() -> None:
    outbox = Outbox()
    for key in "abc":
        put(outbox, key, block(key))
    put(outbox, "d")
    assert [change.key for change in outbox.first(2)] == ["a", "b"]
    assert [change.key for change in outbox.first(9)] == ["a", "b", "c"]


def test_what_was_replaced_meanwhile_stays() -> None:
    outbox = Outbox()
    old = put(outbox, "a", block("a", 1))
    new = put(outbox, "a", block("a", 2))
    outbox.written([old], [True])
    assert outbox.first(1) == [new]


def test_it_is_bounded() -> None:
    outbox = Outbox(2)
    for key in "aabbc":
        put(outbox, key, block(key))
    assert len(outbox) == 2
    assert outbox.dropped == 1
    assert outbox.overflowed
    assert outbox.add(Change("default", "a", block("a")))
    assert not outbox.add(Change("default", "c"))


def test_it_shows_what_a_list_will_be() -> None:
    outbox = Outbox()
    put(outbox, "a")
    put(outbox, "b")
    put(outbox, "b", block("b", 5))
    blocks = {("default", key): block(key) for key in "abc"}
    outbox.apply(blocks)
    assert {key: entry.strikes for (_, key), entry in blocks.items()} == {"b": 5, "c": 1}


def test_times_of_another_clock_are_moved() -> None:
    outbox = Outbox()
    entry = replace(block("a"), since=1000, until=1060)
    put(outbox, "a", entry)
    put(outbox, "b")
    outbox.shift(-7)
    (change,) = outbox.first(1)
    assert change.block == replace(entry, since=993, until=1053)


def test_a_block_lifted_elsewhere_is_not_written() -> None:
    outbox = Outbox()
    put(outbox, "a", block("a"))
    outbox.forget_block("default", "a")
    outbox.forget_block("default", "a")
    assert len(outbox) == 0


def test_a_block_made_after_the_lift_stays() -> None:
    outbox = Outbox()
    entry = block("a")
    put(outbox, "a", entry)
    assert not outbox.forget_block("default", "a", entry.since - 2)
    assert len(outbox) == 1
    assert outbox.forget_block("default", "a", entry.since - 1), "of the same second, perhaps"
    assert len(outbox) == 0


def test_entries_as_text() -> None:
    entry = block("ключ\x00", 3)
    assert block_from_json(block_to_json(entry)) == entry
    data = json.loads(block_to_json(entry))
    assert block_from_json(json.dumps(data | {"later": [1]})) == entry
    assert block_from_json(json.dumps(data | {"strikes": 3.0})) == entry


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        "{",
        b"\xff",
        json.dumps({"key": "a"}),
        block_to_json(replace(block("a"), strikes="3")),  # type: ignore[arg-type]
        block_to_json(replace(block("a"), key=None)),  # type: ignore[arg-type]
        block_to_json(replace(block("a"), until=True)),
    ],
)
def test_what_is_no_entry(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        block_from_json(text)
