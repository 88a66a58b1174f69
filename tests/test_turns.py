"""Long work among other work on the event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from ratelimit import turns
from ratelimit.steps import Steps, finish
from ratelimit.turns import call, paced, turn

if TYPE_CHECKING:
    from collections.abc import Coroutine


def run(test: Coroutine[object, object, None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await test

    asyncio.run(main())


class Loop:
    """Counts the turns of the loop, each of which begins here."""

    def __init__(self) -> None:
        self.turn = 0
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self.turn += 1
        asyncio.get_running_loop().call_soon(self._next)


def test_a_turn_of_the_loop_has_one_slice_however_many_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # By a clock that is a second on at each look, a slice is one step.
    monkeypatch.setattr("time.perf_counter", iter(range(1 << 20)).__next__)
    monkeypatch.setattr(turns, "SLICE", 1.5)

    async def test() -> None:
        loop = Loop()
        done: list[tuple[int, str]] = []

        def steps(name: str) -> Steps[str]:
            for _ in range(10):
                done.append((loop.turn, name))
                yield
            return name

        async def asks() -> None:
            for _ in range(10):
                await turn()
                done.append((loop.turn, "asked"))

        names = [f"work {n}" for n in range(20)]
        *results, _ = await asyncio.gather(*(paced(steps(name)) for name in names), asks())
        assert results == names
        assert len(done) == 210
        assert len({turn for turn, _ in done}) == 210, "no two were in one turn"
        # In turns, so that none waits for the whole of another.
        assert [name for _, name in done[:21]] == [*names, "asked"]

    run(test())


def test_work_alone_goes_on_for_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        loop = Loop()
        times = iter(range(1 << 20))
        monkeypatch.setattr("time.perf_counter", lambda: next(times) * turns.SLICE / 10)
        slices: dict[int, int] = {}

        def steps() -> Steps[None]:
            for _ in range(100):
                slices[loop.turn] = slices.get(loop.turn, 0) + 1
                yield

        await paced(steps())
        assert set(list(slices.values())[:-1]) == {9}, "until the time is over"

    run(test())


def test_who_gives_up_keeps_no_other_waiting() -> None:
    async def test() -> None:
        ended = []

        def steps() -> Steps[None]:
            try:
                while True:
                    yield
            finally:
                ended.append(True)

        endless = asyncio.create_task(paced(steps()))
        waiting = asyncio.create_task(turn())
        await turn()
        await turn()
        endless.cancel()
        waiting.cancel()
        await asyncio.gather(endless, waiting, return_exceptions=True)
        assert ended == [True]
        await turn()

    run(test())


def test_a_failure_is_of_the_one_who_failed() -> None:
    def fails() -> Steps[None]:
        yield
        raise ValueError("of a test")

    def well() -> Steps[int]:
        yield
        return 7

    async def test() -> None:
        loop = asyncio.get_running_loop()
        problems: list[object] = []
        loop.set_exception_handler(lambda _, context: problems.append(context["exception"]))
        call(lambda: 1 // 0)
        with pytest.raises(ValueError, match="of a test"):
            await paced(fails())
        assert await paced(well()) == 7
        assert [type(problem) for problem in problems] == [ZeroDivisionError]

    run(test())
    assert finish(well()) == 7


def test_each_loop_has_its_own() -> None:
    async def leave() -> None:
        call(lambda: None)
        call(lambda: None)

    run(leave())
    run(turn())
