"""A look at a shared store that changes nothing in it."""

from __future__ import annotations

import socket
import time

import pytest

from ratelimit.store import StoreError
from ratelimit.store.redis.probe import look
from ratelimit.store.redis.url import parse
from tests.helpers.servers import Server
from tests.store.conftest import nodes, run

pytestmark = pytest.mark.integration


def test_it_sees_the_server_its_clock_and_the_nodes_and_writes_nothing(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url):
            before = sorted(server.client().keys())
            sight = await look(parse(server.url), "test", clock=lambda: time.time() - 100)
            assert sight.server.split()[0] in ("redis", "valkey")
            assert abs(sight.ahead - 100) <= sight.error + 1
            assert [node.id for node in sight.nodes] == ["node0"]
            other = await look(parse(server.url), "another")
            assert other.nodes == ()
            assert sorted(server.client().keys()) == before

    run(main)


def test_without_a_server_it_is_an_error_in_a_line() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]

        async def main() -> None:
            with pytest.raises(StoreError, match="refused"):
                await look(parse(f"redis://127.0.0.1:{port}"), "test")

        run(main)
