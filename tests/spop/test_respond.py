"""From the NOTIFY frames of a read to their ACK frames."""

from __future__ import annotations

import pytest

from ratelimit.engine.check import Engine
from ratelimit.exceptions import FrameError
from ratelimit.model import Limit
from ratelimit.notation import SECOND
from tests.helpers import wire
from tests.helpers.asking import KEY, START, Asked
from tests.helpers.forms import responder


@pytest.mark.parametrize(
    ("asked", "unknown", "keyless"),
    [
        (wire.message("nobody", key=KEY), 1, 0),
        (wire.message("defaul", key=KEY), 1, 0),
        (wire.message("defaultt", key=KEY), 1, 0),
        (wire.message("", key=KEY), 1, 0),
        (wire.message("default"), 0, 1),
        (wire.message("default", key=wire.NULL), 0, 1),
        (wire.message("default", key=wire.text("")), 0, 1),
        (wire.message("default", key=wire.binary(b"")), 0, 1),
        (wire.message("default", yek=KEY), 0, 1),
        (wire.message("default", key=KEY, hits=wire.text("3")), 0, 1),
        (wire.message("default", key=KEY, hits=wire.int64(-1)), 0, 1),
        (wire.message("default", key=KEY, hits=wire.TRUE), 0, 1),
    ],
)
def test_what_can_not_be_checked_is_answered_without_variables(
    asked: bytes, unknown: int, keyless: int
) -> None:
    node = Asked()
    for _ in range(200):
        assert node.frame(0, asked) == {}
    engine = node.limiter.engine
    assert (responder(engine).unknown, responder(engine).keyless) == (200 * unknown, 200 * keyless)
    assert engine.checks == 0
    assert len(responder(engine).notes) == 1, "once per name"


def test_names_of_unknown_messages_are_bounded() -> None:
    node = Asked()
    for n in range(1000):
        node.frame(0, wire.message(f"m{n}", key=KEY))
    assert len(responder(node.limiter.engine).notes) == 64


def test_an_empty_frame_is_acknowledged() -> None:
    assert Asked().frame(0) == {}


def test_answers_are_the_same_whether_or_not_the_table_is_fetched_ahead() -> None:
    limits = Limit(rate=2, block=()), Limit(name="login", rate=3, block=())
    frames = [
        wire.notify(
            wire.message("default", key=wire.address(f"10.0.{n % 5}.{n % 37}")),
            wire.message("login", key=wire.text("k" * (n % 90))),
            wire.message("unknown", key=wire.text("k")),
            wire.message("login"),
            ids=(n, 1),
        )
        for n in range(300)
    ]
    broken = wire.notify(wire.message("default", key=b"\x0f"))
    answers = []
    for fetching in (True, False):
        node = Asked(*limits, max_clients=64)
        engine = node.limiter.engine
        responder(engine).fetching = fetching
        engine.at(START)
        out = b""
        for first in range(0, 300, 150):
            data = b"".join([*frames[first : first + 150], broken, *frames[:3]])
            with pytest.raises(FrameError, match="unknown data type 15"):
                responder(engine).answer(data, 0, 16380)
            out += responder(engine).take()
        counted = (
            engine.checks,
            responder(engine).unknown,
            responder(engine).keyless,
            engine.table.evictions,
        )
        answers.append((out, counted))
    assert answers[0] == answers[1]
    assert len(wire.frames(answers[0][0])) == 300


@pytest.mark.parametrize("count", [63, 64, 65, 200])
def test_a_frame_of_many_messages_is_answered_as_one(count: int) -> None:
    node = Asked(Limit(rate=count, block=()))
    asked = [wire.message("default", key=KEY)] * count
    assert node.frame(0, *asked) == {}
    assert node.limiter.engine.checks == count
    verdict = node.frame(0, *[wire.message("unknown", key=KEY)] * (count - 1), asked[0])
    assert verdict["reason"] == "throttle"


@pytest.mark.parametrize("count", [1, 3, 33, 65])
def test_answers_never_exceed_the_output(count: int) -> None:
    limit = Limit(name="n" * 64, rate=1 << 20)
    asked = wire.message(limit.name, key=KEY, hits=wire.int64(1 << 21))
    frames = 600
    engine = Engine([limit], 1000, lambda *_: START // SECOND + 3600)
    engine.at(START)
    data = wire.notify(*[asked] * count, ids=(1 << 63, 1 << 63)) * frames
    pos, sizes, acks = 0, [], 0
    while pos < len(data):
        pos = responder(engine).answer(data, pos, 16380)
        taken = responder(engine).take()
        sizes.append(len(taken))
        acks += len(wire.frames(taken))
    assert acks == frames
    assert max(sizes) <= 1 << 16


def test_of_a_frame_that_breaks_the_protocol_nothing_is_counted() -> None:
    node = Asked()
    engine = node.limiter.engine
    engine.at(START)
    good = wire.message("default", key=KEY)
    data = wire.notify(good, ids=(1, 1)) + wire.notify(good, good, b"\x03cut", ids=(2, 1))
    with pytest.raises(FrameError, match="the frame ends"):
        responder(engine).answer(data, 0, 16380)
    assert [ack.ids for ack in wire.frames(responder(engine).take())] == [(1, 1)]
    assert engine.checks == 1
