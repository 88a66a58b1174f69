"""The file of blocks: whole, damaged, of another version, lost while it is open."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from ratelimit.exceptions import StartError
from ratelimit.store import MemoryStore, StoreError
from ratelimit.store.embedded import FILE
from ratelimit.store.sqlite import SCHEMA, state_folder
from tests.helpers.servers import until
from tests.store.conftest import block, lift, opened, run


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


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert state_folder("") == Path(platformdirs.user_state_dir("ratelimit", False))
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/one:{tmp_path}/two")
    assert state_folder("") == tmp_path / "one"
    assert state_folder("/x") == Path("/x")


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
