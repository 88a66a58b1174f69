"""Containers of an application, each with a loopback address of its own and one port for all."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

from tests.helpers.world import closed, free_port


class Containers:
    """Serves on addresses that come and go; one that is gone refuses connections.

    ``status`` is what every request is answered with, those of health checks included, after
    ``check_seconds``; other requests wait for ``answering``, and ``requests`` counts them by the
    container's address.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.status = 200
        self.check_seconds = 0.0
        self.answering = asyncio.Event()
        self.answering.set()
        self.requests: Counter[str] = Counter()
        self._servers: dict[str, asyncio.Server] = {}
        self._open: dict[asyncio.StreamWriter, str] = {}
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self, *addresses: str) -> None:
        for address in addresses:
            self._servers[address] = await asyncio.start_server(self._connected, address, self.port)

    async def stop(self, *addresses: str) -> None:
        """Stop as a container does at SIGTERM: what was read is answered already.

        A connection that is accepted in this moment is served until HAProxy closes it.
        """
        for address in addresses:
            self._servers.pop(address).close()
            for writer in [one for one, where in self._open.items() if where == address]:
                await closed(writer)

    async def close(self) -> None:
        await self.stop(*self._servers)
        for _ in range(5):  # turns of the loop, after which what was accepted is handed over
            await asyncio.sleep(0)
        for writer in tuple(self._open):
            await closed(writer)
        await asyncio.gather(*self._serving)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = writer.get_extra_info("sockname")[0]
        self._open[writer] = address
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"health.invalid" in head:
                    await asyncio.sleep(self.check_seconds)
                else:
                    self.requests[address] += 1
                    await self.answering.wait()
                writer.write(b"HTTP/1.1 %d -\r\nContent-Length: 0\r\n\r\n" % self.status)
        del self._open[writer]
        await closed(writer)
