"""A store that goes back in time: what it has lost is written back, and nothing lifted returns."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from ratelimit.exceptions import StartError
from ratelimit.model import Lift
from ratelimit.store import StoreError, journal
from ratelimit.store.pending import Change
from tests.helpers.running import journalled
from tests.helpers.servers import Server, until
from tests.store.conftest import (
    BLOCKS,
    LIFTS,
    at_both,
    block,
    by_hand,
    lift,
    listed,
    make_node,
    nodes,
    run,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


pytestmark = pytest.mark.integration

TOLD = "the store lacked blocks or lifts; they were written back"


def snapshot(server: Server) -> Path:
    """Have the server save, and return a copy of that."""
    shutil.copy(server.save(), copy := server.folder / "copy.rdb")
    return copy


async def rewind(server: Server, copy: Path) -> None:
    """Kill the server and start it from an older snapshot."""
    server.kill()
    shutil.copy(copy, server.folder / f"{server.port}.rdb")
    await asyncio.to_thread(server.start)


def test_what_a_restored_store_has_lost_is_written_back(server: Server, logs: list[Any]) -> None:
    async def main() -> None:
        async with nodes(server.url, 2) as fleet:
            (first, _), (second, two) = fleet
            for key in ("stays", "lifted later"):
                await first.save(by_hand(key))
            first.put(block("strikes", 2))
            await at_both(fleet, {"stays", "lifted later", "strikes"})
            copy = snapshot(server)
            await first.save(by_hand("new"))
            await second.lift(two.lift("*", "lifted later"))
            first.put(block("strikes", 3, since=100))
            first.put(block("another"))
            await at_both(fleet, {"stays", "new", "strikes", "another"})
            await rewind(server, copy)
            await until(lambda: first.up and second.up and first.outages and second.outages)
            await at_both(fleet, {"stays", "new", "strikes", "another"})
            held = {entry.key: entry for entry in await listed(first)}
            assert held.keys() == {"stays", "new", "strikes", "another"}
            assert held["strikes"].strikes == 3
            async with nodes(server.url) as [(_, late)]:
                assert late.clients() == held.keys()

    run(main)
    assert TOLD in [line["event"] for line in logs]


def test_a_list_that_is_rewound_under_a_connection_is_written_back(
    server: Server, logs: list[Any]
) -> None:
    async def main() -> None:
        async with nodes(server.url, 2) as fleet:
            (first, _), (second, two) = fleet
            await first.save(by_hand("old"))
            await at_both(fleet, {"old"})
            # Restored by a tool, without a restart.
            kept = {key: server.do("DUMP", key) for key in (BLOCKS, LIFTS)}
            await first.save(by_hand("new"))
            await second.lift(two.lift("*", "old"))
            await at_both(fleet, {"new"})
            for key, dump in kept.items():
                assert isinstance(dump, bytes)
                server.do("RESTORE", key, 0, dump, "REPLACE")
            await until(lambda: server.do("HKEYS", BLOCKS) != [b"", b"*|old"])
            await until(lambda: b"*|old" not in str(server.do("HKEYS", BLOCKS)).encode())
            assert [entry.key for entry in await listed(first)] == ["new"]
            await at_both(fleet, {"new"})
            assert first.outages == second.outages == 0

    run(main)
    assert any(line["event"].startswith("the store has lost data") for line in logs)


def test_news_that_overtake_the_answer_to_a_heartbeat_are_no_loss(
    server: Server, logs: list[Any]
) -> None:
    async def main() -> None:
        async with nodes(server.url, 2) as [(first, one), (second, _)]:
            heartbeat, calls = first._members.heartbeat, 0

            async def late(*args: Any) -> tuple[bytes, int]:
                nonlocal calls
                answer = await heartbeat(*args)
                await second.save(block(f"k{calls}"))
                await until(lambda: f"k{calls}" in one.clients())
                calls += 1
                return answer

            first._members.heartbeat = late  # type: ignore[assignment]
            loads = one.loads
            await until(lambda: calls == 3)
            assert one.loads == loads, "the list is not read again"

    run(main)
    assert not any(line["event"].startswith("the store has lost data") for line in logs)


def test_a_node_that_was_cut_off_revives_nothing_though_the_store_was_emptied(
    server: Server,
) -> None:
    async def main() -> None:
        async with nodes(server.url, 2) as fleet:
            (first, one), (second, _) = fleet
            await first.save(by_hand("lifted", length=86_400))
            await at_both(fleet, {"lifted"})
            # The second hears nothing from here on, and comes back after all of it.
            pause = asyncio.Event()
            begin = second._begin

            async def late() -> Any:
                await pause.wait()
                return await begin()

            second._begin = late  # type: ignore[method-assign]
            assert second._life is not None
            second._life.fail("cut off")
            await first.lift(one.lift("*", "lifted"))
            server.do("FLUSHALL")
            await until(lambda: server.do("HLEN", LIFTS) == 3)
            pause.set()
            await until(lambda: second.up)
            await at_both(fleet, set())
            assert await listed(first) == []

    run(main)


def test_all_nodes_write_back_at_once(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url, 4) as fleet:
            stores = [store for store, _ in fleet]
            for number in range(1500):
                stores[number % 4].put(block(f"k{number}"))
            clients = {f"k{number}" for number in range(1500)}
            await at_both(fleet, clients)
            for number in range(0, 1500, 3):
                stores[number % 4].put(fleet[number % 4][1].lift("default", f"k{number}"))
                clients.remove(f"k{number}")
            await at_both(fleet, clients)
            for _ in range(3):
                server.do("FLUSHALL")
                await until(lambda: server.do("HLEN", BLOCKS) == len(clients) + 1)
                await until(lambda: server.do("HLEN", LIFTS) == 502)
            await at_both(fleet, clients)

    run(main)


def test_a_node_that_is_restarted_writes_back_what_its_journal_has(
    server: Server, tmp_path: Path, logs: list[Any]
) -> None:
    async def main() -> None:
        async with nodes(server.url, state=tmp_path) as [(store, seen)]:
            assert store.journal.endswith(".sqlite3") and not store.journal_problem
            await store.save(by_hand("old"))
            copy = snapshot(server)
            seen.list.apply(await store.save(by_hand("new")))
            await store.lift(seen.lift("*", "old"))
            # As a kill would leave it.
            for file in tmp_path.iterdir():
                shutil.copy(file, server.folder / file.name)
            names = [file.name for file in tmp_path.iterdir()]
        for name in names:
            shutil.copy(server.folder / name, tmp_path / name)
        await rewind(server, copy)
        async with nodes(server.url, state=tmp_path) as [(store, seen)]:
            assert seen.clients() == {"new"}
            assert [entry.key for entry in await listed(store)] == ["new"]
        async with nodes(server.url) as [(_, seen)]:
            assert seen.clients() == {"new"}

    run(main)


def test_blocks_of_the_journal_hold_without_the_store(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = make_server()

    async def main() -> None:
        async with nodes(server.url, state=tmp_path) as [(store, _)]:
            await store.save(by_hand("a"))
            await store.lift(lift("b"))
        server.kill()
        async with nodes(server.url, state=tmp_path) as [(store, seen)]:
            assert not store.up
            assert seen.clients() == {"a"}
            assert seen.list.blocklist.lifts.get("default", "b")
            assert store.kept.secret == b""
            with pytest.raises(StoreError):
                await store.save(by_hand("c"), timeout=0.1)
            seen.list.apply(by_hand("c"))
        async with nodes(server.url, state=tmp_path) as [(_, seen)]:
            assert seen.clients() == {"a", "c"}, "it was in force, and still is"

    run(main)


def test_what_other_nodes_do_is_in_the_journal(server: Server, tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(server.url, 2, state=tmp_path) as fleet:
            (first, _), (second, two) = fleet
            await first.save(by_hand("a"))
            first.put(block("strikes"))
            await first.save(by_hand("b"))
            await at_both(fleet, {"a", "b", "strikes"})
            await first.lift(lift("a", "*", after=1))
            await until(lambda: two.clients() == {"b", "strikes"})
            assert second._journal is not None
            await until(lambda: not len(second._journal.outbox))  # type: ignore[union-attr]
            pages = await journalled(second._journal)
            kept = {(type(entry), entry.key) for page in pages for entry in page}
            assert {key for _, key in kept} == {"a", "b", "strikes"}
            assert (Lift, "a") in kept

    run(main)


def test_a_block_is_acknowledged_when_store_and_journal_have_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: list[Any]
) -> None:
    hangs = threading.Event()

    async def main() -> None:
        async with nodes(server.url, state=tmp_path) as [(store, _)]:
            assert store._journal is not None
            file = store._journal._file
            write = file.write

            def fail(entries: Any) -> Any:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(file, "write", fail)
            store.put(block("a"))
            await until(lambda: store.journal_problem)
            assert store.up and "No space left" in store.journal_problem
            # It is known, and the store alone decides.
            await store.save(by_hand("b"))
            assert await store.lift(lift("b", "*", after=1))
            monkeypatch.setattr(file, "write", write)
            await until(lambda: not store.journal_problem)
            await store.save(by_hand("c"))

            def hang(entries: Any) -> Any:
                hangs.wait(30)
                return write(entries)

            monkeypatch.setattr(file, "write", hang)
            with pytest.raises(
                StoreError, match=r"journal was not written in time|does not answer"
            ):
                await store.save(by_hand("d"), timeout=0.2)
            hangs.set()
            await store.save(by_hand("e"))
        async with nodes(server.url, state=tmp_path) as [(_, seen)]:
            assert seen.clients() == {"a", "c", "d", "e"}

    run(main)
    events = [line["event"] for line in logs]
    assert events.count("journal lost; only the store keeps blocks") == 1
    assert events.count("journal back") == 1


def test_a_folder_that_can_not_be_used(server: Server, tmp_path: Path, logs: list[Any]) -> None:
    (tmp_path / "file").touch()

    async def main() -> None:
        with pytest.raises(StartError, match=r"store\.state_dir: can't write to"):
            await make_node(server.url, state=tmp_path / "file", journal_needed=True)[0].start()
        async with nodes(server.url, state=tmp_path / "file") as [(store, _)]:
            assert store.up and not store.journal
            assert "can't write to" in store.journal_problem
            await store.save(by_hand("a"))
            await store.lift(lift("a", "*", after=1))

    run(main)
    assert "no journal; only the store keeps blocks" in [line["event"] for line in logs]


def test_a_disk_that_hangs_holds_up_neither_start_nor_end(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "START_HANG", 0.05)
    monkeypatch.setattr(journal, "_CLOSE_TIMEOUT", 0.1)

    async def main() -> None:
        store, _ = make_node(server.url, state=tmp_path)
        assert store._journal is not None
        monkeypatch.setattr(store._journal._file, "open", lambda: time.sleep(30))
        began = time.monotonic()
        await store.start()
        await store.save(by_hand("a"))
        assert store.up and "no answer from the disk" in store.journal_problem
        await store.close()
        assert time.monotonic() - began < 20

    run(main)


def test_a_person_follows_what_is_there_whatever_the_clocks_say(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url, 2) as [(first, one), (second, two)]:
            # The clock of the first is ahead, and the second has not heard yet.
            await first.save(by_hand("a", order=block("x").order + 10**9))
            assert await second.lift(lift("a", "*"))
            await until(lambda: not one.clients() and not two.clients())
            made = await second.save(by_hand("a"))
            await until(lambda: one.clients() == two.clients() == {"a"})
            assert one.blocks["*", "a"] == two.blocks["*", "a"] == made
            # What was to be sent long ago does not follow.
            change = Change(lift("a", "*", after=-60))
            change.asked -= 60
            second.outbox.add(change)
            await until(lambda: not len(second.outbox))
            assert await listed(first) == [made]

    run(main)


def test_blocks_of_a_wrong_clock_are_corrected_at_the_first_contact(
    make_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(start=False)
    real = time.time_ns

    async def main(ahead: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(
                "ratelimit.store.redis.store.time.time_ns", lambda: real() + ahead * 10**9
            )
            async with nodes(server.url) as [(store, seen)]:
                entry = block("a", since=ahead, length=600)
                seen.list.apply(entry)
                store.put(entry)
                await asyncio.to_thread(server.start)
                await until(lambda: store.up and not len(store.outbox))
                (held,) = await listed(store)
                assert abs(held.until - (time.time() + 600)) < 10
                assert seen.blocks["default", "a"] == held
            server.kill()

    for ahead in (86_400, -86_400):

        async def test(ahead: int = ahead) -> None:
            await main(ahead)

        run(test)
