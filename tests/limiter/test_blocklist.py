"""Which entries the blocklist keeps, and which it drops."""

from __future__ import annotations

import random

import pytest

from ratelimit.limiter.blocklist import Blocklist
from ratelimit.limiter.strikes import next_block
from ratelimit.model import EVERY_LIMIT, Block, Limit
from ratelimit.notation import SECOND
from tests.helpers import wire
from tests.helpers.asking import Asked

NOW = 1_700_000_000


def block(key: str, until: int, limit: str = "default", since: int = NOW) -> Block:
    return Block(key, limit, "", 1, since, until)


def keys(kept: Blocklist) -> set[str]:
    return {entry.key for entry in kept}


def test_an_entry_is_kept_as_it_is() -> None:
    kept = Blocklist()
    odd = Block("\ud800\0", "a", "é" * 300, 2**40, NOW, 10**11, "ann", "n", True)
    assert kept.put(odd, NOW)
    assert kept.get("a", "\ud800\0") == odd
    assert list(kept) == [odd]
    assert kept.remove("a", "\ud800\0") == odd
    assert kept.remove("a", "\ud800\0") is None
    assert (len(kept), list(kept), kept.get("a", "\ud800\0")) == (0, [], None)


def test_entries_are_in_the_order_of_limit_and_key() -> None:
    kept = Blocklist()
    places = [(limit, key) for limit in ("a", "a.b", "ab", EVERY_LIMIT) for key in ("", "x", "y")]
    for limit, key in random.Random(1).sample(places, len(places)):
        kept.put(block(key, NOW + 1, limit), NOW)
    assert [(entry.limit, entry.key) for entry in kept] == sorted(places)
    assert [entry.key for entry in kept.of("a")] == ["x", "y"], "the empty text is no key"
    after = [(entry.limit, entry.key) for entry in kept.after("a", "x", 3)]
    assert after == [("a", "y"), ("a.b", ""), ("a.b", "x")]


def test_the_list_may_change_while_it_is_read() -> None:
    kept = Blocklist()
    for n in range(1000):
        kept.put(block(f"{n:04d}", NOW + 1), NOW)
    seen = []
    for number, entry in enumerate(kept):
        seen.append(entry.key)
        if number % 50 == 0:  # of another page
            kept.remove("default", f"{int(entry.key[:4]) + 30:04d}")
            kept.put(block(f"{entry.key[:4]}+", NOW + 1), NOW)
    gone = {f"{n:04d}" for n in range(1000)}.difference(seen)
    assert 15 <= len(gone) <= 20
    assert gone.isdisjoint(keys(kept)), "what stays is seen"
    assert seen == sorted(seen)


@pytest.mark.parametrize("order", ["as they come", "shuffled"])
def test_a_full_list_drops_ended_entries_wherever_they_are(order: str) -> None:
    kept = Blocklist(max_entries=1000)
    blocks = [block(f"long{n}", NOW + 10_000) for n in range(100)]
    blocks += [block(f"ended{n}", NOW + n) for n in range(900)]
    if order == "shuffled":
        random.Random(1).shuffle(blocks)
    for one in blocks:
        assert kept.put(one, NOW)
    assert not kept.put(block("new", NOW + 1), NOW - 1), "all are in force"
    assert kept.refused == 1
    for n in range(900):
        assert kept.put(block(f"new{n}", NOW + 10_000), NOW + 900)
    assert keys(kept) == {f"long{n}" for n in range(100)} | {f"new{n}" for n in range(900)}
    assert not kept.put(block("new", NOW + 10_000), NOW + 900)
    assert kept.put(block("long1", NOW + 1), NOW + 900), "what is there needs no room"


def test_who_would_be_forgotten_first_makes_room() -> None:
    kept = Blocklist(max_entries=3)
    kept.forget = {"default": 100, "login": 5, EVERY_LIMIT: 0}.__getitem__
    dropped: list[str] = []
    kept.on_drop = lambda entry: dropped.append(entry.key)
    kept.put(block("strikes", NOW + 1), NOW)
    kept.put(block("few strikes", NOW + 50, "login"), NOW)
    kept.put(block("by hand", NOW + 54, EVERY_LIMIT), NOW)
    for n in range(3):
        kept.put(block(f"new{n}", NOW + 99), NOW + 60)
    assert dropped == ["by hand", "few strikes", "strikes"]


@pytest.mark.parametrize("seed", range(3))
def test_entries_are_forgotten_in_their_time_whatever_order_they_came_in(seed: int) -> None:
    rnd = random.Random(seed)
    kept = Blocklist()
    kept.forget = {"default": 100, "login": 10, EVERY_LIMIT: 0}.__getitem__
    blocks = [
        Block(str(n), rnd.choice(["default", "login", EVERY_LIMIT]), "", 1, since, since + length)
        for n in range(2000)
        for since, length in [(NOW - rnd.randrange(50), rnd.choice([1, 10, 10_000]))]
    ]
    for one in blocks:
        kept.put(one, NOW)
    for now in range(NOW, NOW + 200, 7):
        while gone := kept.drop(now, 16):
            assert gone <= 16
        assert keys(kept) == {one.key for one in blocks if one.until + kept.forget(one.limit) > now}
        assert kept.active(now) == sum(one.until > now for one in blocks)


def test_a_changed_memory_counts_for_what_is_there() -> None:
    kept = Blocklist()
    kept.forget = lambda limit: 100
    kept.put(block("a", NOW + 1), NOW)
    assert kept.drop(NOW + 50, 16) == 0
    kept.forget = lambda limit: 10
    assert kept.drop(NOW + 50, 16) == 1


def test_a_list_has_room_for_what_it_has_and_in_place_of_what_has_ended() -> None:
    kept = Blocklist(max_entries=2)
    assert kept.put(block("a", NOW + 10), NOW)
    assert kept.has_room("default", "c", NOW)
    assert kept.put(block("c", NOW + 10), NOW)
    assert not kept.has_room("default", "b", NOW)
    assert kept.has_room("default", "a", NOW)
    assert kept.has_room("default", "b", NOW + 10), "a and c have ended"
    assert len(kept) == 1


def test_blocks_in_shadow_are_not_in_force() -> None:
    kept = Blocklist()
    limit = Limit(rate=1, block=(10,), shadow=True)
    assert kept.put(next_block(kept, limit, "a", NOW * SECOND), NOW)
    assert kept.active(NOW) == 0
    kept.put(block("a", NOW + 10), NOW)
    assert (kept.active(NOW), len(kept)) == (1, 1)
    assert kept.active(NOW + 10) == 0


@pytest.mark.parametrize("end", [-5, 0, 10**30])
def test_a_time_beyond_reason_harms_no_other_entry(end: int) -> None:
    kept = Blocklist()
    kept.put(block("odd", end, since=0), NOW)
    kept.put(block("a", NOW + 10), NOW)
    assert kept.active(NOW) == 1 + (end > NOW)
    kept.drop(NOW + 20, 16)
    assert keys(kept) == ({"odd"} if end > NOW else set())
    assert kept.remove("default", "odd") is not None or end <= NOW


def test_a_full_blocklist_forgets_who_is_blocked_no_longer() -> None:
    node = Asked(Limit(rate=1, block=(10,)))
    node.limiter.blocklist.max_entries = 3
    for n, now in enumerate((0, 0, 0, 20)):
        for _ in range(2):
            passed = node.frame(now, wire.message("default", key=wire.address(f"192.0.2.{n}")))
    assert passed["reason"] == "block"
    assert node.limiter.blocklist.refused == 0


def test_without_room_on_the_blocklist_a_client_is_throttled() -> None:
    node = Asked(Limit(rate=1))
    node.limiter.blocklist.max_entries = 1
    node.ask(0)
    node.ask(0)
    node.ask(0, "192.0.2.2")
    answer = node.frame(0, wire.message("default", key=wire.address("192.0.2.2")))
    assert answer["reason"] == "throttle"
    assert node.limiter.blocklist.refused == 1


def test_forgotten_entries_leave_the_blocklist() -> None:
    node = Asked(Limit(rate=1, block=(10,), forget=100))
    for client in range(20):
        for _ in range(2):
            node.ask(client, f"192.0.2.{client}")
    assert len(node.limiter.blocklist) == 20
    node.tick(120)
    assert 8 <= len(node.limiter.blocklist) <= 10
    node.tick(1000)
    assert len(node.limiter.blocklist) == 0
