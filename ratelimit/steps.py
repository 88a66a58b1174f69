"""Long work in small steps, between which other work can run.

A generator that yields after every few items. No step may take more than half a millisecond;
``turns`` runs steps in the event loop in slices.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Work that yields after each step and returns a result."""


def finish(steps: Steps[T]) -> T:
    """Do all steps at once; return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result
