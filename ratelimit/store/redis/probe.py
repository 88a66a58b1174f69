"""Checks a shared store without changing it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from redis.exceptions import RedisError

from ratelimit.store.base import Node, StoreError
from ratelimit.store.redis.errors import explain
from ratelimit.store.redis.nodes import Members, nodes_key
from ratelimit.store.redis.session import Life
from ratelimit.store.redis.url import Target


@dataclass(frozen=True, slots=True)
class Sight:
    """The result of the check.

    Attributes:
        server: such as ``redis 7.2.4``.
        ahead: seconds by which the store's clock is ahead of the local one; ``error`` is the
            maximum error.
        nodes: the live nodes.
    """

    server: str
    ahead: float
    error: float
    nodes: tuple[Node, ...]


async def look(
    target: Target, prefix: str, timeout: float = 1, clock: Callable[[], float] = time.time
) -> Sight:
    """Check a store. Raises StoreError."""
    key = nodes_key(prefix)
    life = Life(target, timeout, key, lambda _problem: None)
    try:
        server = await life.open(())
        sent = clock()
        seconds, microseconds = await life.call(key, "TIME")
        received = clock()
        now = int(seconds) + int(microseconds) / 1_000_000
        nodes = await Members(key, None).read(life, int(now * 1000))
    except RedisError as error:
        raise StoreError(explain(error, "the store")) from error
    finally:
        await life.close()
    return Sight(server, now - (sent + received) / 2, (received - sent) / 2, tuple(nodes))
