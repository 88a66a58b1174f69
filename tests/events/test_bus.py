"""The events of a node, for those who listen."""

from __future__ import annotations

import asyncio

import pytest

from ratelimit.events import bus as buses
from ratelimit.events.bus import Bus, Full


def test_a_listener_that_falls_behind_is_ended_not_waited_for() -> None:
    async def main() -> None:
        bus = Bus()
        slow, quick = bus.subscribe(2), bus.subscribe(100)
        for number in range(3):
            bus.publish("block", number=number)
        assert (bus.dropped, len(bus), bus.published) == (1, 1, {"block": 3})
        assert [event async for event in slow] == []
        assert [(await anext(quick)).data["number"] for _ in range(3)] == [0, 1, 2]
        bus.close()
        assert [event async for event in quick] == []
        assert len(bus) == 0

    asyncio.run(main())


def test_no_more_listeners_than_there_is_room_for() -> None:
    async def main() -> None:
        bus = Bus()
        listeners = [bus.subscribe() for _ in range(buses.MAX_LISTENERS)]
        with pytest.raises(Full):
            bus.subscribe()
        bus.unsubscribe(listeners[0])
        bus.subscribe()

    asyncio.run(main())
