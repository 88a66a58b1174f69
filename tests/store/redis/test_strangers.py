"""Keys, messages and servers that are not ours."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import Any

import pytest

from ratelimit.store import StoreError
from tests.helpers.servers import Server, until
from tests.store.conftest import BLOCKS, block, nodes, run

pytestmark = pytest.mark.integration

RECORD = struct.pack("<16sIQI64x", b"0123456789abcdef", 0, 1000, 1)


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
            # It is repaired when the key goes.
            assert server.do("DUMP", key) == before
            server.do("DEL", key)
            await until(lambda: store.up)

    run(main)


def test_counts_of_another_program_are_left_alone(server: Server) -> None:
    key = "test:{default.0}:hits:7"
    server.do("HSET", key, "a", "b")
    before = server.do("DUMP", key)

    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            with pytest.raises(StoreError, match=r"another program.*hits:7") as caught:
                await store.exchange("default", 0, 7, 1000, RECORD)
            assert caught.value.unsent
            assert server.do("DUMP", key) == before
            assert server.do("PTTL", key) == -1
            assert not store.up

    run(main)


def test_counts_of_another_program_before_ours_are_left_alone(server: Server) -> None:
    key = "test:{default.0}:hits:6"
    server.do("SET", key, "b")

    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            # Nobody reads that one where all clients are known.
            await store.exchange("default", 0, 7, 1000, b"")
            assert server.do("GET", key) == b"b"
            assert server.do("PTTL", key) == -1

    run(main)


def test_fleets_in_databases_of_one_server_hear_nothing_of_each_other(server: Server) -> None:
    async def main() -> None:
        async with (
            nodes(f"{server.url}/0") as [(one, of_one)],
            nodes(f"{server.url}/1", 2) as [(two, of_two), (_, of_three)],
        ):
            await one.save(block("a"))
            await one.exchange("default", 0, 7, 1000, RECORD, b"hot")
            await two.save(block("b"))
            await two.exchange("default", 0, 7, 1000, RECORD, b"hotter")
            await until(lambda: of_one.hot and of_one.blocks and of_three.hot and of_three.blocks)
            assert of_one.clients() == {"a"}
            assert of_one.hot == [b"hot"]
            assert of_two.clients() == of_three.clients() == {"b"}
            assert of_three.hot == [b"hotter"]

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
                b"%1\r\n*0\r\n:1\r\n",
                b"-MOVED nowhere\r\n",
                b">0\r\n",
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
                '{"lifts":["x"],"lifted":[1]}',
                "\xff",
                "[" * 100_000,
            ):
                server.do("PUBLISH", "test:{fleet}:news", text)
            await store.save(block("a"))
            await until(lambda: seen.blocks)
            assert store.up
            assert store.strays == 8
            assert seen.clients() == {"a"}

    run(main)
    assert [line["event"] for line in logs].count("another program publishes on this channel") == 1
