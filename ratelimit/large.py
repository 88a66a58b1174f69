"""Collections of hundreds of thousands that never take long: no operation more than some 20 us.

A dictionary of 200,000 takes 9 ms when it grows, in which nothing is answered: so it has parts. The
garbage collector looks at each item of a list, 17 ms for 400,000 items. Tuples of strings it leaves
alone once it has seen them: so strings in order are in small tuples, and a change makes another
tuple in the place of one.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator
from typing import Generic, TypeVar

V = TypeVar("V")

_PARTS = 64
_MOST = 128  # strings of a tuple
_FEW = 32  # with fewer, a tuple is joined to the next one


class LargeDict(Generic[V]):
    """Values by text."""

    def __init__(self) -> None:
        self._parts: list[dict[str, V]] = [{} for _ in range(_PARTS)]

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[str]:
        """Yield the texts, while nothing changes."""
        return itertools.chain.from_iterable(self._parts)

    def __contains__(self, text: str) -> bool:
        return text in self._parts[hash(text) % _PARTS]

    def __setitem__(self, text: str, value: V) -> None:
        self._parts[hash(text) % _PARTS][text] = value

    def get(self, text: str) -> V | None:
        """Return the value of a text; None if there is none."""
        return self._parts[hash(text) % _PARTS].get(text)

    def pop(self, text: str) -> V | None:
        """Take a text off and return its value; None if there is none."""
        return self._parts[hash(text) % _PARTS].pop(text, None)


class OrderedSet:
    """Texts in order."""

    def __init__(self) -> None:
        self._leaves: list[tuple[str, ...]] = []
        self._lasts: list[str] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, text: str) -> bool:
        return next(self.since(text), None) == text

    def add(self, text: str) -> bool:
        """Take a text; false if it is there already."""
        if not self._leaves:
            self._leaves.append(())
            self._lasts.append(text)
        at = min(bisect_left(self._lasts, text), len(self._lasts) - 1)
        leaf = self._leaves[at]
        place = bisect_left(leaf, text)
        if leaf[place : place + 1] == (text,):
            return False
        self._change(at, (*leaf[:place], text, *leaf[place:]))
        self._size += 1
        return True

    def discard(self, text: str) -> bool:
        """Take a text off; false if it is not there."""
        at = bisect_left(self._lasts, text)
        leaf = self._leaves[at] if at < len(self._leaves) else ()
        place = bisect_left(leaf, text)
        if leaf[place : place + 1] != (text,):
            return False
        self._change(at, leaf[:place] + leaf[place + 1 :])
        self._size -= 1
        return True

    def since(self, text: str) -> Iterator[str]:
        """Yield those that are not before a text, while nothing changes."""
        at = bisect_left(self._lasts, text)
        for leaf in itertools.islice(self._leaves, at, None):
            yield from leaf[bisect_left(leaf, text) :]

    def after(self, text: str, count: int) -> list[str]:
        """Return up to ``count`` texts that follow one."""
        found = itertools.islice(self.since(text), count + 1)
        return [one for one in found if one != text][:count]

    def first(self) -> str | None:
        """Return the first one; None if there is none."""
        return self._leaves[0][0] if self._leaves else None

    def count_since(self, text: str) -> int:
        """Return how many are not before a text."""
        at = bisect_left(self._lasts, text)
        if at == len(self._leaves):
            return 0
        return sum(map(len, self._leaves[at:])) - bisect_left(self._leaves[at], text)

    def _change(self, at: int, leaf: tuple[str, ...]) -> None:
        """Put a tuple in the place of another: one, two, or none if it is empty."""
        end = at + 1
        if len(leaf) < _FEW and end < len(self._leaves):
            leaf += self._leaves[end]
            end += 1
        half = len(leaf) // 2
        leaves = [leaf[:half], leaf[half:]] if len(leaf) > _MOST else [leaf] if leaf else []
        self._leaves[at:end] = leaves
        self._lasts[at:end] = [one[-1] for one in leaves]
