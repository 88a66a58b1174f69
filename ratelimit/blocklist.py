"""Who is blocked until when, and how many strikes each has; off the request path.

An entry stays ``forget`` seconds after its block has ended, since the next block is chosen by the
strikes before it. The number of entries is bounded: a new one takes the place of one whose block
has ended; without any such, a client is throttled instead of blocked, which ``refused`` counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from ratelimit.model import Block, Limit
from ratelimit.notation import format_duration

MAX_ENTRIES = 200_000
_LOOKED_AT = 100


class Blocklist:
    """Blocks by limit and key; all times are epoch seconds. ``node`` is who makes them."""

    def __init__(self, node: str = "", max_entries: int = MAX_ENTRIES) -> None:
        self.node = node
        self.max_entries = max_entries
        self.refused = 0
        # Each limit's entries stand in the order of their last strike. They are forgotten from the
        # first on, so one may stay longer than it must, by no more than the longest block.
        self._entries: dict[str, dict[str, Block]] = {}
        self._size = 0
        # How many entries end at each second, from the time on at which active() was asked last.
        self._ends: dict[int, int] = {}

    def __len__(self) -> int:
        return self._size

    def get(self, limit: str, key: str) -> Block | None:
        """Return the client's last block, which may have ended."""
        return self._entries.get(limit, {}).get(key)

    def __iter__(self) -> Iterator[Block]:
        for entries in self._entries.values():
            yield from entries.values()

    def put(self, block: Block) -> bool:
        """Take an entry as it is, from the store; false if there is no room for it."""
        entries = self._entries.setdefault(block.limit, {})
        old = entries.pop(block.key, None)
        if old is not None:
            self._dropped(old)
        elif self._size >= self.max_entries and not self._make_room(block.since):
            self.refused += 1
            return False
        entries[block.key] = block
        self._size += 1
        self._ends[block.until] = self._ends.get(block.until, 0) + 1
        return True

    def active(self, now: int) -> int:
        """Return how many blocks have not ended."""
        for end in [end for end in self._ends if end <= now]:
            del self._ends[end]
        return sum(self._ends.values())

    def _dropped(self, block: Block) -> None:
        self._size -= 1
        if block.until in self._ends:
            self._ends[block.until] -= 1

    def _make_room(self, now: int) -> bool:
        """Drop an entry whose block has ended, of those that were made first."""
        for entries in self._entries.values():
            for key, block in itertools.islice(entries.items(), _LOOKED_AT):
                if block.until <= now:
                    self.remove(block.limit, key)
                    return True
        return False

    def remove(self, limit: str, key: str) -> Block | None:
        """Take an entry off; return it if there was one."""
        block = self._entries.get(limit, {}).pop(key, None)
        if block is not None:
            self._dropped(block)
        return block

    def strike(self, limit: Limit, key: str, now: int) -> Block | None:
        """Block a client that exceeded a limit; None if there is no room for it.

        The first strike earns the first length of the limit's ladder, and so on; past its end the
        last one is repeated.
        """
        last = self.get(limit.name, key)
        strikes = 1
        if last is not None and now - max(last.since, last.until) < limit.forget:
            strikes = last.strikes + 1
        block = Block(
            key=key,
            limit=limit.name,
            reason=f"over {limit.rate} in {format_duration(limit.window)}",
            strikes=strikes,
            since=now,
            until=now + limit.block[min(strikes, len(limit.block)) - 1],
            node=self.node,
        )
        return block if self.put(block) else None

    def forget(self, limit: Limit, now: int) -> None:
        """Drop the entries of a limit whose block has ended and whose strikes are forgotten."""
        entries = self._entries.get(limit.name, {})
        while entries:
            key, block = next(iter(entries.items()))
            if now - max(block.since, block.until) < limit.forget:
                return
            self.remove(limit.name, key)
