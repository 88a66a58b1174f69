"""ACK frames: the longest one, and every variable."""

from __future__ import annotations

from ratelimit.model import MAX_RATE, Limit
from ratelimit.notation import SECOND
from ratelimit.spop.constants import MAX_ACK
from tests.helpers import wire
from tests.helpers.asking import KEY, START, Asked
from tests.helpers.forms import responder
from tests.helpers.limited import Node


def test_the_longest_ack_fits_the_smallest_frame() -> None:
    name = "n" * 64
    limit = Limit(name=name, rate=10_000_000, block=(30 * 86_400,))
    node = Asked(limit)
    engine = node.limiter.engine
    engine.at(START)
    asked = wire.message(name, key=KEY, hits=wire.int64(2**40))
    data = wire.notify(asked, ids=(2**64 - 1, 2**64 - 1))
    responder(engine).answer(data, 0, 16380)
    answer = responder(engine).take()
    assert len(answer) - 4 <= 256
    assert wire.frames(answer)[0].items["limit_name"] == name


def test_the_longest_ack_of_an_allowed_request_fits_too() -> None:
    name = "n" * 64
    told = Limit(name=name, rate=10_000_000, window=86_400 * SECOND, headers=True)
    watched = Limit(name="w" * 64, rate=1, block=(), shadow=True)
    engine = Asked(told, watched).limiter.engine
    engine.at(START)
    asked = [wire.message(each, key=KEY, hits=wire.int64(2)) for each in (name, "w" * 64)]
    responder(engine).answer(wire.notify(*asked, ids=(2**64 - 1, 2**64 - 1)), 0, 16380)
    answer = responder(engine).take()
    assert len(answer) - 4 <= 256
    items = wire.frames(answer)[0].items
    assert (items["limit_name"], items["shadow"]) == (name, f"throttle:{'w' * 64}")


def test_a_window_of_no_whole_seconds_is_told_as_none() -> None:
    node = Node(Limit(window=1500 * 1_000_000, headers=True))
    told = node.frame(wire.message("default", key=wire.text("192.0.2.1")))
    assert told["reset"] == 2
    assert told["window"] is None, "nor is one of another limit left in place"


def test_the_longest_answer_fits_the_smallest_frame() -> None:
    limit = Limit(
        name="n" * 64, rate=MAX_RATE, window=86_400 * SECOND, block=(30 * 86_400,), headers=True
    )
    node = Node(limit)
    engine = node.limiter.engine
    for hits, denied in ((0, False), (1 << 27, True)):
        message = wire.message(limit.name, key=wire.text("x"), hits=wire.int64(hits))
        data = wire.notify(message, ids=((1 << 64) - 1, (1 << 64) - 1))
        assert responder(engine).answer(data, 0, 16380) == len(data)
        answer = responder(engine).take()
        assert (b"deny" in answer) is denied
        assert len(answer) <= MAX_ACK
