"""How the load test judges: by what its clients know for certain, and no more."""

from __future__ import annotations

import math
from collections.abc import Iterable

from benchmarks.judgement import ADMITTED, REFUSED, Account, Kind, Rule, judge

RULE = Rule(rate=3, window=1.0)
VISITOR = Kind("visitor", RULE, lawful=True, guest=True)
ATTACKER = Kind("attacker", RULE)

TRIP = 0.01
"""Seconds from sending to the answer."""


def account(kind: Kind, requests: Iterable[tuple[float, int]], until: float = 0.0) -> Account:
    """Return an account of requests, sent at a time and answered with a status."""
    found = Account(kind)
    for sent, status in requests:
        found.send(sent, sent)
        found.answer(status, sent + TRIP, until if status == REFUSED else 0.0)
    return found


def missed(*accounts: Account) -> set[str]:
    return {target.name for target in judge(list(accounts)).targets if not target.reached}


def steady(count: int, every: float, status: int = ADMITTED) -> list[tuple[float, int]]:
    return [(number * every, status) for number in range(count)]


def test_all_is_well() -> None:
    attack = steady(3, 0.1) + [(0.3 + number / 10, REFUSED) for number in range(20)]
    attacker = account(ATTACKER, attack, until=60)
    assert missed(account(VISITOR, steady(9, 0.4)), attacker) == set()
    report = judge([account(VISITOR, steady(9, 0.4)), attacker])
    rows = {row.name: row.cells for row in report.tables[0].rows}
    counts = [cell.median for cell in rows["attacker"] if cell]
    assert counts == [1, 23, 20, 0, 0, 0, 0]
    times = {row.name: row.cells for row in report.tables[1].rows}
    assert times["visitor"][3] is None, "it never exceeded its limit"
    assert (block := times["attacker"][3]) is not None
    assert math.isclose(block.median, 1000 * TRIP)


def test_a_visitor_is_refused_or_not_served() -> None:
    guest = account(VISITOR, [(0, ADMITTED), (1, REFUSED), (2, 503)])
    assert missed(guest) == {
        "visitors refused",
        "visitors' requests that failed",
        "refusals without a reason",
    }


def test_nobody_was_there() -> None:
    assert missed(account(ATTACKER, [(0, ADMITTED)])) == {"visitors' requests"}


def test_each_request_beyond_the_limit_has_leaked() -> None:
    assert account(ATTACKER, steady(3, 0.1)).leaked() == 0
    assert account(ATTACKER, steady(5, 0.1)).leaked() == 2
    assert account(ATTACKER, steady(20, 0.34)).leaked() == 0, "the limit, and no more"


def test_one_part_of_the_window_more_is_no_fault() -> None:
    guest = account(VISITOR, steady(1, 1))
    spared = "clients above their limit never refused"
    assert RULE.part == 1
    assert missed(guest, account(ATTACKER, steady(4, 0.1))) == {spared}
    assert missed(guest, account(ATTACKER, steady(5, 0.1))) == {
        spared,
        "requests leaked beyond a part of the window",
    }
    assert Rule(rate=100, window=1.0).part == 7


def test_what_may_have_been_in_another_window_has_not_leaked() -> None:
    # The first may have been counted just after 0, the last just before 1.01.
    assert account(ATTACKER, steady(4, 0.332)).leaked() == 0
    assert account(ATTACKER, steady(4, 0.329)).leaked() == 1


def test_refused_requests_do_not_leak() -> None:
    attack = [(0.0, ADMITTED), (0.1, ADMITTED), (0.2, ADMITTED), (0.3, REFUSED), (1.1, ADMITTED)]
    assert account(ATTACKER, attack).leaked() == 0


def test_a_refusal_without_a_reason() -> None:
    below = [*steady(3, 0.4), (1.2, REFUSED)]
    assert account(ATTACKER, below).wrong() == 1
    above = [*steady(3, 0.1), (0.3, REFUSED)]
    assert account(ATTACKER, above).wrong() == 0
    slow = Account(ATTACKER)
    for sent in (0.0, 0.4, 0.8, 1.2):
        slow.send(sent, sent)
    for answered in (1.19, 1.19, 1.19):
        slow.answer(ADMITTED, answered)
    slow.answer(REFUSED, 1.3)
    assert slow.wrong() == 0, "all four may have come within one window"


def test_a_block_is_a_reason_until_it_ends() -> None:
    attack = [*steady(3, 0.1), (0.3, REFUSED), (5, REFUSED), (9.9, REFUSED)]
    assert account(ATTACKER, attack, until=10).wrong() == 0
    assert account(ATTACKER, [*attack, (11, REFUSED)], until=10).wrong() == 1


def test_answers_that_never_came_are_no_requests() -> None:
    cut = account(VISITOR, steady(2, 1))
    cut.send(2, 2)
    assert missed(cut) == set()
    silent = Account(ATTACKER)
    silent.send(0, 0)
    assert [row.name for row in judge([cut, silent]).tables[0].rows] == ["visitor"]


def test_lateness_and_open_loop() -> None:
    late = Account(VISITOR)
    late.send(due=1.0, now=1.2)
    assert math.isclose(late.answer(ADMITTED, 1.3), 0.3), "from when it was due"
    (row,) = judge([late]).tables[0].rows
    assert row.cells[-1] is not None
    assert row.cells[-1].median == 1
