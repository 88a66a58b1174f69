"""Changes of the blocklist that wait for the store, and an entry as text; no I/O."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, replace

from ratelimit.model import Block

MAX_UNWRITTEN = 100_000
"""Changes that wait for the store; the next one is refused, see ``Outbox.dropped``."""


class Change:
    """An entry to write or, without a block, to take off; ``waiters`` are told of the outcome.

    ``asked`` is the monotonic time at which it was made.
    """

    __slots__ = ("asked", "block", "key", "limit", "waiters")

    def __init__(self, limit: str, key: str, block: Block | None = None) -> None:
        self.limit = limit
        self.key = key
        self.block = block
        self.asked = time.monotonic()
        self.waiters: list[asyncio.Future[bool]] = []


class Outbox:
    """Changes not yet written, in order, the last one for each client only.

    ``dropped`` counts those that found no room, and ``overflowed`` says that there were any: then
    the owner's whole list is to be written.
    """

    def __init__(self, size: int = MAX_UNWRITTEN) -> None:
        self.dropped = 0
        self.overflowed = False
        self._size = size
        # A block may follow a lift of the same client, but nothing follows a block.
        self._changes: dict[tuple[str, str, bool], Change] = {}

    def __len__(self) -> int:
        return len(self._changes)

    def add(self, change: Change) -> bool:
        """Add a change; false if there is no room."""
        lifts = change.block is None
        old = self._take(change.limit, change.key, True)
        if lifts:
            old = self._take(change.limit, change.key, False) or old
        if old is None and len(self._changes) >= self._size:
            self.dropped += 1
            self.overflowed = True
            return False
        if old is not None:
            change.waiters += old.waiters
        self._changes[change.limit, change.key, not lifts] = change
        return True

    def first(self, count: int) -> list[Change]:
        """Return up to ``count`` changes of one kind, the oldest first; they stay."""
        changes: list[Change] = []
        for change in self._changes.values():
            if len(changes) == count or (
                changes and (change.block is None) != (changes[0].block is None)
            ):
                break
            changes.append(change)
        return changes

    def written(self, changes: Sequence[Change], results: Iterable[bool]) -> None:
        """Remove changes that were written, unless newer ones have taken their place."""
        for change, result in zip(changes, results, strict=True):
            place = (change.limit, change.key, change.block is not None)
            if self._changes.get(place) is change:
                del self._changes[place]
            for waiter in change.waiters:
                if not waiter.done():
                    waiter.set_result(result)

    def forget_block(self, limit: str, key: str, lifted: float = math.inf) -> bool:
        """Drop an entry that was lifted elsewhere, at an epoch second, before it was written.

        Returns False, and keeps it, if it began later than that.
        """
        change = self._changes.get((limit, key, True))
        if change is not None and change.block is not None:
            # A block begins at a whole second, up to one after the hit.
            if change.block.since > lifted + 1:
                return False
            del self._changes[limit, key, True]
            self.written([change], [False])
        return True

    def shift(self, seconds: int) -> None:
        """Move the times of all entries, which were made by another clock."""
        for change in self._changes.values():
            if change.block is not None:
                since, until = change.block.since + seconds, change.block.until + seconds
                change.block = replace(change.block, since=since, until=until)

    def apply(self, blocks: dict[tuple[str, str], Block]) -> None:
        """Change a list as it will be once all is written."""
        for change in self._changes.values():
            if change.block is not None:
                blocks[change.limit, change.key] = change.block
            else:
                blocks.pop((change.limit, change.key), None)

    def _take(self, limit: str, key: str, blocks: bool) -> Change | None:
        return self._changes.pop((limit, key, blocks), None)


def block_to_json(block: Block) -> str:
    """Return an entry as the store has it."""
    return json.dumps(asdict(block), separators=(",", ":"), ensure_ascii=False)


def block_from_json(text: str | bytes) -> Block:
    """Return the entry; ValueError if it is none. Fields of a later version are left out."""
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError("not an entry")  # noqa: TRY004 - of the text, not of the argument
    values: dict[str, object] = {}
    for field in fields(Block):
        if field.name in data:
            value = data[field.name]
            if field.type == "int" and isinstance(value, float):
                with contextlib.suppress(OverflowError):
                    value = int(value)
            if type(value).__name__ != field.type:
                raise ValueError(f"{field.name} is not {field.type}")
            values[field.name] = value
    try:
        return Block(**values)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(str(error)) from None
