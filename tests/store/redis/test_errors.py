"""Errors of a server, explained to an operator."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest
from redis.exceptions import RedisError, ResponseError

from ratelimit.store.redis.errors import explain, too_old
from ratelimit.store.redis.url import Endpoint
from tests.helpers.servers import Server
from tests.store.conftest import nodes, run

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("server_name", "version", "fine"),
    [
        ("redis", "7.0.0", True),
        ("redis", "8.2.1", True),
        ("redis", "6.2.14", False),
        ("redis", "10.0.0", True),
        ("valkey", "7.2.4", True),
        ("valkey", "9.0.0-rc1", True),
        ("valkey", "7.1", False),
        ("another", "1.0", True),
    ],
)
def test_versions(server_name: str, version: str, fine: bool) -> None:
    assert (too_old(server_name, version) == "") is fine


def test_a_server_that_is_too_old() -> None:
    hello = b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n6.2.14\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(100):
                writer.write(hello)
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as old:
            port = old.sockets[0].getsockname()[1]
            async with nodes(f"redis://127.0.0.1:{port}") as [(store, _)]:
                assert not store.up
                assert store.problem == "redis 6.2.14 is too old; 7.0 or later is required"

    run(main)


def test_a_cluster_is_not_a_single_server(make_server: Callable[..., Server]) -> None:
    single, part = make_server(), make_server("--cluster-enabled", "yes")

    async def main() -> None:
        async with nodes(f"redis+cluster://127.0.0.1:{single.port}") as [(store, _)]:
            assert "use redis://" in store.problem
        async with nodes(part.url) as [(store, _)]:
            assert "the cluster is not complete" in store.problem
        async with nodes(f"redis+sentinel://127.0.0.1:{single.port}/x") as [(store, _)]:
            assert "Sentinel" in store.problem

    run(main)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ResponseError("WRONGTYPE Operation against a key"), "another program uses this key"),
        (ResponseError("NOPERM User x has no permissions"), "Redis's ACL does not permit"),
        (ResponseError("OOM command not allowed"), "Redis is out of memory"),
        (ResponseError("MOVED 1 127.0.0.1:7000"), "use redis+cluster://"),
        (ResponseError("something new"), "h:6379: something new"),
        (ResponseError(f"odd script: {'a' * 40}, on @user_script:1."), "h:6379: odd"),
        (ResponseError(""), "h:6379: ResponseError"),
    ],
)
def test_an_error_names_the_server_and_the_remedy(error: ResponseError, told: str) -> None:
    explained = explain(error, Endpoint("h", 6379))
    assert explained.startswith("h:6379: ") and told in explained
    assert "user_script" not in explained


def test_an_error_of_the_system_is_told_in_its_words() -> None:
    error = RedisError("Error 111 connecting to h:6379")
    error.__cause__ = OSError(111, "Connection refused")
    assert explain(error, "h:6379") == "h:6379: Connection refused"
