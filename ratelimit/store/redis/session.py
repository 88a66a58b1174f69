"""One life of the store's connections, from connecting to whatever fails first.

Requests go to the server of their key and messages come on a connection of their own; no request is
sent twice. A failure of any of them ends all of it, for after a gap in the messages, or at another
server, what was learned before does not hold.
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
    """A Lua script, of one or more files, and the hash by which the server knows it."""

    def __init__(self, *names: str) -> None:
        folder = resources.files("ratelimit.store.redis") / "scripts"
        parts = [(folder / f"{part}.lua").read_text("utf-8") for part in ("common", *names)]
        self.text = "\n".join(parts)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class Life:
    """Connections to the servers; ``failure`` says what has ended this life, and is empty before.

    Args:
        target: the servers.
        timeout: seconds for a connection, and for a request that does not say another.
        home: a key of the server that has the channels.
        on_failure: called at the first failure, unless the life was closed before.
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
        """Servers of the cluster, to ask first the next time."""
        return self._routes.known

    async def open(self, known: tuple[Endpoint, ...]) -> str:
        """Find the servers and return what they are, such as ``redis 7.2.4``."""
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
        # A late answer says nothing about the next life.
        self.failure = self.failure or "closed"
        await self._routes.close()
        for link in (self._messages, self._sure):
            if link is not None:
                await link.close()

    async def subscribe(
        self, channels: tuple[bytes, ...], hear: Callable[[bytes, bytes], Steps[None]]
    ) -> None:
        """From now on call ``hear`` with the channel and the text of each message, in slices."""

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
        # It is confirmed by messages, one for each channel, so the next answer comes after.
        link.send("SUBSCRIBE", *channels)
        await self.ping()
        if not self._confirmed.issuperset(channels):
            raise self.fail("SUBSCRIBE was not confirmed")

    async def ping(self) -> None:
        """See that messages would still come."""
        if self._messages is not None:
            try:
                await self._messages.call(self.timeout, "PING")
            except ResponseError as error:
                raise self.fail(explain(error, self._messages.endpoint)) from error

    async def follow(self) -> None:
        """Learn of another master, and where keys of a cluster have moved to."""
        await self._routes.follow()

    def _moved(self, endpoint: Endpoint) -> None:
        self.fail(f"{endpoint} is the master now")

    async def call(
        self,
        key: bytes,
        *args: bytes | str | int,
        timeout: float | None = None,
        sure: bool = False,
    ) -> Any:
        """Send a command that belongs to a key; whatever goes wrong is a StoreError.

        ``sure`` takes the connection that ``confirmed()`` is about; the key is of the home.
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
            # An error is an answer: nothing has been done, but by a script that began well.
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
        """Run a script on keys of one server; arguments and errors are those of ``call()``."""
        rest = (len(keys), *keys, *args)
        try:
            sha = ("EVALSHA", script.sha)
            return await self.call(keys[0], *sha, *rest, timeout=timeout, sure=sure)
        except NoScriptError:
            # Also loads it; a server forgets scripts when it starts or fails over.
            text = ("EVAL", script.text)
            return await self.call(keys[0], *text, *rest, timeout=timeout, sure=sure)

    async def confirmed(self, replicas: int, timeout: float) -> int:
        """Return how many replicas have what ``run()`` wrote; waits for so many, up to a limit.

        ``timeout`` is in seconds. No other request waits behind this one, for the server answers
        nothing else on the connection meanwhile.
        """
        wait = ("WAIT", replicas, round(timeout * 1000))
        count = await self.call(self._home, *wait, timeout=self.timeout + timeout, sure=True)
        if not isinstance(count, int):
            raise self.odd("the answer to WAIT")
        return count

    def fail(self, problem: str, unsent: bool = False) -> StoreError:
        """End this life, and return the error that says so."""
        if not self.failure:
            self.failure = problem
            self._on_failure(problem)
        return StoreError(problem, unsent)

    def odd(self, what: str) -> StoreError:
        """Return the error for an answer of the wrong shape, which counts as an outage."""
        return self.fail(
            f"{self._routes.home(self._home)}: {what} has an unknown form; is this Redis?"
        )
