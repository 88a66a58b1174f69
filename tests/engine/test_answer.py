"""Behaviour of the request path: what is asked, and what comes back."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit.engine.check import Engine
from ratelimit.engine.layout import SIGHTS
from ratelimit.exceptions import SpopError
from ratelimit.limiter.limiter import Limiter
from ratelimit.model import Limit
from ratelimit.steps import finish
from tests.helpers import wire
from tests.helpers.forms import responder

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
SUB_WINDOWS = 16


class Node:
    """A limiter, asked in frames."""

    def __init__(self, *limits: Limit, max_clients: int = 1000) -> None:
        self.limiter = Limiter(limits or [Limit()], max_clients, secret=bytes(range(64)))

    def frame(self, now: float, *messages: bytes) -> dict[str, wire.Value]:
        """Ask at ``now`` seconds after the start; return the variables set."""
        engine = self.limiter.engine
        engine.at(START + round(now * SECOND))
        data = wire.notify(*messages, ids=(300, 1))
        assert responder(engine).answer(data, 0, 16380) == len(data)
        (ack,) = wire.frames(responder(engine).take())
        assert ack.kind == wire.ACK
        assert ack.ids == (300, 1)
        assert ack.scopes <= {2}, "only scope txn"
        return ack.items

    def tick(self, now: float) -> None:
        self.limiter.tick(START + round(now * SECOND))
        finish(self.limiter.tidy())

    def ask(self, now: float, client: str = "192.0.2.1", **arguments: bytes) -> bool:
        """Tell whether one request passes."""
        asked = wire.message("default", key=wire.address(client), **arguments)
        return "deny" not in self.frame(now, asked)


THROTTLE = Limit(block=())


def test_the_hundred_and_first_request_is_blocked() -> None:
    node = Node()
    assert all(node.ask(0.001 * n) for n in range(100))
    refused = node.frame(0.1, wire.message("default", key=wire.address("192.0.2.1")))
    assert refused == {
        "deny": True,
        "reason": "block",
        "retry_after": 11,
        "block_until": START // SECOND + 11,
        "limit": 100,
        "remaining": 0,
        "reset": 11,
        "window": 1,
        "limit_name": "default",
    }
    assert not node.ask(0.2)
    assert node.ask(0.2, "192.0.2.2"), "others are not disturbed"


def test_without_a_ladder_the_client_is_throttled() -> None:
    node = Node(THROTTLE)
    assert all(node.ask(0) for _ in range(100))
    refused = node.frame(0, wire.message("default", key=wire.address("192.0.2.1")))
    # All 101 hits leave the window within its 16th part from second 1 on: one fits after that.
    assert refused == {
        "deny": True,
        "reason": "throttle",
        "retry_after": 2,
        "limit": 100,
        "remaining": 0,
        "reset": 2,
        "window": 1,
        "limit_name": "default",
    }
    assert node.ask(1.1)


def test_a_block_ends_at_its_second_and_the_next_is_longer() -> None:
    node = Node()
    now = 0.0
    for length in (10, 60, 600, 3600, 3600):
        for _ in range(100):
            assert node.ask(now)
        assert not node.ask(now)
        end = math.ceil(now) + length
        assert not node.ask(end - 0.001)
        assert node.ask(end)
        now = end + 2
    block = node.limiter.blocklist.get("default", "192.0.2.1")
    assert block is not None
    assert block.strikes == 5


def test_strikes_are_forgotten() -> None:
    node = Node(Limit(block=(10, 60), forget=1000))
    for now, length in ((0, 10), (100, 60), (1161, 10)):
        for _ in range(101):
            passed = node.ask(now)
        assert not passed
        assert not node.ask(now + length - 0.01)
        assert node.ask(now + length)


def test_hits_of_a_blocked_client_do_not_count() -> None:
    node = Node(Limit(rate=10, window=20 * SECOND, block=(10,)))
    for _ in range(11):
        node.ask(0)
    for _ in range(1000):
        assert not node.ask(5)
    # 11 hits at second 0 leave the window of 20 s by second 21; a thousand would block again.
    assert node.ask(22)


def test_a_steady_client_just_under_the_limit_is_never_refused() -> None:
    node = Node(THROTTLE)
    assert all(node.ask(n / 99) for n in range(2000))


@pytest.mark.parametrize("window_ms", [100, 1000, 60_000, 86_400_000])
def test_windows_of_every_length(window_ms: int) -> None:
    node = Node(Limit(rate=5, window=window_ms * 1_000_000, block=()))
    window = window_ms / 1000
    assert [node.ask(0) for _ in range(6)] == [True] * 5 + [False]
    assert not node.ask(window * 0.9)
    assert node.ask(window * 2.1)


@pytest.mark.parametrize("rate", [1, 10_000_000])
def test_rates_of_every_size(rate: int) -> None:
    node = Node(Limit(rate=rate, block=()))
    assert node.ask(0, hits=wire.int64(rate))
    assert not node.ask(0)


def test_hits_are_weighed() -> None:
    node = Node(THROTTLE)
    assert node.ask(0, hits=wire.int64(60))
    assert node.ask(0, hits=wire.uint32(40))
    assert node.ask(0, hits=wire.int64(0)), "0 hits look and do not count"
    assert not node.ask(0, hits=wire.int64(2**63 - 1)), "however many"
    assert not node.ask(0.5)


def test_missing_hits_count_as_one() -> None:
    node = Node(Limit(rate=1, block=()))
    assert node.ask(0, hits=wire.NULL)
    assert not node.ask(0)


def test_a_refusal_tells_how_long_to_wait() -> None:
    node = Node(Limit(rate=10, window=60 * SECOND, block=()))
    for _ in range(10):
        assert node.ask(0)
    refused = node.frame(30, wire.message("default", key=wire.address("192.0.2.1")))
    wait = refused["retry_after"]
    assert isinstance(wait, int)
    assert 30 <= wait <= 34, "until the ten of second 0 have left, by a sub-window's grain"
    assert node.ask(30 + wait)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (wire.address("192.0.2.1"), wire.text("192.0.2.1"), True),
        (wire.address("192.0.2.1"), wire.text("::ffff:192.0.2.1"), True),
        (wire.address("192.0.2.1"), wire.address("::ffff:192.0.2.1"), True),
        (wire.address("192.0.2.1"), wire.address("192.0.2.2"), False),
        (wire.address("192.0.2.1"), wire.address("::192.0.2.1"), False),
        (wire.address("2001:db8::1"), wire.address("2001:db8::2"), True),
        (wire.address("2001:db8::1"), wire.text("2001:DB8:0:0:5::"), True),
        (wire.address("2001:db8::1"), wire.address("2001:db8:0:1::1"), False),
        (wire.text("abc"), wire.binary(b"abc"), True),
        (wire.text("abc"), wire.text("abd"), False),
        (wire.text("17"), wire.int64(17), True),
        (wire.text("-3"), wire.int64(-3), True),
        (wire.text(""), wire.text("x"), False),
        (wire.text("1.2.3.4"), wire.binary(b"1.2.3.4"), False),
    ],
)
def test_who_counts_as_one_client(one: bytes, other: bytes, same: bool) -> None:
    node = Node(Limit(rate=1, block=()))
    assert "deny" not in node.frame(0, wire.message("default", key=one))
    assert ("deny" in node.frame(0, wire.message("default", key=other))) is same


def test_prefixes_make_one_client_of_a_network() -> None:
    node = Node(Limit(rate=1, ipv4_prefix=24, ipv6_prefix=48))
    assert node.ask(0, "192.0.2.1")
    assert not node.ask(0, "192.0.2.200")
    assert node.ask(0, "192.0.3.1")
    assert node.ask(0, "2001:db8:1::1")
    assert not node.ask(0, "2001:db8:1:ffff::1")
    assert node.limiter.blocklist.get("default", "192.0.2.0/24") is not None
    assert node.limiter.blocklist.get("default", "2001:db8:1::/48") is not None


LIMITS = (
    Limit(name="default", rate=5, block=()),
    Limit(name="login", rate=1, block=(10,)),
    Limit(name="slow", rate=1, block=(100,)),
)
KEY = wire.address("192.0.2.1")


def test_the_most_severe_of_several_messages_wins() -> None:
    node = Node(*LIMITS)
    both = (wire.message("default", key=KEY), wire.message("login", key=KEY))
    assert node.frame(0, *both) == {}
    assert node.frame(0, *both)["limit_name"] == "login"
    # The address is blocked by one limit and goes on to be counted by the other.
    for _ in range(4):
        answer = node.frame(0, *reversed(both))
    assert (answer["reason"], answer["limit_name"]) == ("block", "login")
    only = node.frame(0, wire.message("default", key=KEY))
    assert (only["reason"], only["limit_name"]) == ("throttle", "default")


def test_of_two_blocks_the_longer_one_is_told() -> None:
    node = Node(*LIMITS)
    both = (wire.message("login", key=KEY), wire.message("slow", key=KEY))
    node.frame(0, *both)
    answer = node.frame(0, *both)
    assert (answer["limit_name"], answer["retry_after"]) == ("slow", 100)


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
    node = Node()
    for _ in range(200):
        assert node.frame(0, asked) == {}
    engine = node.limiter.engine
    assert (responder(engine).unknown, responder(engine).keyless) == (200 * unknown, 200 * keyless)
    assert engine.checks == 0
    assert len(responder(engine).notes) == 1, "once per name"


def test_names_of_unknown_messages_are_bounded() -> None:
    node = Node()
    for n in range(1000):
        node.frame(0, wire.message(f"m{n}", key=KEY))
    assert len(responder(node.limiter.engine).notes) == 64


def test_other_arguments_are_ignored() -> None:
    node = Node(Limit(rate=1, block=()))
    extra = {"path": wire.text("/"), "": wire.TRUE, "n": wire.int64(-5), "ip": wire.NULL}
    asked = wire.message("default", key=KEY, **extra)
    assert "deny" not in node.frame(0, asked)
    assert "deny" in node.frame(0, asked)


def test_who_speaks_for_others_is_remembered_and_nothing_else_of_it() -> None:
    node = Node(Limit(rate=1000))
    engine = node.limiter.engine
    for via in (wire.NULL, wire.text("192.0.2.9"), wire.TRUE, wire.int64(0)):
        assert node.frame(0, wire.message("default", key=KEY, via=via)) == {}
    node.frame(0, wire.message("default", key=wire.text("a key"), via=wire.int64(7)))
    node.frame(0, wire.message("none", key=KEY, via=wire.int64(7)))
    assert engine.sights == 0
    for number in range(1, SIGHTS + 3):
        key = wire.address("2001:db8::7" if number == SIGHTS + 2 else "192.0.2.7")
        assert "deny" not in node.frame(
            number, wire.message("default", key=key, via=wire.int64(number))
        )
    assert engine.sights == SIGHTS + 2
    assert list(engine.seen[:6]) == [
        *(0, 0xFFFFC0000207, SIGHTS + 1),
        *(0x20010DB8 << 32, 7, SIGHTS + 2),
    ]
    assert list(engine.seen[6:9]) == [0, 0xFFFFC0000207, 3]


def test_an_empty_frame_is_acknowledged() -> None:
    assert Node().frame(0) == {}


def test_the_longest_ack_fits_the_smallest_frame() -> None:
    name = "n" * 64
    limit = Limit(name=name, rate=10_000_000, block=(30 * 86_400,))
    node = Node(limit)
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
    engine = Node(told, watched).limiter.engine
    engine.at(START)
    asked = [wire.message(each, key=KEY, hits=wire.int64(2)) for each in (name, "w" * 64)]
    responder(engine).answer(wire.notify(*asked, ids=(2**64 - 1, 2**64 - 1)), 0, 16380)
    answer = responder(engine).take()
    assert len(answer) - 4 <= 256
    items = wire.frames(answer)[0].items
    assert (items["limit_name"], items["shadow"]) == (name, f"throttle:{'w' * 64}")


def test_shadow_is_told_of_the_most_severe_verdict_and_of_no_other_frame() -> None:
    throttles = Limit(name="a", rate=1, block=(), shadow=True)
    blocks = Limit(name="b", rate=1, block=(9,), shadow=True)
    node = Node(throttles, blocks)
    asked = [wire.message(name, key=KEY) for name in ("a", "b")]
    assert node.frame(0, *asked) == {}
    assert node.frame(0, *asked) == {"shadow": "block:b"}
    assert node.frame(0, *reversed(asked)) == {"shadow": "block:b"}
    assert node.frame(0, asked[0]) == {"shadow": "throttle:a"}
    assert node.frame(0, wire.message("a", key=wire.text("another"))) == {}


def test_time_stands_still_while_the_clock_goes_back_a_little() -> None:
    node = Node(THROTTLE)
    assert all(node.ask(0.5) for _ in range(100))
    assert not node.ask(0.2)
    assert not node.ask(0.6)


def test_after_a_great_step_back_clients_start_anew_and_blocks_stay() -> None:
    node = Node()
    for _ in range(101):
        node.ask(7200, "192.0.2.9")
    for _ in range(100):
        assert node.ask(7200)
    assert all(node.ask(0) for _ in range(100))
    assert not node.ask(0)
    assert not node.ask(0, "192.0.2.9")


def test_later_steps_are_reached_however_long_the_blocks_are() -> None:
    node = Node(Limit(rate=1, block=(10, 5000, 9000), forget=1000))
    now = 0
    for length in (10, 5000, 9000):
        node.ask(now)
        assert node.frame(now, wire.message("default", key=KEY))["retry_after"] == length
        now += length


def test_a_block_settles_what_came_before_it() -> None:
    node = Node(Limit(rate=100, window=3600 * SECOND, block=(10, 60)))
    for _ in range(101):
        node.ask(0)
    assert all(node.ask(10) for _ in range(100)), "who waited as told is not blocked at once"
    assert not node.ask(10)


def test_a_look_earns_no_block() -> None:
    node = Node(Limit(rate=10, window=60 * SECOND))
    assert node.ask(0, hits=wire.int64(10))
    assert node.ask(0, hits=wire.int64(0))
    node.limiter.engine.rules[0].rate = 5
    answer = node.frame(0, wire.message("default", key=KEY, hits=wire.int64(0)))
    assert answer["reason"] == "throttle"


def test_of_two_throttles_the_longer_wait_is_told() -> None:
    node = Node(
        Limit(name="a", rate=1, block=()), Limit(name="b", rate=1, window=60 * SECOND, block=())
    )
    both = (wire.message("a", key=KEY), wire.message("b", key=KEY))
    node.frame(0, *both)
    answer = node.frame(0.5, *both)
    assert answer["limit_name"] == "b"
    assert isinstance(answer["retry_after"], int)
    assert answer["retry_after"] > 50


@pytest.mark.parametrize(
    "key", [wire.int64(1), wire.int64(-5), wire.text("1"), wire.address("::1")]
)
def test_each_client_has_a_ladder_of_its_own(key: bytes) -> None:
    node = Node(Limit(rate=1))
    for other in [wire.int64(n) for n in range(10, 20)]:
        for _ in range(2):
            node.frame(0, wire.message("default", key=other))
    node.frame(0, wire.message("default", key=key))
    assert node.frame(0, wire.message("default", key=key))["retry_after"] == 10
    assert len(node.limiter.blocklist) == 11


@pytest.mark.parametrize("limit", [Limit(name=""), Limit(name="n" * 65), Limit(window=15)])
def test_a_limit_that_the_engine_can_not_keep_is_refused(limit: Limit) -> None:
    with pytest.raises(ValueError, match=r"must have 1 to 64 bytes|must have 16 to"):
        Node(limit)


def test_a_full_blocklist_forgets_who_is_blocked_no_longer() -> None:
    node = Node(Limit(rate=1, block=(10,)))
    node.limiter.blocklist.max_entries = 3
    for n, now in enumerate((0, 0, 0, 20)):
        for _ in range(2):
            passed = node.frame(now, wire.message("default", key=wire.address(f"192.0.2.{n}")))
    assert passed["reason"] == "block"
    assert node.limiter.blocklist.refused == 0


def test_without_room_on_the_blocklist_a_client_is_throttled() -> None:
    node = Node(Limit(rate=1))
    node.limiter.blocklist.max_entries = 1
    node.ask(0)
    node.ask(0)
    node.ask(0, "192.0.2.2")
    answer = node.frame(0, wire.message("default", key=wire.address("192.0.2.2")))
    assert answer["reason"] == "throttle"
    assert node.limiter.blocklist.refused == 1


def test_forgotten_entries_leave_the_blocklist() -> None:
    node = Node(Limit(rate=1, block=(10,), forget=100))
    for client in range(20):
        for _ in range(2):
            node.ask(client, f"192.0.2.{client}")
    assert len(node.limiter.blocklist) == 20
    node.tick(120)
    assert 8 <= len(node.limiter.blocklist) <= 10
    node.tick(1000)
    assert len(node.limiter.blocklist) == 0


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
        node = Node(*limits, max_clients=64)
        engine = node.limiter.engine
        responder(engine).fetching = fetching
        engine.at(START)
        out = b""
        for first in range(0, 300, 150):
            data = b"".join([*frames[first : first + 150], broken, *frames[:3]])
            with pytest.raises(SpopError, match="unknown data type 15"):
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
    node = Node(Limit(rate=count, block=()))
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
    node = Node()
    engine = node.limiter.engine
    engine.at(START)
    good = wire.message("default", key=KEY)
    data = wire.notify(good, ids=(1, 1)) + wire.notify(good, good, b"\x03cut", ids=(2, 1))
    with pytest.raises(SpopError, match="the frame ends"):
        responder(engine).answer(data, 0, 16380)
    assert [ack.ids for ack in wire.frames(responder(engine).take())] == [(1, 1)]
    assert engine.checks == 1


class Model:
    """The window as design says it, in the plainest words: a list of hits, no ring, no table."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.hits: list[tuple[int, int]] = []

    def passes(self, now: int, hits: int) -> bool:
        width = self.limit.window // SUB_WINDOWS
        tick = now // width
        self.hits.append((tick, hits))
        inside = sum(n for t, n in self.hits if tick - SUB_WINDOWS < t)
        oldest = sum(n for t, n in self.hits if tick - SUB_WINDOWS == t)
        share = width - now % width if not self.limit.strict else width
        return inside + (2 * oldest * share + width) // (2 * width) <= self.limit.rate


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 400_000_000), st.integers(0, 12)), max_size=150),
    st.integers(1, 100),
    st.sampled_from([100_000_000, 1_000_000_000, 7_001_000_000]),
    st.booleans(),
)
def test_the_window_counts_as_its_definition_says(
    steps: list[tuple[int, int]], rate: int, window: int, strict: bool
) -> None:
    limit = Limit(rate=rate, window=window, block=(), strict=strict)
    node, model = Node(limit), Model(limit)
    now = 0
    for step, hits in steps:
        now += step
        expected = model.passes(START + now, hits)
        # A share is kept to 20 binary digits: it may differ from the definition's by one hit
        # where the product is a whole number, never otherwise.
        assert node.ask(now / SECOND, hits=wire.int64(hits)) == expected


STRICT = [
    wire.notify(wire.message("default", key=wire.address("192.0.2.1"), hits=wire.int64(hits)))
    for hits in range(41)
]
MOMENTS = st.one_of(
    st.just(0),
    st.integers(1, 3),  # nanoseconds
    st.fractions(0, 2),  # of a sub-window
    st.integers(1, SUB_WINDOWS + 2).map(Fraction),
    st.sampled_from([SUB_WINDOWS - Fraction(1, 1000), SUB_WINDOWS + Fraction(1, 1000)]),
    st.sampled_from([2, 40]).map(lambda windows: Fraction(SUB_WINDOWS * windows)),
)
"""Steps of an attacker who knows where sub-windows begin and how long the window is."""


@settings(max_examples=500, deadline=None)
@given(
    data=st.data(),
    steps=st.lists(st.tuples(MOMENTS, st.integers(1, 40)), min_size=1, max_size=120),
    rate=st.integers(1, 60),
    window=st.sampled_from([100, 250, 1000, 60_000, 86_400_000]).map(lambda ms: ms * 1_000_000),
)
def test_strict_admits_no_more_than_the_rate_in_any_window(
    data: st.DataObject, steps: list[tuple[Fraction | int, int]], rate: int, window: int
) -> None:
    width = window // SUB_WINDOWS
    # At any moment of a sub-window, its edges and those of a window before all others.
    phase = data.draw(
        st.one_of(st.sampled_from([0, 1, width - 1, window - 1]), st.integers(0, window - 1))
    )
    shortest = -(-window // SECOND)
    ladder = data.draw(st.sampled_from([(), (shortest,), (shortest, 3 * shortest)]))
    limit = Limit(rate=rate, window=window, block=ladder, strict=True)
    engine = Limiter([limit], 8, secret=bytes(range(64))).engine
    now = START - START % window + phase
    admitted: list[tuple[int, int]] = []
    for step, hits in steps:
        now += step if isinstance(step, int) else int(step * width)
        engine.at(now)
        responder(engine).answer(STRICT[hits], 0, 16380)
        if b"deny" not in responder(engine).take():
            admitted.append((now, hits))
    # A window that holds the most begins with a hit.
    for first, _ in admitted:
        assert sum(hits for at, hits in admitted if first <= at < first + window) <= rate
