"""Operators' commands in peers mode: blocks, explain, top, events, shadow, with a real HAProxy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from ratelimit.cli.main import main
from ratelimit.limiter.limiter import FUSE_CLIENTS
from tests.helpers.world import LONGEST, PATIENCE, PEERS_FILE, World, until, world

pytestmark = pytest.mark.integration

LIMITS = "[limits.default]\nrate = 20\nwindow = '30s'\nblock = ['5m']\n"
"""A limit that a machine that does much else can exceed, and blocks that outlast a test."""

FUSED = "[limits.default]\nrate = 2\nwindow = '30s'\nblock = ['5m']\n"
"""A limit that all clients exceed."""

ENV = {
    "RATELIMIT_STATS_LEVEL": "admin",
    "RATELIMIT_WINDOW": "30",
    "RATELIMIT_API_KEYS": "1",
}


def run(
    folder: Path,
    test: Callable[[World, httpx.AsyncClient], Awaitable[None]],
    sockets: bool,
    limits: str = LIMITS,
) -> None:
    """Run a test with an agent that HAProxy has as its peer, and a client of its API."""

    async def here() -> None:
        more = f"[haproxy]\nsockets = ['{folder}/haproxy.sock']\n" if sockets else ""
        made = world(folder, limits + more, env=ENV, file=PEERS_FILE, edit=balanced)
        async with (
            asyncio.timeout(LONGEST),
            made as w,
            httpx.AsyncClient(
                base_url=f"http://{await w.ops()}", trust_env=False, timeout=PATIENCE
            ) as api,
        ):

            async def taught() -> bool:
                peers = (await status(api))["peers"]
                return bool(peers) and peers[0]["taught"]

            await until(taught, "HAProxy has all verdicts")
            await test(w, api)

    asyncio.run(here())


def balanced(files: Path) -> None:
    (files / "lb.lst").write_text("127.6.9.0/24\n")


async def status(api: httpx.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = (await api.get("/v1/status")).json()
    return found


async def block(api: httpx.AsyncClient, key: str) -> dict[str, Any]:
    made = await api.post("/v1/blocks", json={"key": key, "ttl": "10m"})
    assert made.status_code == 201, made.text
    found: dict[str, Any] = made.json()
    return found


async def command(w: World, *words: str) -> str:
    """Return what a command prints, with single spaces."""
    arguments = [*words, "--url", f"http://{await w.ops()}"]
    runner = CliRunner(env={"COLUMNS": "300"})
    result = await asyncio.to_thread(runner.invoke, main, arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


async def refused(w: World, address: str) -> bool:
    return (await w.client(address).get()).status == 429


@contextlib.asynccontextmanager
async def events(
    api: httpx.AsyncClient,
) -> AsyncIterator[AsyncIterator[tuple[str, dict[str, Any]]]]:
    """Yield the events, as name and data."""

    async def read(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        name = ""
        async for line in lines:
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))

    async with api.stream("GET", "/v1/events") as answer:
        yield read(answer.aiter_lines())


def test_with_the_socket_an_operator_sees_haproxys_counts_and_blocks_any_network(
    tmp_path: Path,
) -> None:
    async def test(w: World, api: httpx.AsyncClient) -> None:
        async def compared() -> bool:
            return "ratelimit_edges_behind 0.0" in (await api.get("/metrics")).text

        await until(compared, "the agent has filled HAProxy's maps")
        async with events(api) as told:
            client = w.client("127.2.0.1")
            assert await client.statuses(3) == [200] * 3

            async def counted() -> bool:
                known = (await api.get("/v1/clients/127.2.0.1")).json()["counted"]
                counts = {one["table"]: one["values"] for one in known}
                return bool(counts.get("rl_default", {}).get("http_req_cnt") == 3)

            await until(counted, "explain has HAProxy's own count")
            (own,) = (await api.get("/v1/clients/127.2.0.1")).json()["counted"]
            assert own["key"] == "127.2.0.1" and own["periods"] == {"http_req_rate": 30_000}
            top = (await api.get("/v1/clients?n=5&counted=true")).json()["clients"]
            assert {one["key"]: one["haproxy"] for one in top if one["limit"] == "default"} == {
                "127.2.0.1": {"requests": 3, "refused": 0, "open": None}
            }

            explained = await command(w, "explain", "127.2.0.1")
            assert "rl_default 127.2.0.1" in explained and "http_req_cnt 3" in explained
            assert "HAProxy's count" in await command(w, "top", "--once")
            listed = await command(w, "status")
            assert re.search(r"haproxy unix .* this agent all 0", listed), listed
            assert re.search(r"haproxy.sock .* peer 0", listed), listed

            # A client has a verdict, another network is in HAProxy's map.
            for key, inside in (("127.2.0.9", "127.2.0.9"), ("127.4.0.0/24", "127.4.0.9")):
                made = await block(api, key)
                assert made["unenforced"] == "" and made["edges"][0]["problem"] == ""
                if inside != key:
                    assert await refused(w, inside), "its first request is refused"
                await until(partial(refused, w, inside), f"HAProxy refuses {inside}")
                assert (await api.delete(f"/v1/blocks/{key}")).status_code == 204
                await until(partial(passes, w, inside), f"HAProxy lets {inside} pass")
            verdict = (await api.get("/v1/clients/127.2.0.9")).json()["counted"]
            assert {one["table"] for one in verdict} >= {"rl_default", "rlv_default"}

            attacker = w.client("127.2.0.2")
            await attacker.statuses(45)
            found = []
            async for name, data in told:
                found.append((name, data["limit"], data["key"]))
                if found[-1] == ("block", "default", "127.2.0.2"):
                    break
            by_hand = [
                (name, "*", key)
                for key in ("127.2.0.9", "127.4.0.0/24")
                for name in ("block", "unblock")
            ]
            assert found[:-1] == by_hand
        assert "edge not compared" not in w.agent_log()
        assert (await status(api))["edges"]["faults"] == 0
        # In shadow mode nothing is refused, and the blocks are shown as such.
        w.configure(
            LIMITS + "shadow = true\n" + f"[haproxy]\nsockets = ['{w.folder}/haproxy.sock']\n"
        )
        await until(lambda: passes(w, "127.2.0.2"), "the block is lifted by the reload")
        assert await w.client("127.2.0.3").statuses(45) == [200] * 45

        async def shown() -> bool:
            blocks = (await api.get("/v1/blocks/127.2.0.3")).json().get("blocks", [])
            return [one["shadow"] for one in blocks] == [True]

        await until(shown, "the block in shadow is shown")
        assert (await status(api))["limits"][0]["blocked"] >= 1

    run(tmp_path, test, sockets=True)


async def passes(w: World, address: str) -> bool:
    return (await w.client(address).get()).status == 200


def test_without_the_socket_a_block_of_a_network_says_that_haproxy_does_not_enforce_it(
    tmp_path: Path,
) -> None:
    async def test(w: World, api: httpx.AsyncClient) -> None:
        assert (await block(api, "127.2.0.9"))["unenforced"] == ""
        await until(lambda: refused(w, "127.2.0.9"), "HAProxy refuses a single client")
        # HAProxy has a client behind NAT64 under the address that it sees.
        await block(api, "192.0.2.7")
        balancer = w.client("127.6.9.1")

        async def from_behind(address: str) -> int:
            return (await balancer.get(X_Forwarded_For=f"64:ff9b::{address}")).status

        async def behind_is_refused() -> bool:
            return await from_behind("192.0.2.7") == 429

        assert await from_behind("192.0.2.8") == 200
        await until(behind_is_refused, "HAProxy refuses the client behind NAT64")
        verdicts = await w.runtime("show table ratelimit/rlv_default key 64:ff9b::c000:207")
        assert "gpt2=2" in verdicts
        assert (await api.delete("/v1/blocks/192.0.2.7")).status_code == 204

        async def behind_passes() -> bool:
            return await from_behind("192.0.2.7") == 200

        await until(behind_passes, "the client behind NAT64 passes again")
        # HAProxy has the digest of an API key; an operator gives the key.
        made = await block(api, "sk_live_1234567890")
        assert made["key"].startswith("sk_l~") and made["unenforced"] == ""
        keyed = w.client("127.2.0.8")

        async def status_of(key: str) -> int:
            return (await keyed.get(X_API_Key=key)).status

        async def key_is_refused() -> bool:
            return await status_of("sk_live_1234567890") == 429

        await until(key_is_refused, "HAProxy refuses the API key")
        assert await status_of("sk_live_other") == 200
        for key in ("127.4.0.0/24", "2001:db8::1"):
            made = await block(api, key)
            assert "does not enforce this block by itself (limits" in made["unenforced"]
            assert "default" in made["unenforced"] and "`[haproxy] sockets`" in made["unenforced"]
        known = (await api.get("/v1/clients/127.2.0.9")).json()
        assert known["counted"] == [] and known["by_hand"]
        # Each client of the network gets a verdict with its count, until the network is unblocked.
        await until(partial(refused, w, "127.4.0.9"), "HAProxy refuses a client of the network")
        assert (await api.delete("/v1/blocks/127.4.0.0/24")).status_code == 204
        await until(partial(passes, w, "127.4.0.9"), "HAProxy lets the client pass again")

    run(tmp_path, test, sockets=False, limits=LIMITS + "[limits.api_key]\nrate = 1000\n")


def test_a_blown_fuse_reaches_haproxy_and_so_does_its_reset(tmp_path: Path) -> None:
    async def test(w: World, api: httpx.AsyncClient) -> None:
        async def mode() -> str:
            shown = await w.runtime("show table ratelimit/rlc_limits")
            return str(re.findall(r"key=default .*gpt1=(\d)", shown)[0])

        async def mode_is(wanted: str) -> bool:
            return await mode() == wanted

        assert await mode() == "1"
        # All clients exceed the limit: the limit must be wrong. A minute that ends meanwhile counts
        # apart, so twice the number is enough.
        for number in range(1, 2 * FUSE_CLIENTS + 1):
            await w.client(f"127.6.0.{number}").statuses(4)
        await until(partial(mode_is, "3"), "HAProxy is told")
        assert (await status(api))["limits"][0]["fuse_blown"]
        last = "127.6.1.1"
        await until(partial(refused, w, last), "the limit still throttles")
        assert (await api.get(f"/v1/blocks/{last}")).status_code == 404
        assert (await api.delete("/v1/limits/default/fuse")).status_code == 204
        await until(partial(mode_is, "1"), "HAProxy is told of the reset")

    run(tmp_path, test, sockets=False, limits=FUSED)
