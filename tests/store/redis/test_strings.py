"""What stores keep of strings: a hash each, and the secret of the hashes."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from ratelimit.limiter.entry_order import beats
from ratelimit.model import EVERY_LIMIT, Limit
from ratelimit.steps import finish
from ratelimit.store.embedded import FILE
from tests.helpers.servers import until
from tests.store.conftest import BLOCKS, block, nodes, run, strings_node

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.servers import Server


KEY = "sk_live_4f1c9b07a2d8e6"


def old_entry(limit: str, key: str = KEY) -> dict[str, object]:
    """An entry as the version before had it: with the string in clear, and without an order."""
    now = int(time.time())
    return {
        "key": key, "limit": limit, "reason": "", "strikes": 1, "since": now, "until": now + 600,
        "by": "", "node": "there", "shadow": False,
    }  # fmt: skip


def found_in(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if KEY[:6].encode() in file.read_bytes()]


def test_strings_in_the_file_of_the_version_before_are_hashed_and_overwritten(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with strings_node("memory://", tmp_path):
            pass
        with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as file, file:
            file.execute("DROP TABLE lifts")
            for limit, key in [
                (EVERY_LIMIT, KEY),
                *(("default", f"{KEY}-{n}") for n in range(500)),
            ]:
                entry = json.dumps(old_entry(limit, key))
                row = (limit, key, int(time.time()), int(time.time()) + 6000, entry)
                file.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?)", row)
            file.execute("PRAGMA user_version = 1")
        assert found_in(tmp_path) == [FILE]
        for _ in range(2):
            async with strings_node("memory://", tmp_path) as (_, limiter):
                assert len(limiter.blocklist) == 501
                assert all(one.shown == f"sk_l{one.key}" for one in limiter.blocklist)
                key = limiter.string_key(KEY.encode())
                assert limiter.blocklist.get(EVERY_LIMIT, key)
                assert limiter.is_known(limiter.string_key(f"{KEY}-499".encode()))
            assert found_in(tmp_path) == []

    run(main)


def test_strings_in_redis_of_the_version_before_are_hashed_and_removed(
    server: Server, tmp_path: Path
) -> None:
    async def main() -> None:
        async with strings_node(server.url, tmp_path / "one") as (_, one):
            for limit in ("default", EVERY_LIMIT):
                entry = json.dumps(old_entry(limit))
                server.do("HSET", BLOCKS, f"{limit}|{KEY}", f"{int(time.time()) + 6000} {entry}")
            async with strings_node(server.url, tmp_path / "two") as (_, two):
                key = two.string_key(KEY.encode())
                await until(lambda: len(one.blocklist) == len(two.blocklist) == 2)
                for limiter in (one, two):
                    assert {block.shown for block in limiter.blocklist} == {f"sk_l{key}"}
        fields = server.do("HGETALL", BLOCKS)
        assert isinstance(fields, dict)
        assert KEY[:6].encode() not in b"".join([*fields, *fields.values()])
        assert {f"default|{key}".encode(), f"*|{key}".encode()} <= set(fields)
        assert found_in(tmp_path / "one") == found_in(tmp_path / "two") == []

    run(main)


def test_of_two_that_differ_in_nothing_else_the_one_that_shows_less_holds() -> None:
    shown = block("~" + "0" * 32, text="alice")
    cut = replace(shown, text="a" * 100 + shown.key)
    hidden = replace(shown, text=f"alic{shown.key}")
    for less, more in ((hidden, shown), (hidden, cut), (shown, cut)):
        assert beats(less, more) and not beats(more, less)


def test_a_string_that_becomes_secret_is_in_the_store_no_more(
    server: Server, tmp_path: Path
) -> None:
    names = Limit(secret=False)

    async def main() -> None:
        async with (
            strings_node(server.url, tmp_path / "one", names) as (first, one),
            strings_node(server.url, tmp_path / "two", names) as (_, two),
        ):
            key = one.string_key(KEY.encode())
            shown = block(key, text=KEY)
            one.apply(shown)
            first.put(shown)
            await until(lambda: two.blocklist.get("default", key) == shown)
            assert KEY.encode() in server.do("HGET", BLOCKS, f"default|{key}")  # type: ignore[operator]
            finish(finish(one.reload([replace(names, secret=True)], one.lists)))
            hidden = replace(shown, text=f"sk_l{key}")
            await until(lambda: two.blocklist.get("default", key) == hidden)
            # Whoever writes it once more brings it not back.
            async with nodes(server.url) as [(late, _)]:
                late.put(shown)
                await until(lambda: not len(late.outbox))
            assert one.blocklist.get("default", key) == hidden
            assert KEY.encode() not in server.do("HGET", BLOCKS, f"default|{key}")  # type: ignore[operator]
        assert found_in(tmp_path / "one") == found_in(tmp_path / "two") == []

    run(main)
