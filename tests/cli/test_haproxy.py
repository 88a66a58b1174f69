"""``ratelimit haproxy`` and the API behind it, from the command to a real HAProxy's servers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Awaitable
from pathlib import Path

import httpx
import pytest

from tests.helpers.plant import Installation, Plant
from tests.helpers.world import LONGEST, World, until

pytestmark = pytest.mark.integration

SERVERS = "/v1/haproxy/servers"


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    return Plant(tmp_path, monkeypatch)


def run(test: Awaitable[None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(LONGEST):
            await test

    asyncio.run(main())


async def command(
    made: Installation, *words: str, group: tuple[str, ...] = ("haproxy",)
) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ratelimit", *group, *words, "--url", made.url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "COLUMNS": "200"},
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def weights(world: World) -> str:
    shown = await world.runtime("show servers state app")
    return " ".join(shown.splitlines()[2].split()[3:8])


def test_a_server_is_drained_and_comes_back(plant: Plant) -> None:
    async def test() -> None:
        async with plant(RATELIMIT_STATS_LEVEL="admin") as made:
            client = made.world.client("127.0.0.9")
            code, text, _ = await command(made, "servers")
            assert code == 0 and "app/app1" in text and "UP" in text
            code, text, _ = await command(made, "drain", "app1")
            assert code == 0 and "app/app1: DRAIN" in text
            assert (await client.get()).status == 503
            code, text, _ = await command(made, "weight", "app/app1", "7", "--json")
            assert code == 0 and json.loads(text)[0]["server"]["weight"] == 7
            code, text, _ = await command(made, "ready", "app/app1")
            assert code == 0 and "app/app1: UP, weight 7" in text
            assert (await client.get()).status == 200
            code, text, _ = await command(made, "servers", "--json")
            [report] = json.loads(text)
            assert [backend["name"] for backend in report["backends"]] == ["app", "spoa"]
            assert report["agent"] == "UP" and report["edge"]["name"] == "t_block"
            code, text, _ = await command(made, "status", group=())
            assert code == 0 and re.search(r"haproxy.sock +2?[0-9.]\S+ .* UP +0", text)
            assert made.world.agent_log().count("audit") == 3

    run(test())


def test_a_mistake_is_told(plant: Plant) -> None:
    async def test() -> None:
        async with plant() as made:
            for words, code, error in (
                (("drain", "nobody"), 2, "no HAProxy has such a server"),
                (("drain", "app/nobody"), 1, "no HAProxy of this node has such a server"),
                (("weight", "app1", "257"), 2, "0<=x<=256"),
                (("drain", "app1"), 1, "level admin"),  # the socket is of level operator
            ):
                found = await command(made, *words)
                assert found[0] == code and error in found[2], words
            assert made.world.haproxy is not None
            made.world.haproxy.terminate()
            made.world.haproxy.wait()
            code, _, error = await command(made, "servers")
            assert code == 1 and "HAProxy does not run" in error
            code, text, _ = await command(made, "status", group=())
            assert code == 0 and "unreachable" in text and "HAProxy does not run" in text

    run(test())


def test_nothing_comes_through_the_api(plant: Plant) -> None:
    refused: list[tuple[str, dict[str, object], int]] = [
        ("app/app1", {}, 422),
        ("app/app1", {"state": "maint"}, 422),
        ("app/app1", {"state": "ready", "weight": 1}, 422),
        ("app/app1", {"weight": 257}, 422),
        ("app/app1", {"weight": "1;clear table t_block"}, 422),
        ("app/app1%3Bclear%20table%20t_block", {"state": "drain"}, 404),
        ("app/app1%0Aclear%20table%20t_block", {"state": "drain"}, 404),
        ("app%0A;clear table t_block/app1", {"state": "drain"}, 404),
        ("app/..%2Fapp1", {"state": "drain"}, 404),
        ("app/%F0%9F%A6%80", {"state": "drain"}, 404),
    ]

    async def test() -> None:
        async with (
            plant(RATELIMIT_STATS_LEVEL="admin") as made,
            httpx.AsyncClient(base_url=made.url, trust_env=False) as client,
        ):
            await made.world.runtime("set table t_block key ::ffff:198.51.100.1 data.gpt0 9")
            before = await weights(made.world)
            for server, body, status in refused:
                answer = await client.post(f"{SERVERS}/{server}", json=body)
                assert answer.status_code == status, server
                assert answer.headers["content-type"] == "application/problem+json"
                assert await weights(made.world) == before
                assert "used:1" in await made.world.runtime("show table t_block")

    run(test())


def test_a_block_by_hand_is_at_the_edge_until_it_is_lifted(plant: Plant) -> None:
    async def test() -> None:
        async with (
            plant() as made,
            httpx.AsyncClient(base_url=made.url, trust_env=False) as client,
        ):
            key = "127.0.0.9"
            reason = "x;clear table t_block"
            answer = await client.post(
                "/v1/blocks", json={"key": key, "ttl": "5m", "reason": reason}
            )
            assert answer.status_code == 201

            async def entries() -> int:
                return (await made.world.runtime("show table t_block")).count("key=::ffff:" + key)

            async def held() -> bool:
                return await entries() == 1

            async def forgotten() -> bool:
                return await entries() == 0

            await until(held, "the edge has it")
            assert (await made.world.client(key).get()).status == 429
            [entry] = (await client.get(f"/v1/clients/{key}")).json()["edge"]
            assert entry["key"] == key and entry["until"] > time.time()
            assert (await client.delete(f"/v1/blocks/{key}")).status_code == 204
            await until(forgotten, "the edge forgets it")

    run(test())
