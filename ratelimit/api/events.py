"""Events as server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from ratelimit.events.bus import Bus, Event, Full
from ratelimit.turns import turn

HEARTBEAT = 15.0
"""Seconds without an event after which a comment says that the stream still lives."""

_WRITE_TIMEOUT = 5.0  # seconds for a listener to read what it was sent
_JOINED = 15  # events that are sent with another one
_RETRY = 1000  # milliseconds after which a browser connects again


async def send_events(request: web.Request, bus: Bus) -> web.StreamResponse:
    """Send events until the listener goes or does not keep up. Raises Full.

    A ``gap`` event comes first if some that followed ``Last-Event-ID`` are no longer known: what
    is shown should be read anew then, and after ``store.back``.
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
            opening = f"id: {latest}\n{opening}"  # to go on from, should it be cut before an event
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
            # However many have come up: a turn of the loop for each few of them.
            await turn()
            texts = [_text(event), *map(_text, listener.ready(_JOINED))]
            await _write(response, "".join(texts))
    except (ConnectionError, TimeoutError):
        # It has gone, or does not read: there is nobody to tell.
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


__all__ = ["HEARTBEAT", "Full", "send_events"]
