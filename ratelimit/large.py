"""Collections for hundreds of thousands of items, in which no operation takes more than about 20
us.

A dictionary of 200,000 items takes milliseconds when it grows, which would delay answers; so it is
split into parts. The garbage collector visits each item of a list, and of a tuple once; so ordered
texts are packed into bytes, some tens together, which the collector does not visit.
"""

from __future__ import annotations

import itertools
import marshal
from bisect import bisect_left
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_PARTS = 64
_MOST = 64  # texts per leaf, at most
_FEW = 16  # a leaf with fewer texts is merged with the next one


class LargeDict(Generic[K, V]):
    """A dictionary."""

    def __init__(self) -> None:
        self._parts: list[dict[K, V]] = [{} for _ in range(_PARTS)]

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[K]:
        """Yield the keys; the dictionary must not change meanwhile."""
        return itertools.chain.from_iterable(self._parts)

    def __contains__(self, key: K) -> bool:
        return key in self._parts[hash(key) % _PARTS]

    def __setitem__(self, key: K, value: V) -> None:
        self._parts[hash(key) % _PARTS][key] = value

    def get(self, key: K) -> V | None:
        """Return the value of a key, or None."""
        return self._parts[hash(key) % _PARTS].get(key)

    def pop(self, key: K) -> V | None:
        """Remove a key and return its value, or None."""
        return self._parts[hash(key) % _PARTS].pop(key, None)

    def pages(self) -> Iterator[list[K]]:
        """Yield the keys, some thousands at a time; the dictionary may change meanwhile."""
        return map(list, self._parts)

    def clear(self) -> Iterator[None]:
        """Remove everything in small steps, because freeing takes long too."""
        for part in self._parts:
            part.clear()
            yield


class OrderedSet:
    """A sorted set of texts."""

    def __init__(self) -> None:
        # For each leaf: its packed texts, their number, and the last text.
        self._leaves: list[bytes] = []
        self._counts: list[int] = []
        self._lasts: list[str] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, text: str) -> bool:
        return next(self.since(text), None) == text

    def add(self, text: str) -> bool:
        """Add a text; return false if it is present."""
        at = min(bisect_left(self._lasts, text), len(self._lasts) - 1)
        leaf = self._read(at) if at >= 0 else []
        place = bisect_left(leaf, text)
        if leaf[place : place + 1] == [text]:
            return False
        leaf.insert(place, text)
        self._write(max(at, 0), leaf)
        self._size += 1
        return True

    def discard(self, text: str) -> bool:
        """Remove a text; return false if it is absent."""
        at = bisect_left(self._lasts, text)
        leaf = self._read(at) if at < len(self._leaves) else []
        place = bisect_left(leaf, text)
        if leaf[place : place + 1] != [text]:
            return False
        del leaf[place]
        self._write(at, leaf)
        self._size -= 1
        return True

    def since(self, text: str) -> Iterator[str]:
        """Yield the texts from ``text`` on; the set must not change meanwhile."""
        for at in range(bisect_left(self._lasts, text), len(self._leaves)):
            leaf = self._read(at)
            yield from leaf[bisect_left(leaf, text) :]

    def after(self, text: str, count: int) -> list[str]:
        """Return up to ``count`` texts after ``text``."""
        found = itertools.islice(self.since(text), count + 1)
        return [one for one in found if one != text][:count]

    def first(self) -> str | None:
        """Return the first text, or None."""
        return self._read(0)[0] if self._leaves else None

    def count_since(self, text: str) -> int:
        """Return the number of texts from ``text`` on."""
        at = bisect_left(self._lasts, text)
        if at == len(self._leaves):
            return 0
        return sum(self._counts[at:]) - bisect_left(self._read(at), text)

    def _read(self, at: int) -> list[str]:
        leaf: list[str] = marshal.loads(self._leaves[at])  # noqa: S302 - data of this class
        return leaf

    def _write(self, at: int, leaf: list[str]) -> None:
        """Replace a leaf by one, two or no leaves."""
        end = at + 1
        if len(leaf) < _FEW and end < len(self._leaves):
            leaf += self._read(end)
            end += 1
        half = len(leaf) // 2
        leaves = [leaf[:half], leaf[half:]] if len(leaf) > _MOST else [leaf] if leaf else []
        self._leaves[at:end] = map(marshal.dumps, leaves)
        self._counts[at:end] = map(len, leaves)
        self._lasts[at:end] = [one[-1] for one in leaves]
