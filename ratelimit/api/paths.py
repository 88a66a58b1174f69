"""Paths as they may be logged: a key in one may be a string that must not be seen."""

from __future__ import annotations

from aiohttp import web

from ratelimit.api.routes import ROUTES
from ratelimit.limiter.limiter import Limiter
from ratelimit.limiter.typed import told

_LONGEST = 200  # characters of a path that is none of ours
_WORDS = {"", *"/".join(route.path for route in ROUTES).split("/")}  # of our own paths


def loggable(limiter: Limiter, request: web.Request) -> str:
    """Return the path of a request, with all that may be a key as it is told.

    That is so of a path that is none of ours, too: it may be ours with a slip of the finger.
    """
    resource = request.match_info.route.resource
    if resource is None:
        words = request.path[:_LONGEST].split("/")
        return "/".join(word if word in _WORDS else told(limiter, word) for word in words)
    path = resource.canonical
    for name, value in request.match_info.items():
        shown = told(limiter, value) if name == "key" else ascii(value[:_LONGEST])[1:-1]
        path = path.replace(f"{{{name}}}", shown)
    return path
