"""The edge table of HAProxy after anything that its agent may have missed, or could not tell it."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.helpers.servers import PROGRAM, Server
from tests.helpers.world import LONGEST, World, until, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

pytestmark = pytest.mark.integration

LIMIT = "[limits.default]\nrate = 5\nwindow = '1m'\nblock = ['1h']\n"


def beside(folder: Path, more: str = "") -> str:
    """Return the configuration of an agent that tells the HAProxy in a folder."""
    return f"[haproxy]\nsockets = ['{folder}/haproxy.sock']\n{LIMIT}{more}"


@contextlib.asynccontextmanager
async def api(made: World) -> AsyncIterator[httpx.AsyncClient]:
    """Yield the API of the agent that was started last."""
    async with httpx.AsyncClient(base_url=f"http://{await made.ops()}", trust_env=False) as client:
        yield client


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(LONGEST):
            await test()

    asyncio.run(main())


async def in_step(here: httpx.AsyncClient) -> None:
    """Wait until HAProxy has been told of all."""

    async def told() -> bool:
        return "ratelimit_edges_behind 0.0" in (await here.get("/metrics")).text

    await until(told, "the edge table is in step")


async def blocked(made: World, address: str) -> None:
    """Have a client exceed its limit, and HAProxy remember that."""
    client = made.client(address)
    while (await client.get()).status == 200:
        pass
    assert f"key=::ffff:{address} " in await made.runtime("show table t_block")


async def passes(made: World, address: str) -> None:
    async def get() -> bool:
        return (await made.client(address).get()).status == 200

    await until(get, f"{address} passes")


def test_a_lift_that_an_agent_missed_reaches_its_haproxy(tmp_path: Path) -> None:
    assert PROGRAM is not None, "redis-server is not installed"
    server = Server(tmp_path).start()

    async def test() -> None:
        folders = [tmp_path / name for name in ("a", "b")]
        for folder in folders:
            folder.mkdir()
        store = f"[store]\nurl = '{server.url}'\n"
        async with (
            world(folders[0], beside(folders[0], store)) as first,
            world(folders[1], beside(folders[1], store)) as second,
            api(first) as there,
        ):
            await blocked(second, "127.20.0.1")
            await blocked(second, "127.20.0.2")

            async def known() -> bool:
                listed = (await there.get("/v1/blocks")).json()["blocks"]
                return {one["key"] for one in listed} == {"127.20.0.1", "127.20.0.2"}

            await until(known, "both agents know both")
            second.stop_agent()
            assert (await there.delete("/v1/blocks/127.20.0.1")).status_code == 204
            made = await there.post("/v1/blocks", json={"key": "127.20.0.3", "ttl": "1h"})
            assert made.status_code == 201
            assert (await second.client("127.20.0.1").get()).status == 429
            second.start_agent(beside(folders[1], store))
            await passes(second, "127.20.0.1")

            async def told() -> bool:
                return "key=::ffff:127.20.0.3 " in await second.runtime("show table t_block")

            await until(told, "the block by hand that it missed is there")
            table = await second.runtime("show table t_block")
            assert "key=::ffff:127.20.0.2 " in table, "what is blocked still stays"
            assert "key=::ffff:127.20.0.1 " not in table
            # The comparison ends, and its line is written, after the last entry.
            await until(lambda: '"event": "edge corrected"' in second.agent_log(), "it is logged")

    try:
        run(test)
    finally:
        server.kill()


def test_a_lift_that_could_not_be_told_is_told_after_a_restart(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, beside(tmp_path)) as made:
            await blocked(made, "127.20.1.1")
            assert made.agent is not None
            socket = tmp_path / "haproxy.sock"
            async with api(made) as here:
                await in_step(here)
                socket.rename(tmp_path / "away.sock")
                lifted = await here.delete("/v1/blocks/127.20.1.1")
            assert lifted.status_code == 200
            [edge] = lifted.json()["edges"]
            assert (edge["socket"], edge["ok"]) == (str(socket), False)
            assert "no such socket" in edge["problem"]
            made.agent.kill()
            made.agent.wait()
            (tmp_path / "away.sock").rename(socket)
            assert (await made.client("127.20.1.1").get()).status == 429
            made.start_agent(beside(tmp_path))
            await passes(made, "127.20.1.1")

    run(test)


def test_a_lift_is_told_when_haproxy_answers_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, beside(tmp_path)) as made, api(made) as here:
            await in_step(here)
            await blocked(made, "127.20.2.1")
            socket = tmp_path / "haproxy.sock"
            socket.rename(tmp_path / "away.sock")
            assert (await here.delete("/v1/blocks/127.20.2.1")).status_code == 200
            assert (await made.client("127.20.2.1").get()).status == 429
            assert "ratelimit_edges_behind 1.0" in (await here.get("/metrics")).text
            (tmp_path / "away.sock").rename(socket)
            await passes(made, "127.20.2.1")
            await in_step(here)

    run(test)


@pytest.mark.parametrize(
    "change", ["[lists]\nallow = ['127.20.3.0/24']\n", "shadow = true\n"], ids=["allow", "shadow"]
)
def test_a_reload_that_lets_a_client_pass_reaches_haproxy(tmp_path: Path, change: str) -> None:
    async def test() -> None:
        async with world(tmp_path, beside(tmp_path)) as made:
            await blocked(made, "127.20.3.1")
            made.configure(beside(tmp_path, change))
            await passes(made, "127.20.3.1")

            # The allow list reaches HAProxy as a list too, which may be before the table.
            async def forgotten() -> bool:
                return "127.20.3.1" not in await made.runtime("show table t_block")

            await until(forgotten, "HAProxy's table does not have it")

    run(test)


def test_another_process_of_haproxy_is_told_of_blocks_by_hand(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, beside(tmp_path)) as made, api(made) as here:
            await in_step(here)
            made_here = await here.post("/v1/blocks", json={"key": "127.20.4.1", "ttl": "1h"})
            edges = [{"socket": f"{tmp_path}/haproxy.sock", "ok": True, "problem": ""}]
            assert (made_here.status_code, made_here.json()["edges"]) == (201, edges)
            await made.reload()

            async def told() -> bool:
                return "key=::ffff:127.20.4.1 " in await made.runtime("show table t_block")

            await until(told, "the new worker has it")

    run(test)
