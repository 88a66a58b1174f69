"""Sends events to webhooks: a signed POST of JSON for each event, in order.

Each receiver has its own queue of fixed size and its own task. A failed event is retried with
growing pauses, then dropped and counted. ``docs/webhooks.md`` describes the requests and how a
receiver verifies them.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
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
from ratelimit.backoff import Backoff
from ratelimit.tls import tls_problem

EventName = Literal["block", "unblock", "store.lost", "store.back", "fuse", "load.high", "load.low"]
"""Events that a webhook may subscribe to."""

EVENTS: tuple[EventName, ...] = get_args(EventName)

SIGNATURE = "X-Ratelimit-Signature"
"""Header ``t=EPOCH_SECONDS,v1=HEX``: HMAC-SHA256 of ``EPOCH_SECONDS.BODY``."""

QUEUE = 1000
"""Events that wait for one receiver; a new one then replaces the oldest block or unblock."""

TRIES = 6
"""Attempts to send an event before it is dropped."""

TIMEOUT = 5.0
"""Seconds for each attempt."""

BACKOFF = (1.0, 30.0)
"""First and longest pause between attempts, in seconds. The pause doubles after each attempt and is
shortened by a random part of up to a half.
"""

_OFTEN = ("block", "unblock")
_RETRIED = (408, 425, 429)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """An event at ``at`` epoch seconds; receivers use ``id`` to recognise repeats."""

    name: str
    data: Mapping[str, object]
    node: str
    at: float = field(default_factory=time.time)
    id: str = field(default_factory=lambda: secrets.token_hex(16))

    def body(self) -> bytes:
        """Return the JSON of the event in ASCII."""
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
    """A receiver and its events; without ``secret`` requests are not signed."""

    url: str = field(repr=False)
    events: Collection[str] = EVENTS
    secret: bytes = field(default=b"", repr=False)


def sign(secret: bytes, timestamp: int, body: bytes) -> str:
    """Return the value of the header ``SIGNATURE``."""
    signed = hmac.new(secret, b"%d." % timestamp + body, hashlib.sha256)
    return f"t={timestamp},v1={signed.hexdigest()}"


class Hook:
    """A receiver with its queue.

    Attributes:
        name: number and host, for logs and metrics; the rest of a URL may be secret.
        sent, failed, dropped: events delivered, given up, and dropped from the full queue.
    """

    name: str
    receiver: Receiver

    def __init__(self, number: int, receiver: Receiver) -> None:
        self.take(number, receiver)
        self.sent = 0
        self.failed = 0
        self.dropped = 0
        self._queue: deque[WebhookEvent] = deque()
        self._flying: WebhookEvent | None = None
        self._work = asyncio.Event()
        self._fails = False

    def take(self, number: int, receiver: Receiver) -> None:
        """Use this receiver from the next attempt on; ``number`` is its position."""
        self.name = f"{number}:{urlsplit(receiver.url).hostname}"
        self.receiver = receiver

    @property
    def waiting(self) -> int:
        """Events not yet delivered, including the one in progress."""
        return len(self._queue) + (self._flying is not None)

    def put(self, event: WebhookEvent) -> None:
        """Queue an event if the receiver has subscribed to it."""
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
        """Deliver events until cancelled."""
        while True:
            while not self._queue:
                self._work.clear()
                await self._work.wait()
            event = self._flying = self._queue.popleft()
            try:
                why = await self._deliver(session, event)
            except asyncio.CancelledError:
                self._queue.appendleft(event)  # # for the next task, if any
                raise
            except Exception as error:
                log.exception("internal error while sending an event", webhook=self.name)
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

    async def _deliver(self, session: aiohttp.ClientSession, event: WebhookEvent) -> str:
        """Try until the event is delivered or given up; return why it was given up, or an empty
        string.
        """
        body = event.body()
        backoff = Backoff(*BACKOFF)
        for left in reversed(range(TRIES)):
            if event.name not in self.receiver.events:
                return ""  # unsubscribed by a reload
            why, again = await self._post(session, body)
            if not why or not again or not left:
                break
            await asyncio.sleep(backoff.next())
        return why

    async def _post(self, session: aiohttp.ClientSession, body: bytes) -> tuple[str, bool]:
        """Send once; return the problem, or an empty string, and whether a retry may help."""
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
            # The text of the error may contain the URL.
            return tls_problem(error) or type(error).__name__, True
        if 200 <= status < 300:
            return "", False
        return f"status {status}", status >= 500 or status in _RETRIED


class Webhooks:
    """All receivers of a node."""

    def __init__(self, receivers: Sequence[Receiver], node: str) -> None:
        self.node = node
        self.hooks = [Hook(number, each) for number, each in enumerate(receivers, 1)]
        self._changed = asyncio.Event()

    def send(self, name: str, data: Mapping[str, object]) -> None:
        """Queue an event for all receivers; returns at once."""
        if self.hooks:
            event = WebhookEvent(name, data, self.node)
            for hook in self.hooks:
                hook.put(event)

    def renew(self, receivers: Sequence[Receiver]) -> None:
        """Replace the receivers.

        The queue of a receiver is kept if its URL remains, at any position, or if its position has
        a new URL.
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
        """Log how many events are lost."""
        waiting = sum(hook.waiting for hook in self.hooks)
        if waiting:
            log.warning("events were lost because the agent stopped", count=waiting)
