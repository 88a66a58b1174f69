"""The blocklist that nodes share: written from the outbox, read whole, and followed by messages.

The key ``PREFIX:{fleet}:blocks`` and the channel for news of it; see ``scripts/``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import secrets
import time
from typing import Any

from ratelimit.model import Block
from ratelimit.store.base import Events, StoreError
from ratelimit.store.life import Life, Script
from ratelimit.store.outbox import Change, Outbox, block_from_json, block_to_json

_BATCH = 100  # entries in one request
_PAGE = 1000
_STEP = 50  # entries read at a time, between which answers go; each takes some 10 us
_SECRET = 32  # characters of an era that outlive it, if any node does

_BLOCK, _LIFT, _LOAD = map(Script, ("block", "lift", "load"))


class SharedBlocklist:
    """The blocklist as the store has it.

    The era is what the store calls this list; with another one it has lost the list in between. It
    begins with the secret of all nodes, which a node that knows it passes on to the next era.
    """

    def __init__(self, prefix: str, channel: bytes, events: Events, outbox: Outbox) -> None:
        self.key = f"{prefix}:{{fleet}}:blocks".encode()
        self.channel = channel
        self._events = events
        self._outbox = outbox
        self._era = b""
        # News that came while the list was being read; None for what was lifted.
        self._meanwhile: dict[tuple[str, str], Block | None] | None = None

    @property
    def secret(self) -> bytes:
        return hashlib.blake2b(self._era[:_SECRET], digest_size=16).digest()

    def new_era(self) -> str:
        """Return the era of the list if it begins now."""
        return (
            self._era[:_SECRET].decode() or secrets.token_hex(_SECRET // 2)
        ) + secrets.token_hex(8)

    def learn_era(self, era: bytes) -> bool:
        """Note the era; true if the list was lost, which makes the next write one of all."""
        lost = self._era not in (b"", era)
        self._era = era
        if lost:
            self._outbox.overflowed = True
        return lost

    def keep_news(self) -> None:
        """From now on keep what is heard, for the list that is loaded next."""
        self._meanwhile = {}

    async def read(self, life: Life) -> dict[tuple[str, str], Block]:
        """Return the list by limit and key."""
        blocks = {}
        cursor: Any = "0"
        while True:
            answer = await life.run(_LOAD, (self.key,), self.new_era(), cursor, _PAGE)
            try:
                cursor, *texts = answer
                cursor = cursor.decode()
                for number, text in enumerate(texts, 1):
                    block = block_from_json(text)
                    blocks[block.limit, block.key] = block
                    if number % _STEP == 0:
                        await asyncio.sleep(0)
            except (ValueError, TypeError, AttributeError):
                raise life.odd("the blocklist") from None
            if cursor == "0":
                return blocks

    async def load(self, life: Life) -> None:
        """Have the owner replace its list, by one that nothing is missing from."""
        meanwhile = self._meanwhile = {} if self._meanwhile is None else self._meanwhile
        try:
            blocks = await self.read(life)
        finally:
            self._meanwhile = None
        for place, block in meanwhile.items():
            if block is None:
                blocks.pop(place, None)
            else:
                blocks[place] = block
        self._outbox.apply(blocks)
        if life.failure:
            raise StoreError(life.failure)
        for _ in self._events.on_loaded(list(blocks.values())):
            await asyncio.sleep(0)
            if life.failure:
                raise StoreError(life.failure)

    async def write(self, life: Life, until: float | None = None) -> None:
        """Write what is unwritten; first, if anything was dropped or lost, all that is held.

        The heartbeat, due at ``until``, must not wait for a flood of blocks.
        """
        if self._outbox.overflowed:
            self._outbox.overflowed = False
            held = list(self._events.held())
            try:
                for start in range(0, len(held), _BATCH):
                    await self._write_blocks(life, held[start : start + _BATCH])
            except StoreError:
                self._outbox.overflowed = True
                raise
        # No more than there is now, or a flood of blocks would keep it here.
        left = len(self._outbox)
        while left > 0 and (changes := self._outbox.first(_BATCH)):
            left -= len(changes)
            if changes[0].block is None:
                results = await self._write_lifts(life, changes)
            else:
                await self._write_blocks(life, [change.block for change in changes if change.block])
                results = [True] * len(changes)
            self._outbox.written(changes, results)
            if until is not None and time.monotonic() >= until:
                break

    def hear(self, text: bytes) -> bool:
        """Pass on news; false if no node can have said this."""
        try:
            news = json.loads(text)
            blocks = [block_from_json(json.dumps(block)) for block in news.get("blocks", ())]
            lifts = [_unfield(field) for field in news.get("lifts", ())]
            # Earlier versions did not say when.
            times = [float(time) for time in news.get("lifted", ())] or [math.inf] * len(lifts)
        except (ValueError, TypeError, AttributeError, RecursionError):
            return False
        for block in blocks:
            if self._meanwhile is not None:
                self._meanwhile[block.limit, block.key] = block
            self._events.on_block(block)
        for (limit, key), lifted in zip(lifts, times, strict=False):
            if self._meanwhile is not None:
                self._meanwhile[limit, key] = None
            if self._outbox.forget_block(limit, key, lifted):
                self._events.on_lift(limit, key)
        return True

    async def _write_blocks(self, life: Life, blocks: list[Block]) -> None:
        args: list[bytes | str | int] = []
        for block in blocks:
            args += (
                _field(block.limit, block.key),
                _encoded(block_to_json(block)),
                self._events.forget(block.limit),
            )
        await life.run(_BLOCK, (self.key,), self.new_era(), self.channel, *args)

    async def _write_lifts(self, life: Life, changes: list[Change]) -> list[bool]:
        args: list[bytes | int] = []
        for change in changes:
            since = int(time.monotonic() - change.asked)
            args += _field(change.limit, change.key), since
        answer = await life.run(_LIFT, (self.key,), self.new_era(), self.channel, *args)
        if not isinstance(answer, list) or len(answer) != len(changes):
            raise life.odd("the answer to a lift")
        return [found == 1 for found in answer]


def _field(limit: str, key: str) -> bytes:
    return _encoded(f"{limit}|{key}")


def _unfield(field: str) -> tuple[str, str]:
    limit, bar, key = field.partition("|")
    if not bar:
        raise ValueError("not a field")
    return limit, key


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")
