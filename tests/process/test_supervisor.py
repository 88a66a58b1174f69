"""Tasks that fail are started again, later and later; each failure is counted, and logged once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from ratelimit.exceptions import StartError
from ratelimit.process.supervisor import FIRST_PAUSE, LONGEST_PAUSE, LOOP, STEADY, Supervisor, Task


class Clock:
    """Time that passes by the pauses, which ``pauses`` notes."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines


def supervise(clock: Clock, run: Callable[[], Awaitable[object]], **options: float) -> Task:
    """Run a task until it returns; return what is known of it."""

    async def main() -> Task:
        supervisor = Supervisor(clock.sleep, clock)
        supervisor.start("it", run, **options)
        async with asyncio.timeout(10):
            await asyncio.gather(*supervisor._running)
        return supervisor.task("it")

    return asyncio.run(main())


def failing(*errors: BaseException) -> Callable[[], Awaitable[object]]:
    """Return a task that raises these, one at each start, and then returns."""
    left = iter(errors)

    async def run() -> None:
        for error in left:
            raise error

    return run


def test_a_task_is_started_again_later_and_later(clock: Clock) -> None:
    task = supervise(clock, failing(*(OSError(str(n)) for n in range(12))))
    assert task.failures == 12
    assert clock.pauses == [min(FIRST_PAUSE * 2**n, LONGEST_PAUSE) for n in range(12)]
    assert clock.pauses[-1] == LONGEST_PAUSE


def test_a_pause_may_have_a_limit_of_its_own(clock: Clock) -> None:
    supervise(clock, failing(*[OSError()] * 5), longest=0.3)
    assert clock.pauses == [0.1, 0.2, 0.3, 0.3, 0.3]


def test_the_pause_starts_over_after_a_while_without_a_failure(clock: Clock) -> None:
    left = [0.0, 0.0, 0.0, STEADY, 0.0]

    async def run() -> None:
        if left:
            clock.now += left.pop(0)
            raise OSError

    supervise(clock, run)
    assert clock.pauses == [0.1, 0.2, 0.4, 0.1, 0.2]


def test_what_the_operator_can_see_to_is_a_line_and_a_fault_of_ours_has_its_trace(
    clock: Clock, logs: list[Any]
) -> None:
    fault = TypeError("x")
    supervise(
        clock,
        failing(OSError(24, "Too many open files"), StartError("no thread"), MemoryError(), fault),
    )
    assert [line["why"] for line in logs] == [
        "[Errno 24] Too many open files", "no thread", "MemoryError()", "TypeError('x')",
    ]  # fmt: skip
    assert [line.get("exc_info") for line in logs] == [None, None, None, fault]
    assert {(line["log_level"], line["task"]) for line in logs} == {("error", "it")}


def test_the_same_failure_is_logged_once_in_a_while(clock: Clock, logs: list[Any]) -> None:
    task = Task("it", clock)
    for _ in range(300):
        task.failed(OSError("full"))
        clock.now += 1
    assert task.failures == 300
    assert [line["failures"] for line in logs] == [1, 61, 121, 181, 241]
    task.failed(OSError("another"))
    assert logs[-1]["why"] == "another"


def test_a_problem_is_shown_until_it_has_not_come_up_for_a_while(clock: Clock) -> None:
    task = Task("it", clock)
    assert task.problem == ""
    task.failed(OSError("full"))
    assert task.problem == "full"
    clock.now += STEADY - 1
    assert task.problem == "full"
    clock.now += 1
    assert (task.problem, task.failures) == ("", 1)


def test_a_step_that_fails_keeps_no_other_from_its_turn(clock: Clock, logs: list[Any]) -> None:
    done = []

    def step() -> None:
        done.append(1)
        raise KeyError("x")

    task = Task("tick", clock)
    for _ in range(3):
        task.attempt(step)
    assert (len(done), task.failures, len(logs)) == (3, 3, 1)


def test_one_that_something_inside_has_cancelled_is_started_again(clock: Clock) -> None:
    task = supervise(clock, failing(asyncio.CancelledError()))
    assert task.failures == 1


def test_they_end_together_also_in_a_pause() -> None:
    async def main() -> None:
        supervisor = Supervisor()
        ended = []

        async def run() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(1)

        supervisor.start("waits", run)
        supervisor.start("pauses", failing(OSError()))
        while not supervisor.task("pauses").failures:
            await asyncio.sleep(0)
        running = list(supervisor._running)
        await supervisor.close()
        assert ended == [1]
        assert all(task.cancelled() for task in running)

    asyncio.run(main())


def test_a_callback_that_fails_is_counted_too(logs: list[Any]) -> None:
    async def main() -> None:
        supervisor = Supervisor()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(supervisor.unhandled)

        def fail() -> None:
            raise TypeError("x")

        loop.call_soon(fail)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert supervisor.task(LOOP).failures == 1
        assert logs[-1]["task"] == LOOP

    asyncio.run(main())
