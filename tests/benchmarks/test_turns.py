"""Each route of the API has its turns timed."""

from __future__ import annotations

import re
from unittest import mock

from benchmarks.turns import works
from ratelimit.api.routes import ROUTES


def test_each_route_is_asked_for() -> None:
    names = "\n".join(name for name, _ in works(mock.Mock()))
    for route in ROUTES:
        asked = re.escape(f"{route.method} {route.path}")
        assert re.search(rf"\b{asked}([?, ]|$)", names, re.MULTILINE), route
