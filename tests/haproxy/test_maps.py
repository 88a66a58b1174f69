"""The maps by which HAProxy knows lists and blocks by hand, in real HAProxy processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ratelimit.haproxy import maps
from ratelimit.haproxy.maps import BLOCKS, LISTS, NAMES
from ratelimit.haproxy.runtime_socket import Edge as SocketEdge
from tests.helpers.edges import Edge
from tests.helpers.runtime import Book, run, runtime
from tests.helpers.world import until

RULES = (
    "http-request set-var(txn.l) src,map_ip_int({folder}/rl_lists.map)\n"
    "    http-request set-var(txn.b) src,map_ip_int({folder}/rl_blocks.map)"
)


def maps_of(lists: list[str], blocks: list[str]) -> Book:
    """Return what the maps should have."""
    return Book(maps={LISTS: lists, BLOCKS: blocks})


def made(folder: Path, level: str = "admin") -> Edge:
    """Return a HAProxy with both maps, from empty files."""
    for name in NAMES:
        (folder / name).touch()
    return Edge(folder / "h.sock", level, RULES.format(folder=folder))


def has(edge: Edge, folder: Path, name: str) -> list[str]:
    """Return what a map of a HAProxy has."""
    shown = edge.say(f"show map {folder}/{name}").splitlines()
    return sorted(line.partition(" ")[2] for line in shown if line)


@pytest.mark.integration
def test_maps_are_filled_and_again_when_haproxy_is_another_process(tmp_path: Path) -> None:
    book = maps_of(
        ["192.0.2.0/24 4294967295", "192.0.2.7 -1", "2001:db8::/32 4294967295"], ["10.0.0.0/8 17"]
    )
    edge = made(tmp_path)

    async def test() -> None:
        async with runtime(edge, timeout=5, book=book) as tested:
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
    book = maps_of([], ["203.0.113.0/24 17"])
    edge = made(tmp_path)

    async def test() -> None:
        async with runtime(edge, timeout=5, book=book) as tested:
            await until(lambda: has(edge, tmp_path, BLOCKS) == book.maps[BLOCKS], "it is filled")
            reads = dict(book.reads)
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
            assert book.reads == reads

    run(test())


@pytest.mark.integration
def test_what_is_lifted_while_a_map_is_filled_is_not_put_back(tmp_path: Path) -> None:
    edge = made(tmp_path)

    async def test() -> None:
        book = maps_of([], [])
        async with runtime(edge, timeout=5, book=book) as tested:
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
        async with runtime(edge, timeout=5, book=maps_of(networks, [])) as tested:
            await until(lambda: not tested.behind, "it is filled")
            assert maps.entries(edge.say("show map").splitlines()) == {LISTS: 50_000, BLOCKS: 0}

    run(test())


@pytest.mark.integration
def test_tables_are_compared_where_there_are_no_maps(tmp_path: Path) -> None:
    edge = made(tmp_path)
    edge.rules = ""

    async def test() -> None:
        async with runtime(
            edge, timeout=5, book=maps_of(["192.0.2.0/24 4294967295"], [])
        ) as tested:
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
        await tested.fill(maps_of(["192.0.2.0/24 4294967295"], []).lines)
        assert "`stats socket`" in tested.problem and "level admin" in tested.problem
        assert tested.mark("192.0.2.0/24", 9) == "", "it would spoil the commands beside it"

    run(test())
