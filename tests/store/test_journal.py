"""The thread that writes the file: a full disk, a disk that hangs, a wrong clock, a release."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ratelimit.exceptions import StartError, StoreError
from ratelimit.model import Entry
from ratelimit.store import MemoryStore, Node, journal
from ratelimit.store.embedded import FILE
from ratelimit.store.pending import Change
from ratelimit.store.sqlite import BlockFile, LockedError
from tests.helpers.servers import until
from tests.store.conftest import Seen, block, lift, listed, opened, run


def clients(folder: Path) -> list[str]:
    """Return the keys of all rows."""
    with contextlib.closing(sqlite3.connect(folder / FILE)) as file:
        return sorted(client for (client,) in file.execute("SELECT client FROM blocks"))


def test_forgotten_entries_are_deleted_by_a_clock_that_has_run_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_PURGE", 0)

    async def main() -> None:
        async with opened(tmp_path) as (store, _):
            await store.save(block("long", since=-150, length=200))
            await store.save(block("gone", since=-110, length=10))
            await store.save(block("kept", since=-100, length=10))
            assert {entry.key for entry in await listed(store)} == {"long", "kept"}
        async with opened(tmp_path) as (_, seen):
            assert seen.clients() == {"long", "kept"}

    run(main)
    assert clients(tmp_path) == ["gone", "kept", "long"]
    monkeypatch.setattr(journal, "SETTLED", 0)
    run(main)
    assert clients(tmp_path) == ["kept", "long"]


def test_a_clock_that_is_ahead_at_the_start_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_PURGE", 0)
    ahead = 10 * 365 * 86_400.0

    async def main() -> None:
        async with opened(tmp_path) as (store, _):
            await store.save(block("by hand", limit="*", length=86_400, by="ann"))
            await store.lift(lift("lifted"))
        with monkeypatch.context() as patch:
            seen = Seen()
            store = MemoryStore(str(tmp_path), seen.events)
            patch.setattr(store._journal, "_now", lambda: time.time() + ahead)
            await store.start()
            assert not seen.blocks, "by that clock it has ended"
            await store.save(block("now"))
            patch.setattr(store._journal, "_now", time.time)
            # By the right one it has not.
            await until(lambda: seen.clients() == {"by hand", "now"})
            await store.close()
        async with opened(tmp_path) as (_, seen):
            assert seen.clients() == {"by hand", "now"}
            assert len(seen.list.blocklist.lifts) == 1

    run(main)


def test_a_full_disk_is_an_outage(tmp_path: Path, logs: list[Any]) -> None:
    async def main() -> None:
        async with opened(tmp_path) as (store, seen):
            file = store._journal._file._file
            assert file is not None
            pages = file.execute("PRAGMA page_count").fetchone()[0]
            file.execute(f"PRAGMA max_page_count = {pages}")
            for number in range(200):
                store.put(block(str(number)))
            with pytest.raises(StoreError):
                await store.save(block("one more"), timeout=0.2)
            assert not store.up and FILE in store.problem
            store.put(block("late"))
            file.execute("PRAGMA max_page_count = 100000")
            await until(lambda: store.up and not len(store.outbox))
            assert "late" in {entry.key for entry in await listed(store)}
            assert seen.states == ["lost", "back"]

    run(main)
    assert [line["event"] for line in logs] == ["store lost", "store back"]


def test_a_flood_is_written_in_few_transactions(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as (store, _):
            began = time.monotonic()
            for number in range(20_000):
                store.put(block(str(number)))
            await until(lambda: not len(store.outbox))
            assert time.monotonic() - began < 60
            store.announce(Node("me", "1", 1))
            assert (await store.nodes_list())[0].id == "me"

    run(main)


@pytest.mark.parametrize("compared", [False, True], ids=["queued", "compared"])
def test_a_block_by_hand_does_not_wait_for_a_whole_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared: bool
) -> None:
    written: list[str] = []
    true = BlockFile.write

    def write(file: BlockFile, entries: Sequence[Entry]) -> list[bool | Exception]:
        written.extend(entry.key for entry in entries)
        return true(file, entries)

    monkeypatch.setattr(BlockFile, "write", write)

    async def main() -> None:
        async with opened(tmp_path) as (store, seen):
            for number in range(20_000):
                entry = block(str(number))
                if compared:
                    seen.list.apply(entry)
                else:
                    store.put(entry)
            store.outbox.overflowed = compared
            store.outbox.woken.set()
            await until(lambda: bool(written))
            await store.save(block("by hand"))
            assert len(written) < 20_000
            await until(lambda: len(written) > 20_000)
            await store.save(block("the last"))

    run(main)
    assert len(clients(tmp_path)) == 20_002


def test_an_entry_that_can_not_be_kept_does_not_hold_up_the_others(
    tmp_path: Path, logs: list[Any]
) -> None:
    async def main() -> None:
        async with opened(tmp_path) as (store, seen):
            for bad in (
                block("\ud800"),
                replace(block("a"), reason="\udfff"),
                replace(block("b"), since=1 << 70),
            ):
                store.put(bad)
                with pytest.raises(StoreError, match="can't be stored"):
                    await store.save(bad)
                store.outbox.add(Change(bad))
            await store.save(block("good"))
            assert store.up and not len(store.outbox) and not seen.states
        async with opened(tmp_path) as (_, seen):
            assert seen.clients() == {"good"}

    run(main)
    assert [line["event"] for line in logs] == ["an entry can't be stored"] * 6


def test_the_writer_survives_any_exception(
    tmp_path: Path, logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with opened(tmp_path) as (store, seen):
            write = store._journal._file.write
            for error in (RuntimeError("odd"), MemoryError(), OSError(5, "Input/output error")):

                def fail(entries: object, error: Exception = error) -> list[bool]:
                    raise error

                monkeypatch.setattr(store._journal._file, "write", fail)
                with pytest.raises(StoreError, match=r"odd|MemoryError|Input/output"):
                    await store.save(block("a"), timeout=0.1)
                assert not store.up and store.problem
                monkeypatch.setattr(store._journal._file, "write", write)
                await until(lambda: store.up and not len(store.outbox))
            assert seen.states == ["lost", "back"] * 3

    run(main)
    assert [line["event"] for line in logs].count("store back") == 3


def test_a_disk_that_hangs_is_an_outage_and_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: list[Any]
) -> None:
    monkeypatch.setattr(journal, "_CLOSE_TIMEOUT", 0.1)
    hangs = threading.Event()

    async def main() -> None:
        async with opened(tmp_path) as (store, seen):
            monkeypatch.setattr(journal, "HANG", 0.05)
            write = store._journal._file.write

            def hang(entries: Any) -> Any:
                hangs.wait(30)
                return write(entries)

            monkeypatch.setattr(store._journal._file, "write", hang)
            with pytest.raises(StoreError, match="does not answer"):
                await store.save(block("a"), timeout=1)
            assert not store.up and "the disk does not answer" in store.problem
            assert seen.states[0] == "lost"
            hangs.set()
            await until(lambda: store.up and not len(store.outbox))
            hangs.clear()
            store.put(block("b"))
            await until(lambda: not store.up)
            began = time.monotonic()
            await store.close()
            assert time.monotonic() - began < 5
        hangs.set()

    run(main)
    assert "blocks were lost because the disk is too slow" in [line["event"] for line in logs]


def test_a_disk_that_hangs_at_the_start_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "START_HANG", 0.05)
    monkeypatch.setattr(journal, "_CLOSE_TIMEOUT", 0.1)
    hangs = threading.Event()

    async def main() -> None:
        store = MemoryStore(str(tmp_path))
        monkeypatch.setattr(store._journal._file, "open", lambda: hangs.wait(30))
        with pytest.raises(StartError, match="no answer from the disk"):
            await store.start()
        hangs.set()

    run(main)


def test_a_disk_that_is_busy_at_the_start_has_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        store = MemoryStore(str(tmp_path))
        with monkeypatch.context() as patch:
            patch.setattr(journal, "HANG", 0.0)  # no operation is that fast
            await store.start()
        assert store.up
        await store.close()

    run(main)


HUNG = """
import asyncio, sys, time
from ratelimit.store import MemoryStore, journal
async def main():
    store = MemoryStore(sys.argv[1])
    await store.start()
    journal.HANG = journal._CLOSE_TIMEOUT = 0.1
    store._journal._file.write = lambda entries: time.sleep(3600)
    from tests.store.conftest import block
    store.put(block("a"))
    while store.up:
        await asyncio.sleep(0.01)
    await store.close()
asyncio.run(main())
"""


def test_a_disk_that_hangs_does_not_keep_the_process(tmp_path: Path) -> None:
    child = subprocess.run([sys.executable, "-c", HUNG, str(tmp_path)], timeout=60, check=False)
    assert child.returncode == 0


def test_another_one_opens_the_file_and_what_comes_meanwhile_is_not_lost(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as (first, of_first):
            await first.save(block("a"))
            first.put(block("b"))
            await first.release(5)
            assert first.up, "it is no outage"
            async with opened(tmp_path) as (second, of_second):
                assert of_second.clients() == {"a", "b"}
                first.put(block("c"))
                of_first.list.apply(block("c"))
                with pytest.raises(StoreError):
                    await first.save(block("d"), timeout=0.05)
                of_first.list.apply(block("d"))
                await second.save(block("e"))
                assert await second.lift(lift("a"))
                first.reopen()
                await until(lambda: not first.up)
                assert "used by another process" in first.problem
            await until(lambda: first.up and not len(first.outbox))
            assert of_first.clients() == {"b", "c", "d", "e"}, "what the other one has done, too"
            await first.save(block("f"))
        async with opened(tmp_path) as (_, after):
            assert after.clients() == {"b", "c", "d", "e", "f"}

    run(main)


def test_what_waits_when_it_closes_is_for_the_other_one(tmp_path: Path, logs: list[Any]) -> None:
    async def main() -> None:
        async with opened(tmp_path) as (store, _):
            await store.release(5)
            store.put(block("a"))
            store.put(block("b"))
            store.outbox.add(Change(lift("a")))
        assert [entry.key for entry in store.outbox.entries()] == ["b", "a"]
        async with opened(tmp_path) as (_, seen):
            assert not seen.clients()

    run(main)
    assert not [line for line in logs if line["log_level"] == "warning"]


def test_a_disk_that_hangs_keeps_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "HANG", 0.05)
    goes_on = threading.Event()

    async def main() -> None:
        async with opened(tmp_path) as (store, _):
            write = store._journal._file.write

            def hang(entries: Any) -> Any:
                goes_on.wait(30)
                return write(entries)

            monkeypatch.setattr(store._journal._file, "write", hang)
            store.put(block("a"))
            with pytest.raises(StoreError, match="does not answer"):
                await store.release(0.2)
            store.reopen()
            other = MemoryStore(str(tmp_path))
            with pytest.raises(LockedError):
                await other.start()
            goes_on.set()
            await until(lambda: store.up)
            await store.save(block("b"))
        async with opened(tmp_path) as (_, seen):
            assert seen.clients() == {"a", "b"}

    run(main)
