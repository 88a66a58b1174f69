"""The connections to the store, from connecting to the first failure.

Each request goes to the server of its key; messages come on a separate connection. No request is
sent twice. Any failure ends all connections, because after a gap in the messages, or at another
server, earlier knowledge may be wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import resources
from typing import Any

from redis.exceptions import NoScriptError, ResponseError

from ratelimit.steps import Steps
from ratelimit.store.base import StoreError
from ratelimit.store.redis.connection import Link
from ratelimit.store.redis.errors import explain, too_old
from ratelimit.store.redis.topology import Routes
from ratelimit.store.redis.url import Endpoint, Target


class Script:
    """A Lua script, built from one or more files, and the hash by which the server knows it."""

    def __init__(self, *names: str) -> None:
        folder = resources.files("ratelimit.store.redis") / "scripts"
        parts = [(folder / f"{part}.lua").read_text("utf-8") for part in ("common", *names)]
        self.text = "\n".join(parts)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class Life:
    """Connections to the servers; ``failure`` says what has ended them, and is empty before.

    Args:
        target: the servers.
        timeout: seconds for a connection, and for a request without its own timeout.
        home: a key of the server that has the channels.
        on_failure: called at the first failure, unless closed before.
    """

    def __init__(
        self, target: Target, timeout: float, home: bytes, on_failure: Callable[[str], object]
    ) -> None:
        self.failure = ""
        self.timeout = timeout
        self._home = home
        self._on_failure = on_failure
        self._routes = Routes(target, timeout, home, self._moved)
        self._messages: Link | None = None
        self._sure: Link | None = None
        self._confirmed: set[bytes] = set()

    @property
    def known(self) -> tuple[Endpoint, ...]:
        """Servers of the cluster to ask first next time."""
        return self._routes.known

    async def open(self, known: tuple[Endpoint, ...]) -> str:
        """Connect and return the server and version, such as ``redis 7.2.4``."""
        await self._routes.open(known)
        answer = await self.call(self._home, "HELLO")
        try:
            name, version = answer[b"server"].decode(), answer[b"version"].decode()
        except (AttributeError, KeyError, TypeError):
            raise self.odd("the answer to HELLO") from None
        problem = too_old(name, version)
        if problem:
            raise self.fail(problem)
        return f"{name} {version}"

    async def close(self) -> None:
        # A late answer must not affect the next connections.
        self.failure = self.failure or "closed"
        await self._routes.close()
        for link in (self._messages, self._sure):
            if link is not None:
                await link.close()

    async def subscribe(
        self, channels: tuple[bytes, ...], hear: Callable[[bytes, bytes], Steps[None]]
    ) -> None:
        """Subscribe to channels; ``hear`` receives channel and text of each message, in slices."""

        def push(message: list[Any]) -> Steps[None] | None:
            match message:
                case []:
                    if self._messages is not None:
                        self.fail(self._messages.broken)
                case [b"subscribe", bytes(channel), _]:
                    self._confirmed.add(channel)
                case [b"message", bytes(channel), bytes(text)]:
                    return hear(channel, text)
            return None

        link = self._messages = await self._routes.connect(self._home, push)
        # Confirmed by a message for each channel, before the answer to the next command.
        link.send("SUBSCRIBE", *channels)
        await self.ping()
        if not self._confirmed.issuperset(channels):
            raise self.fail("SUBSCRIBE was not confirmed")

    async def ping(self) -> None:
        """Check that the connection for messages works."""
        if self._messages is not None:
            try:
                await self._messages.call(self.timeout, "PING")
            except ResponseError as error:
                raise self.fail(explain(error, self._messages.endpoint)) from error

    async def follow(self) -> None:
        """Follow a change of the master, or moved keys of a cluster."""
        await self._routes.follow()

    def _moved(self, endpoint: Endpoint) -> None:
        self.fail(f"{endpoint} is the new master")

    async def call(
        self,
        key: bytes,
        *args: bytes | str | int,
        timeout: float | None = None,
        sure: bool = False,
    ) -> Any:
        """Send a command for a key. Raises StoreError for any failure.

        ``sure`` uses the connection of ``confirmed()``; the key must be on the home server.
        """
        limit = self.timeout if timeout is None else timeout
        try:
            if not sure:
                return await self._routes.call(limit, key, *args)
            if self._sure is None:
                self._sure = await self._routes.connect(self._home)
            return await self._sure.call(limit, *args)
        except ResponseError as error:
            if isinstance(error, NoScriptError) and args[0] == "EVALSHA":
                raise
            # An error is an answer: nothing was done, except by a script that failed halfway.
            problem = explain(error, self._routes.home(key))
            raise self.fail(problem, unsent=True) from error
        except StoreError as error:
            raise self.fail(str(error), error.unsent) from error

    async def run(
        self,
        script: Script,
        keys: tuple[bytes, ...],
        *args: bytes | str | int,
        timeout: float | None = None,
        sure: bool = False,
    ) -> Any:
        """Run a script on keys of one server; arguments and errors as in ``call()``."""
        rest = (len(keys), *keys, *args)
        try:
            sha = ("EVALSHA", script.sha)
            return await self.call(keys[0], *sha, *rest, timeout=timeout, sure=sure)
        except NoScriptError:
            # EVAL also loads the script; a server loses scripts at a restart or failover.
            text = ("EVAL", script.text)
            return await self.call(keys[0], *text, *rest, timeout=timeout, sure=sure)

    async def confirmed(self, replicas: int, timeout: float) -> int:
        """Return how many replicas have the writes of ``run()``; wait for ``replicas`` of them.

        ``timeout`` is in seconds. The server answers nothing else on this connection meanwhile, so
        other requests use another one.
        """
        wait = ("WAIT", replicas, round(timeout * 1000))
        count = await self.call(self._home, *wait, timeout=self.timeout + timeout, sure=True)
        if not isinstance(count, int):
            raise self.odd("the answer to WAIT")
        return count

    def fail(self, problem: str, unsent: bool = False) -> StoreError:
        """End these connections, and return the error."""
        if not self.failure:
            self.failure = problem
            self._on_failure(problem)
        return StoreError(problem, unsent)

    def odd(self, what: str) -> StoreError:
        """Return the error for an answer of the wrong form, which counts as an outage."""
        return self.fail(
            f"{self._routes.home(self._home)}: {what} has an unexpected form; is this Redis?"
        )
