"""The store as a model, and engines that exchange their counts with it."""

from __future__ import annotations

import struct

from ratelimit.engine.check import Engine
from ratelimit.engine.layout import RING
from ratelimit.engine.sharing import Exchange
from ratelimit.model import Limit
from tests.helpers import wire
from tests.helpers.asking import START
from tests.helpers.forms import responder

MS = 1_000_000
LIMIT = Limit(block=())
SECRET = bytes(range(64))
RECORD = struct.Struct("<16sIQ17I")
ANSWER = struct.Struct("<IQ17I")


class Store:
    """What exchange.lua does, in plain words."""

    def __init__(self) -> None:
        self.totals: dict[bytes, dict[int, int]] = {}
        self.epochs: dict[bytes, int] = {}
        self.records = 0

    def exchange(self, batch: bytes) -> bytes:
        answers = []
        for key, epoch, tick, *deltas in RECORD.iter_unpack(batch):
            if epoch > self.epochs.get(key, -1):
                self.epochs[key], self.totals[key] = epoch, {}
            totals = self.totals[key]
            for i, delta in enumerate(deltas if epoch == self.epochs[key] else ()):
                totals[tick - i] = totals.get(tick - i, 0) + delta
            newest = max(totals)
            counters = (totals.get(newest - i, 0) for i in range(RING))
            answers.append(ANSWER.pack(self.epochs[key], newest, *counters))
            self.records += 1
        return b"".join(answers)


def exchanging(limit: Limit = LIMIT, shared: int = 100) -> tuple[Engine, Exchange]:
    engine = Engine([limit], 1000, lambda *_: 0, SECRET, shared, 50)
    engine.rules[0].divide(2)
    engine.at(START)
    return engine, engine.exchanges[0]


def refused(engine: Engine, now: int, hits: int = 1) -> int:
    """Send hits of a client; return how many seconds it is told to wait, 0 if they pass."""
    engine.at(now)
    key = wire.address("192.0.2.1")
    responder(engine).answer(
        wire.notify(wire.message("default", key=key, hits=wire.int64(hits))), 0, 16380
    )
    (answer,) = wire.frames(responder(engine).take())
    wait = answer.items.get("retry_after", 0)
    assert isinstance(wait, int)
    return wait
