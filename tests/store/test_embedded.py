"""The embedded store, in real files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from ratelimit.exceptions import StartError
from ratelimit.store import MemoryStore, Node, StoreError, journal
from ratelimit.store.embedded import FILE
from ratelimit.store.pending import Change
from ratelimit.store.sqlite import SCHEMA, state_folder
from tests.helpers.servers import until
from tests.store.conftest import Seen, block, lift, listed, run


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[MemoryStore, Seen]]:
    seen = Seen()
    store = MemoryStore(str(folder), seen.events)
    await store.start()
    try:
        yield store, seen
    finally:
        await store.close()


def test_blocks_outlive_the_process(tmp_path: Path) -> None:
    async def main() -> None:
        first, second = block("192.0.2.1"), block("ключ\x00", 3, by="you", node="n")
        async with opened(tmp_path / "deep" / "er") as (store, seen):
            assert store.up and seen.loads and not seen.blocks
            await store.save(first)
            await store.save(block("192.0.2.2"))
            await store.save(second)
            assert await store.lift(lift("192.0.2.2"))
            assert not await store.lift(lift("192.0.2.2"))
            store.put(block("192.0.2.3"))
        async with opened(tmp_path / "deep" / "er") as (store, seen):
            assert seen.blocks["default", "192.0.2.3"]
            assert set(seen.blocks.values()) >= {first, second} and len(seen.blocks) == 3
            assert store.nodes == len(await store.nodes_list()) == 1
            assert store.clock_offset == 0

    run(main)
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == [FILE]
    assert (tmp_path / "deep" / "er" / FILE).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "deep" / "er").stat().st_mode & 0o777 == 0o700


def test_the_owner_is_told_what_a_person_has_made(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as (store, seen):
            saved = store.save(block("a"))
            assert seen.clients() == {"a"}, "before the store has it"
            await saved
            assert await store.lift(lift("a", after=1))
            assert seen.clients() == set()

    run(main)


CHILD = """
import sys, time
from ratelimit.model import Block
from ratelimit.store import MemoryStore
import asyncio
async def main():
    store = MemoryStore(sys.argv[1])
    await store.start()
    number = 0
    while True:
        now = int(time.time())
        await store.save(Block(str(number), "default", "", 1, now, now + 60))
        print(number, flush=True)
        number += 1
asyncio.run(main())
"""


def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        with child.stdout:
            for _ in range(50):
                child.stdout.readline()
            child.send_signal(signal.SIGKILL)
            last = 49 + len(child.stdout.readlines())
            child.wait()

        async def main(last: int = last) -> None:
            async with opened(tmp_path) as (_, seen):
                assert {str(number) for number in range(last + 1)} <= seen.clients()

        run(main)


def test_what_is_blocked_before_the_file_is_open_stays(tmp_path: Path) -> None:
    async def main() -> None:
        old, new, lifted = block("192.0.2.1"), block("192.0.2.1", 2), block("192.0.2.2")
        async with opened(tmp_path) as (store, _):
            await store.save(old)
            await store.save(lifted)
        seen = Seen()
        store = MemoryStore(str(tmp_path), seen.events)
        for entry in (new, block("192.0.2.3")):
            seen.list.apply(entry)
            store.put(entry)
        with pytest.raises(StoreError):
            await store.lift(seen.lift("default", "192.0.2.2"), timeout=0)
        await store.start()
        assert seen.clients() == {"192.0.2.1", "192.0.2.3"}
        assert seen.blocks["default", "192.0.2.1"] == new
        await store.close()
        async with opened(tmp_path) as (_, again):
            assert again.blocks == seen.blocks

    run(main)


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


def test_two_processes_do_not_share_a_file(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path):
            with pytest.raises(StartError, match=r"blocklist\.sqlite3: used by another process"):
                await MemoryStore(str(tmp_path)).start()
        async with opened(tmp_path):
            pass

    run(main)


def overwrite(path: Path) -> None:
    path.write_bytes(b"not a database, but quite long" * 100)


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4000)


def later(path: Path) -> None:
    with sqlite3.connect(path) as file:
        file.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    file.close()


def other(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE somebodys (a)")
    file.close()


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (overwrite, "damaged"),
        (damage, "damaged"),
        (later, "later version"),
        (other, "not a blocklist of ratelimit"),
    ],
)
def test_a_file_that_can_not_be_used_is_left_as_it_is(
    tmp_path: Path, spoil: Any, problem: str
) -> None:
    async def main() -> None:
        async with opened(tmp_path) as (store, _):
            for number in range(200):
                store.put(block(str(number)))
        spoil(tmp_path / FILE)
        before = (tmp_path / FILE).read_bytes()
        for _ in range(2):
            with pytest.raises(StartError, match=problem) as caught:
                await MemoryStore(str(tmp_path)).start()
            assert str(tmp_path / FILE) in str(caught.value)
        assert (tmp_path / FILE).read_bytes() == before

    run(main)


def test_an_empty_file_is_a_new_one(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()

    async def main() -> None:
        async with opened(tmp_path) as (store, _):
            await store.save(block("a"))

    run(main)


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full" / FILE).mkdir(parents=True)

    async def main() -> None:
        for folder in (tmp_path / "file", tmp_path / "full", Path("/proc/none")):
            with pytest.raises(StartError, match=r"store\.state_dir: can't write to"):
                await MemoryStore(str(folder)).start()

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


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert state_folder("") == Path(platformdirs.user_state_dir("ratelimit", False))
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/one:{tmp_path}/two")
    assert state_folder("") == tmp_path / "one"
    assert state_folder("/x") == Path("/x")


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


def test_damaged_rows_cost_a_line_each(tmp_path: Path, logs: list[Any]) -> None:
    async def main() -> None:
        async with opened(tmp_path) as (store, _):
            for key in ("good", "no entry", "bad end", "other", "surrogate", "not text"):
                await store.save(block(key))
            await store.lift(lift("lifted"))
        good = json.dumps({"key": "good"})
        with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as file, file:
            text = "UPDATE blocks SET entry = ? WHERE client = ?"
            (row,) = file.execute("SELECT entry FROM blocks WHERE client = 'bad end'").fetchone()
            entry = json.loads(row)
            file.execute(text, (good, "no entry"))
            file.execute(text, (json.dumps(entry | {"until": 10**30}), "bad end"))
            file.execute(text, (json.dumps(entry | {"key": "\ud800"}), "surrogate"))
            file.execute(text, (7, "not text"))
            file.execute("UPDATE blocks SET entry = CAST(x'ff' AS TEXT) WHERE client = 'other'")
            file.execute("INSERT INTO lifts VALUES ('default', 'odd', -1, 9999999999)")
        async with opened(tmp_path) as (store, seen):
            assert seen.clients() == {"good"}
            assert seen.list.blocklist.lifts.get("default", "lifted")
            assert not seen.list.blocklist.lifts.get("default", "odd")
            await store.save(block("bad end"))
            assert await store.lift(lift("no entry"))
        async with opened(tmp_path) as (_, seen):
            assert seen.clients() == {"good", "bad end"}

    run(main)
    damaged = [line["entry"] for line in logs if line["event"] == "a damaged entry is ignored"]
    names = ["odd", "bad end", "no entry", "not text", "other", "surrogate"]
    assert sorted(damaged[:6]) == sorted(f"default|{name}" for name in names)
    assert len(damaged) < 12


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


def remove(path: Path) -> None:
    shutil.rmtree(path.parent)


def unlink(path: Path) -> None:
    path.unlink()


def unlink_wal(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def replace_by_older(path: Path) -> None:
    os.replace(path.parent / "copy", path)


@pytest.mark.parametrize("lose", [remove, unlink, unlink_wal, replace_by_older])
@pytest.mark.parametrize("idle", [True, False])
def test_a_file_that_is_lost_while_it_is_open_is_made_again(
    tmp_path: Path, lose: Any, idle: bool, logs: list[Any]
) -> None:
    folder = tmp_path / "state"

    async def main() -> None:
        async with opened(folder) as (store, seen):
            await store.save(block("old", limit="*"))
            await store.save(block("lifted", limit="*"))
        shutil.copy(folder / FILE, tmp_path / "copy")
        async with opened(folder) as (store, seen):
            os.replace(tmp_path / "copy", folder / "copy")
            await store.lift(seen.lift("*", "lifted"))
            made = await store.save(block("new", limit="*"))
            seen.list.apply(made)
            lose(folder / FILE)
            if idle:
                await until(lambda: seen.states == ["lost", "back"])
            last = await store.save(block("last", limit="*"))
            assert seen.states == ["lost", "back"] and store.up
            seen.list.apply(last)
            # What a kill would leave.
            shutil.copytree(folder, tmp_path / "killed")
        for place in (folder, tmp_path / "killed"):
            async with opened(place) as (_, seen):
                assert seen.clients() == {"old", "new", "last"}
                assert seen.list.blocklist.lifts.get("*", "lifted")

    run(main)
    (lost,) = [line["why"] for line in logs if line["event"] == "store lost"]
    assert "while it was open" in lost and str(folder / FILE) in lost


def test_a_file_that_can_not_be_opened_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with opened(tmp_path) as (store, seen):
            seen.list.apply(await store.save(block("a", limit="*")))
            file = store._journal._file
            connect: Callable[..., sqlite3.Connection] = sqlite3.connect
            failures = [OSError(24, "Too many open files")] * 2

            def fail(*arguments: Any, **options: Any) -> sqlite3.Connection:
                if failures:
                    raise failures.pop()
                return connect(*arguments, **options)

            monkeypatch.setattr("ratelimit.store.sqlite.sqlite3.connect", fail)
            Path(f"{file.path}-wal").unlink()
            await until(lambda: not failures)
            await store.save(block("b", limit="*"), timeout=10)
            assert store.up and seen.states[-1] == "back"
        async with opened(tmp_path) as (_, seen):
            assert seen.clients() == {"a", "b"}

    run(main)


def test_a_strange_file_in_its_place_is_not_overwritten(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as (store, seen):
            seen.list.apply(await store.save(block("a", limit="*")))
            (tmp_path / "strange").write_bytes(b"not a database, but quite long" * 100)
            os.replace(tmp_path / "strange", tmp_path / FILE)
            with pytest.raises(StoreError):
                await store.save(block("b", limit="*"), timeout=1.5)
            assert not store.up and "damaged" in store.problem
            assert (tmp_path / FILE).read_bytes().startswith(b"not a database")
            (tmp_path / FILE).unlink()
            await until(lambda: store.up and not len(store.outbox))
        async with opened(tmp_path) as (_, seen):
            assert seen.clients() == {"a", "b"}

    run(main)


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


def test_a_file_of_the_version_before_is_read(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as (store, _):
            await store.save(block("a"))
            await store.save(block("b"))
        with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as file, file:
            file.execute("DROP TABLE lifts")
            file.execute("UPDATE blocks SET entry = json_remove(entry, '$.order')")
            file.execute("PRAGMA user_version = 1")
        async with opened(tmp_path) as (store, seen):
            assert seen.clients() == {"a", "b"}
            assert await store.lift(lift("a", after=1))
        async with opened(tmp_path) as (_, seen):
            assert seen.clients() == {"b"}

    run(main)


def test_what_waited_longer_does_not_take_the_place_of_what_is_newer(tmp_path: Path) -> None:
    async def main() -> None:
        old, new = block("a", limit="*", by="ann"), block("a", limit="*", by="ann")
        before, lifted, after = block("b"), lift("b"), block("b", since=2)
        async with opened(tmp_path) as (store, _):
            for entry in (new, old, lifted, after, before):
                store.put(entry)
                await until(lambda: not len(store.outbox))
        async with opened(tmp_path) as (_, seen):
            assert set(seen.blocks.values()) == {new, after}

    run(main)
