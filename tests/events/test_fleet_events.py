"""Who tells what: each event once, whichever nodes see it. Time is an argument; so is the fleet."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from ratelimit.events.fleet_events import Alerts
from ratelimit.events.load import Load
from ratelimit.events.webhooks import Receiver, Webhooks
from ratelimit.limiter.limiter import Limiter
from ratelimit.model import Block, Limit
from ratelimit.store import Events, Node, Store, StoreError


@dataclass
class Fleet:
    """What the nodes share; ``up`` names those that reach it."""

    nodes: dict[str, Node] = field(default_factory=dict)
    up: set[str] = field(default_factory=set)
    claims: dict[str, tuple[str, float]] = field(default_factory=dict)
    now: float = 1000.0


class ModelStore(Store):
    """The store of one node of a ``Fleet``."""

    def __init__(self, fleet: Fleet, node: str) -> None:
        self.fleet = fleet
        self.node = node
        super().__init__(Events())

    @property
    def up(self) -> bool:
        return self.node in self.fleet.up

    @up.setter
    def up(self, value: bool) -> None:
        pass

    async def nodes_list(self) -> list[Node]:
        if not self.up:
            raise StoreError("away")
        return [self.fleet.nodes[name] for name in self.fleet.up]

    async def claim(self, name: str, value: str, ttl: float) -> bool:
        if not self.up:
            raise StoreError("away")
        old, end = self.fleet.claims.get(name, ("", 0.0))
        self.fleet.claims[name] = (value, self.fleet.now + ttl)
        return end <= self.fleet.now or old != value

    async def start(self) -> None: ...
    async def close(self) -> None: ...
    def announce(self, node: Node) -> None:
        self.fleet.nodes[self.node] = node

    def _wake(self) -> None: ...


class World:
    """Nodes ``a``, ``b`` and ``c``, each with what it told, and published to its own listeners."""

    def __init__(self, high: int = 0, low: int = 0, servers: int | None = 3) -> None:
        self.fleet = Fleet()
        self.stores: dict[str, ModelStore] = {}
        self.alerts: dict[str, Alerts] = {}
        self.hooks: dict[str, Webhooks] = {}
        self.published: list[tuple[str, str]] = []
        self.rules: dict[str, SimpleNamespace] = {}

        async def up() -> int | None:
            return servers

        for name in "abc":
            self.stores[name] = ModelStore(self.fleet, name)
            self.fleet.nodes[name] = Node(name, "1", 0)
            self.fleet.up.add(name)
            self.hooks[name] = Webhooks([Receiver("https://h/")], name)
            rule = SimpleNamespace(limit=SimpleNamespace(name="default"), fused=False)
            self.rules[name] = rule
            limiter: Any = SimpleNamespace(engine=SimpleNamespace(rules=[rule]))
            self.alerts[name] = Alerts(
                limiter, self.stores[name], name, self.hooks[name], Load(high, low, 2),
                up, publish=lambda event, name=name, **_: self.published.append((name, event)),
            )  # fmt: skip

    def pass_(self, seconds: int = 1, only: str = "abc") -> None:
        async def look() -> None:
            for _ in range(seconds):
                self.fleet.now += 1
                for name in only:
                    await self.alerts[name].look(self.fleet.now)

        asyncio.run(look())

    def rate(self, **allowed: float) -> None:
        for name, rate in allowed.items():
            self.fleet.nodes[name] = Node(name, "1", 0, 2 * rate, rate)

    def told(self) -> list[tuple[str, str, Any]]:
        """Return what was told since the last call: by whom, what, with which data."""
        found = []
        for name, hooks in self.hooks.items():
            queue = hooks.hooks[0]._queue
            found += [(name, event.name, event.data) for event in queue]
            queue.clear()
        return found


def test_a_quiet_fleet_tells_nothing() -> None:
    world = World(high=100, low=50)
    world.pass_(60)
    assert world.told() == []


def test_a_block_is_told_by_the_node_that_made_it_a_lift_by_the_one_that_was_asked() -> None:
    world = World()
    block = asdict(Block("192.0.2.1", "default", "over 100 in 1s", 1, 5, 15, node="b"))
    lift = {"key": "192.0.2.1", "limit": "default", "by": "ann", "node": "c"}
    for alerts in world.alerts.values():  # each hears of what the others do
        alerts.hear("block", block)
        alerts.hear("unblock", lift)
        alerts.hear("block", block | {"node": "", "key": "192.0.2.2"})
        alerts.hear("block", block | {"shadow": True})
        alerts.hear("reload", {"ok": True})
    assert world.told() == [("b", "block", block), ("c", "unblock", lift)]


def test_a_store_lost_to_all_is_told_by_one_and_so_is_its_coming_back() -> None:
    world = World()
    world.pass_(2)
    world.fleet.up.clear()
    for store in world.stores.values():
        store.problem = "no route to host"
    world.pass_(5)
    assert world.told() == [("a", "store.lost", {"why": "no route to host"})]
    world.fleet.up.update("cba")
    world.pass_(3, only="cba")
    assert world.told() == [("c", "store.back", {"lost_at": 1003.0, "seconds": 5.0})]
    world.pass_(30)
    assert world.told() == []


def test_the_lowest_of_those_known_last_tells_even_if_the_first_has_left() -> None:
    world = World()
    world.fleet.up.discard("a")  # it has stopped, and is looked at no more
    world.pass_(2, only="bc")
    world.fleet.up.clear()
    world.pass_(2, only="bc")
    assert [(who, what) for who, what, _ in world.told()] == [("b", "store.lost")]


def test_a_node_that_was_cut_off_alone_tells_it_when_it_is_back() -> None:
    world = World()
    world.pass_(2)
    world.fleet.up.discard("c")
    world.pass_(7)
    assert world.told() == []
    world.fleet.up.add("c")
    world.pass_(1)
    assert world.told() == [("c", "store.back", {"lost_at": 1003.0, "seconds": 7.0})]


def test_a_fuse_is_told_once_each_way() -> None:
    world = World()
    world.rules["b"].fused = True
    world.pass_(2)
    world.rules["a"].fused = world.rules["c"].fused = True
    world.pass_(2)
    assert world.told() == [("b", "fuse", {"limit": "default", "blown": True})]
    for rule in world.rules.values():
        rule.fused = False
    world.pass_(2)
    assert world.told() == [("a", "fuse", {"limit": "default", "blown": False})]


def test_a_fuse_during_an_outage_is_told_by_the_lowest() -> None:
    world = World()
    world.pass_(1)
    world.fleet.up.clear()
    world.pass_(1)
    world.told()
    for rule in world.rules.values():
        rule.fused = True
    world.pass_(2)
    assert world.told() == [("a", "fuse", {"limit": "default", "blown": True})]


@pytest.mark.parametrize("servers", [3, None])
def test_the_load_is_that_of_the_fleet(servers: int | None) -> None:
    world = World(high=100, low=50, servers=servers)
    world.rate(a=40, b=40, c=20)
    world.pass_(10)
    assert world.told() == []
    world.rate(c=21)
    world.pass_(10)
    assert world.told() == [
        ("a", "load.high", {"allowed_per_second": 101, "threshold": 100, "since": 1011.0,
                            "nodes": 3, "servers_up": servers}),
    ]  # fmt: skip
    world.rate(a=1, b=1, c=1)
    world.pass_(10, only="cba")
    ((who, what, data),) = world.told()
    assert (who, what, data["allowed_per_second"], data["threshold"]) == ("c", "load.low", 3, 50)
    assert sorted(world.published) == sorted(
        (name, event) for name in "abc" for event in ("load.high", "load.low")
    )


def test_a_node_that_starts_late_does_not_tell_the_load_again() -> None:
    world = World(high=100, low=50)
    world.rate(a=200)
    world.pass_(10, only="ab")
    assert [what for _, what, _ in world.told()] == ["load.high"]
    world.pass_(10)
    assert world.told() == []
    world.rate(a=0)
    world.pass_(10)
    assert [what for _, what, _ in world.told()] == ["load.low"]


def test_an_outage_holds_no_load() -> None:
    world = World(high=100)
    world.rate(a=200)
    world.pass_(2)
    world.fleet.up.clear()
    world.pass_(20)
    world.fleet.up.update("abc")
    world.pass_(2)
    assert not {"load.high"} & {what for _, what, _ in world.told()}
    world.pass_(2)
    assert [what for _, what, _ in world.told()] == ["load.high"]


def test_without_webhooks_and_load_nothing_is_asked_of_the_store() -> None:
    class Untouched(ModelStore):
        async def nodes_list(self) -> list[Node]:
            raise AssertionError

    async def main() -> None:
        store = Untouched(Fleet(up={"a"}), "a")
        limiter = Limiter([Limit()], 8)
        alerts = Alerts(limiter, store, "a", Webhooks([], "a"), Load(0, 0, 1), AsyncMock(), print)
        task = asyncio.create_task(alerts.run())
        done, _ = await asyncio.wait([task], timeout=0)
        assert not done
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
