"""The embedded store lets another process have its file, and takes it back."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from ratelimit.exceptions import StoreError
from ratelimit.model import Entry
from ratelimit.store import MemoryStore, journal
from ratelimit.store.entries import entry_from_json, entry_to_json
from ratelimit.store.pending import Change
from ratelimit.store.sqlite import LockedError
from tests.helpers.servers import until
from tests.store.conftest import block, lift, run
from tests.store.test_embedded import opened


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


def test_entries_are_told_as_lines() -> None:
    entries: list[Entry] = [block("a"), block("é\n\x00\U0001f980", by="ann"), lift("b")]
    lines = [entry_to_json(entry) for entry in entries]
    assert not any("\n" in line for line in lines)
    assert [entry_from_json(line.encode()) for line in lines] == entries


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"lift": {}}', '{"lift": {"limit": 1, "key": "", "order": 1, "until": 1}}',
        '{"block": {"key": "a"}}', "[" * 100_000, b"\xff",
        '{"lift": {"limit": "a", "key": "a", "order": -1, "until": 1}}',
    ],
)  # fmt: skip
def test_what_is_no_entry_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        entry_from_json(text)
