"""What lists, blocks by hand, shadow, the fuse and a reload do to verdicts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from ratelimit.limiter.limiter import FUSE_CLIENTS
from ratelimit.model import EVERY_LIMIT, Block, Entry, Lift, Limit
from ratelimit.notation import SECOND
from ratelimit.steps import finish
from tests.helpers import wire
from tests.helpers.asking import START
from tests.helpers.forms import responder
from tests.helpers.limited import NO_LISTS, Node, clients, lists


def test_who_is_allowed_is_never_counted() -> None:
    node = Node(Limit(rate=1), lists=lists(allow="192.0.2.0/24 2001:db8::/48"))
    for client in ("192.0.2.7", "2001:db8::7"):
        assert {node.ask(client) for _ in range(5)} == {"allow"}
    assert [node.ask("192.0.3.1") for _ in range(2)] == ["allow", "block"]
    node.reload(Limit(rate=1))
    assert [node.ask("192.0.2.7") for _ in range(2)] == ["allow", "block"], "nothing was counted"


def test_who_is_denied_is_refused_from_the_first_request() -> None:
    node = Node(lists=lists(deny="192.0.2.0/24 2001:db8::1"))
    refused = node.frame(wire.message("default", key=wire.address("192.0.2.1")))
    assert refused["reason"] == "denylist"
    assert refused["retry_after"] == 3600
    assert "block_until" not in refused
    assert node.limiter.rule("default").denied == 1  # type: ignore[union-attr]
    assert not list(node.limiter.blocklist)
    assert node.ask("2001:db8::1") == "denylist"
    assert node.ask("2001:db8::2") == "allow", "of the same /64, but not listed"
    assert node.ask("192.0.3.1") == "allow"


def test_the_allow_list_beats_every_block() -> None:
    node = Node(Limit(rate=1))
    assert [node.ask("192.0.2.1") for _ in range(2)] == ["allow", "block"]
    node.by_hand("192.0.2.0/24")
    node.reload(Limit(rate=1), lists=lists(allow="192.0.2.1"))
    assert node.ask("192.0.2.1") == "allow"
    assert node.ask("192.0.2.2") == "block"
    node.reload(Limit(rate=1))
    assert node.ask("192.0.2.1") == "block", "off the list, it is blocked as before"


def test_an_exempt_address_within_a_blocked_network() -> None:
    node = Node(Limit(rate=1), lists=lists(allow="2001:db8::a"))
    assert [node.ask("2001:db8::1") for _ in range(2)] == ["allow", "block"]
    assert node.ask("2001:db8::a") == "allow"
    refused = node.frame(wire.message("default", key=wire.text("2001:db8::2")))
    assert refused["reason"] == "block"
    assert "block_until" not in refused, "else the edge would refuse the whole /64"


def test_lists_are_of_addresses_not_of_strings() -> None:
    node = Node(Limit(name="api"), lists=lists(deny="0.0.0.0/0 ::/0"))
    assert node.ask("a key", "api") == "allow"
    assert node.ask("1.2.3.4", "api") == "denylist"


@pytest.mark.parametrize(
    ("key", "blocked", "free"),
    [
        ("192.0.2.1", ["192.0.2.1"], ["192.0.2.2"]),
        ("192.0.2.0/24", ["192.0.2.1", "192.0.2.255"], ["192.0.3.1"]),
        ("2001:db8::/64", ["2001:db8::1", "2001:db8::2"], ["2001:db8:0:1::1"]),
        ("2001:db8::1", ["2001:db8::1"], ["2001:db8::2"]),
        ("2001:db8::/32", ["2001:db8:ffff::1"], ["2001:db9::1"]),
        ("0.0.0.0/0", ["1.1.1.1"], ["2001:db8::1"]),
        ("a key", ["a key"], ["another"]),
    ],
)
def test_a_block_by_hand_holds_for_every_limit(
    key: str, blocked: list[str], free: list[str]
) -> None:
    node = Node(Limit(), Limit(name="login", ipv4_prefix=24), Limit(name="quiet", shadow=True))
    node.by_hand(key)
    for limit in ("default", "login", "quiet"):
        for client in blocked:
            assert node.ask(client, limit) == "block"
        for client in free:
            assert node.ask(client, limit) == "allow"
    node.tick(60)
    assert {node.ask(client) for client in blocked} == {"allow"}, "it has ended"
    node.by_hand(key)
    assert node.ask(blocked[0]) == "block"
    [block] = node.limiter.blocklist
    node.lift(EVERY_LIMIT, block.key)
    assert {node.ask(client) for client in blocked} == {"allow"}


def test_lifting_one_block_leaves_the_other() -> None:
    node = Node(Limit(rate=1))
    node.ask("192.0.2.1")
    node.ask("192.0.2.1")
    node.by_hand("192.0.2.1", 1000)
    node.lift(EVERY_LIMIT, "192.0.2.1")
    assert node.ask("192.0.2.1") == "block", "it has earned one itself"
    node.by_hand("192.0.2.1", 1000)
    node.lift("default", "192.0.2.1")
    assert node.ask("192.0.2.1") == "block"
    node.lift(EVERY_LIMIT, "192.0.2.1")
    assert node.ask("192.0.2.1") == "allow"


def test_a_list_is_merged_with_what_changes_meanwhile() -> None:
    node = Node(Limit(rate=1, block=(600,)))
    since = START // SECOND

    def block(key: str, length: int) -> Block:
        return Block(key, "default", "", 1, since, since + length, order=since)

    clients = [f"10.0.{n // 256}.{n % 256}" for n in range(2000)]
    finish(node.limiter.load([block(client, 60) for client in clients]))
    steps = node.limiter.load([block(client, 90) for client in clients[:1500]])
    for _ in range(3):
        next(steps)
    node.limiter.apply(block(clients[0], 30))
    node.lift("default", clients[1])
    node.lift("default", clients[1499])
    node.limiter.apply(block(clients[1999], 120))
    assert node.ask("192.0.2.1") == "allow"
    assert node.ask("192.0.2.1") == "block"
    assert sum(1 for _ in steps) > 10
    ends = {held.key: held.until - since for held in node.limiter.blocklist}
    assert ends.pop("192.0.2.1") == 600
    expected = dict.fromkeys(clients, 60) | dict.fromkeys(clients[:1500], 90)
    del expected[clients[1]], expected[clients[1499]]
    assert ends == expected | {clients[1999]: 120}
    assert [node.ask(clients[n]) for n in (1, 1499)] == ["allow"] * 2
    assert [node.ask(clients[n]) for n in (2, 1498, 1999)] == ["block"] * 3


def test_lifts_of_a_list_take_blocks_off_in_small_steps() -> None:
    node = Node()
    since = START // SECOND
    gone: list[tuple[Block, bool]] = []
    taken: list[Entry] = []
    node.limiter.on_gone.append(lambda block, news: gone.append((block, news)))
    node.limiter.on_taken.append(taken.append)
    blocks = [
        Block(f"10.0.0.{n}", "default", "", 1, since, since + 60, order=n + 1) for n in range(200)
    ]
    finish(node.limiter.load(blocks))
    assert taken == blocks
    lifts = [Lift(one.key, one.limit, one.order, since + 60) for one in blocks]
    left = [len(node.limiter.blocklist) for _ in node.limiter.load(lifts)]
    assert max(before - after for before, after in pairwise([200, *left])) <= 20
    assert left[-1] <= 20
    assert len(node.limiter.blocklist) == 0
    assert gone == [(block, False) for block in blocks]
    assert taken == [*blocks, *lifts]
    finish(node.limiter.load([*lifts, *blocks]))
    assert (len(gone), len(taken)) == (200, 400), "all of it was known"
    assert node.ask("10.0.0.7") == "allow"
    node.tick(3600)
    assert len(node.limiter.blocklist.lifts) == 0, "by now nothing is left that they could end"


def test_a_block_that_has_ended_needs_no_place_in_the_table() -> None:
    node = Node(Limit(rate=1, block=(600,)))
    node.tick(60)
    since = START // SECOND
    ended = Block("192.0.2.1", "default", "", 1, since + 10, since + 20)
    for client in [f"10.0.0.{n}" for n in range(9)]:
        node.limiter.apply(replace(ended, key=client))
    assert node.limiter.engine.table.entries == 0


def test_a_block_by_hand_settles_nothing() -> None:
    node = Node(Limit(rate=5, window=3600 * SECOND, block=(), strict=True))
    assert [node.ask("192.0.2.1") for _ in range(5)] == ["allow"] * 5
    node.by_hand("192.0.2.1", 2)
    assert node.ask("192.0.2.1") == "block"
    node.tick(3)
    assert node.ask("192.0.2.1") == "throttle"


def test_a_block_by_hand_outlives_eviction() -> None:
    node = Node(Limit(shadow=True), max_clients=8)
    node.by_hand("192.0.2.1", 1000)
    for n in range(100):
        node.by_hand(f"198.51.100.{n}", 1000)
    assert node.ask("192.0.2.1") == "block", "still by hand, for the limit is in shadow"


def test_shadow_refuses_nothing_and_shows_all() -> None:
    shadow = Limit(rate=2, block=(10, 60), shadow=True, headers=True)
    node = Node(shadow, Limit(name="login", rate=4, block=()))
    asked = wire.message("default", key=wire.text("192.0.2.1"))
    told = [node.frame(asked) for _ in range(10)]
    assert told == [{}] * 2 + [{"shadow": "block:default"}] * 8
    rule = node.limiter.rule("default")
    assert rule is not None
    assert (rule.allowed, rule.blocked) == (2, 8)
    block = node.limiter.blocklist.get("default", "192.0.2.1")
    assert block is not None
    assert (block.shadow, block.strikes) == (True, 1)
    both = [wire.message(limit, key=wire.text("192.0.2.1")) for limit in ("default", "login")]
    found = [node.frame(*both) for _ in range(5)]
    assert found[:4] == [{"shadow": "block:default"}] * 4
    assert "shadow" not in found[4], "refused by another limit"
    assert found[4]["limit_name"] == "login", "a limit in shadow hides no other"


@pytest.mark.parametrize("ladder", [(), (10,)])
def test_a_block_by_hand_that_has_ended_does_not_end_shadow(ladder: tuple[int, ...]) -> None:
    node = Node(Limit(rate=1, block=ladder, shadow=True))
    node.by_hand("192.0.2.1", 5)
    assert node.ask("192.0.2.1") == "block", "an operator refuses in shadow mode too"
    node.tick(6)
    assert [node.ask("192.0.2.1") for _ in range(3)] == ["allow"] * 3


def test_the_fuse_blows_when_too_many_clients_are_refused() -> None:
    node = Node(Limit(rate=1, fuse=0.2))
    for client in clients(300):
        assert node.ask(client) == "allow"
    reasons = [node.ask(client) for client in clients(100)]
    blocked = reasons.count("block")
    # More than a fifth of the 300 that were seen.
    assert blocked == 60
    assert reasons[60:] == ["throttle"] * 40
    assert node.fuses == [("default", True)]
    assert node.ask("10.0.0.1") == "block", "what was blocked before stays so"


def test_a_limit_that_few_clients_use_is_compared_with_the_site() -> None:
    node = Node(Limit(rate=1000), Limit("login", rate=1, fuse=0.2))
    for client in clients(1000):
        assert node.ask(client) == "allow"
    attackers = list(clients(150, net=11))
    assert {node.ask(client, "login", hits=2) for client in attackers} == {"block"}
    assert node.fuses == []
    more = list(clients(300, net=12))
    reasons = [node.ask(client, "login", hits=2) for client in more]
    assert reasons.count("block") == 50, "a fifth of the 1000, with the 150 before"
    assert node.fuses == [("login", True)]
    # Neither does the site's quiet minute end it while as many are refused.
    node.tick(61)
    assert node.fuses == [("login", True)]


def test_a_few_clients_blow_no_fuse() -> None:
    node = Node(Limit(rate=1, fuse=0.01))
    reasons = [node.ask(client) for client in clients(FUSE_CLIENTS - 1) for _ in range(3)]
    assert reasons.count("block") == 2 * (FUSE_CLIENTS - 1)
    assert node.fuses == []


def test_without_a_fuse_all_are_blocked() -> None:
    node = Node(Limit(rate=1, fuse=0))
    assert {[node.ask(client) for _ in range(2)][1] for client in clients(500)} == {"block"}


def test_a_fuse_is_whole_after_a_quiet_minute() -> None:
    node = Node(Limit(rate=1))
    for client in clients(200):
        node.ask(client, hits=2)
    assert node.fuses == [("default", True)]
    node.tick(61)
    for client in clients(200):
        node.ask(client, hits=2)
    node.tick(122)
    assert node.fuses == [("default", True)], "the minute was not quiet"
    node.ask("192.0.2.1", hits=2)
    node.tick(183)
    assert node.fuses == [("default", True), ("default", False)]
    assert node.ask("192.0.2.2", hits=2) == "block"


def test_a_reload_that_takes_the_fuse_out_blocks_at_once() -> None:
    node = Node(Limit(rate=1))
    for client in clients(200):
        node.ask(client, hits=2)
    node.reload(Limit(rate=1))
    assert node.ask("192.0.2.1", hits=2) == "throttle", "still blown"
    node.reload(Limit(rate=1, fuse=0))
    assert node.fuses == [("default", True), ("default", False)]
    assert node.ask("192.0.2.2", hits=2) == "block"


def test_an_operator_clears_a_fuse() -> None:
    node = Node(Limit(rate=1))
    for client in clients(200):
        node.ask(client, hits=2)
    assert node.limiter.clear_fuse("default")
    assert not node.limiter.clear_fuse("default")
    assert not node.limiter.clear_fuse("no such")
    assert node.fuses == [("default", True), ("default", False)]
    assert node.ask("192.0.2.1", hits=2) == "block"


def test_a_reload_keeps_the_counts_where_the_window_stays() -> None:
    node = Node(Limit(rate=10, block=()), Limit(name="login", rate=10, block=()))
    for limit in ("default", "login"):
        assert node.ask("192.0.2.1", limit, hits=10) == "allow"
    node.reload(Limit(rate=11, block=()), Limit(name="login", rate=10, window=2 * SECOND, block=()))
    assert [node.ask("192.0.2.1") for _ in range(2)] == ["allow", "throttle"]
    assert node.ask("192.0.2.1", "login", hits=10) == "allow", "another window counts anew"
    assert node.ask("192.0.2.1", "login") == "throttle"


def test_limits_come_and_go() -> None:
    node = Node(Limit(rate=1, block=()))
    assert node.ask("192.0.2.1") == "allow"
    node.reload(Limit(name="new", rate=1, block=()), Limit(rate=1, block=()))
    assert [node.ask("192.0.2.1", "new") for _ in range(2)] == ["allow", "throttle"]
    assert node.ask("192.0.2.1") == "throttle"
    node.reload(Limit(rate=1, block=()))
    assert node.ask("192.0.2.1", "new") == "allow"
    assert responder(node.limiter.engine).unknown == 1
    assert node.limiter.rule("new") is None


def test_blocks_hold_on_through_a_reload() -> None:
    node = Node(Limit(rate=1))
    assert [node.ask("192.0.2.1") for _ in range(2)] == ["allow", "block"]
    node.by_hand("2001:db8::/64")
    for limits in (
        [Limit(rate=1, window=3 * SECOND)],
        [Limit(rate=1, window=3 * SECOND, ipv6_prefix=56)],
        [Limit(rate=5, window=3 * SECOND), Limit(name="login")],
    ):
        node.reload(*limits)
        assert node.ask("192.0.2.1") == "block"
        assert node.ask("2001:db8::9") == "block"
        assert node.ask("2001:db8:0:1::9") == "allow"


def test_a_block_of_another_prefix_is_of_nobody() -> None:
    node = Node(Limit(rate=1))
    node.ask("192.0.2.1", hits=2)
    node.reload(Limit(rate=1, ipv4_prefix=24))
    assert node.ask("192.0.2.2") == "allow", "its neighbour's block is not its own"


def test_explain_says_what_each_limit_has() -> None:
    node = Node(Limit(rate=10), Limit(name="login", rate=1), lists=lists(allow="192.0.2.9"))
    node.ask("2001:db8::1", hits=4)
    node.ask("2001:db8::2", hits=3)
    default, login = finish(node.limiter.explain("2001:db8::5"))
    assert (default.key, default.hits, default.remaining) == ("2001:db8::/64", 7, 3)
    assert (login.hits, login.until, login.block) == (0, 0, None)
    assert node.limiter.engine.table.entries == 1, "to ask is not to come"
    node.ask("2001:db8::1", "login", hits=2)
    block = finish(node.limiter.explain("2001:db8::5"))[1].block
    assert block is not None
    assert block.node == "here"


@pytest.mark.parametrize(
    ("client", "entry", "other"),
    [
        ("192.0.2.7", "192.0.2.7", {"ipv4_prefix": 24}),
        ("192.0.2.0", "192.0.2.0", {"ipv4_prefix": 24}),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64", {"ipv6_prefix": 48}),
        ("2001:db8::1", "2001:db8::/64", {"ipv6_prefix": 48}),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64", {"ipv6_prefix": 128}),
    ],
)
@pytest.mark.parametrize("name", ["default", EVERY_LIMIT])
@pytest.mark.parametrize("lifted", [True, False])
def test_a_block_lifted_under_another_prefix_does_not_come_back(
    client: str, entry: str, other: dict[str, Any], name: str, lifted: bool
) -> None:
    limit = Limit(rate=1, window=60 * SECOND, block=(600,))
    node = Node(limit)
    if name == EVERY_LIMIT:
        node.by_hand(entry, 600)
    else:
        node.ask(client, hits=2)
    assert node.ask(client, hits=0) == "block"
    node.reload(replace(limit, rate=100, **other))
    if lifted:
        node.lift(name, entry)
        assert node.ask(client, hits=0) == "allow"
    node.reload(limit)
    assert node.ask(client, hits=0) == ("allow" if lifted else "block")


def test_a_block_lifted_while_a_reload_goes_on_does_not_come_back() -> None:
    limit = Limit(rate=1, window=60 * SECOND, block=(600,))
    for client, entry in (("192.0.2.0", "192.0.2.0"), ("192.0.2.7", "192.0.2.7")):
        node = Node(limit)
        node.ask(client, hits=2)
        rest = finish(node.limiter.reload([replace(limit, rate=100, ipv4_prefix=24)], NO_LISTS))
        node.lift("default", entry)
        assert node.ask(client, hits=0) == "allow"
        finish(rest)
        node.reload(limit)
        assert node.ask(client, hits=0) == "allow"
