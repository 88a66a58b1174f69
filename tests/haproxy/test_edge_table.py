"""The edge table kept in step with the blocklist, in real HAProxy processes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ratelimit.haproxy import edge_table
from ratelimit.haproxy.commands import Prefixes
from ratelimit.large import LargeDict
from ratelimit.limiter.keys import Network
from tests.helpers.edges import Edge
from tests.helpers.runtime import Book, fill, later, run, runtime
from tests.helpers.world import until

LATER = "it is updated as soon as it answers"


@pytest.mark.integration
def test_an_entry_in_use_is_ended(tmp_path: Path) -> None:
    async def test() -> None:
        made = Edge(
            tmp_path / "edge.sock",
            rules="http-request track-sc0 src table t_block\n"
            "    http-request wait-for-body time 9s",
        )
        async with runtime(made) as tested:
            await tested.push("127.0.0.1", later())
            _, writer = await asyncio.open_connection("127.0.0.1", made.port)
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            await until(lambda: any("use=1" in line for line in made.lines()), "it is in use")
            assert await tested.lift("127.0.0.1") == []
            assert made.entries() == {"::ffff:127.0.0.1": 0}
            writer.close()

    run(test())


@pytest.mark.integration
def test_a_table_is_made_to_be_as_the_blocklist_says(tmp_path: Path) -> None:
    async def test() -> None:
        end = later()
        book = Book(
            {
                "192.0.2.1": end,
                "192.0.2.2": end,
                "192.0.2.3": end + 1,
                "192.0.2.4": end,
                "2001:db8::/64": end,
                "198.51.100.0": end,
            },
            ["192.0.2.4", "2001:db8::/64", "198.51.100.0/24", "2001:db8:1::5", "192.0.2.9", "key"],
        )
        made = Edge(tmp_path / "edge.sock")
        async with runtime(made, book=book) as tested:
            await until(lambda: tested.corrected == 3, "blocks by hand are added")
            by_hand = {"::ffff:192.0.2.4": end, "::ffff:198.51.100.0": end, "2001:db8::": end}
            assert made.entries() == by_hand
            right = {"::ffff:192.0.2.1": end, "::ffff:192.0.2.3": end - 100}
            over = {"::ffff:192.0.2.5": 1}
            wrong = {"::ffff:192.0.2.2": end + 100, "::ffff:192.0.2.6": end, "64:ff9b::1": end}
            fill(made, right | over | wrong)
            tested.compare()
            await until(lambda: tested.corrected == 6, "what is wrong is put right")
            assert made.entries() == by_hand | right | over | {"::ffff:192.0.2.2": end}
            assert (tested.missed, tested.dropped) == (0, 0)

    run(test())


@pytest.mark.integration
def test_another_process_is_compared(tmp_path: Path) -> None:
    async def test() -> None:
        end = later()
        made = Edge(tmp_path / "edge.sock")
        async with runtime(made, book=Book({"192.0.2.1": end}, ["192.0.2.1"])) as tested:
            await until(lambda: tested.corrected == 1, "it is told")
            made.end()
            await made.start()
            await until(lambda: made.entries() == {"::ffff:192.0.2.1": end}, "it is told again")

    run(test())


@pytest.mark.integration
def test_no_table_is_compared_before_the_blocklist_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_table, "LOOK", 0.01)
    monkeypatch.setattr(edge_table, "_SPACE", 0.01)

    async def test() -> None:
        made = Edge(tmp_path / "edge.sock")
        async with runtime(made) as tested:
            fill(made, {"::ffff:192.0.2.1": later()})
            await tested.push("192.0.2.2", later())
            for _ in range(20):
                await tested.report()
            assert len(made.entries()) == 2
            tested.compare()
            await until(lambda: not made.entries(), "an empty blocklist is known")

    run(test())


def test_entries_are_compared_in_small_steps() -> None:
    book = Book()
    asked = 0

    class Counting(Book):
        def until(self, client: Network) -> int:
            nonlocal asked
            asked += 1
            return super().until(client)

    book = Counting({}, [f"10.0.{n >> 8}.{n & 255}" for n in range(400)])
    lines = [f"0x1: key=::ffff:{key} use=0 exp=9 gpt0={later()}" for key in book.keys]
    right: LargeDict[str, bool] = LargeDict()
    for steps in (
        edge_table._judged(lines, book, Prefixes(), right),
        edge_table._missing(book.keys, book, Prefixes(), right),
    ):
        asked = done = 0
        for _ in steps:
            assert asked - done <= 8
            done = asked
        assert asked == 400


@pytest.mark.integration
def test_a_table_that_can_not_be_compared_is_tried_again_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_table, "LOOK", 0.01)
    pauses: list[float] = []

    async def test() -> None:
        sleep = asyncio.sleep

        async def pause(seconds: float) -> None:
            pauses.append(seconds)
            await sleep(min(seconds, 0.01))

        book = Book({"192.0.2.1": later()}, ["192.0.2.1"])
        async with runtime(Edge(tmp_path / "edge.sock", "user"), book=book) as tested:
            with monkeypatch.context() as patch:
                patch.setattr("asyncio.sleep", pause)
                # Nor does what can't be told hurry it.
                while len(pauses) < 10:
                    await tested.push("192.0.2.1", later())
                    await sleep(0.01)

    with capture_logs() as logs:
        run(test())
    assert pauses[:10] == [0.01 * 2**n for n in range(10)]
    [line] = [one for one in logs if one["event"] == "edge not compared"]
    assert "level operator" in line["problem"]


@pytest.mark.integration
def test_more_changes_than_can_wait_are_made_by_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_table, "MAX_UNSENT", 40)

    async def test() -> None:
        end = later()
        keys = [f"192.0.2.{n}" for n in range(100)]
        made = Edge(tmp_path / "edge.sock")
        async with runtime(made, book=Book(dict.fromkeys(keys, end), keys)) as tested:
            faults = await asyncio.gather(*(tested.push(key, end) for key in keys))
            assert sum(map(len, faults)) == tested.dropped == tested.missed > 50
            await until(lambda: len(made.entries()) == 100, "it knows them all")

    run(test())


@pytest.mark.integration
def test_a_dead_haproxy_is_told_when_it_is_back(tmp_path: Path) -> None:
    async def test() -> None:
        made = Edge(tmp_path / "edge.sock")
        end = later()
        book = Book({"192.0.2.1": end, "192.0.2.3": 1}, ["192.0.2.1", "192.0.2.3"])
        async with runtime(made, book=book) as tested:
            made.end()
            [fault] = await tested.push("192.0.2.1", end)
            assert "does not run" in fault.problem and LATER in fault.problem
            await tested.push("192.0.2.2", end)
            await tested.lift("192.0.2.2")
            await tested.push("192.0.2.3", int(time.time()) - 1)  # over before it can be told
            await made.start()
            await until(lambda: made.entries() == {"::ffff:192.0.2.1": end}, "it is told")

    run(test())
