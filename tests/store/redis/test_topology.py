"""Which server has a key; ``test_cluster`` and ``test_sentinel`` have those that move."""

from __future__ import annotations

import pytest

from ratelimit.store import StoreError
from ratelimit.store.redis.topology import Routes, _slots
from ratelimit.store.redis.url import Endpoint, parse
from tests.helpers.servers import Server
from tests.store.conftest import run


def test_slots_have_the_primary_and_the_server_that_was_asked_has_no_name() -> None:
    asked = Endpoint("asked", 1)
    answer = [
        [0, 5460, [b"10.0.0.1", 7000, b"id"], [b"10.0.0.4", 7003, b"replica"]],
        [5462, 16383, [b"", 7001, b"id"]],
        [5461, 5461, [b"?", 7002, b"id"]],
    ]
    slots = _slots(answer, asked)
    assert len(slots) == 16384
    assert slots[0] == slots[5460] == Endpoint("10.0.0.1", 7000)
    assert slots[5461] == Endpoint("asked", 7002)
    assert slots[16383] == Endpoint("asked", 7001)
    assert _slots([], asked) == [None] * 16384


def test_before_servers_are_known_no_key_has_one() -> None:
    routes = Routes(parse("redis+cluster://h:1"), 1, b"test", lambda _: None)
    assert routes.known == ()
    with pytest.raises(StoreError, match="CLUSTERDOWN") as caught:
        routes.home(b"test")
    assert caught.value.unsent


@pytest.mark.integration
def test_a_single_server_has_every_key(server: Server) -> None:
    async def main() -> None:
        target = parse(server.url)
        routes = Routes(target, 5, b"test", lambda _: None)
        await routes.open()
        try:
            assert routes.home(b"a") == routes.home(b"b") == target.endpoints[0]
            assert await routes.call(5, b"a", "SET", b"a", b"1") == b"OK"
            assert server.do("GET", "a") == b"1"
            await routes.follow()
        finally:
            await routes.close()

    run(main)
