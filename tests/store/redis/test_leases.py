"""The leases of agents on HAProxies, in a real server."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from ratelimit.store import StoreError
from tests.helpers.servers import Server
from tests.store.conftest import nodes, run

pytestmark = pytest.mark.integration


def test_a_lease_has_one_holder_until_it_ends_or_is_given_back(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url, 2) as [(one, _), (two, _)]:
            assert await one.lease(["a", "b"], "agent", 60_000) == {
                "a": ("", "agent"),
                "b": ("", "agent"),
            }
            assert await two.lease(["a", "c"], "agent2", 60_000) == {
                "a": ("agent", "agent"),
                "c": ("", "agent2"),
            }
            # A successor has the name of the process before it.
            assert await two.lease(["a"], "agent", 60_000) == {"a": ("agent", "agent")}
            assert await two.lease(["a", "new"], "agent2", 0) == {
                "a": ("agent", "agent"),
                "new": ("", ""),
            }
            assert await one.lease(["a"], "agent", 0) == {"a": ("agent", "agent")}
            assert await two.lease(["a"], "agent2", 50) == {"a": ("agent", "agent2")}
            while await one.lease(["a"], "agent", 60_000) != {"a": ("agent2", "agent")}:
                await asyncio.sleep(0.005)
            key = "test:{fleet}:lease:a"
            assert 0 < cast("int", server.do("PTTL", key)) <= 3_600_000
            server.kill()
            with pytest.raises(StoreError):
                await one.lease(["a"], "agent", 60_000)

    run(main)


def test_a_lease_of_another_program_is_left_alone(server: Server) -> None:
    key = "test:{fleet}:lease:a"
    server.do("SET", key, "b")

    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            with pytest.raises(StoreError, match=r"another program.*lease:a"):
                await store.lease(["a"], "agent", 60_000)
            assert server.do("GET", key) in (b"b", "b")

    run(main)
