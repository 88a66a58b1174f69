"""What stores keep of strings: a hash each, and the secret of the hashes."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ratelimit.exceptions import StartError
from ratelimit.limiter.limiter import Limiter
from ratelimit.limiter.orders import beats
from ratelimit.model import EVERY_LIMIT, Limit
from ratelimit.steps import finish
from ratelimit.store import Node, open_store
from ratelimit.store.embedded import FILE
from ratelimit.store.secret import KeptSecret
from ratelimit.store.sync import Sync
from tests.helpers.servers import until
from tests.store.conftest import block, nodes, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from ratelimit.store import Store
    from tests.helpers.servers import Server

KEY = "sk_live_4f1c9b07a2d8e6"
BLOCKS = "test:{fleet}:blocks"


@contextlib.asynccontextmanager
async def node(
    url: str, folder: Path, limit: Limit | None = None
) -> AsyncIterator[tuple[Store, Limiter]]:
    """Run what an agent has of a limiter and a store."""
    limiter = Limiter([limit or Limit()], 100, keyed=False)
    sync = Sync(limiter, 0.01, False)
    about = Node(folder.name, "1", 0)
    store = open_store(url, prefix="test", state_dir=str(folder), events=sync.events, node=about)
    if store.kept.secret:
        limiter.rekey(store.kept.secret)
    sync.attach(store, about)
    await store.start()
    try:
        yield store, limiter
    finally:
        await store.close()


def old_entry(limit: str, key: str = KEY) -> dict[str, object]:
    """An entry as the version before had it: with the string in clear, and without an order."""
    now = int(time.time())
    return {
        "key": key, "limit": limit, "reason": "", "strikes": 1, "since": now, "until": now + 600,
        "by": "", "node": "there", "shadow": False,
    }  # fmt: skip


def found_in(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if KEY[:6].encode() in file.read_bytes()]


# ---- entries of the version before ---------------------------------------------------------------


def test_strings_in_the_file_of_the_version_before_are_hashed_and_overwritten(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with node("memory://", tmp_path):
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
            async with node("memory://", tmp_path) as (_, limiter):
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
        async with node(server.url, tmp_path / "one") as (_, one):
            for limit in ("default", EVERY_LIMIT):
                entry = json.dumps(old_entry(limit))
                server.do("HSET", BLOCKS, f"{limit}|{KEY}", f"{int(time.time()) + 6000} {entry}")
            async with node(server.url, tmp_path / "two") as (_, two):
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


# ---- what is shown, and then not -----------------------------------------------------------------


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
            node(server.url, tmp_path / "one", names) as (first, one),
            node(server.url, tmp_path / "two", names) as (_, two),
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


# ---- the secret ----------------------------------------------------------------------------------


def test_the_secret_outlives_the_process_and_is_for_its_user_only(tmp_path: Path) -> None:
    first, second = (KeptSecret(tmp_path / "deep" / "strings.secret") for _ in range(2))
    assert first.secret == b""
    first.make()
    assert len(first.secret) == 16
    assert first.path is not None and first.path.stat().st_mode & 0o777 == 0o600
    second.make()
    assert second.secret == first.secret
    assert [file.name for file in first.path.parent.iterdir()] == ["strings.secret"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "must have 32 hexadecimal digits"),
        (b"0" * 31, "must have 32 hexadecimal digits"),
        (b"\xff" * 32, "can't read"),
        (None, "can't read"),
    ],
)
def test_a_damaged_secret_is_not_replaced(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    path = tmp_path / "strings.secret"
    path.mkdir() if content is None else path.write_bytes(content)
    kept = KeptSecret(path)
    with pytest.raises(StartError, match=problem):
        kept.make()
    kept.read()  # where it is a copy, it is done without
    assert kept.secret == b""
    assert path.is_dir() or path.read_bytes() == content


def test_a_restart_with_the_embedded_store_knows_strings_as_before(tmp_path: Path) -> None:
    async def main() -> None:
        keys = []
        for _ in range(2):
            async with node("memory://", tmp_path) as (_, limiter):
                keys.append(limiter.string_key(KEY.encode()))
        assert keys[0] == keys[1]

    run(main)


def test_strings_are_hashed_alike_without_redis_if_it_was_reached_once(
    server: Server, tmp_path: Path
) -> None:
    async def main() -> None:
        async with node(server.url, tmp_path / "known") as (_, limiter):
            key = limiter.string_key(KEY.encode())
            await until(lambda: any((tmp_path / "known").glob("strings-*.secret")))
        server.kill()
        async with node(server.url, tmp_path / "known") as (store, limiter):
            assert not store.up and limiter.keyed
            assert limiter.string_key(KEY.encode()) == key
            # A server that has lost all takes the secret from the first who knows it.
            server.start()
            await until(lambda: store.up)
            async with node(server.url, tmp_path / "new") as (_, other):
                assert other.keyed and other.string_key(KEY.encode()) == key
        server.kill()
        async with node(server.url, tmp_path / "never") as (store, limiter):
            assert not store.up and not limiter.keyed
            server.start()
            await until(lambda: store.up)
            assert limiter.keyed

    run(main)
