"""What one client gets through, and how it is judged."""

from __future__ import annotations

import pytest

from benchmarks import admitted
from benchmarks.admitted import CAP, MARGINS, Turn, most
from benchmarks.harness.haproxy import MODES, Mode


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([], 0),
        ([5.0], 1),
        ([0.0, 0.5, 0.9], 3),
        ([0.0, 1.0], 1),
        ([0.0, 0.999, 1.5, 1.6, 1.998], 4),
        ([1.6, 0.0, 1.5], 2),
    ],
)
def test_the_most_within_a_second(times: list[float], expected: int) -> None:
    assert most(times) == expected


def turn(count: int) -> Turn:
    return Turn(3000, tuple(n / 1000 for n in range(count)))


def samples(rate: int, **counts: int) -> dict[tuple[str, float, Mode], list[Turn]]:
    return {("one", rate, mode): [turn(1), turn(counts[mode])] for mode in MODES}


@pytest.mark.parametrize(("rate", "margin"), MARGINS.items())
def test_peers_may_admit_a_little_more_than_spoe(rate: int, margin: int) -> None:
    for above, reached in ((margin, True), (margin + 1, False)):
        found = admitted.within_a_second(samples(rate, spoe=101, peers=101 + above), MODES)
        (target,) = found.targets
        assert target.reached is reached
        (row,) = found.tables[0].rows
        assert [cell and cell.high for cell in row.cells] == [101, 101 + above]


def test_one_mode_alone_is_not_compared() -> None:
    found = admitted.within_a_second({("one", 200, "peers"): [turn(500)]}, ("peers",))
    assert found.targets == ()


def test_a_flood_by_peers_is_bounded_by_twice_the_rate() -> None:
    for count, reached in ((CAP, True), (CAP + 1, False)):
        found = admitted.in_a_flood(samples(20_000, spoe=9999, peers=count), MODES)
        (target,) = found.targets
        assert (target.value, target.reached) == (count, reached)
