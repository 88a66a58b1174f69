"""The maps by which HAProxy knows lists and blocks by hand: real HAProxies, and the files."""

from __future__ import annotations

import asyncio
import contextlib
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ratelimit.haproxy import maps
from ratelimit.haproxy.api import Runtime
from ratelimit.haproxy.map_files import MapFiles
from ratelimit.haproxy.maps import BLOCKS, LISTS, NAMES
from ratelimit.haproxy.runtime_socket import Edge as SocketEdge
from ratelimit.limiter.keys import Network
from tests.helpers.edges import Edge, edges
from tests.helpers.world import LONGEST, until

RULES = (
    "http-request set-var(txn.l) src,map_ip_int({folder}/rl_lists.map)\n"
    "    http-request set-var(txn.b) src,map_ip_int({folder}/rl_blocks.map)"
)


class Book:
    """What the maps should have."""

    def __init__(self, lists: list[str], blocks: list[str]) -> None:
        self.maps = {LISTS: lists, BLOCKS: blocks}
        self.read: dict[str, int] = {}

    def until(self, client: Network) -> int:
        return 0

    def by_hand(self) -> Iterator[str]:
        return iter(())

    def lines(self, name: str) -> Iterator[str]:
        self.read[name] = self.read.get(name, 0) + 1
        return iter(self.maps[name])


def made(folder: Path, level: str = "admin") -> Edge:
    """Return a HAProxy with both maps, from empty files."""
    for name in NAMES:
        (folder / name).touch()
    return Edge(folder / "h.sock", level, RULES.format(folder=folder))


def has(edge: Edge, folder: Path, name: str) -> list[str]:
    """Return what a map of a HAProxy has."""
    shown = edge.say(f"show map {folder}/{name}").splitlines()
    return sorted(line.partition(" ")[2] for line in shown if line)


@contextlib.asynccontextmanager
async def kept(edge: Edge, book: Book) -> AsyncIterator[Runtime]:
    """Yield what keeps the maps of a HAProxy in step with the book."""
    tested = Runtime([str(edge.path)])
    keeping = asyncio.create_task(tested.run(book))
    try:
        async with edges(edge):
            tested.compare()
            yield tested
            assert not keeping.done(), keeping
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await tested.close()


def run(test: object) -> None:
    async def main() -> None:
        async with asyncio.timeout(LONGEST):
            await test  # type: ignore[misc]

    asyncio.run(main())


@pytest.mark.integration
def test_maps_are_filled_and_again_when_haproxy_is_another_process(tmp_path: Path) -> None:
    book = Book(
        ["192.0.2.0/24 4294967295", "192.0.2.7 -1", "2001:db8::/32 4294967295"], ["10.0.0.0/8 17"]
    )
    edge = made(tmp_path)

    async def test() -> None:
        async with kept(edge, book) as tested:
            await until(lambda: has(edge, tmp_path, BLOCKS) == ["10.0.0.0/8 17"], "it is filled")
            assert has(edge, tmp_path, LISTS) == sorted(book.maps[LISTS])
            # Another list replaces the whole; what is gone is gone.
            book.maps[LISTS] = ["198.51.100.0/24 -1"]
            tested.compare()
            await until(lambda: has(edge, tmp_path, LISTS) == book.maps[LISTS], "it is replaced")
            edge.end()
            await edge.start()
            assert has(edge, tmp_path, LISTS) == [], "from its files"
            await until(lambda: has(edge, tmp_path, BLOCKS) == ["10.0.0.0/8 17"], "it is filled")
            assert has(edge, tmp_path, LISTS) == book.maps[LISTS]

    run(test())


@pytest.mark.integration
def test_a_block_by_hand_changes_one_entry_at_once(tmp_path: Path) -> None:
    book = Book([], ["203.0.113.0/24 17"])
    edge = made(tmp_path)

    async def test() -> None:
        async with kept(edge, book) as tested:
            await until(lambda: has(edge, tmp_path, BLOCKS) == book.maps[BLOCKS], "it is filled")
            reads = dict(book.read)
            assert await tested.push("198.51.100.0/24", 20, 21) == []
            assert await tested.push("198.51.100.0/24", 30, 31) == []
            assert await tested.lift("2001:db8::7", 9) == [], "an address of a client of many"
            assert await tested.lift("203.0.113.0/24") == []
            assert await tested.lift("203.0.113.0/24") == [], "it is not there any more"
            shown = has(edge, tmp_path, BLOCKS)
            assert shown == ["198.51.100.0/24 31", "2001:db8::7 9"]
            for evil in ("192.0.2.1;clear map x", "192.0.2.1\nquit", "key", ""):
                await tested.push(evil, 9, 9)
                await tested.lift(evil, 9)
            assert has(edge, tmp_path, BLOCKS) == shown
            assert book.read == reads

    run(test())


@pytest.mark.integration
def test_what_is_lifted_while_a_map_is_filled_is_not_put_back(tmp_path: Path) -> None:
    edge = made(tmp_path)

    async def test() -> None:
        book = Book([], [])
        async with kept(edge, book) as tested:
            await until(lambda: not tested.behind, "it is filled")

            def lines() -> Iterator[str]:
                yield "203.0.113.0/24 17"
                yield "203.0.114.0/24 17"
                # The first is lifted, and another made, after the map has been read so far.
                tested.lift("203.0.113.0/24")
                tested.push("198.51.100.0/24", 21, 21)

            book.lines = lambda name: lines() if name == BLOCKS else iter(())  # type: ignore[method-assign]
            tested.compare()
            wanted = ["198.51.100.0/24 21", "203.0.114.0/24 17"]
            await until(lambda: has(edge, tmp_path, BLOCKS) == wanted, "the newer holds")
            await until(lambda: not tested.behind, "it is filled")
            assert has(edge, tmp_path, BLOCKS) == wanted

    run(test())


@pytest.mark.integration
def test_fifty_thousand_networks(tmp_path: Path) -> None:
    networks = [f"10.{n >> 12}.{n >> 4 & 255}.{n % 16 * 16}/28 4294967295" for n in range(50_000)]
    edge = made(tmp_path)

    async def test() -> None:
        async with kept(edge, Book(networks, [])) as tested:
            await until(lambda: not tested.behind, "it is filled")
            assert maps.entries(edge.say("show map").splitlines()) == {LISTS: 50_000, BLOCKS: 0}

    run(test())


@pytest.mark.integration
def test_tables_are_compared_where_there_are_no_maps(tmp_path: Path) -> None:
    edge = made(tmp_path)
    edge.rules = ""

    async def test() -> None:
        async with kept(edge, Book(["192.0.2.0/24 4294967295"], [])) as tested:
            await until(lambda: not tested.behind, "it is compared")
            assert await tested.push("192.0.2.1", 9, 9) == []
            assert edge.entries() == {"::ffff:192.0.2.1": 9}

    run(test())


def test_tables_are_compared_where_only_an_admin_may_fill_maps() -> None:
    """As at an operator's socket of HAProxy 3.4."""

    class Refusing(SocketEdge):
        async def ask(self, command: str) -> list[str]:
            return ["Permission denied"]

    async def test() -> None:
        tested = maps.Maps(Refusing("h.sock", 1))
        await tested.fill(Book(["192.0.2.0/24 4294967295"], []).lines)
        assert "`stats socket`" in tested.problem and "level admin" in tested.problem
        assert tested.mark("192.0.2.0/24", 9) == "", "it would spoil the commands beside it"

    run(test())


# ---- files --------------------------------------------------------------------------------------


def test_files_are_written_whole_and_only_if_anything_has_changed(tmp_path: Path) -> None:
    book = Book(["192.0.2.0/24 4294967295"] * 3000, [])

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
        files = MapFiles(str(tmp_path / "maps"), Book(["192.0.2.0/24 4294967295"], []).lines)
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
        files = MapFiles(str(tmp_path), Book([], []).lines)
        before = threading.active_count()
        for _ in range(5):
            files.changed()
            with pytest.raises(OSError, match="not written within"):
                await files.run()
        assert threading.active_count() == before + 1
        go_on.set()

    run(test())


def test_without_a_folder_no_file_is_written(tmp_path: Path) -> None:
    run(MapFiles("", Book([], []).lines).run())
    assert list(tmp_path.iterdir()) == []
