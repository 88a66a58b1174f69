"""One count for several nodes: the engines are real, the store is a model, time is an argument."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.engine.check import Engine
from ratelimit.engine.layout import ANSWER_BYTES, NOTICE_BYTES, RECORD_BYTES
from ratelimit.engine.rule import Rule
from ratelimit.engine.sharing import Exchange
from ratelimit.model import Limit
from ratelimit.notation import SECOND
from tests.helpers import wire
from tests.helpers.asking import START
from tests.helpers.counts import ANSWER, LIMIT, MS, RECORD, SECRET, Store, exchanging, refused
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


def ask(engine: Engine, times: int, client: str = "192.0.2.1") -> int:
    """Ask a number of times; return how many passed."""
    data = wire.notify(wire.message("default", key=wire.address(client)))
    responder(engine).answer(data * times, 0, 16380)
    return sum("deny" not in frame.items for frame in wire.frames(responder(engine).take()))


def test_a_batch_is_sent_once_whether_or_not_it_is_answered() -> None:
    engine, exchange = exchanging()
    ask(engine, 40)
    first = exchange.pack(START)
    assert sum(RECORD.unpack(first)[3:]) == 40
    ask(engine, 10)
    second = exchange.pack(START + 10 * MS)
    assert sum(RECORD.unpack(second)[3:]) == 10
    assert exchange.pack(START + 10 * MS) == b""


def test_hits_of_other_nodes_count_here() -> None:
    engine, exchange = exchanging()
    ask(engine, 40)
    tick = RECORD.unpack(exchange.pack(START))[2]
    exchange.learn(ANSWER.pack(0, tick, 45, 50, *[0] * 15))
    assert ask(engine, 10) == 5, "40 here, 5 and 50 elsewhere"


def test_hits_of_a_node_whose_time_is_ahead_count_too() -> None:
    engine, exchange = exchanging()
    ask(engine, 40)
    tick = RECORD.unpack(exchange.pack(START))[2]
    exchange.learn(ANSWER.pack(0, tick + 2, 30, 20, 40, *[0] * 14))
    assert ask(engine, 20) == 10


def test_a_time_before_the_last_hit_drops_nobody() -> None:
    engine, exchange = exchanging()
    engine.at(START + LIMIT.window // 16)
    ask(engine, 40)
    now = START + LIMIT.window // 16
    assert sum(RECORD.unpack(exchange.pack(now))[3:]) == 40
    assert sum(RECORD.unpack(exchange.pack(now - MS))[3:]) == 0
    assert exchange.size == 1


def record(exchange: Exchange, now: int) -> list[int]:
    """Return the deltas of the one client that a batch carries; none if it is empty."""
    batch = exchange.pack(now)
    return list(RECORD.unpack(batch)[3:]) if batch else []


def learn(exchange: Exchange, now: int, others: int) -> None:
    """Send a batch of one client, and answer what it has elsewhere."""
    _, epoch, tick, *deltas = RECORD.unpack(exchange.pack(now))
    exchange.learn(ANSWER.pack(epoch, tick, deltas[0] + others, *deltas[1:]))


def test_far_from_its_limit_a_client_goes_with_the_next_round() -> None:
    engine, exchange = exchanging()
    ask(engine, 26)
    learn(exchange, START, 0)  # which begins a round, and tells the others of it
    learn(exchange, START + 10 * MS, 0)  # which brings what they have
    ask(engine, 5)
    assert not exchange.due
    assert record(exchange, START + 20 * MS) == []
    assert exchange.wait(START + 20 * MS) == 30 * MS
    assert sum(record(exchange, START + 50 * MS)) == 5
    assert sum(record(exchange, START + 100 * MS)) == 0, "asked about without hits of its own"


@pytest.mark.parametrize(
    ("seconds", "refresh"), [(1, 50), (10, 50), (60, 50), (600, 500), (86_400, 1000)]
)
def test_rounds_of_a_long_window_are_fewer(seconds: int, refresh: int) -> None:
    _, exchange = exchanging(Limit(window=seconds * SECOND, block=()))
    assert exchange.refresh == refresh


def test_with_more_than_its_part_of_the_slack_a_node_sends_at_once() -> None:
    engine, exchange = exchanging()
    engine.at(START + 60 * MS)
    ask(engine, 26)
    for at in (60, 70):
        learn(exchange, START + at * MS, 0)
    engine.at(START + 900 * MS)
    ask(engine, 24)
    assert not exchange.due, "24 of 74 left are less than half"
    ask(engine, 2)
    assert exchange.due == START + 900 * MS
    assert sum(record(exchange, START + 900 * MS)) == 26


def due_with(left: int) -> int:
    """Return in how many ns a client of 80 hits a second, that lacks so many, is asked about."""
    engine, exchange = exchanging()
    others = LIMIT.rate - 26 - 5 - left
    engine.at(START - 500 * MS)
    ask(engine, 26)
    learn(exchange, START - 500 * MS, others)
    engine.at(START)
    ask(engine, 5)
    _, _, tick, *_ = RECORD.unpack(exchange.pack(START))
    exchange.learn(ANSWER.pack(0, tick, 5, *[0] * 7, 26 + others, *[0] * 8))
    return exchange.due - START if exchange.due else 0


def test_near_its_limit_a_client_is_asked_about_at_every_interval() -> None:
    # A hit comes every 12.5 ms, the next round is in 50, and within 30 no hit may wait.
    assert [due_with(left) for left in (20, 7)] == [0, 0]
    assert [due_with(left) for left in (6, 3, 2)] == [10 * MS] * 3


def test_just_before_its_limit_it_is_asked_about_when_half_of_the_time_is_over() -> None:
    assert due_with(1) == 6_250_000


def test_a_batch_carries_only_what_is_due() -> None:
    engine, exchange = exchanging()
    for client in ("192.0.2.1", "192.0.2.2"):
        ask(engine, 26, client)
    exchange.learn(Store().exchange(exchange.pack(START)))
    assert exchange.due == START + 10 * MS, "to hear what the others have of them"
    engine.at(START + 5 * MS)
    ask(engine, 40, "192.0.2.2")
    assert exchange.due == START + 5 * MS
    assert len(exchange.pack(START + 5 * MS)) == RECORD_BYTES
    assert exchange.due == START + 10 * MS
    assert len(exchange.pack(START + 10 * MS)) == RECORD_BYTES


def test_far_from_a_high_limit_of_a_day_a_client_waits_for_the_next_round() -> None:
    left, window = 1 << 22, 86_400 * SECOND
    engine, exchange = exchanging(Limit(rate=10_000_000, window=window, block=()))
    # So far in its part that this many hits times the time for them are 2^65.
    now = START - START % (window // 16) + (1 << 43) - window // 16
    assert refused(engine, now, 10_000_000 - left) == 0
    for at in range(2):
        learn(exchange, now + at * SECOND, 0)
    assert refused(engine, now + 1, 0) == 0
    assert not exchange.due


def test_what_the_round_has_carried_is_not_due_any_more() -> None:
    engine, exchange = exchanging()
    ask(engine, 26)
    learn(exchange, START, 20)
    learn(exchange, START + 10 * MS, 26 + 20)
    engine.at(START + 45 * MS)
    ask(engine, 12)
    assert exchange.due == START + 55 * MS
    assert sum(record(exchange, START + 50 * MS)) == 12
    assert record(exchange, START + 55 * MS) == []


def test_over_its_limit_a_client_does_not_press_any_more() -> None:
    engine, exchange = exchanging()
    ask(engine, 40)
    learn(exchange, START, 70)
    ask(engine, 10)
    assert exchange.due == START + 10 * MS


def test_a_blocked_client_is_not_exchanged() -> None:
    engine, exchange = exchanging()
    ask(engine, 40)
    slot = engine.slot(engine.rules[0], b"192.0.2.1")
    engine.hold(engine.rules[0], slot, START // SECOND + 60)
    for turn in range(20):
        assert exchange.pack(START + turn * 50 * MS) == b""


def test_answers_of_another_shape_are_refused() -> None:
    engine, exchange = exchanging()
    ask(engine, 40)
    exchange.pack(START)
    for answers in (b"x" * (ANSWER_BYTES - 1), b"x" * 2 * ANSWER_BYTES):
        with pytest.raises(ValueError, match="bytes for 1 records"):
            exchange.learn(answers)
    with pytest.raises(ValueError, match="bytes for 1 records"):
        exchange.learn(bytes(ANSWER_BYTES), 1)


@given(st.binary(max_size=5 * ANSWER_BYTES), st.binary(max_size=5 * NOTICE_BYTES))
def test_any_answers_and_notices_do_no_harm(answers: bytes, notices: bytes) -> None:
    engine, exchange = exchanging()
    clients = [f"192.0.2.{n}" for n in range(1, len(answers) // ANSWER_BYTES + 1)]
    for client in clients:
        ask(engine, 40, client)
    exchange.pack(START)
    exchange.learn(answers[: ANSWER_BYTES * len(clients)])
    exchange.warm(notices, START)
    assert ask(engine, 1, "192.0.2.200") == 1


def test_without_room_a_client_is_counted_here_alone() -> None:
    engine, exchange = exchanging(shared=2)
    for n in range(1, 5):
        ask(engine, 40, f"192.0.2.{n}")
    assert exchange.size == 2
    assert ask(engine, 70, "192.0.2.4") == 60
    assert exchange.overflow == 2, "clients, not their hits"


def test_a_client_that_finds_no_room_is_counted_again_when_it_would_have_gone() -> None:
    engine, exchange = exchanging(shared=1)
    ask(engine, 40, "192.0.2.1")
    counted = []
    for window in range(5):
        engine.at(START + window * SECOND)
        ask(engine, 40, "192.0.2.1")
        ask(engine, 40, "192.0.2.2")
        counted.append(exchange.overflow)
    assert counted == [1, 1, 1, 2, 2]


def test_a_client_that_found_no_room_is_shared_as_soon_as_there_is_some() -> None:
    engine, exchange = exchanging(shared=1)
    ask(engine, 40, "192.0.2.1")
    ask(engine, 40, "192.0.2.2")
    for at in (0, 10):
        exchange.pack(START + at * MS)
    engine.at(START + 3 * SECOND)
    ask(engine, 40, "192.0.2.2")
    exchange.pack(START + 3 * SECOND)
    ask(engine, 1, "192.0.2.2")
    assert (exchange.size, exchange.overflow) == (1, 2)
    assert len(exchange.pack(START + 3 * SECOND)) == RECORD_BYTES
    # Of the next time that it finds none, it is news again.
    ask(engine, 40, "192.0.2.3")
    assert exchange.overflow == 3


MANY = 9000
LOOKED_AT = 4000
"""Clients due, and clients of a round, that a batch looks at."""


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> tuple[Engine, Exchange, list[int]]:
    """A node of the plain form with many hot clients, all known to the store; counts the looks."""
    engine = plain_engine()(
        [Limit(window=60 * SECOND, block=())], 100_000, lambda *_: 0, SECRET, MANY, 50
    )
    engine.rules[0].divide(2)
    exchange = engine.exchanges[0]
    hits = wire.int64(26)
    engine.at(START)
    for number in range(MANY):
        key = wire.address(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        responder(engine).answer(wire.notify(wire.message("default", key=key, hits=hits)), 0, 16380)
        responder(engine).take()
    looks = [0]
    for name in ("later", "owns"):
        monkeypatch.setattr(type(exchange), name, counted(getattr(type(exchange), name), looks))
    return engine, exchange, looks


def counted(method: Callable[..., bool], calls: list[int]) -> Callable[..., bool]:
    def call(*arguments: object) -> bool:
        calls[0] += 1
        return method(*arguments)

    return call


@pytest.mark.both_forms
def test_a_batch_looks_at_a_part_of_many_clients_and_the_rounds_reach_all(
    many: tuple[Engine, Exchange, list[int]],
) -> None:
    _, exchange, looks = many
    store = Store()
    now = START
    most = 0
    for _ in range(3):
        before = store.records
        now += 50 * MS
        while True:
            looks[0] = 0
            exchange.learn(store.exchange(exchange.pack(now)))
            # Each one that is sent is looked at by both, and looked at again with its answer.
            most = max(most, looks[0])
            if exchange.due != now:
                break
            now += 2 * MS
        assert store.records - before >= MANY, "this round had them all"
    assert LOOKED_AT / 2 < most <= 2 * LOOKED_AT + 3 * 1000


@pytest.mark.both_forms
def test_a_batch_for_one_client_looks_at_no_other(
    many: tuple[Engine, Exchange, list[int]],
) -> None:
    engine, exchange, looks = many
    store = Store()
    now = START
    for _ in range(40):
        now += 2 * MS
        exchange.learn(store.exchange(exchange.pack(now)))
    assert exchange.due != now
    key = wire.address("10.0.0.1")
    engine.at(now)
    responder(engine).answer(
        wire.notify(wire.message("default", key=key, hits=wire.int64(70))), 0, 16380
    )
    looks[0] = 0
    assert len(exchange.pack(now)) == RECORD_BYTES
    assert looks[0] <= 3


def test_a_client_that_left_the_table_is_dropped() -> None:
    engine = Engine([LIMIT], 8, lambda *_: 0, SECRET, 100, 50)
    engine.rules[0].divide(2)
    engine.at(START)
    ask(engine, 40)
    for n in range(20):
        engine.at(START + n * 100 * MS)
        ask(engine, 1, f"198.51.100.{n}")
    assert engine.exchanges[0].pack(START + 2 * SECOND) == b""
    assert engine.exchanges[0].size == 0


class Crowd:
    """Two limits, and a table of one set: a client takes the slot of one not seen for longest."""

    def __init__(self) -> None:
        self.limits = ("short", "long")
        windows = (SECOND, 3600 * SECOND)
        limits = [
            Limit(name, window=window, block=())
            for name, window in zip(self.limits, windows, strict=True)
        ]
        self.engine = Engine(limits, 8, lambda *_: 0, SECRET, 100, 50)
        for rule in self.engine.rules:
            rule.divide(2)
        self.now = START

    def ask(self, limit: int, client: str, times: int) -> None:
        """Ask 20 ms after the last time."""
        self.now += 20 * MS
        self.engine.at(self.now)
        message = wire.message(self.limits[limit], key=wire.address(client))
        responder(self.engine).answer(wire.notify(message) * times, 0, 16380)
        responder(self.engine).take()

    def replace(self, limit: int, client: str, times: int) -> None:
        """Fill the table, so that all of its clients but this one have gone."""
        for n in range(7):
            self.ask(limit, f"198.51.100.{n}", 1)
        self.ask(limit, client, times)

    def hits(self, limit: int, client: str) -> int:
        rule = self.engine.rules[limit]
        return self.engine.hits(rule, self.engine.slot(rule, client.encode()))


@pytest.mark.parametrize("limit", [0, 1])
def test_a_client_of_another_limit_in_the_slot_of_one_that_left_is_not_sent(limit: int) -> None:
    crowd = Crowd()
    mine, other = crowd.engine.exchanges[limit], crowd.engine.exchanges[1 - limit]
    crowd.ask(limit, "192.0.2.1", 60)
    # It has the same slot, and the same place of the other exchange.
    crowd.replace(1 - limit, "203.0.113.1", 60)
    for _ in range(3):
        assert mine.pack(crowd.now) == b""
    assert (mine.size, other.size) == (0, 1)
    assert crowd.hits(1 - limit, "203.0.113.1") == 60
    assert len(other.pack(crowd.now)) == RECORD_BYTES, "it is still shared by its own limit"


@pytest.mark.parametrize("limit", [0, 1])
def test_an_answer_about_a_client_that_left_is_not_taken_for_the_next_one(limit: int) -> None:
    crowd = Crowd()
    mine, other = crowd.engine.exchanges[limit], crowd.engine.exchanges[1 - limit]
    crowd.ask(limit, "192.0.2.1", 60)
    _, _, tick, *deltas = RECORD.unpack(mine.pack(crowd.now))
    crowd.replace(1 - limit, "203.0.113.1", 60)
    other.pack(crowd.now)
    mine.learn(ANSWER.pack(0, tick, *(100 + delta for delta in deltas)))
    assert crowd.hits(1 - limit, "203.0.113.1") == 60


def test_shared_counts_stay_with_their_limit_when_others_come_and_go() -> None:
    crowd = Crowd()
    engine = crowd.engine
    long = engine.rules[1].limit
    crowd.ask(1, "192.0.2.1", 60)
    _, epoch, tick, *deltas = RECORD.unpack(engine.exchanges[1].pack(crowd.now))
    engine.exchanges[1].learn(ANSWER.pack(epoch, tick, *(2 * delta for delta in deltas)))
    for limits in ([long], [Limit("new", block=()), long], [long, Limit("default")]):
        engine.reload(limits)
        assert [exchange.rule for exchange in engine.exchanges] == engine.rules
        (rule,) = (rule for rule in engine.rules if rule.limit is long)
        assert engine.hits(rule, engine.slot(rule, b"192.0.2.1")) == 120


def test_a_limit_that_is_no_more_takes_no_memory() -> None:
    engine, _ = exchanging(shared=100)
    sizes = []
    tracemalloc.start()
    try:
        for number in range(60):
            engine.reload([LIMIT, Limit(f"of {number}", block=())])
            ask(engine, 40)
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert len(engine.exchanges) == 2
    assert sizes[-1] - sizes[10] < 50 * 1000, sizes


def test_reserved_hits_are_judged_by_what_all_had_before() -> None:
    store = Store()
    nodes = [Engine([LIMIT], 1000, lambda *_: 0, SECRET, 100, 0) for _ in range(3)]
    admitted = 0
    for turn in range(30):
        engine = nodes[turn % 3]
        engine.at(START + turn * MS)
        responder(engine).reserve(ASK * 7, 0, 16380)
        engine.exchanges[0].learn(store.exchange(engine.exchanges[0].pack(START + turn * MS)))
        admitted += ask(engine, 7)
    assert admitted == LIMIT.rate


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
