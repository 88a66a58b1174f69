"""What the limiter does with long lists: in small steps, between which clients are answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ratelimit.limiter.limiter import Limiter
from ratelimit.model import EVERY_LIMIT, Block, Limit
from ratelimit.notation import SECOND
from ratelimit.steps import Steps, finish
from tests.helpers.asking import START
from tests.helpers.limited import Node, lists

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW = START // SECOND
MANY = 3000
MOST = 16
"""Blocks of a step that are compared with the limits, put into the table, or dropped."""

CUT = 64
"""Networks of a step that are cut."""


class Work:
    """Counts what is done in each step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done = 0
        for name in ("_bars", "_update", "_until", "_dropped"):
            self._count(monkeypatch, name)

    def _count(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        real: Callable[..., object] = getattr(Limiter, name)

        def counted(*arguments: object) -> object:
            self.done += 1
            return real(*arguments)

        monkeypatch.setattr(Limiter, name, counted)

    def of(self, steps: Steps[object]) -> Iterator[int]:
        """Yield how much each step does, that before the first stop included."""
        before = self.done
        while True:
            try:
                next(steps)
            except StopIteration as stop:
                yield self.done - before
                if stop.value is not None:
                    yield from self.of(stop.value)
                return
            yield self.done - before
            before = self.done


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(monkeypatch)


def by_hand(key: str, seconds: int = 1000) -> Block:
    return Block(key, EVERY_LIMIT, "", 0, NOW, NOW + seconds)


def networks(count: int = MANY) -> list[str]:
    return [f"10.{n // 256}.{n % 256}.0/24" for n in range(count)]


def addresses(count: int = MANY) -> list[str]:
    return [f"192.0.{n // 256}.{n % 256}" for n in range(count)]


def test_a_reload_looks_at_no_block_if_clients_are_counted_as_before(work: Work) -> None:
    node = Node(Limit())
    finish(node.limiter.load(map(by_hand, networks() + addresses())))
    steps = node.limiter.reload([Limit(rate=7)], lists(allow="192.0.0.1"))
    assert sum(work.of(steps)) == 0
    assert node.ask("192.0.0.1") == "allow"
    assert node.ask("192.0.0.2") == "block"


def test_a_reload_that_counts_clients_differently_takes_small_steps(work: Work) -> None:
    node = Node(Limit(), Limit(name="login"))
    finish(node.limiter.load(map(by_hand, networks() + addresses())))
    other = [Limit(ipv4_prefix=24), Limit(name="login", window=7 * SECOND)]
    done = list(work.of(node.limiter.reload(other, lists())))
    assert max(done) <= CUT
    assert sum(done) > 4 * MANY
    assert node.ask("192.0.2.7") == node.ask("10.1.2.3") == "block"


@pytest.mark.parametrize("key", ["192.0.2.7", "192.0.2.0/24"])
@pytest.mark.parametrize("others", [0, 100])
def test_a_block_by_hand_holds_in_each_step_of_a_reload(key: str, others: int) -> None:
    node = Node(Limit(), Limit(name="login"))
    finish(node.limiter.load(map(by_hand, [*networks(others), key])))
    finish(node.limiter.cut())
    for prefix in (24, 16, 32, 24, 32):
        other = [Limit(ipv4_prefix=prefix), Limit(name="login", window=(prefix + 1) * SECOND)]
        steps: Steps[object] | None = node.limiter.reload(other, lists())
        while steps is not None:
            try:
                next(steps)
            except StopIteration as stop:
                steps = stop.value
            for limit in ("default", "login"):
                assert node.ask("192.0.2.7", limit) == "block"
        assert node.ask("192.0.3.7") == "allow"
        assert node.ask("192.0.2.8") == ("block" if key.endswith("/24") else "allow")
    node.lift(EVERY_LIMIT, key)
    finish(node.limiter.cut())
    assert node.ask("192.0.2.7") == node.ask("192.0.2.7", "login") == "allow"


def test_a_reload_that_fails_changes_nothing() -> None:
    node = Node(Limit())
    node.limiter.engine.reload([Limit()])
    node.by_hand("192.0.2.7")
    node.by_hand("192.0.3.0/24")
    too_many = [Limit(name=f"l{n}", ipv4_prefix=24) for n in range((1 << 16) + 1)]
    before = list(node.limiter.engine.rules)
    with pytest.raises(ValueError, match="too many"):
        finish(node.limiter.reload([Limit(rate=1), *too_many], lists(allow="192.0.2.7")))
    assert node.limiter.engine.rules == before
    assert before[0].limit == Limit() and before[0].rate == Limit().rate
    assert node.ask("192.0.2.7") == node.ask("192.0.3.7") == "block"
    for key in ("192.0.2.7", "192.0.3.0/24"):
        node.lift(EVERY_LIMIT, key)
    assert node.ask("192.0.2.7") == node.ask("192.0.3.7") == "allow"


def test_entries_that_end_together_are_dropped_in_small_steps(work: Work) -> None:
    node = Node(Limit(forget=5))
    finish(node.limiter.load(map(by_hand, networks())))
    automatic = [Block(key, "default", "", 1, NOW, NOW + 1) for key in addresses()]
    finish(node.limiter.load([*map(by_hand, networks()), *automatic]))
    node.limiter.tick(START + 2000 * SECOND)
    done = list(work.of(node.limiter.tidy()))
    assert max(done) <= MOST
    assert sum(done) >= 2 * MANY
    assert len(node.limiter.blocklist) == 0
    assert node.ask("10.1.2.3") == "allow"


def test_a_new_secret_puts_strings_where_they_are_found_in_small_steps(work: Work) -> None:
    node = Node(Limit(name="api", secret=False))
    finish(node.limiter.load(Block(f"key-{n}", "api", "", 1, NOW, NOW + 1000) for n in range(MANY)))
    entries = list(node.limiter.blocklist)
    node.limiter.rekey(bytes(range(16)))
    done = list(work.of(node.limiter.load(entries)))
    assert max(done) <= MOST
    assert sum(done) == MANY
    assert {node.ask(f"key-{n}", "api") for n in range(0, MANY, 100)} == {"block"}


def test_many_networks_are_cut_in_small_steps(work: Work) -> None:
    node = Node()
    for key in networks():
        node.limiter.apply(by_hand(key))
    assert node.limiter.stale
    work.done = 0
    done = list(work.of(node.limiter.cut()))
    assert max(done) <= CUT
    assert sum(done) == MANY
    assert not node.limiter.stale
    assert node.ask("10.1.2.3") == "block"


def test_what_changes_while_networks_are_cut_is_cut_next() -> None:
    node = Node()
    finish(node.limiter.load(map(by_hand, networks())))
    node.limiter.apply(by_hand("172.16.0.0/16"))
    first, second = node.limiter.cut(), node.limiter.cut()
    next(first)
    node.lift(EVERY_LIMIT, "10.0.0.0/24")
    next(second)
    finish(second)
    assert node.ask("10.0.0.1") == "allow"
    finish(first)
    assert node.ask("10.0.0.1") == "allow", "what was begun before knows less"
    assert not node.limiter.stale


def test_to_lift_who_is_not_there_takes_no_ones_place() -> None:
    node = Node(Limit(rate=3, block=()), max_clients=8)
    live = addresses(8)
    for client in live:
        assert node.ask(client, hits=3) == "allow"
    for n in range(200):
        for key in (f"10.0.0.{n}", f"key-{n}"):
            node.lift(EVERY_LIMIT, key)
            node.lift("default", key)
    finish(node.limiter.load([]))
    assert node.limiter.engine.table.evictions == 0
    assert [node.ask(client) for client in live] == ["throttle"] * 8


def test_to_lift_who_was_set_aside_lifts_it() -> None:
    node = Node(Limit(), max_clients=8)
    clients = [*addresses(20), *(f"key-{n}" for n in range(20))]
    for client in clients:
        node.by_hand(client, 1000)
    assert node.limiter.engine.table.orphans
    for block in list(node.limiter.blocklist):
        node.lift(EVERY_LIMIT, block.key)
    assert not node.limiter.engine.table.orphans
    assert {node.ask(client) for client in clients} == {"allow"}
