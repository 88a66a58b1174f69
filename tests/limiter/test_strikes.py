"""Strikes: how long the next block of a client is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ratelimit.model import Block, Entry, Lift, Limit
from ratelimit.notation import SECOND
from ratelimit.steps import finish
from tests.helpers import wire
from tests.helpers.asking import KEY, START, Asked
from tests.helpers.limited import Node


def test_strikes_are_forgotten() -> None:
    node = Asked(Limit(block=(10, 60), forget=1000))
    for now, length in ((0, 10), (100, 60), (1161, 10)):
        for _ in range(101):
            passed = node.ask(now)
        assert not passed
        assert not node.ask(now + length - 0.01)
        assert node.ask(now + length)


def test_later_steps_are_reached_however_long_the_blocks_are() -> None:
    node = Asked(Limit(rate=1, block=(10, 5000, 9000), forget=1000))
    now = 0
    for length in (10, 5000, 9000):
        node.ask(now)
        assert node.frame(now, wire.message("default", key=KEY))["retry_after"] == length
        now += length


@pytest.mark.parametrize(
    "key", [wire.int64(1), wire.int64(-5), wire.text("1"), wire.address("::1")]
)
def test_each_client_has_a_ladder_of_its_own(key: bytes) -> None:
    node = Asked(Limit(rate=1))
    for other in [wire.int64(n) for n in range(10, 20)]:
        for _ in range(2):
            node.frame(0, wire.message("default", key=other))
    node.frame(0, wire.message("default", key=key))
    assert node.frame(0, wire.message("default", key=key))["retry_after"] == 10
    assert len(node.limiter.blocklist) == 11


def test_the_strikes_of_a_lifted_block_are_forgotten_everywhere() -> None:
    ladder = Limit(rate=1, block=(10, 600))
    node, other = Node(ladder), Node(ladder)
    made: list[Block] = []
    node.limiter.on_block.append(made.append)
    for now in (0, 20):
        node.tick(now)
        assert [node.ask("192.0.2.1") for _ in range(2)] == ["allow", "block"]
    finish(other.limiter.load(made))
    node.tick(30)
    lift = node.limiter.lift_now("default", "192.0.2.1", START + 30 * SECOND)
    assert [node.ask("192.0.2.1") for _ in range(2)] == ["allow", "block"]
    assert made[-1].until - made[-1].since == 10
    # Whatever arrives first, and however often.
    arrivals: list[list[Entry]] = [[made[-1], lift], [lift, made[-1]], [*made]]
    for entries in arrivals:
        finish(other.limiter.load(entries))
    assert other.limiter.blocklist.get("default", "192.0.2.1") == made[-1]


def test_a_strike_in_shadow_lifts_the_one_before_it() -> None:
    shadow, ladder = (Limit(rate=1, block=(10, 600), shadow=shadow) for shadow in (True, False))
    node, other = Node(ladder), Node(shadow)
    told: list[Entry] = []
    node.limiter.on_made.append(told.append)
    assert [node.ask("192.0.2.1") for _ in range(2)] == ["allow", "block"]
    node.reload(shadow)
    node.tick(60)
    assert [node.ask("192.0.2.1") for _ in range(2)] == ["allow", "allow"]
    real, lift, hidden = told
    assert isinstance(lift, Lift) and isinstance(hidden, Block) and hidden.shadow
    finish(other.limiter.load([hidden, lift, real]))
    assert list(other.limiter.blocklist) == list(node.limiter.blocklist) == [hidden]
    node.reload(ladder)
    node.tick(120)
    assert [node.ask("192.0.2.1") for _ in range(2)] == ["allow", "block"]
    assert len(told) == 4, "a block in shadow gives way by itself"
    finish(other.limiter.load(told[3:]))
    assert list(other.limiter.blocklist) == list(node.limiter.blocklist) == told[3:]


def test_a_block_by_hand_is_no_strike() -> None:
    node = Node(Limit(rate=1, block=(10, 60)))
    node.by_hand("192.0.2.1", 5)
    node.tick(10)
    node.ask("192.0.2.1")
    node.ask("192.0.2.1")
    block = node.limiter.blocklist.get("default", "192.0.2.1")
    assert block is not None
    assert block.strikes == 1


def test_out_of_shadow_everybody_starts_without_blocks() -> None:
    shadow = Limit(rate=2, block=(10, 60), shadow=True)
    node = Node(shadow)
    for _ in range(5):
        node.ask("192.0.2.1")
    node.reload(replace(shadow, shadow=False))
    node.tick(2)
    assert [node.ask("192.0.2.1") for _ in range(3)] == ["allow", "allow", "block"]
    block = node.limiter.blocklist.get("default", "192.0.2.1")
    assert block is not None
    assert (block.shadow, block.strikes) == (False, 1)
