"""The embedded store, in real files."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ratelimit.store import MemoryStore, StoreError
from ratelimit.store.embedded import FILE
from tests.helpers.servers import until
from tests.store.conftest import Seen, block, lift, opened, run


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
