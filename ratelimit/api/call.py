"""An accepted request and its answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from ratelimit.api.tokens import Caller
from ratelimit.node.operations import Control


@dataclass(slots=True)
class Call:
    """An accepted request; ``query`` and ``body`` are models of its route."""

    control: Control
    request: web.Request
    caller: Caller
    query: Any = None
    body: Any = None
    names: dict[str, str] = field(default_factory=dict)
    """Parameters in the path."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: a model, JSON that is already encoded, or no body."""

    body: BaseModel | bytes | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
