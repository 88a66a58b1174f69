"""Paths in the form for the log: a key in a path may be a secret string."""

from __future__ import annotations

from aiohttp import web

from ratelimit.api.routes import ROUTES
from ratelimit.limiter.key_input import told
from ratelimit.limiter.limiter import Limiter

_LONGEST = 200  # characters of an unknown path
_WORDS = {"", *"/".join(route.path for route in ROUTES).split("/")}  # of known paths


def loggable(limiter: Limiter, request: web.Request) -> str:
    """Return the path of a request with every possible key in the form for the log.

    This includes unknown paths, which may be known paths with a typing error.
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
