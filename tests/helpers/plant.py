"""Complete installations, healthy or with a fault: application, HAProxy, agent, API."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ratelimit.api.client import Client
from ratelimit.config import load
from ratelimit.doctor import Check, State, diagnose
from tests.helpers.world import LONGEST, SPOE_FILE, World, free_port, world

Edit = Callable[[Path], object]


@dataclass
class Installation:
    """An installation with an API, and the doctor's checks of it.

    ``more`` is its configuration without the agent's address.
    """

    world: World
    url: str
    config: Path
    more: str

    @property
    def site(self) -> str:
        return f"http://127.0.0.1:{self.world.port}/"

    async def checks(self, probe: bool = False, ahead: float = 0) -> dict[str, Check]:
        """Return the checks by subject; ``haproxy`` stands for the socket."""
        site = self.site if probe else ""
        found = await diagnose(
            load(self.config), Client(self.url), site, lambda: time.time() + ahead
        )
        return {re.sub(r"^(agent|haproxy) [^ ]*[^ :]", r"\1", one.subject): one for one in found}

    async def broken(self, probe: bool = False, ahead: float = 0) -> dict[str, Check]:
        """Return the failed checks; each must have a fix."""
        checks = await self.checks(probe, ahead)
        found = {name: one for name, one in checks.items() if one.state is State.BROKEN}
        assert all(one.finding and one.fix for one in found.values())
        return found


class Plant:
    """Creates installations with a fault."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        monkeypatch.setenv("RATELIMIT_OPS__LISTEN", f"127.0.0.1:{port}")

    @contextlib.asynccontextmanager
    async def __call__(
        self,
        config: str = "",
        socket: str = "haproxy.sock",
        agent: bool = True,
        edit: Edit = lambda files: None,
        file: str = SPOE_FILE,
        **env: str,
    ) -> AsyncIterator[Installation]:
        sockets = f"\n[haproxy]\nsockets = ['{self.folder}/{socket}']\n"
        more = config + sockets
        async with world(self.folder, more, agent, edit=edit, env=env, file=file) as made:
            yield Installation(made, self._url, made.write_config(more), more)


def without(file: str, *patterns: str) -> Edit:
    """Return an edit that removes the lines of a file that match a pattern."""

    def edit(files: Path) -> None:
        lines = (files / file).read_text().splitlines(keepends=True)
        kept = [line for line in lines if not any(pattern in line for pattern in patterns)]
        assert len(kept) < len(lines)
        (files / file).write_text("".join(kept))

    return edit


def replaced(file: str, old: str, new: str) -> Edit:
    def edit(files: Path) -> None:
        text = (files / file).read_text()
        assert old in text
        (files / file).write_text(text.replace(old, new))

    return edit


def run(test: Awaitable[None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(LONGEST):
            await test

    asyncio.run(main())
