"""Answers that wait for a Redis that is far away, behind a proxy that delays every byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import tempfile
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from tests.helpers import wire
from tests.helpers.fleet import Node
from tests.helpers.servers import Server, until
from tests.helpers.world import closed, free_port

pytestmark = pytest.mark.integration

AWAY = 0.05
CHECKS = 400
LINE = "checks were answered with local counts only"


class Delayed(asyncio.Protocol):
    """One end of a connection; what comes goes to the ``other`` so many seconds later."""

    def __init__(self, ends: list[Delayed], delay: float) -> None:
        ends.append(self)
        self.transport: asyncio.Transport
        self.other: Delayed
        self._delay = delay

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(self._delay, self.other.transport.write, data)


@contextlib.asynccontextmanager
async def far_away(server: Server, delay: float) -> AsyncIterator[str]:
    """Yield a URL by which a server is a round trip of ``delay`` seconds away."""
    loop = asyncio.get_running_loop()
    ends: list[Delayed] = []

    def accept() -> Delayed:
        near, far = Delayed(ends, delay / 2), Delayed(ends, delay / 2)
        near.other, far.other = far, near
        opening.append(loop.create_task(connect(far)))
        return near

    async def connect(far: Delayed) -> None:
        await loop.create_unix_connection(lambda: far, server.socket)

    opening: list[asyncio.Task[None]] = []
    listener = await loop.create_server(accept, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        await asyncio.gather(*opening)
        for end in ends:
            end.transport.abort()


async def waits(path: Path) -> list[float]:
    """Return how many seconds each of many checks waited, one of them every 5 ms."""
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_unix_connection(path)
    sent: dict[int, float] = {}
    found: list[float] = []

    async def frame() -> wire.Frame:
        head = await reader.readexactly(4)
        (answer,) = wire.frames(head + await reader.readexactly(struct.unpack(">I", head)[0]))
        return answer

    async def read() -> None:
        while len(found) < CHECKS:
            ack = await frame()
            found.append(loop.time() - sent[ack.ids[0]])

    writer.write(wire.hello())
    await frame()
    reading = asyncio.create_task(read())
    for number in range(1, CHECKS + 1):
        key = wire.address(f"192.0.2.{number % 20}")
        sent[number] = loop.time()
        writer.write(wire.notify(wire.message("default", key=key), ids=(number, 1)))
        await asyncio.sleep(0.005)
    await asyncio.wait_for(reading, 10)
    await closed(writer)
    return found


def test_answers_are_in_time_though_redis_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("RATELIMIT_OPS__LISTEN", f"127.0.0.1:{port}")

    def late() -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/status", timeout=10) as answer:
            found: int = json.load(answer)["store"]["late"]
            return found

    async def main() -> None:
        with tempfile.TemporaryDirectory(prefix="rl-") as name:
            server = Server(Path(name)).start()
            async with far_away(server, AWAY) as url:
                config = f'[store]\nurl = "{url}"\nsync_interval = "0"\n'
                node = Node(Path(name), "node", config)
                try:
                    await asyncio.to_thread(node.start)
                    await until(lambda: "store reached" in node.log())
                    found = sorted(await waits(Path(name, "node.sock")))
                    # HAProxy waits 50 ms. Three quarters, since this machine may be busy too.
                    assert found[CHECKS * 3 // 4] < 0.045, found
                    assert 0 < await asyncio.to_thread(late) <= CHECKS
                    await until(lambda: LINE in node.log())
                    assert node.log().count(LINE) == 1
                    assert "store lost" not in node.log()
                finally:
                    node.stop()
                    server.kill()

    asyncio.run(main())
