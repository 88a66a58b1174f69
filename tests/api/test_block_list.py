"""``GET /v1/blocks``: pages and searches."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.helpers.running import block, lift, running

if TYPE_CHECKING:
    from pathlib import Path

from tests.helpers.blocks import LATER, fields, pages

pytestmark = pytest.mark.integration


def test_a_block_that_has_ended_is_listed_for_its_strikes_only(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            api.control.limiter.apply(block("192.0.2.1", api.seconds() - 1))
            api.control.limiter.apply(replace(block("192.0.2.2", LATER), shadow=True))
            assert await pages(api) == [["192.0.2.2"]]
            [listed] = (await api.client.get("/v1/blocks")).json()["blocks"]
            assert (listed["active"], listed["shadow"]) == (True, True)
            assert await pages(api, ended="true") == [["192.0.2.1", "192.0.2.2"]]
            entry = (await api.client.get("/v1/blocks/192.0.2.1")).json()["blocks"][0]
            assert (entry["active"], entry["strikes"]) == (False, 1)

    asyncio.run(main())


def test_a_page_after_the_other_while_the_list_changes(tmp_path: Path) -> None:
    """Whatever was there all the time is seen once, whatever came and went meanwhile."""

    async def main() -> None:
        chance = random.Random(5)
        async with running(tmp_path, "[limits.a]\n[limits.b]\n", clients=8000) as api:
            limiter = api.control.limiter

            def key(name: str) -> str:
                return limiter.string_key(name.encode())

            stay = [(chance.choice("ab"), key(f"k{number}")) for number in range(2500)]
            for limit, one in stay:
                limiter.apply(block(one, LATER, limit))
            seen = []
            cursor = ""
            while True:
                page = (
                    await api.client.get("/v1/blocks", params={"cursor": cursor, "limit": 37})
                ).json()
                assert len(page["blocks"]) == 37 or not page["next"]
                seen += [(one["limit"], one["key"]) for one in page["blocks"]]
                cursor = page["next"]
                if not cursor:
                    break
                last = seen[-1]
                limiter.apply(block(key(f"new{chance.random()}"), LATER, chance.choice("ab")))
                again = chance.choice(stay)  # struck again: the last of its dict
                limiter.apply(block(again[1], LATER + 1, again[0]))
                if last not in stay:
                    limiter.lift(lift(*last))
            kept = [place for place in seen if place in set(stay)]
            assert kept == sorted(stay)

    asyncio.run(main())


def test_the_list_by_what_is_searched(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "[limits.login]\n", clients=8000) as api:
            for number in range(3000):
                api.control.limiter.apply(block(f"198.51.{number >> 8}.{number & 255}", LATER))
            api.control.limiter.apply(block("192.0.2.1", LATER, "login"))
            await api.client.post(
                "/v1/blocks", json={"key": "Key-1", "ttl": 60, "reason": "Scraper"}
            )
            assert await pages(api, q="login") == [["192.0.2.1"]]
            key = api.control.limiter.string_key(b"Key-1")
            for text in ("scraPER", "operator", "Key-1", key, key[5:15].upper()):
                assert await pages(api, q=text) == [[key]]
            assert await pages(api, q="Key-") == [[]], "no part of a string that is not shown"
            assert await pages(api, q="nothing") == [[]]
            found = await pages(api, q=".51.11.", limit=100)
            assert [len(page) for page in found] == [100, 84]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("cursor=x", "cursor"),
        ("cursor=bnVsbA", "cursor"),
        ("cursor=WzEsMl0", "cursor"),
        ("cursor=%C3%BC", "cursor"),
        ("ended=perhaps", "ended"),
        ("page=2", "page"),
        ("limit=1&limit=2", "limit"),
    ],
)
def test_a_wrong_query(tmp_path: Path, query: str, field: str) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            answer = await api.client.get(f"/v1/blocks?{query}")
            assert answer.status_code == 422
            assert fields(answer) == [field]

    asyncio.run(main())
