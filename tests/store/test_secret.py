"""The secret of the hashes of strings: kept, damaged, learned from the fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ratelimit.exceptions import StartError
from ratelimit.store.secret import KeptSecret
from tests.helpers.servers import until
from tests.store.conftest import run, strings_node

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.servers import Server


KEY = "sk_live_4f1c9b07a2d8e6"


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
            async with strings_node("memory://", tmp_path) as (_, limiter):
                keys.append(limiter.string_key(KEY.encode()))
        assert keys[0] == keys[1]

    run(main)


def test_strings_are_hashed_alike_without_redis_if_it_was_reached_once(
    server: Server, tmp_path: Path
) -> None:
    async def main() -> None:
        async with strings_node(server.url, tmp_path / "known") as (_, limiter):
            key = limiter.string_key(KEY.encode())
            await until(lambda: any((tmp_path / "known").glob("strings-*.secret")))
        server.kill()
        async with strings_node(server.url, tmp_path / "known") as (store, limiter):
            assert not store.up and limiter.keyed
            assert limiter.string_key(KEY.encode()) == key
            # A server that has lost all takes the secret from the first who knows it.
            server.start()
            await until(lambda: store.up)
            async with strings_node(server.url, tmp_path / "new") as (_, other):
                assert other.keyed and other.string_key(KEY.encode()) == key
        server.kill()
        async with strings_node(server.url, tmp_path / "never") as (store, limiter):
            assert not store.up and not limiter.keyed
            server.start()
            await until(lambda: store.up)
            assert limiter.keyed

    run(main)
