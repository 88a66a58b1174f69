"""Events as server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from ratelimit.events.bus import Bus, Event
from ratelimit.turns import turn

HEARTBEAT = 15.0
"""Seconds without an event after which a comment keeps the stream alive."""

_WRITE_TIMEOUT = 5.0  # seconds for a listener to read data
_JOINED = 15  # events that are sent together with another one
_RETRY = 1000  # milliseconds after which a browser reconnects


async def send_events(request: web.Request, bus: Bus) -> web.StreamResponse:
    """Send events until the listener disconnects or falls behind. Raises Full.

    The first event is ``gap`` if events after ``Last-Event-ID`` are lost. A client should read the
    full state again after ``gap`` and after ``store.back``.
    """
    last = request.headers.get("Last-Event-ID", "")
    after = int(last) if last.isascii() and last.isdigit() and len(last) < 20 else None
    latest = bus.latest
    listener = bus.subscribe(after=after)
    try:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        await response.prepare(request)
        opening = f"retry: {_RETRY}\n\n"
        if after is None:
            # Where to resume if the stream ends before its first event.
            opening = f"id: {latest}\n{opening}"
        if listener.missed:
            opening += "event: gap\ndata: {}\n\n"
        await _write(response, opening)
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT):
                    event = await anext(listener)
            except TimeoutError:
                await _write(response, ": alive\n\n")
                continue
            except StopAsyncIteration:
                return response
            # However many events wait: each turn of the loop sends a few.
            await turn()
            texts = [_text(event), *map(_text, listener.ready(_JOINED))]
            await _write(response, "".join(texts))
    except (ConnectionError, TimeoutError):
        # The listener has disconnected or does not read.
        if request.transport is not None:
            request.transport.abort()
        return response
    finally:
        bus.unsubscribe(listener)


async def _write(response: web.StreamResponse, text: str) -> None:
    async with asyncio.timeout(_WRITE_TIMEOUT):
        await response.write(text.encode())


def _text(event: Event) -> str:
    data = {"name": event.name, "at": event.at, **event.data}
    return f"id: {event.id}\nevent: {event.name}\ndata: {json.dumps(data)}\n\n"
