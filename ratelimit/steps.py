"""Long work in small steps, so that whoever does it can let other work go in between.

A generator that yields after every few items; no step may take more than half a millisecond, and
``turns`` gives them the event loop one slice at a time.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Work that stops after each step, and returns its result in the end."""


def finish(steps: Steps[T]) -> T:
    """Do all of the work at once."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result
