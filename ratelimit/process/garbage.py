"""Garbage collection with short pauses: the collector stops all answers while it works.

A full collection visits every object and each item of every list, so its time grows with the lists
of a node. After a slow one, all objects are frozen: later collections skip them. Objects without
references are freed as before. Only a cycle that becomes garbage after it was frozen stays in
memory; so nothing is frozen while collections are quick, such as those of closed connections.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from typing import Any

THRESHOLDS = (130, 5, 6)
"""For ``gc.set_threshold()``: a collection visits about 1,000 new objects, a full one 5,000."""

SLOW = 300_000
"""Nanoseconds of CPU time of a full collection, above which objects are frozen."""


@contextlib.contextmanager
def short_pauses() -> Iterator[None]:
    """Freeze the objects of now, and others whenever a full collection is slow, in this context."""
    thresholds = gc.get_threshold()
    began = 0

    def freeze(phase: str, info: dict[str, Any]) -> None:
        nonlocal began
        if phase == "start":
            began = time.thread_time_ns()
        elif info["generation"] == 2 and time.thread_time_ns() - began > SLOW:
            gc.freeze()

    gc.collect()
    gc.freeze()
    gc.collect()  # finds nothing: the next full one is due when its objects grow by a quarter
    gc.set_threshold(*THRESHOLDS)
    gc.callbacks.append(freeze)
    try:
        yield
    finally:
        gc.callbacks.remove(freeze)
        gc.set_threshold(*thresholds)
        gc.unfreeze()
