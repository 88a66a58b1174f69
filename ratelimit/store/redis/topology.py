"""Routes each key to its server, with one connection to each: a single server, Sentinel, or a
cluster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, ResponseError, TryAgainError

from ratelimit.store.base import StoreError
from ratelimit.store.redis.connection import Link, Push
from ratelimit.store.redis.errors import explain
from ratelimit.store.redis.sentinel import Sentinels
from ratelimit.store.redis.url import Endpoint, Kind, Target

_SLOTS = 16384
_REDIRECTIONS = 5
_TRY_AGAIN = 0.01  # seconds


class Routes:
    """The connections to the servers.

    ``home`` is a key whose server must stay the same; ``on_move`` is called with a server that has
    replaced it. ``moved`` is true if other keys of a cluster have moved.
    """

    def __init__(
        self,
        target: Target,
        connect_timeout: float,
        home: bytes,
        on_move: Callable[[Endpoint], object],
    ) -> None:
        self._target = target
        self._home = key_slot(home)
        self._on_move = on_move
        self._sentinels = Sentinels(target, connect_timeout, on_move)
        self._timeout = connect_timeout
        self._links: dict[Endpoint, Link] = {}
        self._opening: dict[Endpoint, asyncio.Lock] = {}
        self._slots: list[Endpoint | None] = []
        self._primary: Endpoint | None = None
        self.moved = False

    @property
    def known(self) -> tuple[Endpoint, ...]:
        """Servers of the cluster to ask first next time; the home server comes first."""
        homes = self._slots[self._home : self._home + 1]
        return tuple(dict.fromkeys(endpoint for endpoint in homes + self._slots if endpoint))

    async def open(self, known: tuple[Endpoint, ...] = ()) -> None:
        """Find the servers. Raises StoreError."""
        if self._target.kind is Kind.SINGLE:
            self._primary = self._target.endpoints[0]
            await self._link(self._primary)
        elif self._target.kind is Kind.SENTINEL:
            self._primary = await self._sentinels.find()
            await self._link(self._primary)
        else:
            await self._ask_cluster((*known, *self._target.endpoints))

    async def close(self) -> None:
        await self._sentinels.close()
        for link in self._links.values():
            await link.close()

    def home(self, key: bytes) -> Endpoint:
        """Return the server of a key, as far as known."""
        endpoint = self._slots[key_slot(key)] if self._slots else self._primary
        if endpoint is None:
            raise StoreError("CLUSTERDOWN: no server has the slot of this key", unsent=True)
        return endpoint

    async def connect(self, key: bytes, push: Push = lambda message: None) -> Link:
        """Return a separate connection to the server of a key, which the caller must close."""
        return await Link.open(
            self._target, self.home(key), self._target.login, self._timeout, push
        )

    async def call(self, timeout: float, key: bytes, *args: bytes | str | int) -> Any:
        """Send a command to the server of a key; raises like ``Link.call()``."""
        endpoint = self.home(key)
        if not self._slots:
            return await self._links[endpoint].call(timeout, *args)
        asking = False
        for _ in range(_REDIRECTIONS):
            link = await self._link(endpoint)
            try:
                return await link.call(timeout, *args, asking=asking)
            # None of these errors means that the command was executed.
            except MovedError as error:
                self.moved = True
                asking = False
                endpoint = Endpoint(error.host or endpoint.host, error.port)
                slot = key_slot(key)
                self._slots[slot] = endpoint
                if slot == self._home:
                    # The new server may lack the last confirmed changes of the previous one.
                    self._on_move(endpoint)
                    raise StoreError(f"this key has moved to {endpoint}", unsent=True) from error
            except AskError as error:
                asking = True
                endpoint = Endpoint(error.host or endpoint.host, error.port)
            except TryAgainError:
                await asyncio.sleep(_TRY_AGAIN)
        raise StoreError(f"{endpoint}: the cluster is moving the slot of this key", unsent=True)

    async def follow(self) -> None:
        """Follow a change of the master, or moved keys of a cluster."""
        if self._target.kind is Kind.SENTINEL:
            await self._sentinels.check()
        if not self.moved:
            return
        self.moved = False
        home = self._slots[self._home]
        await self._ask_cluster(self.known)
        now = self._slots[self._home]
        if now is not None and now != home:
            self._on_move(now)
        for endpoint in set(self._links) - set(self.known):
            await self._links.pop(endpoint).close()

    async def _link(self, endpoint: Endpoint) -> Link:
        link = self._links.get(endpoint)
        if link is not None:
            return link
        async with self._opening.setdefault(endpoint, asyncio.Lock()):
            link = self._links.get(endpoint)
            if link is None:
                link = await Link.open(self._target, endpoint, self._target.login, self._timeout)
                self._links[endpoint] = link
        return link

    async def _ask_cluster(self, endpoints: tuple[Endpoint, ...]) -> None:
        problem = ""
        for endpoint in dict.fromkeys(endpoints):
            try:
                link = await self._link(endpoint)
                answer = await link.call(self._timeout, "CLUSTER", "SLOTS")
                self._slots = _slots(answer, endpoint)
            except ResponseError as error:
                problem = explain(error, endpoint)
            except (ValueError, TypeError, IndexError, AttributeError):
                problem = f"{endpoint}: CLUSTER SLOTS has an unexpected form"
            except StoreError as error:
                problem = str(error)
                broken = self._links.pop(endpoint, None)
                if broken is not None:
                    await broken.close()
            else:
                if any(self._slots):
                    return
                problem = f"{endpoint}: the cluster has no slots assigned to servers"
        raise StoreError(problem, unsent=True)


def _slots(answer: Any, asked: Endpoint) -> list[Endpoint | None]:
    """Return the primary of each slot, from CLUSTER SLOTS."""
    slots: list[Endpoint | None] = [None] * _SLOTS
    for first, last, (host, port, *_), *_ in answer:
        # An empty name means the server that was asked.
        name = host.decode() if host and host != b"?" else asked.host
        slots[first : last + 1] = [Endpoint(name, int(port))] * (last + 1 - first)
    return slots
