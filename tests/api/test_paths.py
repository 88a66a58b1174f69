"""Paths as the log has them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from aiohttp import web

from ratelimit.api.paths import loggable
from ratelimit.limiter.limiter import Limiter
from ratelimit.model import Limit

SECRET = "a-secret-key-4711"  # noqa: S105 - a key of a client


def request(path: str, canonical: str | None = None, **names: str) -> web.Request:
    """Return a request for a path; ``canonical`` is that of its route, if it has one."""

    class Match(dict[str, str]):
        resource = None if canonical is None else SimpleNamespace(canonical=canonical)
        route = SimpleNamespace(resource=resource)

    return cast("web.Request", SimpleNamespace(path=path, match_info=Match(names)))


def test_a_key_is_in_the_form_for_the_log() -> None:
    limiter = Limiter([Limit()], 8)
    hashed = f"a-se{limiter.string_key(SECRET.encode())}"
    route = "/v1/blocks/{key}"
    assert loggable(limiter, request("", route, key=SECRET)) == f"/v1/blocks/{hashed}"
    assert loggable(limiter, request("", route, key="192.0.2.7")) == "/v1/blocks/192.0.2.7"


@pytest.mark.parametrize("path", [f"/v1/block/{SECRET}", f"/{SECRET}", f"/v1/blocks//{SECRET}/x"])
def test_every_part_of_an_unknown_path_may_be_a_key(path: str) -> None:
    limiter = Limiter([Limit()], 8)
    shown = loggable(limiter, request(path))
    assert SECRET not in shown
    assert limiter.string_key(SECRET.encode()) in shown
    assert shown.count("/") == path.count("/")


def test_other_names_are_printable_and_bounded() -> None:
    route = "/v1/limits/{name}/fuse"
    shown = loggable(Limiter([Limit()], 8), request("", route, name="é\n" + "x" * 999))
    assert shown.startswith("/v1/limits/\\xe9\\nxxx") and len(shown) < 230
