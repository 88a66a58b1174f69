"""Blocks that an agent finds in Redis at its start."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from ratelimit.model import Block
from ratelimit.store.redis.store import RedisStore
from ratelimit.store.redis.url import parse


def write(url: str, blocks: Iterable[Block]) -> None:
    """Write blocks to a Redis, as an agent does."""
    asyncio.run(_write(url, blocks))


async def _write(url: str, blocks: Iterable[Block]) -> None:
    store = RedisStore(parse(url))
    await store.start()
    for entry in blocks:
        store.put(entry)
        while len(store.outbox) > 10_000:
            await asyncio.sleep(0.01)
    while len(store.outbox):
        await asyncio.sleep(0.01)
    await store.close()
