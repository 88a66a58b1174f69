"""Blocks and lifts as text."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ratelimit.exceptions import StoreError
from ratelimit.model import Entry, Lift
from ratelimit.store.entries import (
    MAX_SECOND,
    Damage,
    block_from_json,
    block_to_json,
    check,
    entry_from_json,
    entry_to_json,
    make_lift,
)
from tests.store.conftest import block, lift


def test_entries_as_text() -> None:
    entry = block("ключ\x00", 3)
    assert block_from_json(block_to_json(entry)) == entry
    data = json.loads(block_to_json(entry))
    assert block_from_json(json.dumps(data | {"later": [1]})) == entry
    assert block_from_json(json.dumps(data | {"strikes": 3.0})) == entry


def test_an_entry_of_the_version_before_has_an_order() -> None:
    data = json.loads(block_to_json(block("a")))
    del data["order"]
    assert block_from_json(json.dumps(data)).order == data["since"] * 1_000_000


BAD: dict[str, list[Any]] = {
    "key": [None, 1, "", "\ud800"],
    "limit": [None, ""],
    "reason": ["\udfff"],
    "strikes": ["3", -1, 1 << 31, 1.5],
    "since": [-1, 1e30, float("nan"), float("inf")],
    "until": [True, -1, 10**30, MAX_SECOND, 0.5],
    "order": [-1, 1 << 53, "1"],
    "shadow": [0, "no"],
}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        "{",
        b"\xff",
        "[" * 100_000,
        json.dumps({"key": "a"}),
        *(
            json.dumps(json.loads(block_to_json(block("a"))) | {name: value})
            for name, values in BAD.items()
            for value in values
        ),
    ],
)
def test_what_is_no_entry(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        block_from_json(text)


def test_what_can_not_be_kept_is_refused() -> None:
    check(block("a"))
    check(Lift("a", "*", 1, 1))
    for entry in (block("\ud800"), replace(block("a"), until=1 << 70), Lift("\ud800", "*", 1, 1)):
        with pytest.raises(StoreError, match="can't be stored") as caught:
            check(entry)
        assert caught.value.unsent


@pytest.mark.parametrize(
    ("limit", "key", "order", "until"),
    [
        ("", "a", 1, 1),
        ("a", "", 1, 1),
        ("a", "b", -1, 1),
        ("a", "b", 1 << 53, 1),
        ("a", "b", 1, -1),
    ],
)
def test_what_is_no_lift(limit: str, key: str, order: int, until: int) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        make_lift(limit, key, order, until)


def test_damage_is_a_line_for_each_entry_and_bounded(logs: list[Any]) -> None:
    damage = Damage("somewhere")
    for number in range(100):
        damage.note(b"default|\xff%d" % number, "until is not from 0 to 1")
    damage.done()
    assert len(logs) == 11
    assert logs[0]["entry"] == "default|\\udcff0" and "until" in logs[0]["why"]
    assert logs[-1]["count"] == 100
    damage = Damage("somewhere")
    damage.note("default|\ud800\x1b[2J", "odd")
    damage.done()
    assert len(logs) == 12
    assert logs[-1]["entry"] == "default|\\ud800\\x1b[2J"


def test_entries_are_told_as_lines() -> None:
    entries: list[Entry] = [block("a"), block("é\n\x00\U0001f980", by="ann"), lift("b")]
    lines = [entry_to_json(entry) for entry in entries]
    assert not any("\n" in line for line in lines)
    assert [entry_from_json(line.encode()) for line in lines] == entries


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"lift": {}}', '{"lift": {"limit": 1, "key": "", "order": 1, "until": 1}}',
        '{"block": {"key": "a"}}', "[" * 100_000, b"\xff",
        '{"lift": {"limit": "a", "key": "a", "order": -1, "until": 1}}',
    ],
)  # fmt: skip
def test_what_is_no_entry_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        entry_from_json(text)
