"""The application of ``limiters.py`` that limits its clients with the library ``limits``.

``python -m benchmarks.harness.limited_app PORT [STORAGE RATE]``: aiohttp on uvloop, which answers
at once. With a storage, such as ``async+memory://``, a middleware limits each address to so many
requests a second, by the sliding window counter of the library: two buckets, like HAProxy.
"""

from __future__ import annotations

import sys

import limits
import uvloop
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from limits.aio.storage import Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.storage import storage_from_string

REFUSAL = '{"type":"about:blank","title":"Too Many Requests","status":429}'


async def hello(_: web.Request) -> web.Response:
    return web.Response(text="hello")


def limiting(url: str, rate: int) -> Middleware:
    # redis-py parses with hiredis here; the library's other client is not installed.
    options = {"implementation": "redispy"} if "redis" in url else {}
    storage = storage_from_string(url, **options)
    assert isinstance(storage, Storage)
    limiter = SlidingWindowCounterRateLimiter(storage)
    limit = limits.RateLimitItemPerSecond(rate)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if await limiter.hit(limit, request.remote or ""):
            return await handler(request)
        headers = {"Retry-After": "1"}
        kind = "application/problem+json"
        return web.Response(status=429, text=REFUSAL, content_type=kind, headers=headers)

    return middleware


def main() -> None:
    port, *limited = sys.argv[1:]
    middlewares = [limiting(limited[0], int(limited[1]))] if limited else []
    app = web.Application(middlewares=middlewares)
    app.router.add_get("/", hello)
    loop = uvloop.new_event_loop()
    web.run_app(
        app, host="127.0.0.1", port=int(port), access_log=None, print=lambda _: None, loop=loop
    )


if __name__ == "__main__":
    main()
