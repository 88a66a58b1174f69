"""Networks that are blocked by hand: when the engine has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ratelimit.limiter.keys import Network, key_network
from ratelimit.limiter.lists import Range, cut
from ratelimit.limiter.merge import Merge
from ratelimit.model import EVERY_LIMIT, Block
from ratelimit.notation import SECOND
from ratelimit.steps import Steps, finish
from tests.helpers.asking import START
from tests.helpers.limited import Node

if TYPE_CHECKING:
    from collections.abc import Iterable


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has one more item whenever the networks that are blocked by hand are cut."""
    found = []

    def counted(ranges: Iterable[Range]) -> Steps[tuple[bytes, bytes]]:
        found.append(1)
        return cut(ranges)

    monkeypatch.setattr("ratelimit.limiter.barred.cut", counted)
    return found


def thousand() -> list[Block]:
    """Return blocks of 1,000 networks by hand, which end in a minute."""
    since = START // SECOND
    return [
        Block(f"10.{n // 256}.{n % 256}.0/24", EVERY_LIMIT, "", 0, since, since + 60)
        for n in range(1000)
    ]


def test_many_networks_blocked_by_hand_are_loaded_at_once_and_changed_at_ticks(
    cuts: list[int],
) -> None:
    node = Node()
    blocks = thousand()
    cuts.clear()
    finish(node.limiter.load(blocks))
    finish(node.limiter.cut())
    assert len(cuts) == 1
    assert [node.ask(f"10.3.231.{n}") for n in (0, 255)] == ["block", "block"]
    node.by_hand("10.200.0.0/16")
    node.lift(EVERY_LIMIT, "10.3.231.0/24")
    assert len(cuts) == 1
    node.tick(1)
    assert len(cuts) == 2
    assert node.ask("10.200.1.1") == "block"
    assert node.ask("10.3.231.0") == "allow"
    finish(node.limiter.load(blocks))
    finish(node.limiter.cut())
    assert node.ask("10.200.1.1") == "block", "what a list does not have, it has lost"
    assert node.ask("10.3.231.0") == "allow", "what was lifted stays lifted"
    node.tick(60)
    assert node.ask("10.3.230.0") == node.ask("10.200.1.1") == "allow"


def test_networks_are_cut_once_however_many_pages_a_list_has(cuts: list[int]) -> None:
    node = Node()
    blocks = thousand()
    cuts.clear()
    merge = Merge(node.limiter)
    for start in range(0, len(blocks), 100):
        finish(merge.take(blocks[start : start + 100]))
    assert not any(merge.newer())
    assert len(cuts) == 1
    assert node.ask("10.3.231.0") == "block"


def test_few_networks_of_a_list_are_blocked_at_once() -> None:
    node = Node()
    since = START // SECOND
    finish(node.limiter.load([Block("10.0.0.0/24", EVERY_LIMIT, "", 0, since, since + 60)]))
    assert node.ask("10.0.0.7") == "block"


def test_the_end_of_a_part_is_that_of_the_widest_block_and_parts_are_known() -> None:
    node = Node()
    for key, seconds in (("192.0.0.0/16", 300), ("192.0.2.0/24", 100), ("192.0.2.7", 50)):
        node.by_hand(key, seconds)
    node.by_hand("2001:db8::1")
    end = START // SECOND + 300

    def networks(*keys: str) -> list[Network]:
        return [network for network in map(key_network, keys) if network is not None]

    known = networks("192.0.2.7", "192.0.2.0/24", "192.0.0.0/16", "192.1.0.0/24")
    assert [node.limiter.wider_until(one) for one in known] == [end, end, 0, 0]
    # Of an IPv6 client, a single address is a part.
    parts = networks("2001:db8::/64", "2001:db8:0:1::/64", "192.0.2.7", "192.0.2.0/24")
    assert [node.limiter.may_have_parts(one) for one in parts] == [True, False, False, True]
    node.lift(EVERY_LIMIT, "2001:db8::1")
    assert not node.limiter.may_have_parts(parts[0])
