"""What every store has in common."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from ratelimit.model import Block, Entry, Lift
from ratelimit.store import base
from ratelimit.store.base import Events, Node, NoList, Store, StoreError, tell
from tests.store.conftest import block, lift, run


class Queue(Store):
    """A store that writes nothing by itself."""

    async def start(self) -> None:
        self.up = True

    async def close(self) -> None:
        self.up = False

    async def nodes_list(self) -> list[Node]:
        return []

    def announce(self, node: Node) -> None:
        pass


def test_the_owner_learns_a_change_before_it_is_written() -> None:
    heard: list[Entry] = []
    store = Queue(Events(on_block=heard.append, on_lift=heard.append))
    store.problem = "it is away"

    async def main() -> None:
        made, lifted = block("a"), lift("a", after=1)
        saving = store.save(made, timeout=0)
        assert heard == [made] and len(store.outbox) == 1
        with pytest.raises(StoreError, match="it is away"):
            await saving
        with pytest.raises(StoreError, match="it is away"):
            await store.lift(lifted, timeout=0)
        assert heard == [made, lifted]

    run(main)


def test_a_caller_waits_longer_for_a_store_that_is_busy_than_for_one_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "OUTAGE_TIMEOUT", 0.0)
    store = Queue(Events())

    async def main() -> None:
        made = block("a")
        saving = asyncio.create_task(store.save(made))
        await asyncio.sleep(0)
        store.problem = "it is away"
        with pytest.raises(StoreError, match="it is away"):
            await store.save(block("b"))
        assert not saving.done()
        (change, _) = store.outbox.first(2)
        assert change.waiter is not None
        change.waiter.set_result(True)
        assert await saving == made

    run(main)


def test_what_can_never_be_written_is_refused_or_dropped_with_a_line(
    logs: list[dict[str, str]],
) -> None:
    heard: list[Block] = []
    store = Queue(Events(on_block=heard.append))

    async def main() -> None:
        with pytest.raises(StoreError, match="can't be stored"):
            await store.save(block("\ud800"))
        store.put(block("\ud800"))
        store.put(block("a"))

    run(main)
    assert heard == []
    assert len(store.outbox) == 1
    assert [line["event"] for line in logs] == ["an entry can't be stored"]


def test_a_store_of_one_node_claims_all_and_releases_nothing() -> None:
    store = Queue(Events())

    async def main() -> None:
        assert await store.claim("load", "high", 60)
        assert await store.claim("load", "high", 60)
        await store.release(0)
        store.reopen()
        store.adopt()
        store.keep(block("a"))

    run(main)
    assert (store.unsigned, store.clock_offset, len(store.outbox)) == (0, 0, 0)


def test_an_entry_is_told_by_its_kind() -> None:
    blocks: list[Block] = []
    lifts: list[Lift] = []
    events = Events(on_block=blocks.append, on_lift=lifts.append)
    made, lifted = block("a"), lift("b")
    for entry in (made, lifted):
        events.tell(entry)
    assert (blocks, lifts) == ([made], [lifted])


def test_a_long_list_is_written_in_slices_between_which_the_loop_runs() -> None:
    pages = [[block(f"{page}.{n}") for n in range(50)] for page in range(100)]
    written: list[list[Entry]] = []

    def newer() -> Iterator[list[Entry]]:
        yield from (list[Entry](page) for page in pages)
        yield []

    async def write(entries: Sequence[Entry]) -> None:
        written.append([*entries])

    async def main() -> None:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        await tell(newer(), write)
        counting.cancel()
        assert turns >= len(written)

    run(main)
    assert [entry for entries in written for entry in entries] == [
        entry for page in pages for entry in page
    ]
    assert max(map(len, written)) < 1000 + 50
    assert len(written) > 1, "not all at once"


def test_an_owner_without_a_list_has_nothing_to_merge_and_nothing_newer() -> None:
    merging = NoList()
    assert list(merging.take([block("a")])) == []
    assert (list(merging.newer()), list(merging.outdated)) == ([], [])
