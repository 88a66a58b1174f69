"""The pauses between attempts: each is twice as long as the one before, up to a longest one."""

from __future__ import annotations

import random


class Backoff:
    """Seconds from a failure to the next attempt.

    Each pause is shortened by a random part of up to ``spread`` of it, so that nodes that fail
    together do not come back in step.
    """

    def __init__(self, first: float, longest: float, spread: float = 0.5) -> None:
        self._first = first
        self._longest = longest
        self._spread = spread
        self._pause = first

    def next(self) -> float:
        """Return the pause after another failure."""
        pause, self._pause = self._pause, min(2 * self._pause, self._longest)
        return pause * (1 - self._spread * random.random())  # noqa: S311 - not a secret

    def reset(self) -> None:
        """Begin with the first pause again."""
        self._pause = self._first
