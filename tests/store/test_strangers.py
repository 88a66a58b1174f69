"""Keys, messages and servers that are not ours."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from ratelimit.store import StoreError
from tests.store.conftest import block, nodes, run
from tests.store.servers import Server, until

pytestmark = pytest.mark.integration

BLOCKS = "test:{fleet}:blocks"
RECORD = b"0123456789abcdef" + (1000).to_bytes(8, "little") + (1).to_bytes(4, "little") + bytes(64)


@pytest.mark.parametrize("kind", ["hash", "string", "set"])
@pytest.mark.parametrize("key", [BLOCKS, "test:{fleet}:nodes"])
def test_a_key_of_another_program_is_left_alone(server: Server, key: str, kind: str) -> None:
    make = {"hash": ("HSET", "a", "b"), "string": ("SET", "b"), "set": ("SADD", "b")}[kind]
    server.do(make[0], key, *make[1:])
    before = server.do("DUMP", key)

    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            assert not store.up
            assert "another program" in store.problem and key in store.problem
            assert "store.prefix" in store.problem
            # It mends itself when the key goes.
            assert server.do("DUMP", key) == before
            server.do("DEL", key)
            await until(lambda: store.up)

    run(main)


def test_counts_of_another_program_are_left_alone(server: Server) -> None:
    key = "test:{default.0}:counts:7"
    server.do("HSET", key, "a", "b")
    before = server.do("DUMP", key)

    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            with pytest.raises(StoreError, match=r"another program.*counts:7") as caught:
                await store.exchange("default", 0, 7, 1000, RECORD)
            assert caught.value.unsent
            assert server.do("DUMP", key) == before
            assert server.do("PTTL", key) == -1
            assert not store.up

    run(main)


def test_a_server_that_speaks_something_else(logs: list[Any]) -> None:
    answers = [b""]

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                await reader.read(100)
                writer.write(answers[0])
                await reader.read()
                writer.close()

        other = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = other.sockets[0].getsockname()[1]
        async with other:
            for answers[0] in (
                b"HTTP/1.1 400 Bad Request\r\n\r\n",
                b"+OK\r\n" * 30,
                b"%1\r\n+a\r\n+b\r\n",
                b"",
            ):
                async with nodes(f"redis://127.0.0.1:{port}", timeout=0.1) as [(store, _)]:
                    assert not store.up
                    assert f"127.0.0.1:{port}" in store.problem

    run(main)
    assert {line["event"] for line in logs} == {"store lost"}


def test_strangers_on_our_channel_are_ignored(server: Server, logs: list[Any]) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, seen)]:
            for text in (
                "",
                "{",
                "[]",
                '{"blocks":5}',
                '{"blocks":[{}]}',
                '{"lifts":["x"]}',
                "\xff",
            ):
                server.do("PUBLISH", "test:{fleet}:news", text)
            await store.save(block("a"))
            await until(lambda: seen.blocks)
            assert store.up
            assert store.strays == 7
            assert seen.clients() == {"a"}

    run(main)
    assert [line["event"] for line in logs].count("another program publishes on our channel") == 1
