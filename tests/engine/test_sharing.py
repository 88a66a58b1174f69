"""What one node sends and learns of shared clients; the store is a model, time is an argument."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.engine.check import Engine
from ratelimit.engine.layout import ANSWER_BYTES, NOTICE_BYTES, RECORD_BYTES
from ratelimit.engine.sharing import Exchange
from ratelimit.model import MAX_BYTES, MAX_RATE, Limit
from ratelimit.notation import SECOND
from tests.helpers import wire
from tests.helpers.asking import START
from tests.helpers.counts import ANSWER, LIMIT, MS, RECORD, SECRET, Store, exchanging, refused
from tests.helpers.forms import responder

ASK = wire.notify(wire.message("default", key=wire.address("192.0.2.1")))


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


@pytest.mark.parametrize("rate", [MAX_RATE, MAX_BYTES])
def test_far_from_a_high_limit_of_a_day_a_client_waits_for_the_next_round(rate: int) -> None:
    left, window = 1 << 22, 86_400 * SECOND
    engine, exchange = exchanging(Limit(rate=rate, window=window, block=()))
    # So far in its part that this many hits times the time for them are 2^65.
    now = START - START % (window // 16) + (1 << 43) - window // 16
    assert refused(engine, now, rate - left) == 0
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
