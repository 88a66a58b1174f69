"""A request that was let in, and its answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from ratelimit.api.tokens import Caller
from ratelimit.node.operations import Control


@dataclass(slots=True)
class Call:
    """A request that was let in, with what it says as models of its route."""

    control: Control
    request: web.Request
    caller: Caller
    query: Any = None
    body: Any = None
    names: dict[str, str] = field(default_factory=dict)
    """Parts of the path."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered: JSON, from a model or written already, or nothing."""

    body: BaseModel | bytes | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
