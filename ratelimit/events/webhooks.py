"""Tells other programs of events: one POST of JSON for each, signed, in order.

Each receiver has a queue of its own, of fixed size, and a task that empties it. A receiver that
fails is tried again a few times, later and later; then the event is given up and counted.
``docs/webhooks.md`` says what a receiver gets and how it checks that it is from us.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import random
import secrets
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, get_args
from urllib.parse import urlsplit

import aiohttp
import structlog

from ratelimit import __version__
from ratelimit.tls import tls_problem

EventName = Literal["block", "unblock", "store.lost", "store.back", "fuse", "load.high", "load.low"]
"""What a webhook may ask for."""

EVENTS: tuple[EventName, ...] = get_args(EventName)

SIGNATURE = "X-Ratelimit-Signature"
"""Header ``t=EPOCH_SECONDS,v1=HEX``: HMAC-SHA256 of ``EPOCH_SECONDS.BODY``."""

QUEUE = 1000
"""Events that wait for one receiver; then the oldest block or unblock is dropped for a new one."""

TRIES = 6
"""Times that an event is sent before it is given up."""

TIMEOUT = 5.0
"""Seconds for each."""

BACKOFF = (1.0, 30.0)
"""Seconds before the second try, doubled for each later one up to the second; each is shortened by
a random part of up to a half."""

_OFTEN = ("block", "unblock")
_RETRIED = (408, 425, 429)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened once, at ``at`` epoch seconds; receivers know it by its ``id``."""

    name: str
    data: Mapping[str, object]
    node: str
    at: float = field(default_factory=time.time)
    id: str = field(default_factory=lambda: secrets.token_hex(16))

    def body(self) -> bytes:
        """Return it as it is sent; all that is not ASCII is escaped."""
        at = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds")
        return json.dumps(
            {
                "id": self.id,
                "event": self.name,
                "at": at.replace("+00:00", "Z"),
                "node": self.node,
                "data": self.data,
            }
        ).encode()


@dataclass(frozen=True, slots=True)
class Receiver:
    """Who is told of what; ``secret`` empty means that nothing is signed."""

    url: str = field(repr=False)
    events: Collection[str] = EVENTS
    secret: bytes = field(default=b"", repr=False)


def sign(secret: bytes, timestamp: int, body: bytes) -> str:
    """Return the value of ``SIGNATURE``."""
    signed = hmac.new(secret, b"%d." % timestamp + body, hashlib.sha256)
    return f"t={timestamp},v1={signed.hexdigest()}"


class Hook:
    """One receiver.

    Attributes:
        name: for logs and metrics: its place among the webhooks and its host, for the rest of a URL
            may be a secret.
        sent, failed, dropped: events taken by it, given up, and put off the queue.
    """

    name: str
    receiver: Receiver

    def __init__(self, number: int, receiver: Receiver) -> None:
        self.take(number, receiver)
        self.sent = 0
        self.failed = 0
        self.dropped = 0
        self._queue: deque[Event] = deque()
        self._flying: Event | None = None
        self._work = asyncio.Event()
        self._fails = False

    def take(self, number: int, receiver: Receiver) -> None:
        """Tell this receiver from the next try on; ``number`` is its place."""
        self.name = f"{number}:{urlsplit(receiver.url).hostname}"
        self.receiver = receiver

    @property
    def waiting(self) -> int:
        """Events not yet delivered, the one under way included."""
        return len(self._queue) + (self._flying is not None)

    def put(self, event: Event) -> None:
        """Send an event as soon as those before it are dealt with, if it is asked for."""
        if event.name not in self.receiver.events:
            return
        if len(self._queue) >= QUEUE:
            self.dropped += 1
            for place, old in enumerate(self._queue):
                if old.name in _OFTEN:
                    del self._queue[place]
                    break
            else:
                self._queue.popleft()
        self._queue.append(event)
        self._work.set()

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Deliver until cancelled."""
        while True:
            while not self._queue:
                self._work.clear()
                await self._work.wait()
            event = self._flying = self._queue.popleft()
            try:
                why = await self._deliver(session, event)
            except asyncio.CancelledError:
                self._queue.appendleft(event)  # for the next task, if there is one
                raise
            except Exception as error:
                log.exception("an event can't be sent", webhook=self.name)
                why = repr(error)
            finally:
                self._flying = None
            if why:
                self.failed += 1
                if not self._fails:
                    log.error("webhook fails", webhook=self.name, why=why)
            else:
                self.sent += 1
                if self._fails:
                    log.info("webhook works again", webhook=self.name)
            self._fails = bool(why)

    async def _deliver(self, session: aiohttp.ClientSession, event: Event) -> str:
        """Try until it is taken or given up; return why it was given up, or nothing."""
        body = event.body()
        delay = BACKOFF[0]
        for left in reversed(range(TRIES)):
            if event.name not in self.receiver.events:
                return ""  # by a reload since
            why, again = await self._post(session, body)
            if not why or not again or not left:
                break
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - not a secret
            delay = min(2 * delay, BACKOFF[1])
        return why

    async def _post(self, session: aiohttp.ClientSession, body: bytes) -> tuple[str, bool]:
        """Send it once; return what is wrong, and whether that may pass."""
        receiver = self.receiver
        headers = {"Content-Type": "application/json", "User-Agent": f"ratelimit/{__version__}"}
        if receiver.secret:
            headers[SIGNATURE] = sign(receiver.secret, int(time.time()), body)
        try:
            async with session.post(
                receiver.url, data=body, headers=headers, allow_redirects=False
            ) as response:
                status = response.status
        except TimeoutError:
            return f"no answer within {TIMEOUT:g} s", True
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Its text may show the URL.
            return tls_problem(error) or type(error).__name__, True
        if 200 <= status < 300:
            return "", False
        return f"status {status}", status >= 500 or status in _RETRIED


class Webhooks:
    """All receivers, and the node in whose name they are told."""

    def __init__(self, receivers: Sequence[Receiver], node: str) -> None:
        self.node = node
        self.hooks = [Hook(number, each) for number, each in enumerate(receivers, 1)]
        self._changed = asyncio.Event()

    def send(self, name: str, data: Mapping[str, object]) -> None:
        """Tell those who asked for it; returns at once."""
        if self.hooks:
            event = Event(name, data, self.node)
            for hook in self.hooks:
                hook.put(event)

    def renew(self, receivers: Sequence[Receiver]) -> None:
        """Tell these receivers from now on.

        What waits for a receiver goes on waiting if the URL is still there, at whatever place, or
        if its place has another URL now.
        """
        before = dict(enumerate(self.hooks))
        hooks: dict[int, Hook] = {}
        for same_url in (True, False):
            for place, receiver in enumerate(receivers):
                found = (
                    old
                    for old, hook in before.items()
                    if (hook.receiver.url == receiver.url if same_url else old == place)
                )
                if place not in hooks and (old := next(found, None)) is not None:
                    hooks[place] = before.pop(old)
        for place, receiver in enumerate(receivers):
            hooks.setdefault(place, Hook(place + 1, receiver)).take(place + 1, receiver)
        for hook in before.values():
            log.info("webhook removed", webhook=hook.name, lost=hook.waiting)
        self.hooks = [hooks[place] for place in range(len(receivers))]
        self._changed.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        jar = aiohttp.DummyCookieJar()
        running: dict[Hook, asyncio.Task[None]] = {}
        async with (
            aiohttp.ClientSession(timeout=timeout, cookie_jar=jar) as session,
            asyncio.TaskGroup() as tasks,
        ):
            while True:
                self._changed.clear()
                for hook in running.keys() - set(self.hooks):
                    running.pop(hook).cancel()
                for hook in self.hooks:
                    if hook not in running:
                        running[hook] = tasks.create_task(hook.run(session), name="webhook")
                await self._changed.wait()

    def close(self) -> None:
        """Say what is lost."""
        waiting = sum(hook.waiting for hook in self.hooks)
        if waiting:
            log.warning("events are lost, for the agent stops first", count=waiting)
