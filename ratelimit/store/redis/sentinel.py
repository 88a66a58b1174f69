"""Finds the master through Sentinels, and follows it.

After a planned failover the old master remains writable for some seconds, and these writes are
lost. So the Sentinel that named the master is also subscribed to for changes (``+switch-master``),
and asked again with each heartbeat, in case its message was lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import structlog
from redis.exceptions import ResponseError

from ratelimit.exceptions import StoreError
from ratelimit.store.redis.connection import Link
from ratelimit.store.redis.errors import explain
from ratelimit.store.redis.url import Endpoint, Target

_SWITCH = b"+switch-master"

log = structlog.get_logger()


class Sentinels:
    """``on_switch`` is called with each new master that a Sentinel names after ``find()``."""

    def __init__(
        self, target: Target, timeout: float, on_switch: Callable[[Endpoint], object]
    ) -> None:
        self._target = target
        self._timeout = timeout
        self._on_switch = on_switch
        self._master: Endpoint | None = None
        self._link: Link | None = None

    async def find(self) -> Endpoint:
        """Return the master. Raises StoreError if no Sentinel knows it."""
        problem = ""
        for endpoint in self._target.endpoints:
            # A user without permission to subscribe is accepted.
            for subscribes in (True, False):
                try:
                    self._master = await self._ask(endpoint, subscribes)
                except StoreError as error:
                    problem = f"Sentinel {error}"
                    break
                except ResponseError as error:
                    problem = f"Sentinel {explain(error, endpoint)}"
                else:
                    return self._master
        raise StoreError(problem, unsent=True)

    async def check(self) -> None:
        """Ask again for the master; use the next Sentinel if the previous one is down."""
        before = self._master
        try:
            found = await self.find() if self._link is None else await self._named(self._link)
        except (StoreError, ResponseError):
            # Without a Sentinel there is no failover; the next heartbeat asks again.
            await self.close()
            return
        if found != before:
            self._on_switch(found)

    async def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    async def _ask(self, endpoint: Endpoint, subscribes: bool) -> Endpoint:
        await self.close()
        link = await Link.open(
            self._target, endpoint, self._target.sentinel, self._timeout, self._hear
        )
        try:
            if subscribes:
                # Subscribe first, so that no switch is missed. An error of it would be taken for
                # the answer to the query.
                link.send("SUBSCRIBE", _SWITCH)
            found = await self._named(link)
        except BaseException:
            await link.close()
            raise
        self._link = link
        return found

    async def _named(self, link: Link) -> Endpoint:
        answer = await link.call(
            self._timeout, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._target.service
        )
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            host, port = answer
            return Endpoint(host.decode(), int(port))
        raise StoreError(f"{link.endpoint}: unknown service {self._target.service}", unsent=True)

    def _hear(self, message: list[Any]) -> None:
        match message:
            case [b"message", channel, bytes(text)] if channel == _SWITCH:
                words = text.decode("utf-8", "replace").split()
                if len(words) == 5 and words[0] == self._target.service and words[4].isdigit():
                    self._on_switch(Endpoint(words[3], int(words[4])))
