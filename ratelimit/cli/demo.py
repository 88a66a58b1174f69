"""A small application for ``ratelimit up`` without ``--backend``: it returns the client and the
path of each request.

It runs in a process of its own, so that it does not share the agent's event loop. The argument of
``python -m ratelimit.cli.demo`` is the file descriptor of an inherited listening socket, which
needs no free port known in advance, or, in a container, ``HOST:PORT``.
"""

from __future__ import annotations

import socket
import sys

from aiohttp import web

from ratelimit.notation import parse_host_port


async def _hello(request: web.Request) -> web.Response:
    client = request.headers.get("X-Forwarded-For", request.remote)
    return web.Response(text=f"Hello {client}, you requested {request.path_qs}\n")


def main() -> None:
    """Serve until SIGTERM."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", _hello)
    where = sys.argv[1]
    if where.isdecimal():
        listener = socket.socket(fileno=int(where))
    else:
        address = parse_host_port(where)
        listener = socket.create_server((address.host, address.port))
    web.run_app(application, sock=listener, access_log=None, print=None, shutdown_timeout=0.5)


if __name__ == "__main__":
    main()
