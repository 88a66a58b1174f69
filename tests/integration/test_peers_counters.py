"""Limits on what HAProxy counts at the end of a request: errors, failures, bytes, open requests."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from tests.helpers.peers_mode import fields
from tests.helpers.world import PEERS_FILE, Client, World, run, until

pytestmark = pytest.mark.integration


async def refused(client: Client) -> bool:
    return (await client.get()).status == 429


async def blocked(w: World, client: Client, limit: str) -> bool:
    """Send a request; return whether HAProxy refused one by a block of the limit."""
    await client.get()
    return any(line[:2] == ["block", limit] for line in fields(w))


async def counted(w: World, address: str) -> int:
    """Return the requests of a client that HAProxy has counted."""
    shown = await w.runtime(f"show table ratelimit/rl_default key ::ffff:{address}")
    return int(re.findall(r" http_req_cnt=(\d+)", shown)[0])


@pytest.mark.parametrize(
    ("counts", "counter", "status", "rate"),
    [
        ("errors", "http_err_cnt", "404 Not Found", 20),
        ("bytes_out", "bytes_out_cnt", "200 OK", 1_500),
    ],
)
def test_a_further_limit_blocks_by_another_counter(
    tmp_path: Path, counts: str, counter: str, status: str, rate: int
) -> None:
    async def test(w: World) -> None:
        w.status = status
        scanner, visitor = w.client("127.2.0.1"), w.client("127.2.0.2")
        await until(lambda: blocked(w, scanner, "scanners"), "the scanner is blocked")
        # Answers of this test have less than 150 bytes.
        assert w.requests["127.2.0.1"] >= 10
        answer = await scanner.get()
        assert answer.headers["ratelimit-policy"] == f'"scanners";q={rate};w=10'
        requests, passed = await counted(w, "127.2.0.1"), w.requests["127.2.0.1"]
        w.status = "200 OK"
        assert await scanner.statuses(3) == [429] * 3
        assert await visitor.statuses(3) == [200] * 3
        assert w.requests["127.2.0.1"] == passed
        # Requests of a blocked client count for no limit.
        assert await counted(w, "127.2.0.1") == requests

    limits = "[limits.default]\nrate = 10_000\n[limits.scanners]\ntable = 'rl_default'\n"
    limits += f"counts = '{counts}'\nrate = {rate}\nwindow = '10s'\nblock = ['10m']\n"
    run(
        tmp_path,
        test,
        limits,
        file=PEERS_FILE,
        RATELIMIT_COUNTERS=counter,
        RATELIMIT_LIMIT2="scanners",
    )


def test_two_further_limits_and_one_in_shadow(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        w.status = "404 Not Found"
        client = w.client("127.2.0.1")

        async def said() -> bool:
            await client.get()
            return ["allow", "-", "-", "-", "block:second"] in fields(w)

        await until(said, "the limit in shadow would block")
        assert await client.statuses(3) == [404] * 3
        w.status = "500 Internal Server Error"
        await until(lambda: blocked(w, client, "third"), "the other limit blocks")
        assert fields(w)[-1] == ["block", "third", "-", "-", "block:second"]

    limits = "[limits.default]\nrate = 10_000\n"
    for name, counts in (("second", "errors"), ("third", "failures")):
        limits += f"[limits.{name}]\ntable = 'rl_default'\ncounts = '{counts}'\nrate = 10\n"
        limits += f"window = '30s'\nblock = ['10m']\nshadow = {str(name == 'second').lower()}\n"
    run(
        tmp_path,
        test,
        limits,
        file=PEERS_FILE,
        RATELIMIT_COUNTERS="http_err_cnt,http_fail_cnt",
        RATELIMIT_LIMIT2="second",
        RATELIMIT_LIMIT3="third",
    )


def test_a_client_has_only_so_many_open_requests(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        async with asyncio.TaskGroup() as group:
            open_ones = [group.create_task(w.client("127.2.0.1").get("/slow")) for _ in range(4)]
            other, neighbour = w.client("127.2.0.1"), w.client("127.2.0.2")
            await until(lambda: refused(other), "the agent refuses further requests")
            assert await neighbour.statuses(3) == [200] * 3
            w.released.set()
        assert {task.result().status for task in open_ones} == {200}

        async def passes() -> bool:
            return not await refused(other)

        await until(passes, "the client may send requests again")

    limits = "[limits.default]\nrate = 10_000\nopen = 4\n"
    run(tmp_path, test, limits, file=PEERS_FILE, RATELIMIT_COUNTERS="conn_cur")
