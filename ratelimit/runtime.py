"""HAProxy's runtime API; without any socket there is nothing to ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """An HAProxy that did not do as it was told."""

    socket: str
    problem: str


@dataclass(frozen=True, slots=True)
class EdgeEntry:
    """What an edge holds for a key; ``until`` is in epoch seconds."""

    socket: str
    key: str
    until: int


@dataclass(frozen=True, slots=True)
class Report:
    """An HAProxy."""

    socket: str
    problem: str


class Runtime:
    """The HAProxy processes beside this agent."""

    def __init__(self, sockets: Sequence[str], timeout: float = 1) -> None:
        self.sockets = tuple(sockets)
        self.timeout = timeout

    async def push(self, key: str, until: int) -> list[Fault]:
        return []

    async def lift(self, key: str) -> list[Fault]:
        return []

    async def edge(self, key: str) -> list[EdgeEntry]:
        return []

    async def report(self) -> list[Report]:
        return []

    async def close(self) -> None:
        return None
