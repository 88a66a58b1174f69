"""Scripts and their answers, over the connections of a node."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import Any

import pytest

from ratelimit.store import StoreError
from ratelimit.store.redis.session import Script
from tests.helpers.servers import Server, until
from tests.store.conftest import block, lift, listed, nodes, run

pytestmark = pytest.mark.integration

RECORD = struct.pack("<16sIQI64x", b"0123456789abcdef", 0, 1000, 1)


@pytest.mark.parametrize(
    "answer",
    [
        b"-MOVED nowhere\r\n",
        b"-ASK 1 :x\r\n",
        b"-NOSCRIPT no\r\n",
        b"%1\r\n*0\r\n:1\r\n",
        b"*1\r\n*0\r\n",
        b"*2\r\n$1\r\n0\r\n$9999\r\n" + b"[" * 9999 + b"\r\n",
        b"*5\r\n:-1\r\n:5\r\n:2\r\n$1\r\na\r\n$1\r\n0\r\n",
        b"*5\r\n:1\r\n:5\r\n,inf\r\n$1\r\na\r\n$1\r\n0\r\n",
        b"*5\r\n:1\r\n:5\r\n:2\r\n:9\r\n$1\r\n0\r\n",
    ],
)
@pytest.mark.parametrize("script", ["announce", "block", "exchange", "lift", "load"])
def test_a_script_with_an_answer_of_another_form(
    server: Server, logs: list[Any], script: str, answer: bytes
) -> None:
    """One that answers as Redis does, but to one script."""
    parts = ("entries", script) if script in ("block", "lift") else (script,)
    names = [script.encode(), Script(*parts).sha.encode()]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to = await asyncio.open_connection(server.host, server.port)

        async def back() -> None:
            while data := await there.read(1 << 16):
                writer.write(data)
            writer.close()

        task = asyncio.create_task(back())
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if answering and any(name in data for name in names):
                    writer.write(answer)
                else:
                    to.write(data)
        to.close()
        writer.close()
        await task

    answering = False

    async def main() -> None:
        nonlocal answering
        asyncio.get_running_loop().set_exception_handler(lambda _, about: faults.append(about))
        between = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = between.sockets[0].getsockname()[1]
        async with between, nodes(f"redis://127.0.0.1:{port}") as [(store, _)]:
            assert store.up
            answering = True
            with contextlib.suppress(StoreError):
                if script == "lift":
                    await store.lift(lift("a"))
                elif script == "exchange":
                    await store.exchange("default", 0, 7, 1000, RECORD)
                elif script == "load":
                    await listed(store)
                else:
                    store.put(block("a"))
            await until(lambda: store.outages or not len(store.outbox))
            answering = False
            await until(lambda: store.up)

    faults: list[Any] = []
    run(main)
    assert not faults
    assert {line["event"] for line in logs} <= {"store reached", "store lost", "store back"}
