"""The files from which HAProxy reads its maps when it starts."""

from __future__ import annotations

import asyncio
import stat
import threading
from pathlib import Path

import pytest

from ratelimit.haproxy.map_files import MapFiles
from ratelimit.haproxy.maps import BLOCKS, LISTS, NAMES
from tests.helpers.runtime import Book, run
from tests.helpers.world import LONGEST, until


def maps_of(lists: list[str], blocks: list[str]) -> Book:
    """Return what the maps should have."""
    return Book(maps={LISTS: lists, BLOCKS: blocks})


def test_files_are_written_whole_and_only_if_anything_has_changed(tmp_path: Path) -> None:
    book = maps_of(["192.0.2.0/24 4294967295"] * 3000, [])

    async def test() -> None:
        files = MapFiles(str(tmp_path), book.lines)
        running = asyncio.create_task(files.run())
        files.changed()
        await until((tmp_path / BLOCKS).exists, "they are written")
        path = tmp_path / LISTS
        assert path.read_text().splitlines()[1:] == book.maps[LISTS]
        assert path.read_text().startswith("#")
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert {file.name for file in tmp_path.iterdir()} == set(NAMES)
        lists = path.stat()
        book.maps[BLOCKS] = ["203.0.113.0/24 17"]
        files.changed()
        await until(lambda: "17" in (tmp_path / BLOCKS).read_text(), "it is written again")
        assert path.stat().st_ino == lists.st_ino, "the other one had not changed"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(test())


def test_a_folder_that_is_not_there_is_an_error_and_tried_again(tmp_path: Path) -> None:
    async def test() -> None:
        files = MapFiles(str(tmp_path / "maps"), maps_of(["192.0.2.0/24 4294967295"], []).lines)
        files.changed()
        with pytest.raises(FileNotFoundError):
            await files.run()
        (tmp_path / "maps").mkdir()
        running = asyncio.create_task(files.run())
        await until((tmp_path / "maps" / BLOCKS).exists, "they are written")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(test())


def test_a_disk_that_hangs_keeps_one_thread_and_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr("ratelimit.haproxy.map_files.TIMEOUT", 0.05)
    monkeypatch.setattr(
        "ratelimit.haproxy.map_files.write_whole", lambda path, parts, mode: go_on.wait(LONGEST)
    )

    async def test() -> None:
        files = MapFiles(str(tmp_path), maps_of([], []).lines)
        before = threading.active_count()
        for _ in range(5):
            files.changed()
            with pytest.raises(OSError, match="not written within"):
                await files.run()
        assert threading.active_count() == before + 1
        go_on.set()

    run(test())


def test_without_a_folder_no_file_is_written(tmp_path: Path) -> None:
    run(MapFiles("", maps_of([], []).lines).run())
    assert list(tmp_path.iterdir()) == []
