"""The embedded store, in real files."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from ratelimit.exceptions import StartError
from ratelimit.store import MemoryStore, Node, StoreError
from ratelimit.store.memory import FILE, SCHEMA, state_folder
from tests.store.conftest import Seen, block, run
from tests.store.servers import until


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
            assert store.up and seen.loads == 1 and not seen.blocks
            await store.save(first)
            await store.save(block("192.0.2.2"))
            await store.save(second)
            assert await store.lift("default", "192.0.2.2")
            assert not await store.lift("default", "192.0.2.2")
            store.put(block("192.0.2.3"))
        async with opened(tmp_path / "deep" / "er") as (store, seen):
            assert seen.blocks.pop(("default", "192.0.2.3"))
            assert list(seen.blocks.values()) == [first, second]
            assert store.nodes == len(await store.nodes_list()) == 1
            assert store.clock_offset == 0

    run(main)
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == [FILE]
    assert (tmp_path / "deep" / "er" / FILE).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "deep").stat().st_mode & 0o777 in (0o700, 0o755)


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
        store.put(new)
        store.put(block("192.0.2.3"))
        with pytest.raises(StoreError):
            await store.lift("default", "192.0.2.2", timeout=0)
        await store.start()
        assert seen.clients() == {"192.0.2.1", "192.0.2.3"}
        assert seen.blocks["default", "192.0.2.1"] == new
        await store.close()
        async with opened(tmp_path) as (_, again):
            assert again.blocks == seen.blocks

    run(main)


def test_forgotten_entries_are_deleted(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as (store, _):
            await store.save(block("long", since=-150, length=200))
            await store.save(block("gone", since=-110, length=10))
            await store.save(block("kept", since=-100, length=10))
            assert {entry.key for entry in await store.load()} == {"long", "kept"}
        async with opened(tmp_path) as (_, seen):
            assert seen.clients() == {"long", "kept"}

    run(main)
    with sqlite3.connect(tmp_path / FILE) as file:
        assert sorted(file.execute("SELECT client FROM blocks")) == [("kept",), ("long",)]
    file.close()


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


def no_entries(path: Path) -> None:
    with sqlite3.connect(path) as file:
        file.execute("UPDATE blocks SET entry = '{}'")
    file.close()


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (overwrite, "damaged"),
        (damage, "damaged"),
        (no_entries, "damaged"),
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
            file = store._file
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
            assert "late" in {entry.key for entry in await store.load()}
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
