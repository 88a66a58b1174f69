"""The busiest clients, compared with a count by hand; and how much is looked at in one go."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ratelimit.engine.busiest import Busy, Scan
from ratelimit.engine.check import Engine
from ratelimit.engine.layout import ADDRESS
from ratelimit.model import Limit
from ratelimit.notation import SECOND
from tests.helpers import wire
from tests.helpers.forms import plain_modules, responder

LIMITS = (
    Limit("default", 100, SECOND, ()),
    Limit("slow", 10, 60 * SECOND, ()),
    Limit("blocks", 5, SECOND, (60,)),
)
NOW = 1_800_000_000 * SECOND


class Clients:
    """An engine, and what each of its clients did."""

    def __init__(self, capacity: int = 4096) -> None:
        until = NOW // SECOND + 60
        self.engine = Engine(LIMITS, capacity, lambda *_: until, bytes(range(64)))
        self.engine.at(NOW)
        self.hits: dict[tuple[str, int], list[tuple[int, int]]] = {}

    def hit(self, name: str, client: int, hits: int, now: int) -> None:
        self.engine.at(now)
        key = wire.address(f"10.0.{client >> 8}.{client & 255}")
        frame = wire.notify(wire.message(name, key=key, hits=wire.int64(hits)))
        assert responder(self.engine).answer(frame, 0, 16_384) == len(frame)
        responder(self.engine).take()
        self.hits.setdefault((name, client), []).append((now, hits))

    def scan(self, count: int, sort: str = "rate", sets: int = 7) -> Scan:
        scan = Scan(self.engine.table, self.engine.rules, count, sort)
        while not scan.done:
            scan.slice(sets, self.engine.now)
        return scan

    def taken(self, *arguments: Any) -> list[Busy]:
        return take(self.scan(*arguments))

    def expected(self, limit: Limit, client: int, now: int) -> int:
        """Return the hits in the window by a count of the parts, the oldest one weighted."""
        part = limit.window // 16
        tick = now // part
        weight = ((part - now % part) << 20) // part
        total = oldest = 0
        for at, hits in self.hits.get((limit.name, client), ()):
            if at // part > tick - 16:
                total += hits
            elif at // part == tick - 16:
                oldest += hits
        return total + (oldest * weight + (1 << 19) >> 20)


def take(scan: Any) -> list[Busy]:
    return [busy for busy in map(scan.busy, scan.order()) if busy is not None]


def loaded(seed: int) -> Clients:
    chance = random.Random(seed)
    clients = Clients()
    now = NOW
    for _ in range(3000):
        now += chance.randrange(SECOND // 200)
        limit = LIMITS[chance.randrange(2)]
        clients.hit(limit.name, int(chance.expovariate(0.02)), chance.randrange(1, 9), now)
    clients.engine.at(now + chance.randrange(SECOND))
    return clients


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sort", ["rate", "share"])
@pytest.mark.parametrize("count", [1, 10, 1000])
def test_the_busiest_are_found(seed: int, sort: str, count: int) -> None:
    clients = loaded(seed)
    found = clients.taken(count, sort)
    now = clients.engine.now
    wanted = []
    for name, client in clients.hits:
        limit = next(limit for limit in LIMITS if limit.name == name)
        hits = clients.expected(limit, client, now)
        if hits:
            wanted.append((hits * factor(limit, sort), hits, name, client))
    wanted.sort(reverse=True)
    # Of clients with the same score, any may come first.
    scores = [busy.hits * factor(LIMITS[busy.index], sort) for busy in found]
    assert scores == [score for score, *_ in wanted[:count]]
    known = {(name, client): hits for _, hits, name, client in wanted}
    for busy in found:
        assert busy.kind == ADDRESS
        assert known[LIMITS[busy.index].name, busy.lo & 0xFFFF] == busy.hits


def factor(limit: Limit, sort: str) -> int:
    return 2**24 // limit.rate if sort == "share" else 2**24 * SECOND // limit.window


def test_the_blocked() -> None:
    clients = loaded(1)
    now = clients.engine.now
    for client in (5, 6, 7):
        clients.hit("blocks", client, 6, now)
    found = clients.taken(10, "blocked")
    assert sorted(busy.lo & 0xFFFF for busy in found) == [5, 6, 7]
    assert {busy.until for busy in found} == {NOW // SECOND + 60}
    clients.engine.at(NOW + 61 * SECOND)
    assert clients.taken(10, "blocked") == []


def test_a_slice_looks_at_so_many_sets_and_no_more() -> None:
    clients = Clients(8 * 100)
    for client in range(400):
        clients.hit("default", client, 1, NOW)
    scan = Scan(clients.engine.table, clients.engine.rules, 1000, "rate")
    seen = [0]
    for _ in range(25):
        assert not scan.done
        scan.slice(4, NOW)
        seen.append(len(take(scan)))
        assert seen[-1] - seen[-2] <= 4 * 8
    assert scan.done
    assert seen[-1] == clients.engine.table.entries
    scan.slice(4, NOW)
    assert len(take(scan)) == seen[-1]


def test_clients_that_change_between_the_slices_are_shown_as_they_are_then() -> None:
    clients = loaded(2)
    scan = Scan(clients.engine.table, clients.engine.rules, 5, "rate")
    while not scan.done:
        scan.slice(3, clients.engine.now)
        for client in range(3):
            clients.hit("default", client, 1, clients.engine.now)
    for busy in take(scan):
        limit = LIMITS[busy.index]
        assert busy.hits == clients.expected(limit, busy.lo & 0xFFFF, clients.engine.now)


def test_looking_changes_nothing() -> None:
    clients = loaded(3)
    table = clients.engine.table
    entries = table.entries
    before = [(busy.lo, busy.hits) for busy in clients.taken(1000)]
    assert [(busy.lo, busy.hits) for busy in clients.taken(1000)] == before
    assert table.entries == entries


def test_a_slot_that_a_new_limit_has_taken_is_left_out() -> None:
    clients = Clients(8)
    clients.hit("default", 1, 5, NOW)
    scan = Scan(clients.engine.table, clients.engine.rules[:1], 10, "rate")
    scan.slice(8, NOW)
    (slot,) = scan.order()
    assert scan.busy(slot) is not None
    for client in range(20):
        clients.hit("slow", client, 1, NOW + SECOND)
    assert scan.busy(slot) is None
    assert scan.order() == []


def test_it_counts_as_all_else_does() -> None:
    clients = loaded(5)
    engine = clients.engine
    for busy in clients.taken(1000):
        slot = engine.table.peek(busy.hi, busy.lo, busy.kind << 16 | busy.index)
        assert busy.hits == engine.hits(engine.rules[busy.index], slot)


def test_an_empty_table() -> None:
    assert Clients(8).taken(10) == []


@pytest.mark.both_forms
def test_the_plain_form_finds_the_same() -> None:
    plain = plain_modules()["ratelimit.engine.busiest"].Scan
    engine = plain_modules()["ratelimit.engine.check"].Engine(
        LIMITS, 4096, lambda *_: 0, bytes(range(64))
    )
    clients = loaded(4)
    for (name, client), hits in clients.hits.items():
        for now, count in hits:
            engine.at(max(now, engine.now))
            key = wire.address(f"10.0.{client >> 8}.{client & 255}")
            frame = wire.notify(wire.message(name, key=key, hits=wire.int64(count)))
            responder(engine).answer(frame, 0, 16_384)
            responder(engine).take()
    engine.at(clients.engine.now)
    scan = plain(engine.table, engine.rules, 50, "rate")
    scan.slice(10_000, engine.now)
    assert len(take(scan)) == 50
