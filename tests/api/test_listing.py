"""Answers with a long list."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ratelimit.api.listing import listing
from ratelimit.api.models import EdgeAnswer, KeyBlocks
from ratelimit.steps import finish


@pytest.mark.parametrize("count", [0, 1, 31, 32, 100])
def test_a_list_written_in_steps_is_the_json_of_the_model(count: int) -> None:
    entries = [EdgeAnswer(socket=f"/{number}", ok=True, problem='"[]') for number in range(count)]
    written = finish(listing(KeyBlocks(key='"blocks":[', blocks=[]), "blocks", entries))
    [before, after] = KeyBlocks(key='"blocks":[', blocks=[]).model_dump_json().split('"blocks":[]')
    inner = ",".join(entry.model_dump_json() for entry in entries)
    assert written.decode() == f'{before}"blocks":[{inner}]{after}'


def test_it_is_written_in_small_steps() -> None:
    taken = 0

    def entries() -> Iterator[int]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    before = 0
    for _ in listing(KeyBlocks(key="a", blocks=[]), "blocks", entries()):
        assert taken - before <= 32
        before = taken
    assert taken == 1000
