"""A CDN and a load balancer in front of HAProxy, and the clients that come through both."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.world import HAPROXY, Client, closed, free_port, until

CDN, BALANCER = "127.30.0.1", "127.20.0.1"
"""The addresses by which HAProxy knows them."""


@contextlib.asynccontextmanager
async def chain(folder: Path, haproxy: int) -> AsyncIterator[int]:
    """Put both in front of the port ``haproxy``; yield the CDN's port."""
    cdn, balancer = free_port(), free_port()
    ways = (
        {"FRONT_LISTEN": balancer, "FRONT_ADDRESS": BALANCER, "FRONT_NEXT": haproxy},
        {"FRONT_LISTEN": cdn, "FRONT_ADDRESS": CDN, "FRONT_NEXT": balancer, "FRONT_CDN": 1},
    )
    with contextlib.ExitStack() as stack:
        for way in ways:
            settings = {
                name: f"127.0.0.1:{value}" if name in ("FRONT_LISTEN", "FRONT_NEXT") else str(value)
                for name, value in way.items()
            }
            log = stack.enter_context((folder / f"front-{way['FRONT_LISTEN']}.log").open("wb"))
            process = subprocess.Popen(
                [*HAPROXY, "-db", "-f", str(Path(__file__).parent / "front.cfg")],
                env={**os.environ, **settings},
                stdout=log,
                stderr=log,
            )
            stack.callback(process.wait, 5)
            stack.callback(process.terminate)
        for port in (balancer, cdn):
            await until(lambda port=port: _listens(port), "it listens")  # type: ignore[misc]
        yield cdn


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    await closed(writer)
    return True


@dataclass
class Visitor:
    """A client that sends ``rate`` requests a second at the most; ``answers`` has each status.

    What is late is not made up for, or there would be more in the next second.
    """

    client: Client
    rate: float
    answers: list[int] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    async def visit(self, over: asyncio.Event) -> None:
        due = time.monotonic()
        while not over.is_set():
            try:
                self.answers.append((await self.client.get()).status)
            except (OSError, EOFError, TimeoutError) as error:
                self.lost.append(repr(error))
                await self.client.close()
            due = max(due + 1 / self.rate, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
        await self.client.close()
