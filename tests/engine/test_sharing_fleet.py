"""Several nodes share a client: the engines are real, the store is a model, time is an argument."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from ratelimit.engine.check import Engine
from ratelimit.engine.rule import Rule
from ratelimit.model import Limit
from ratelimit.notation import SECOND
from tests.helpers import wire
from tests.helpers.asking import START
from tests.helpers.counts import LIMIT, MS, SECRET, Store
from tests.helpers.forms import plain_engine, responder

NEVER = 1 << 62
ASK = wire.notify(wire.message("default", key=wire.address("192.0.2.1")))


class Fleet:
    """Nodes that exchange at an interval of 10 ms as ``sync.py`` does; it takes half of one.

    A block has the limit's first length, and is known to all nodes after a millisecond.
    """

    def __init__(
        self, nodes: int, seed: int, engine: type[Engine] = Engine, limit: Limit = LIMIT
    ) -> None:
        self.random = random.Random(seed)
        self.store = Store()
        self.engines = [engine([limit], 1000, self.strike, SECRET, 100, 50) for _ in range(nodes)]
        for node in self.engines:
            node.rules[0].divide(nodes)
        self.blocks: list[tuple[int, int]] = []
        self.now = START + self.random.randrange(SECOND)
        self.last = [self.now - self.random.randrange(10 * MS) for _ in self.engines]
        self.flying: dict[int, tuple[int, bytes]] = {}
        self.told: list[tuple[int, int, bytes]] = []

    def strike(self, rule: Rule, _text: bytes, _kind: int, _hi: int, _lo: int, now: int) -> int:
        until = -(-now // SECOND) + rule.limit.block[0]
        self.blocks.append((now + MS, until))
        return until

    def hold(self, node: int, until: int) -> None:
        engine = self.engines[node]
        slot = engine.slot(engine.rules[0], b"192.0.2.1")
        if engine.table.until(slot) < until:
            engine.hold(engine.rules[0], slot, until)

    def ask(self, node: int, at: int) -> bool:
        """Tell whether one request to a node passes."""
        self.until(at)
        engine = self.engines[node]
        engine.at(at)
        responder(engine).answer(ASK, 0, 16380)
        (answer,) = wire.frames(responder(engine).take())
        return "deny" not in answer.items

    def due(self, node: int) -> int:
        """Return when a node is to exchange next."""
        exchange = self.engines[node].exchanges[0]
        moments = [NEVER]
        if exchange.due:
            moments.append(max(exchange.due, self.last[node] + 2 * MS))
        if wait := exchange.wait(self.now):
            moments.append(max(self.now + wait, self.last[node] + 10 * MS))
        return max(min(moments), self.now)

    def until(self, at: int) -> None:
        """Let everything happen that is due before ``at``."""
        while True:
            waiting = [node for node in range(len(self.engines)) if node not in self.flying]
            moments = [(NEVER, 0, 0), *((self.due(node), 0, node) for node in waiting)]
            moments += [(when, 1, node) for node, (when, _) in self.flying.items()]
            moments += [(when, 2, i) for i, (when, _, _) in enumerate(self.told)]
            moments += [(when, 3, i) for i, (when, _) in enumerate(self.blocks)]
            when, what, number = min(moments)
            if when > at:
                self.now = at
                return
            self.now = when
            if what == 0:
                self.send(number, when)
            elif what == 1:
                _, answers = self.flying.pop(number)
                self.engines[number].at(when)
                self.engines[number].exchanges[0].learn(answers)
            elif what == 3:
                _, until = self.blocks.pop(number)
                for node, engine in enumerate(self.engines):
                    engine.at(when)
                    self.hold(node, until)
            else:
                _, teller, notice = self.told.pop(number)
                for node, engine in enumerate(self.engines):
                    if node != teller:
                        engine.at(when)
                        engine.exchanges[0].warm(notice, when)

    def send(self, node: int, now: int) -> None:
        engine = self.engines[node]
        engine.at(now)
        self.last[node] = now
        batch = engine.exchanges[0].pack(now)
        notice = engine.exchanges[0].notice()
        if notice:
            self.told.append((now + MS, node, notice))
        if batch:
            self.flying[node] = now + MS // 2, self.store.exchange(batch)


def arrivals(fleet: Fleet, rate: float, seconds: float) -> Iterator[int]:
    """Yield the moments of a client's requests: even ones below its limit, random ones above."""
    at = float(fleet.now)
    end = at + seconds * SECOND
    while True:
        at += fleet.random.expovariate(rate) * SECOND if rate > LIMIT.rate else SECOND / rate
        if at >= end:
            return
        yield int(at)


def pick(fleet: Fleet, uneven: bool) -> int:
    if uneven and fleet.random.random() < 0.7:
        return 0
    return fleet.random.randrange(len(fleet.engines))


def admitted_before_the_block(nodes: int, factor: float, seed: int, uneven: bool = False) -> int:
    fleet = Fleet(nodes, seed)
    admitted: list[int] = []
    for at in arrivals(fleet, LIMIT.rate * factor, 3):
        if not fleet.ask(pick(fleet, uneven), at):
            break
        admitted.append(at)
    return max(sum(first <= at < first + SECOND for at in admitted) for first in admitted)


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize(("factor", "above"), [(2, 2), (10, 6), (30, 20)])
def test_four_nodes_admit_little_above_the_limit(factor: float, above: int, uneven: bool) -> None:
    found = [admitted_before_the_block(4, factor, seed, uneven) for seed in range(10)]
    assert sum(found) / len(found) <= LIMIT.rate + above


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("nodes", [2, 4, 8])
def test_a_client_at_nine_tenths_is_never_refused(nodes: int, uneven: bool) -> None:
    fleet = Fleet(nodes, seed=nodes)
    for at in arrivals(fleet, 0.9 * LIMIT.rate, 5):
        assert fleet.ask(pick(fleet, uneven), at)


@pytest.mark.parametrize("nodes", [2, 3, 4, 8])
@pytest.mark.parametrize("rate", [10, 100])
def test_a_slow_client_has_not_one_hit_above_the_limit(nodes: int, rate: int) -> None:
    limit = Limit(rate=rate, window=100 * SECOND, block=())
    for seed in range(20):
        fleet = Fleet(nodes, seed, limit=limit)
        start = fleet.now
        passed = sum(
            fleet.ask(pick(fleet, seed % 2 == 0), start + n * 200 * MS) for n in range(rate + 5)
        )
        assert passed == rate


@pytest.mark.parametrize("nodes", [2, 4])
def test_a_client_that_moves_to_another_node_has_no_second_share(nodes: int) -> None:
    fleet = Fleet(nodes, seed=nodes)
    start = fleet.now
    # All that it may have at one node, and then some at each of the others.
    passed = sum(fleet.ask(0, start + n * MS) for n in range(99))
    for other in range(1, nodes):
        passed += sum(fleet.ask(other, start + (100 * other + n) * MS) for n in range(60))
    assert 99 <= passed <= LIMIT.rate + nodes


def admitted_between_blocks(fleet: Fleet, times: int) -> list[int]:
    """Return how many hits, 20 a second, passed before each of so many blocks."""
    found = []
    at = fleet.now
    for _ in range(times):
        admitted = 0
        while fleet.ask(pick(fleet, False), at):
            admitted += 1
            at += 50 * MS
        found.append(admitted)
        at = (-(-at // SECOND) + fleet.engines[0].rules[0].limit.block[0]) * SECOND
    return found


# Far shorter than a sixteenth of the window, a little shorter, and longer.
@pytest.mark.parametrize("length", [1, 10, 200, 300])
@pytest.mark.parametrize("nodes", [2, 4])
def test_after_a_short_block_the_nodes_go_on_sharing(nodes: int, length: int) -> None:
    fleet = Fleet(nodes, seed=nodes, limit=Limit(window=3600 * SECOND, block=(length,)))
    found = admitted_between_blocks(fleet, 5)
    assert all(LIMIT.rate <= admitted <= LIMIT.rate + 10 for admitted in found), found


def test_a_node_that_does_not_know_of_a_block_counts_what_came_after_it() -> None:
    fleet = Fleet(2, seed=1, limit=Limit(window=3600 * SECOND, block=(10,)))
    admitted_between_blocks(fleet, 1)
    # One node starts again. The other counts on, and tells the store of the block by that.
    fleet.until(fleet.now + 11 * SECOND)
    limit = fleet.engines[0].rules[0].limit
    fleet.engines[1] = Engine([limit], 1000, fleet.strike, SECRET, 100, 50)
    fleet.engines[1].rules[0].divide(2)
    at = fleet.now
    assert all(fleet.ask(0, at + n * 50 * MS) for n in range(50))
    assert sum(fleet.ask(1, at + (100 + n) * 50 * MS) for n in range(60)) in range(48, 53)


def test_a_block_after_a_lifted_longer_one_settles_too() -> None:
    fleet = Fleet(2, seed=1, limit=Limit(window=3600 * SECOND, block=(10,)))
    for node in (0, 1):
        fleet.engines[node].at(fleet.now)
        fleet.hold(node, fleet.now // SECOND + 86_400)
        table = fleet.engines[node].table
        table.block(fleet.engines[node].slot(fleet.engines[node].rules[0], b"192.0.2.1"), 0, False)
    found = admitted_between_blocks(fleet, 3)
    assert all(LIMIT.rate <= admitted <= LIMIT.rate + 10 for admitted in found), found


def test_a_client_below_its_share_costs_the_store_nothing() -> None:
    fleet = Fleet(4, seed=1)
    for at in arrivals(fleet, 0.1 * LIMIT.rate, 5):
        assert fleet.ask(pick(fleet, False), at)
    assert fleet.store.records == 0


def test_a_node_alone_shares_nothing() -> None:
    fleet = Fleet(1, seed=1)
    for at in arrivals(fleet, 5 * LIMIT.rate, 2):
        fleet.ask(0, at)
    assert fleet.store.records == 0


def test_a_quiet_client_is_dropped() -> None:
    fleet = Fleet(2, seed=1)
    for at in arrivals(fleet, 0.9 * LIMIT.rate, 1):
        fleet.ask(pick(fleet, False), at)
    assert all(engine.exchanges[0].size == 1 for engine in fleet.engines)
    fleet.until(fleet.now + 3 * SECOND)
    assert all(engine.exchanges[0].size == 0 for engine in fleet.engines)


@pytest.mark.both_forms
def test_forms_agree() -> None:
    fleets = [Fleet(3, 7, engine) for engine in (Engine, plain_engine())]
    for step in range(400):
        at = START + SECOND + step * 5 * MS
        compiled, plain = (fleet.ask(step % 3, at) for fleet in fleets)
        assert compiled == plain
        assert fleets[0].store.totals == fleets[1].store.totals
        assert fleets[0].flying == fleets[1].flying
        assert fleets[0].told == fleets[1].told
