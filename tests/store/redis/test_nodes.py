"""The nodes of a fleet, as each announces itself."""

from __future__ import annotations

import pytest

from ratelimit.store.base import Node
from tests.helpers.servers import Server, until
from tests.store.conftest import nodes, run

pytestmark = pytest.mark.integration


def test_nodes_know_of_each_other(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url, 2) as [(first, _), (second, _)]:
            await until(lambda: first.nodes == second.nodes == 2)
            second.announce(Node("", "2.0", 5, 123.5, 61.5))
            await until(lambda: "123.5" in str(server.do("HGET", "test:{fleet}:nodes", "node1")))
            listed = sorted(await first.nodes_list(), key=lambda node: node.id)
            assert [node.id for node in listed] == ["node0", "node1"]
            assert listed[1] == Node("node1", "2.0", 5, 123.5, 61.5)
            await second.close()
            await until(lambda: first.nodes == 1)
            assert [node.id for node in await first.nodes_list()] == ["node0"]

    run(main)


def test_what_a_later_version_announces_is_left_out(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            about = '{"id":"new","version":"9","since":5,"checks":1.5,"mood":"good"}'
            server.do("HSET", "test:{fleet}:nodes", "new", f"{10**14} {about}")
            listed = {node.id: node for node in await store.nodes_list()}
            assert listed["new"] == Node("new", "9", 5, 1.5)
            assert store.up

    run(main)


def test_a_node_that_vanished_is_not_counted_for_long(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            server.do("HSET", "test:{fleet}:nodes", "gone", '1000 {"id":"gone"}')
            server.do("HSET", "test:{fleet}:nodes", "odd", "?")
            await until(lambda: server.do("HLEN", "test:{fleet}:nodes") == 2)
            assert store.nodes == 1

    run(main)
