"""The most severe of several verdicts on one request."""

from __future__ import annotations

from ratelimit.model import Limit
from ratelimit.notation import SECOND
from tests.helpers import wire
from tests.helpers.asking import KEY, Asked
from tests.helpers.limited import Node

LIMITS = (
    Limit(name="default", rate=5, block=()),
    Limit(name="login", rate=1, block=(10,)),
    Limit(name="slow", rate=1, block=(100,)),
)


def test_the_most_severe_of_several_messages_wins() -> None:
    node = Asked(*LIMITS)
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
    node = Asked(*LIMITS)
    both = (wire.message("login", key=KEY), wire.message("slow", key=KEY))
    node.frame(0, *both)
    answer = node.frame(0, *both)
    assert (answer["limit_name"], answer["retry_after"]) == ("slow", 100)


def test_shadow_is_told_of_the_most_severe_verdict_and_of_no_other_frame() -> None:
    throttles = Limit(name="a", rate=1, block=(), shadow=True)
    blocks = Limit(name="b", rate=1, block=(9,), shadow=True)
    node = Asked(throttles, blocks)
    asked = [wire.message(name, key=KEY) for name in ("a", "b")]
    assert node.frame(0, *asked) == {}
    assert node.frame(0, *asked) == {"shadow": "block:b"}
    assert node.frame(0, *reversed(asked)) == {"shadow": "block:b"}
    assert node.frame(0, asked[0]) == {"shadow": "throttle:a"}
    assert node.frame(0, wire.message("a", key=wire.text("another"))) == {}


def test_of_two_throttles_the_longer_wait_is_told() -> None:
    node = Asked(
        Limit(name="a", rate=1, block=()), Limit(name="b", rate=1, window=60 * SECOND, block=())
    )
    both = (wire.message("a", key=KEY), wire.message("b", key=KEY))
    node.frame(0, *both)
    answer = node.frame(0.5, *both)
    assert answer["limit_name"] == "b"
    assert isinstance(answer["retry_after"], int)
    assert answer["retry_after"] > 50


def test_headers_tell_what_is_left_of_the_tightest_limit() -> None:
    node = Node(
        Limit(rate=10, headers=True),
        Limit(name="login", rate=3, window=90 * SECOND, headers=True),
        Limit(name="plain", rate=1),
    )
    messages = [wire.message(limit, key=wire.text("192.0.2.1")) for limit in ("default", "login")]
    assert node.frame(*messages) == {
        "limit": 3,
        "remaining": 2,
        "reset": 90,
        "window": 90,
        "limit_name": "login",
    }
    assert node.frame(messages[0])["remaining"] == 8
    assert node.frame(wire.message("plain", key=wire.text("192.0.2.1"))) == {}


def test_headers_of_a_refusal_are_told_whatever_another_group_has_told() -> None:
    node = Node(Limit(rate=1, block=(), headers=True))
    asked = wire.message("default", key=wire.text("192.0.2.1"), left=wire.int64(0))
    assert node.frame(asked) == {}
    refused = node.frame(asked)
    assert (refused["deny"], refused["limit_name"], refused["remaining"]) == (True, "default", 0)
