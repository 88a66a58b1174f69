"""A look at a shared store from outside: nothing is announced, nothing changed."""

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
    """What a store says.

    Attributes:
        server: such as ``redis 7.2.4``.
        ahead: seconds that its clock is ahead of ours, and ``error`` by how much that may be wrong.
        nodes: those that are live.
    """

    server: str
    ahead: float
    error: float
    nodes: tuple[Node, ...]


async def look(
    target: Target, prefix: str, timeout: float = 1, clock: Callable[[], float] = time.time
) -> Sight:
    """Ask a store; StoreError says why it can't be used."""
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
