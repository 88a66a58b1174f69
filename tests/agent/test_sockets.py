"""Listening sockets: who binds them, and what is left of them."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from ratelimit.agent.sockets import Listening
from ratelimit.exceptions import StartError
from ratelimit.model import Address


async def connect(address: Address) -> None:
    opened = (
        asyncio.open_unix_connection(address.path)
        if address.path
        else asyncio.open_connection(address.host, address.port)
    )
    _, writer = await opened
    writer.close()
    await writer.wait_closed()


def run(test: Callable[[Listening, Address], Awaitable[None]], address: Address) -> None:
    """Run ``test`` with sockets that listen on ``address``; nothing may take ten seconds."""

    async def main() -> None:
        listening = Listening(asyncio.Protocol)
        bound = await listening.listen(address)
        try:
            async with asyncio.timeout(10):
                await test(listening, bound)
        finally:
            listening.close()

    uvloop.run(main())


def test_a_stale_socket_file_is_replaced_and_the_mode_is_0660(tmp_path: Path) -> None:
    path = tmp_path / "spop.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()

    async def test(listening: Listening, address: Address) -> None:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        await connect(address)

    run(test, Address(path=str(path)))
    assert not path.exists()


def test_a_live_socket_and_a_plain_file_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "spop.sock"
    plain = tmp_path / "plain"
    plain.write_text("kept")

    async def test(listening: Listening, address: Address) -> None:
        other = Listening(asyncio.Protocol)
        for taken in (address, Address(path=str(plain)), Address(path=str(tmp_path / "no/dir"))):
            with pytest.raises(StartError, match="can't listen on unix:///"):
                await other.listen(taken)
        await connect(address)

    run(test, Address(path=str(path)))
    assert plain.read_text() == "kept"


def test_a_taken_port_is_an_error() -> None:
    async def test(listening: Listening, address: Address) -> None:
        with pytest.raises(StartError, match=f"tcp://127.0.0.1:{address.port}: .*in use"):
            await Listening(asyncio.Protocol).listen(address)

    run(test, Address("127.0.0.1", 0))


def test_the_file_of_another_process_stays(tmp_path: Path) -> None:
    path = tmp_path / "spop.sock"

    async def test(listening: Listening, address: Address) -> None:
        path.unlink()
        successor = Listening(asyncio.Protocol)
        await successor.listen(address)
        listening.close()
        assert path.exists()
        successor.close(handed_over=True)
        assert path.exists()

    run(test, Address(path=str(path)))
    assert path.exists()
