"""Batches with many shared clients."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ratelimit.engine.check import Engine
from ratelimit.engine.layout import RECORD_BYTES
from ratelimit.engine.sharing import Exchange
from ratelimit.model import Limit
from ratelimit.notation import SECOND
from tests.helpers import wire
from tests.helpers.asking import START
from tests.helpers.counts import MS, SECRET, Store
from tests.helpers.forms import plain_engine, responder

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
