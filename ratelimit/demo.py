"""A small application for ``ratelimit up`` without ``--backend``: it tells who asked for what.

Run as a process of its own, ``python -m ratelimit.demo FD``, on a listening socket that it
inherits, so that it neither shares the agent's loop nor needs a port to be known beforehand.
"""

from __future__ import annotations

import socket
import sys

from aiohttp import web


async def _hello(request: web.Request) -> web.Response:
    client = request.headers.get("X-Forwarded-For", request.remote)
    return web.Response(text=f"Hello {client}, you asked for {request.path_qs}\n")


def main() -> None:
    """Serve until SIGTERM."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", _hello)
    listener = socket.socket(fileno=int(sys.argv[1]))
    web.run_app(application, sock=listener, access_log=None, print=None, shutdown_timeout=0.5)


if __name__ == "__main__":
    main()
