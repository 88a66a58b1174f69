"""A node put together; what it does is tested with real processes (``integration``)."""

from __future__ import annotations

import gc

from ratelimit.app import GC_THRESHOLD


def test_the_garbage_collector_looks_at_few_new_objects_at_a_time() -> None:
    before, looked = gc.get_threshold(), []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 1:
            looked.append(len(gc.get_objects(0)) + len(gc.get_objects(1)))

    gc.collect()
    gc.set_threshold(*GC_THRESHOLD)
    gc.callbacks.append(note)
    try:
        kept: list[object] = [[] for _ in range(20_000)]
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(*before)
    assert len(kept) == 20_000
    assert 0 < max(looked) <= 1000
    first, second, third = GC_THRESHOLD
    assert first * second * third >= 70_000, "all objects are looked at as rarely as by default"
