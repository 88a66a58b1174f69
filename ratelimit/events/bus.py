"""The event bus of a node: passes events to listeners without waiting for them.

The bus keeps the latest events, so that a listener can resume after a gap. A listener that falls
behind is dropped.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import structlog

MAX_LISTENERS = 64
HISTORY = 1000
"""Events that are kept."""

QUEUE = 1000
"""Events that wait for a listener before it is dropped."""

_IDS = 1000  # ids for each millisecond since the epoch

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        id: greater than that of every earlier event, also of earlier processes.
        name: ``block``, ``unblock``, ``store.lost``, ``store.back``, ``fuse``, ``load.high``,
            ``load.low`` or ``reload``.
        at: epoch seconds.
        data: details.
    """

    id: int
    name: str
    at: float
    data: Mapping[str, object]


class Full(Exception):  # noqa: N818 - a state, as asyncio.QueueFull is
    """There are ``MAX_LISTENERS`` listeners already."""


class Subscription:
    """The events of one listener, as an asynchronous iterator that ends when ``dropped``.

    ``missed`` is true if events before the first one were lost.
    """

    def __init__(self, maxsize: int) -> None:
        self.dropped = False
        self.missed = False
        self._events: deque[Event] = deque()
        self._maxsize = maxsize
        self._woken = asyncio.Event()

    def fill(self, events: Iterable[Event]) -> None:
        """Queue earlier events, whatever their number."""
        self._events.extend(events)
        self._maxsize += len(self._events)

    def put(self, event: Event) -> bool:
        """Queue an event; return false and end the listener if it is too far behind."""
        if len(self._events) >= self._maxsize:
            self._events.clear()
            self.end()
            return False
        self._events.append(event)
        self._woken.set()
        return True

    def ready(self, count: int) -> list[Event]:
        """Return up to ``count`` events that are queued already."""
        return [self._events.popleft() for _ in range(min(count, len(self._events)))]

    def end(self) -> None:
        """End the iteration of the listener."""
        self.dropped = True
        self._woken.set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self.dropped:
                raise StopAsyncIteration
            self._woken.clear()
            await self._woken.wait()
        return self._events.popleft()


class Bus:
    """Passes events to listeners.

    ``latest`` is the id of the last event, ``published`` counts events by name, ``dropped`` counts
    listeners that fell behind. ``taps`` are called with the name and data of each event and must
    not wait.
    """

    def __init__(self) -> None:
        self.published: dict[str, int] = {}
        self.dropped = 0
        self.taps: list[Callable[[str, Mapping[str, object]], object]] = []
        self._history: deque[Event] = deque(maxlen=HISTORY)
        self._ids = itertools.count(time.time_ns() // 1_000_000 * _IDS)
        # Ids up to this one are not kept; initially those of earlier processes.
        self._forgotten = self.latest = next(self._ids)
        self._listeners: set[Subscription] = set()

    def __len__(self) -> int:
        """Return the number of listeners."""
        return len(self._listeners)

    def publish(self, name: str, **data: object) -> Event:
        """Pass an event to all listeners; never waits and never fails."""
        event = Event(next(self._ids), name, time.time(), data)
        self.latest = event.id
        self.published[name] = self.published.get(name, 0) + 1
        if len(self._history) == self._history.maxlen:
            self._forgotten = self._history[0].id
        self._history.append(event)
        for tap in self.taps:
            try:
                tap(name, data)
            except Exception:
                # The caller may be the request path.
                log.exception("event handler failed", name=name)
        for listener in [one for one in self._listeners if not one.put(event)]:
            self.dropped += 1
            self.unsubscribe(listener)
        return event

    def subscribe(self, maxsize: int = QUEUE, after: int | None = None) -> Subscription:
        """Return a subscription to new events; with ``after``, also to those that followed that id.

        Raises Full. The caller must call ``unsubscribe()``.
        """
        if len(self._listeners) >= MAX_LISTENERS:
            raise Full
        listener = Subscription(maxsize)
        if after is not None:
            listener.missed = after < self._forgotten
            listener.fill(event for event in self._history if event.id > after)
        self._listeners.add(listener)
        return listener

    def unsubscribe(self, listener: Subscription) -> None:
        """Stop passing events to a listener."""
        self._listeners.discard(listener)

    def close(self) -> None:
        """End all subscriptions."""
        for listener in self._listeners:
            listener.end()
        self._listeners.clear()
