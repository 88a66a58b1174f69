"""A thread whose work may hang: results, errors, order, and work that no caller waits for."""

from __future__ import annotations

import asyncio
import threading

import pytest

from ratelimit.process.thread import Thread
from tests.helpers.world import LONGEST


def test_results_and_errors_come_in_order() -> None:
    async def main() -> None:
        thread = Thread("work")
        done = iter((7, 8))
        first, second = thread.run(lambda: next(done)), thread.run(lambda: 1 // 0)
        third, fourth = thread.run(lambda: next(done)), thread.run(threading.current_thread)
        async with asyncio.timeout(LONGEST):
            assert await first == 7
            with pytest.raises(ZeroDivisionError):
                await second
            assert await third == 8
            ran = await fourth
        assert (ran.name, ran.daemon) == ("work", True)
        thread.stop()
        await asyncio.to_thread(ran.join, LONGEST)
        assert not ran.is_alive()

    asyncio.run(main())


def test_the_loop_may_end_before_the_work() -> None:
    go_on = threading.Event()

    async def main() -> threading.Thread:
        thread = Thread("work")
        ran = await thread.run(threading.current_thread)
        thread.run(lambda: go_on.wait(LONGEST))
        thread.stop()
        return ran

    ran = asyncio.run(main())
    go_on.set()
    ran.join(LONGEST)
    assert not ran.is_alive()
