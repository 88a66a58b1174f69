"""Connections of the API: slow clients, full ones, each request in its turn."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvloop

from ratelimit.api import connections
from tests.helpers.running import block, running, until

if TYPE_CHECKING:
    from aiohttp import web

    from tests.helpers.running import Running


pytestmark = pytest.mark.integration

LATER = 1 << 31


def test_a_thousand_slow_clients_disturb_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They send half of a request, or nothing, and hold on for as long as they are let."""
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 0.5)

    async def main() -> None:
        async with running(tmp_path) as api, contextlib.AsyncExitStack() as stack:
            for number in range(1000):
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", api.port))
                if number % 2:
                    sock.send(b"GET /v1/blocks HTTP/1.1\r\nHost: localhost\r\nX: ")
                if number % 100 == 0:
                    # An operator in between, who connects anew.
                    async with httpx.AsyncClient(trust_env=False) as operator:
                        url = f"http://127.0.0.1:{api.port}/v1/status"
                        assert (await operator.get(url)).status_code == 200
            await until(lambda: api.server.connections.cut >= 1000 - connections.MAX_CONNECTIONS)
            assert len(api.server.connections) <= connections.MAX_CONNECTIONS
            await until(lambda: api.server.connections.cut >= 1000)

    uvloop.run(main())


class Turns:
    """Notes in which turn of the loop each request is answered, and what is unsent then."""

    def __init__(self, api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self.turn = 0
        self.answered: list[int] = []
        self.unsent: list[int] = []
        real = api.server._try

        async def answer(request: web.Request, handler: Any) -> web.StreamResponse:
            self.answered.append(self.turn)
            assert request.transport is not None
            self.unsent.append(request.transport.get_write_buffer_size())
            return await real(request, handler)

        monkeypatch.setattr(api.server, "_try", answer)
        self._next()

    def _next(self) -> None:
        self.turn += 1
        asyncio.get_running_loop().call_soon(self._next)


async def connect(
    api: Running, stack: contextlib.AsyncExitStack, receive: int = 0
) -> socket.socket:
    sock = stack.enter_context(socket.socket())
    if receive:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", api.port))
    return sock


async def operate(api: Running) -> None:
    """Do what an operator does, who connects anew each time."""
    base = f"http://127.0.0.1:{api.port}"
    async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=30) as operator:
        assert (await operator.get("/v1/status")).status_code == 200
        block = {"key": "192.0.2.1", "ttl": 60}
        assert (await operator.post("/v1/blocks", json=block)).status_code == 201
        assert (await operator.delete("/v1/blocks/192.0.2.1")).status_code == 204


def test_slow_bodies_lock_no_operator_out(tmp_path: Path) -> None:
    slow = (
        b"POST /v1/blocks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 40\r\n\r\n{"
    )

    async def main() -> None:
        async with running(tmp_path) as api, contextlib.AsyncExitStack() as stack:
            for number in range(600):
                sock = await connect(api, stack)
                sock.send(slow)
                if number % 100 == 99:
                    await operate(api)
            opened = api.server.connections
            assert len(opened) <= connections.MAX_CONNECTIONS
            # One that is still to be accepted would be left open by the server.
            await until(lambda: opened.cut + len(opened) >= 600)
            assert opened.cut >= 600 - connections.MAX_CONNECTIONS

    uvloop.run(main())


@pytest.mark.parametrize("path", [b"/openapi.json", b"/v1/blocks?limit=1000"])
def test_clients_that_ask_much_and_read_nothing_disturb_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: bytes
) -> None:
    monkeypatch.setattr(connections, "WRITE_TIMEOUT", 0.5)
    ask = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path

    async def main() -> None:
        async with running(tmp_path) as api, contextlib.AsyncExitStack() as stack:
            for number in range(1000):
                api.control.limiter.apply(block(f"198.51.{number >> 8}.{number & 255}", LATER))
            turns = Turns(api, monkeypatch)
            for _ in range(300):
                sock = await connect(api, stack, receive=4096)
                with contextlib.suppress(BlockingIOError):
                    sock.send(ask * 100)
            await operate(api)
            await until(lambda: api.server.connections.cut >= 300)
            assert len(turns.answered) > connections.MAX_CONNECTIONS
            assert len(set(turns.answered)) == len(turns.answered), "two in one turn"
            assert not any(turns.unsent), "more is written to a client that does not read"
            await operate(api)

    uvloop.run(main())


def test_what_comes_with_the_connection_is_read(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            # Nothing waits here: all of it is there before the server hears of the connection.
            sock = socket.create_connection(("127.0.0.1", api.port))
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 300)
            reader, writer = await asyncio.open_connection(sock=sock)
            for _ in range(300):
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
                assert head.startswith(b"HTTP/1.1 200 OK\r\n")
                await reader.readexactly(int(re.findall(rb"Content-Length: (\d+)", head)[0]))
            writer.close()

    uvloop.run(main())


def test_requests_of_one_read_are_answered_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            turns = Turns(api, monkeypatch)
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)
            for _ in range(500):
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
                assert head.startswith(b"HTTP/1.1 200 OK\r\n")
                await reader.readexactly(int(re.findall(rb"Content-Length: (\d+)", head)[0]))
            writer.close()
            assert len(set(turns.answered)) == 500

    uvloop.run(main())


def test_a_reader_is_let_for_as_long_as_it_reads(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api, contextlib.AsyncExitStack() as stack:
            for number in range(1000):
                api.control.limiter.apply(block(f"198.51.{number >> 8}.{number & 255}", LATER))
            sock = await connect(api, stack, receive=4096)
            sock.send(b"GET /v1/blocks?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await until(lambda: any(one.stuck for one in api.server.connections.open()))
            [one] = api.server.connections.open()
            limit = connections.WRITE_TIMEOUT
            # It is looked at by a clock that runs ahead, after each part that was read.
            looked = one.since
            while one.stuck:
                left = one.transport.get_write_buffer_size()
                while one.stuck and one.transport.get_write_buffer_size() == left:
                    await asyncio.get_running_loop().sock_recv(sock, 1 << 16)
                looked += 2 * limit
                assert not one.stuck or not one.overdue(looked)

            sock.send(b"GET /v1/blocks?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await until(lambda: one.stuck)
            assert not one.overdue(one.since + limit)
            assert one.overdue(one.since + limit + 1)

    uvloop.run(main())
