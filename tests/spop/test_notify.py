"""NOTIFY frames: which messages and arguments are read, and how."""

from __future__ import annotations

import pytest

from ratelimit.model import Limit
from tests.helpers import wire
from tests.helpers.asking import KEY, Asked
from tests.helpers.limited import Node


def test_missing_hits_count_as_one() -> None:
    node = Asked(Limit(rate=1, block=()))
    assert node.ask(0, hits=wire.NULL)
    assert not node.ask(0)


def test_other_arguments_are_ignored() -> None:
    node = Asked(Limit(rate=1, block=()))
    extra = {"path": wire.text("/"), "": wire.TRUE, "n": wire.int64(-5), "ip": wire.NULL}
    asked = wire.message("default", key=KEY, **extra)
    assert "deny" not in node.frame(0, asked)
    assert "deny" in node.frame(0, asked)


@pytest.mark.parametrize(
    ("left", "told"),
    [
        (wire.int64(0), False),
        (wire.int64(2), False),
        (wire.int64(3), True),
        (wire.int64(-1), True),
        (wire.NULL, True),
        (wire.text("1"), True),
    ],
)
def test_headers_of_another_group_are_told_if_fewer_hits_are_left(left: bytes, told: bool) -> None:
    node = Node(Limit(rate=3, headers=True))
    answer = node.frame(wire.message("default", key=wire.text("192.0.2.1"), left=left))
    assert answer.get("remaining") == (2 if told else None)
    assert ("limit_name" in answer) == told
