"""Garbage collections stay short, whatever the size of the lists."""

from __future__ import annotations

import gc
import weakref

import pytest

from ratelimit.process import garbage
from ratelimit.process.garbage import SLOW, short_pauses


class Clock:
    """CPU time; each collection takes ``takes`` nanoseconds."""

    def __init__(self, takes: int) -> None:
        self.now = 0
        self.takes = takes

    def thread_time_ns(self) -> int:
        self.now += self.takes
        return self.now


class Node:
    def __init__(self) -> None:
        self.next: Node | None = None


def grow(count: int, visited: dict[int, list[int]]) -> list[object]:
    """Return so many new objects; add the objects that each collection visits to its generation."""

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            generation = info["generation"]
            objects = sum(len(gc.get_objects(g)) for g in range(generation + 1))
            visited.setdefault(generation, []).append(objects)

    gc.callbacks.append(note)
    try:
        return [[] for _ in range(count)]
    finally:
        gc.callbacks.remove(note)


def test_a_collection_visits_few_objects_however_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(garbage, "time", Clock(SLOW + 1))
    visited: dict[int, list[int]] = {}
    before = gc.get_threshold()
    with short_pauses():
        kept = grow(100_000, visited)
    assert len(kept) == 100_000
    assert len(visited[2]) > 10
    assert max(visited[1]) <= 1_000
    assert max(visited[2]) <= 8_000
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_quick_collections_freeze_nothing_and_find_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "time", Clock(SLOW))
    with short_pauses():
        frozen = gc.get_freeze_count()
        nodes = [Node() for _ in range(1_000)]
        while not gc.get_objects(2):  # they have left the youngest generation
            nodes.append(Node())
        for node in nodes:
            node.next = node
        seen = weakref.ref(nodes[0])
        del nodes, node
        kept: list[Node] = []
        while seen() is not None and len(kept) < 100_000:
            kept.append(Node())
        assert len(kept) < 100_000
        assert gc.get_freeze_count() == frozen


def test_frozen_objects_are_freed_without_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "time", Clock(SLOW + 1))
    with short_pauses():
        frozen = gc.get_freeze_count()
        kept = [Node() for _ in range(50_000)]
        assert gc.get_freeze_count() - frozen > 30_000
        seen = weakref.ref(kept[0])
        del kept
        assert seen() is None
