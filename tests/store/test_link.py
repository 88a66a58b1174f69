"""One connection to a server."""

from __future__ import annotations

import asyncio

import pytest

from ratelimit.store import StoreError
from ratelimit.store.link import MAX_UNSENT, Link
from ratelimit.store.url import parse
from tests.store.conftest import run
from tests.store.servers import Server

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("asking", [False, True])
def test_a_request_that_fills_the_buffer_by_itself_fails(server: Server, asking: bool) -> None:
    target = parse(server.url)

    async def main() -> None:
        link = await Link.open(target, target.endpoints[0], target.login, timeout=10)
        try:
            server.pause()
            waiting = asyncio.create_task(link.call(60, "PING"))
            await asyncio.sleep(0)
            # More than the kernel and the transport take together.
            with pytest.raises(StoreError, match="reads nothing of what it is sent") as caught:
                await link.call(60, "ECHO", bytes(64 * MAX_UNSENT), asking=asking)
            assert not caught.value.unsent
            with pytest.raises(StoreError, match="reads nothing"):
                await waiting
            with pytest.raises(StoreError) as caught:
                await link.call(60, "PING")
            assert caught.value.unsent
        finally:
            server.resume()
            await link.close()

    run(main)
