"""Compiled and plain are the same: every byte of every answer to the same random traffic."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit.engine.check import Engine
from ratelimit.engine.rule import Rule
from ratelimit.exceptions import FrameError
from ratelimit.limiter.limiter import Limiter
from ratelimit.model import MAX_BYTES, MAX_RATE, Limit
from tests.helpers import wire
from tests.helpers.counts import Store
from tests.helpers.forms import plain_engine, responder

pytestmark = pytest.mark.both_forms

SECRET = bytes(range(7, 71))
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
DAY = 86_400_000_000_000
LIMITS = (
    Limit(name="default", rate=4, block=(1, 3)),
    Limit(name="login", rate=2, window=300_000_000, block=(), strict=True, ipv6_prefix=48),
    Limit(name="quiet", rate=2, window=5_000_000_000, block=(3,), shadow=True),
    Limit(name="slow", rate=9, window=DAY, block=(2,), ipv4_prefix=24),
    # The most that a configuration may say.
    Limit(name="most", rate=MAX_RATE, window=DAY, block=()),
    Limit(name="fast", rate=MAX_RATE, window=100_000_000, block=(30 * 86_400,)),
    Limit(name="bytes", rate=MAX_BYTES, window=DAY, block=()),
)
MOST_HITS = 1 << 27


class Form:
    """An engine of one form, with strikes and blocks of its own."""

    def __init__(self, engine: type[Engine], capacity: int) -> None:
        self.limiter = Limiter(LIMITS, 8, SECRET)
        self.engine = engine(LIMITS, capacity, self.limiter._strike, SECRET)

    def answer(self, now: int, data: bytes) -> tuple[object, ...]:
        """Everything that can be seen of one read."""
        engine = self.engine
        engine.at(now)
        pos, out, error = 0, b"", None
        try:
            while True:
                stop = responder(engine).answer(data, pos, 16380)
                taken = responder(engine).take()
                out += taken
                if stop == pos or not taken:
                    break
                pos = stop
        except FrameError as broken:
            out += responder(engine).take()
            error = (broken.status, str(broken))
        rules = [(rule.allowed, rule.throttled, rule.blocked) for rule in engine.rules]
        table = engine.table
        blocks = (len(self.limiter.blocklist), self.limiter.blocks)
        counted = (
            engine.checks,
            responder(engine).unknown,
            responder(engine).keyless,
            responder(engine).notes,
        )
        sights = (engine.sights, list(engine.seen[:60]))
        held = (table.entries, table.evictions, table.orphans)
        return pos, out, error, rules, counted, sights, held, blocks


ADDRESSES = st.one_of(
    st.sampled_from(
        ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1", "64:ff9b::c000:201"]
    ),
    st.ip_addresses(network=ipaddress.ip_network("198.51.100.0/26")).map(str),
    st.ip_addresses(v=6).map(str),
)
KEYS = st.one_of(
    ADDRESSES.map(wire.address),
    ADDRESSES.map(wire.text),
    st.binary(max_size=60).map(wire.binary),
    st.binary(max_size=60).map(wire.text),
    st.integers(-(2**63), 2**63 - 1).map(wire.int64),
    st.sampled_from([wire.NULL, wire.TRUE, wire.text("a"), wire.text("a" * 3000)]),
)
HITS = st.one_of(
    st.integers(-1, 4).map(wire.int64),
    st.sampled_from([MAX_RATE // 4, MAX_RATE - 1, MAX_RATE, MOST_HITS, MOST_HITS + 1]).map(
        wire.int64
    ),
    st.integers(0, 2**64 - 1).map(lambda n: b"\x05" + wire.varint(n)),
    st.sampled_from([wire.NULL, wire.TRUE, wire.text("1")]),
)
MESSAGES = st.builds(
    lambda name, key, more: wire.message(name, **key, **more),
    st.sampled_from(["default", "default", "login", "slow", "quiet", "most", "fast", "other", ""]),
    st.one_of(KEYS.map(lambda key: {"key": key}), st.just({})),
    st.one_of(
        st.just({}),
        HITS.map(lambda hits: {"hits": hits}),
        HITS.map(lambda via: {"via": via}),
        st.just({"extra": wire.text("x")}),
    ),
)
IDS = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
# So many messages that a frame, or a read, takes several passes.
MANY = st.sampled_from([1] * 20 + [30])
FRAMES = st.builds(
    lambda messages, many, ids: wire.notify(*messages * many, ids=ids),
    st.lists(MESSAGES, max_size=3),
    MANY,
    IDS,
)


@st.composite
def reads(draw: st.DrawFn) -> bytes:
    data = b"".join(draw(st.lists(FRAMES, max_size=8))) * draw(MANY)
    if data and draw(st.integers(0, 9)) == 0:  # sometimes a byte is wrong, or the end is missing
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + draw(st.binary(max_size=2)) + data[at + 1 :]
    return data


STEPS = st.one_of(
    st.just(0),
    st.integers(0, 400_000_000),
    st.integers(-2_000_000_000, 100_000_000_000),
    st.sampled_from([DAY // 16, DAY // 16 - 1, DAY, DAY + DAY // 16]),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(STEPS, reads()), max_size=25), st.sampled_from([8, 16, 1000]))
def test_random_traffic(traffic: list[tuple[int, bytes]], capacity: int) -> None:
    compiled, plain = Form(Engine, capacity), Form(plain_engine(), capacity)
    now = START
    for step, data in traffic:
        now += step
        assert compiled.answer(now, data) == plain.answer(now, data)


def test_a_long_run_over_more_clients_than_fit() -> None:
    compiled, plain = Form(Engine, 64), Form(plain_engine(), 64)
    now = START
    for n in range(3000):
        now += 1_000_000 * (n % 40)
        asked = [
            wire.message("default", key=wire.address(f"10.0.{n % 7}.{n * 31 % 256}")),
            wire.message("slow", key=wire.text(f"client {n % 50}")),
        ]
        data = wire.notify(*asked, ids=(n, 1))
        assert compiled.answer(now, data) == plain.answer(now, data)


class SharedForm:
    """Two nodes of one form with a store between them, which is a model."""

    def __init__(self, engine: type[Engine], refresh: int) -> None:
        self.refresh = refresh
        self.store = Store()
        self.nodes = [engine(LIMITS, 64, self.strike, SECRET, 16, refresh) for _ in range(2)]
        if refresh:
            for node in self.nodes:
                for rule in node.rules:
                    rule.divide(len(self.nodes))

    @staticmethod
    def strike(rule: Rule, _text: bytes, _kind: int, _hi: int, _lo: int, now: int) -> int:
        return now // SECOND + 1 + rule.limit.block[0]

    def read(self, number: int, now: int, data: bytes) -> tuple[object, ...]:
        """Everything that can be seen of one read, with what the store hears of it before."""
        node = self.nodes[number]
        node.at(now)
        seen: list[object] = []
        if not self.refresh:
            responder(node).reserve(data, 0, 16380)
            seen += [self.exchange(number, limit, now, lost=False) for limit in range(len(LIMITS))]
        stop = responder(node).answer(data, 0, 16380)
        rules = [(rule.allowed, rule.throttled, rule.blocked) for rule in node.rules]
        return stop, responder(node).take(), rules, node.urgent, seen

    def exchange(self, number: int, limit: int, now: int, lost: bool) -> tuple[object, ...]:
        """Everything that can be seen of an exchange, of which the answer may be lost."""
        node = self.nodes[number]
        node.at(now)
        exchange = node.exchanges[limit]
        batch = exchange.pack(now)
        notice = exchange.notice()
        answers = self.store.exchange(batch)
        if not lost:
            exchange.learn(answers)
        other = self.nodes[1 - number]
        other.at(now)
        other.exchanges[limit].warm(notice, now)
        places = (exchange.size, exchange.overflow, exchange.flown)
        return batch, notice, answers, places, exchange.due, exchange.wait(now)


SHARED_FRAMES = st.builds(
    lambda name, client, hits, many: wire.notify(
        *[wire.message(name, key=wire.address(f"192.0.2.{client}"), hits=hits)] * many
    ),
    st.sampled_from([limit.name for limit in LIMITS]),
    st.integers(0, 20),
    st.one_of(
        st.integers(0, 4).map(wire.int64),
        st.sampled_from([MAX_RATE // 8, MAX_RATE // 3, MAX_RATE - 1, MOST_HITS]).map(wire.int64),
    ),
    st.integers(1, 3),
)
TURNS = st.one_of(
    st.lists(SHARED_FRAMES, min_size=1, max_size=8).map(b"".join),
    st.tuples(st.integers(0, len(LIMITS) - 1), st.booleans()),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), STEPS, TURNS), max_size=40), st.sampled_from([0, 50]))
def test_shared_counts(
    turns: list[tuple[int, int, bytes | tuple[int, bool]]], refresh: int
) -> None:
    forms = [SharedForm(engine, refresh) for engine in (Engine, plain_engine())]
    now = START
    for node, step, what in turns:
        now += step
        if isinstance(what, bytes):
            seen = [form.read(node, now, what) for form in forms]
        else:
            seen = [form.exchange(node, what[0], now, what[1]) for form in forms]
        assert seen[0] == seen[1]
