"""How long a throttled client must wait."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ratelimit.engine.check import Engine
from ratelimit.engine.sharing import Exchange
from ratelimit.model import MAX_BYTES, MAX_RATE, Limit
from ratelimit.notation import SECOND
from tests.helpers import wire
from tests.helpers.asking import START, Asked
from tests.helpers.counts import ANSWER, MS, RECORD, exchanging, refused


def test_a_refusal_tells_how_long_to_wait() -> None:
    node = Asked(Limit(rate=10, window=60 * SECOND, block=()))
    for _ in range(10):
        assert node.ask(0)
    refused = node.frame(30, wire.message("default", key=wire.address("192.0.2.1")))
    wait = refused["retry_after"]
    assert isinstance(wait, int)
    assert 30 <= wait <= 34, "until the ten of second 0 have left, by a sub-window's grain"
    assert node.ask(30 + wait)


def test_a_refused_client_is_told_to_wait_for_its_hits_at_other_nodes_too() -> None:
    engine, exchange = exchanging(Limit(rate=10, window=3600 * SECOND, block=()))
    part = 225 * SECOND
    start = START - START % part + 100 * SECOND
    assert refused(engine, start - 16 * part, 2) == 0
    engine.at(start)
    # Nine elsewhere, of ten minutes ago, and two here that are about to leave the window.
    _, epoch, tick, *deltas = RECORD.unpack(batch_of(engine, exchange, start))
    exchange.learn(ANSWER.pack(epoch, tick, *deltas[:3], 9, *deltas[4:]))
    wait = refused(engine, start)
    assert wait > 3000 - 225
    assert not fits(engine, start + (wait - 1) * SECOND)
    assert fits(engine, start + wait * SECOND)


def batch_of(engine: Engine, exchange: Exchange, now: int) -> bytes:
    """Return a batch with the client, whether or not it has enough hits to be shared."""
    exchange.heat(engine.slot(engine.rules[0], b"192.0.2.1"), 0)
    return exchange.pack(now)


def fits(engine: Engine, now: int) -> bool:
    """Tell whether one hit more of a client would pass."""
    engine.at(now)
    rule = engine.rules[0]
    return engine.hits(rule, engine.slot(rule, b"192.0.2.1")) < rule.rate


MOST_HITS = 1 << 27

COUNTS = st.one_of(st.integers(0, 30), st.sampled_from([0, 0, MOST_HITS, 10_000_000]))


@settings(max_examples=500, deadline=None)
@given(
    rate=st.one_of(st.integers(1, 60), st.sampled_from([1_700_000, MAX_RATE, MAX_BYTES])),
    window=st.sampled_from([100 * MS, SECOND, 7001 * MS, 3600 * SECOND, 86_400 * SECOND]),
    strict=st.booleans(),
    phase=st.floats(0, 1, exclude_max=True),
    here=st.lists(COUNTS, min_size=17, max_size=17),
    elsewhere=st.lists(COUNTS, min_size=17, max_size=17),
)
@example(10_000_000, 86_400 * SECOND, True, 0.5, [MOST_HITS] * 17, [MOST_HITS] * 17)
@example(10_000_000, 86_400 * SECOND, False, 0.5, [MOST_HITS] * 17, [MOST_HITS] * 17)
@example(10_000_000, 86_400 * SECOND, False, 0.5, [0] * 16 + [1], [5_000_000] * 17)
@example(MAX_BYTES, 86_400 * SECOND, False, 0.5, [MOST_HITS] * 17, [MOST_HITS] * 17)
@example(MAX_BYTES, 86_400 * SECOND, False, 0.5, [0] * 16 + [1], [50_000_000] * 17)
def test_the_wait_is_as_long_as_it_must_be_and_no_longer(
    rate: int, window: int, strict: bool, phase: float, here: list[int], elsewhere: list[int]
) -> None:
    engine, exchange = exchanging(Limit(rate=rate, window=window, block=(), strict=strict))
    part = window // 16
    now = START + 2 * window
    now += int(phase * part) - now % part
    for age in range(16, -1, -1):
        refused(engine, now - age * part, here[age])
    _, epoch, tick, *own = RECORD.unpack(batch_of(engine, exchange, now))
    totals = (mine + others for mine, others in zip(own, elsewhere, strict=True))
    exchange.learn(ANSWER.pack(epoch, tick, *totals))
    wait = refused(engine, now)
    if wait == 0:
        return
    if wait > 1:
        # Shares of a part of the window have 20 binary digits.
        assert not fits(engine, now + (wait - 1) * SECOND - (part >> 19) - 1)
    assert fits(engine, now + wait * SECOND)
