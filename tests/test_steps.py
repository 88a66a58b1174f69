"""Work in steps."""

from __future__ import annotations

from ratelimit.steps import Steps, finish


def test_all_steps_are_done_and_the_result_is_returned() -> None:
    done: list[int] = []

    def work() -> Steps[str]:
        for step in range(3):
            done.append(step)
            yield
        return "result"

    steps = work()
    next(steps)
    assert done == [0]
    assert finish(steps) == "result"
    assert done == [0, 1, 2]
