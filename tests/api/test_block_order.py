"""Blocks by hand next to a slow or failing store, other nodes and the edges."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ratelimit.model import Block
from ratelimit.steps import finish
from ratelimit.store import StoreError
from ratelimit.store.pending import Outbox
from tests.helpers.running import EDGE, block, lift, listed, running, until

if TYPE_CHECKING:
    from pathlib import Path

    from ratelimit.haproxy.api import Fault, Telling
    from ratelimit.model import Entry
    from ratelimit.store.pending import Change
    from tests.helpers.running import Running
from tests.helpers.blocks import LATER, fields, pages

pytestmark = pytest.mark.integration


def test_the_store_must_confirm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:

            async def fails(*_: object) -> tuple[Entry, bool]:
                raise StoreError("the disk is full")

            monkeypatch.setattr(api.control.store.outbox, "written", fails)
            body = {"key": "192.0.2.7", "ttl": 60}
            answer = await api.client.post("/v1/blocks", json=body)
            assert answer.status_code == 503
            assert answer.json()["detail"] == (
                "blocked on this node only; the other nodes follow when the store is up again: "
                "the disk is full"
            )
            assert await pages(api) == [["192.0.2.7"]]
            answer = await api.client.delete("/v1/blocks/192.0.2.7")
            assert answer.status_code == 503
            assert await pages(api) == [[]]

            api.control.store.outbox = Outbox(size=0)
            answer = await api.client.post("/v1/blocks", json=body)
            problem = "nothing was blocked: too many changes wait for the store"
            assert answer.json()["detail"] == problem
            assert await pages(api) == [[]]

    asyncio.run(main())


def test_a_full_list_refuses_a_block_and_nothing_happens(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            limiter = api.control.limiter
            limiter.blocklist.max_entries = 3
            limiter.apply(block("192.0.2.1", LATER))
            limiter.apply(block("192.0.2.2", LATER))
            made = await api.client.post("/v1/blocks", json={"key": "192.0.2.3", "ttl": 60})
            assert made.status_code == 201
            for key in ("192.0.2.4", "198.51.100.0/24", "a"):
                answer = await api.client.post("/v1/blocks", json={"key": key, "ttl": 60})
                assert (answer.status_code, fields(answer)) == (507, [])
                assert "all 3 entries of the blocklist are active" in answer.json()["detail"]
            # Nor does a block of another node for which there is no room.
            api.events.on_block(Block("192.0.2.5", "*", "", 0, 1, LATER, "ann", "there"))
            assert await pages(api) == [["192.0.2.3", "192.0.2.1", "192.0.2.2"]]
            assert await listed(api.control.store) == ["192.0.2.3"]
            assert {key for key, _ in api.edges.told} <= {"192.0.2.3"}
            assert api.control.bus.published == {"block": 3}
            longer = await api.client.post("/v1/blocks", json={"key": "192.0.2.3", "ttl": 90})
            assert longer.status_code == 201, "it has its place"
            finish(
                limiter.load([lift("default", "192.0.2.2"), block("192.0.2.2", api.seconds() - 1)])
            )
            made = await api.client.post("/v1/blocks", json={"key": "192.0.2.4", "ttl": 60})
            assert made.status_code == 201, "one has ended"

    asyncio.run(main())


class Slow:
    """Has the changes that wait for a store written when a test says so."""

    def __init__(self, api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self._api = api
        self.changes: list[tuple[Block, asyncio.Future[None]]] = []
        monkeypatch.setattr(api.control.store.outbox, "written", self._written)

    async def block(
        self, key: str, ttl: int = 60
    ) -> tuple[Block, asyncio.Future[None], asyncio.Task[tuple[Block, list[Fault]]]]:
        """Block a key; return the block when it waits, what ends that, and what is done then."""
        count = len(self.changes)
        task = asyncio.create_task(self._api.control.block(key, ttl, "", "ann"))
        await until(lambda: len(self.changes) > count)
        return *self.changes[-1], task

    async def _written(self, change: Change, *_: object) -> tuple[Entry, bool]:
        if isinstance(change.entry, Block):
            self.changes.append((change.entry, asyncio.get_running_loop().create_future()))
            await self.changes[-1][1]
        return change.entry, True


def test_a_block_by_hand_is_in_force_while_it_waits_for_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            store = Slow(api, monkeypatch)
            limiter = api.control.limiter
            limiter.blocklist.max_entries = 2
            limiter.apply(block("192.0.2.1", LATER))
            mine, written, task = await store.block("192.0.2.2")
            await until(lambda: api.edges.told)
            assert not limiter.apply(block("192.0.2.3", LATER)), "it has its place"
            api.events.on_block(mine)
            written.set_result(None)
            assert await task == (mine, [])
            assert api.edges.told == [("192.0.2.2", mine.until)], "no store tells it twice"
            assert api.control.bus.published == {"block": 2}
            assert await pages(api) == [["192.0.2.2", "192.0.2.1"]]
            await api.control.unblock("192.0.2.2", "ann")

            # Nor is it taken back if the caller goes away: the store has it soon.
            mine, _, task = await store.block("192.0.2.2")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert mine in list(limiter.blocklist)

    asyncio.run(main())


def test_what_is_newer_than_a_block_that_waits_for_the_store_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            store = Slow(api, monkeypatch)
            held = api.control.limiter.blocklist
            # Another node blocks it after this one, or lifts it.
            mine, written, task = await store.block("192.0.2.7")
            theirs = replace(mine, until=LATER, node="there", order=mine.order + 1)
            api.events.on_block(mine)
            api.events.on_block(theirs)
            written.set_result(None)
            await task
            assert list(held) == [theirs]
            mine, written, task = await store.block("192.0.2.7")
            api.events.on_block(mine)
            api.events.on_lift(lift("*", "192.0.2.7"))
            written.set_result(None)
            await task
            assert list(held) == []
            # An operator of this node unblocks the client as well.
            _, written, task = await store.block("192.0.2.7")
            await api.control.unblock("192.0.2.7", "ann")
            written.set_result(None)
            await task
            assert list(held) == []
            _, first, before = await store.block("192.0.2.7")
            newer, second, task = await store.block("192.0.2.7", 90)
            second.set_result(None)
            await task
            first.set_result(None)
            await before
            assert list(held) == [newer]
            # What is older than the block does not count.
            api.events.on_lift(lift("*", "192.0.2.7"))
            mine, written, task = await store.block("192.0.2.7")
            api.events.on_block(theirs)
            written.set_result(None)
            await task
            assert list(held) == [mine]

    asyncio.run(main())


def test_what_other_nodes_do_reaches_the_edges_here(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            mine = Block("192.0.2.1", "*", "", 0, 1, LATER, "ann", "there")
            api.events.on_block(mine)
            api.events.on_block(mine)
            api.events.on_block(block("192.0.2.2", LATER))
            api.events.on_block(block("192.0.2.3", LATER))
            await until(lambda: api.edges.told == [("192.0.2.1", LATER)])
            api.events.on_lift(lift("default", "192.0.2.2"))
            await until(lambda: api.edges.told[1:] == [("192.0.2.2", 0)])
            # A gap in which one was lifted.
            finish(api.events.merge().take([mine, lift("default", "192.0.2.3")]))
            await until(lambda: api.edges.told[2:] == [("192.0.2.3", 0)])
            assert await pages(api) == [["192.0.2.1"]]

    asyncio.run(main())


def test_an_edge_that_fails_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            api.edges.fails = True
            failed = {"socket": EDGE, "ok": False}
            failed["problem"] = "it does not answer; it is updated as soon as it answers"
            made = await api.client.post("/v1/blocks", json={"key": "192.0.2.1", "ttl": 60})
            assert (made.status_code, made.json()["edges"]) == (201, [failed])
            lifted = await api.client.delete("/v1/blocks/192.0.2.1")
            assert (lifted.status_code, lifted.json()) == (200, {"edges": [failed]})
            assert await pages(api) == [[]]
            state = (await api.client.get("/v1/status")).json()
            assert state["edges"] == {"faults": api.edges.failed, "dropped": 0, "corrected": 0}
            assert api.edges.failed >= 2

    asyncio.run(main())


def test_edges_are_told_what_holds_whatever_came_in_which_order(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "[lists]\nallow = ['192.0.2.3']\n") as api:
            api.events.on_block(replace(block("192.0.2.1", LATER, "*"), by="ann"))
            api.events.on_block(replace(block("192.0.2.2", LATER, "*"), by="ann"))
            api.events.on_lift(lift("*", "192.0.2.2"))
            order = lift("*", "192.0.2.2").order + 1
            api.events.on_block(replace(block("192.0.2.2", LATER, "*"), order=order))
            api.events.on_block(replace(block("192.0.2.3", LATER, "*"), by="ann"))
            await until(lambda: len(api.edges.told) == 3)
            assert dict(api.edges.told) == {
                "192.0.2.1": LATER,
                "192.0.2.2": LATER,
                "192.0.2.3": 0,  # it is never refused
            }

    asyncio.run(main())


def test_a_network_is_lifted_before_an_edge_hears_of_it(tmp_path: Path) -> None:
    """Or the agent's answers would have HAProxy remember it again."""

    async def main() -> None:
        async with running(tmp_path, clients=8000) as api:
            limiter = api.control.limiter
            for n in range(300):
                limiter.apply(block(f"10.{n >> 8}.{n & 255}.0/24", LATER, "*"))
            await api.control.edges.told()
            assert not limiter.stale
            stale: list[bool] = []
            real = api.edges.lift

            def note(key: str, by_hand: int = 0) -> Telling:
                stale.append(limiter.stale)
                return real(key, by_hand)

            api.edges.lift = note  # type: ignore[method-assign]
            assert (await api.client.delete("/v1/blocks/10.0.7.0%2F24")).status_code == 204
            api.events.on_lift(lift("*", "10.0.8.0/24"))
            await until(lambda: len(stale) == 2)
            assert stale == [False, False]

    asyncio.run(main())
