"""haproxy/peers.cfg: lists, exemptions, unknown clients, logins and API keys."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path

import pytest

from tests.helpers.peers_mode import (
    BLOCK,
    SHADOW,
    SHADOW_BLOCK,
    SHADOW_THROTTLE,
    THROTTLE,
    behind_balancer,
    later,
    limit,
    logged,
    peers,
    tell,
)
from tests.helpers.scripted_peer import (
    GPC0,
    HTTP_REQ_CNT,
    ScriptedPeer,
)
from tests.helpers.world import (
    World,
    until,
)

pytestmark = pytest.mark.integration


def test_lists_come_before_verdicts_and_the_cap(tmp_path: Path) -> None:
    def maps(folder: Path) -> None:
        (folder / "rl_lists.map").write_text("127.3.0.0/24 -1\n127.4.0.0/24 4294967295\n")
        end = int(time.time()) + 600
        (folder / "rl_blocks.map").write_text(f"127.5.0.0/24 {end}\n127.3.0.0/25 {end}\n")

    async def test(w: World, agent: ScriptedPeer) -> None:
        await limit(w, agent, "default", 2)
        allowed = w.client("127.3.0.1")
        await tell(w, agent, "rlv_default", "127.3.0.1", later(BLOCK))
        assert await allowed.statuses(10) == [200] * 10
        await tell(w, agent, "rlv_default", "127.3.0.1", later(THROTTLE))
        assert await allowed.statuses(10) == [200] * 10
        await until(
            lambda: agent.count("rl_default", "127.3.0.1", HTTP_REQ_CNT) == 20,
            "the figures have it",
        )
        assert agent.count("rl_default", "127.3.0.1", GPC0) == 0
        denied = await w.client("127.4.0.1").get()
        assert (denied.status, denied.headers["retry-after"]) == (429, "3600")
        await logged(w, "edge", "-", "-", "-", "-")
        blocked = await w.client("127.5.0.1").get()
        assert blocked.status == 429 and 500 < int(blocked.headers["retry-after"]) <= 600
        assert await w.denied() == {"rl_edge": 2}

    peers(tmp_path, test, maps, RATELIMIT_WINDOW="60")


def test_what_is_exempt_is_neither_counted_nor_refused(tmp_path: Path) -> None:
    async def test(w: World, agent: ScriptedPeer) -> None:
        await limit(w, agent, "default", 1)
        client = w.client("127.2.0.1")
        found = [(await client.get("/robots.txt", X_API_Key="k")).status for _ in range(9)]
        assert found == [200] * 9
        await logged(w, "exempt", "-", "-", "-", "-")
        await tell(w, agent, "rlv_default", "127.2.0.1", later(BLOCK))
        assert (await client.get("/robots.txt")).status == 200
        assert (await client.get()).status == 429
        assert "used:0" in await w.runtime("show table ratelimit/rl_default")
        assert "used:0" in await w.runtime("show table ratelimit/rl_api_key")

    peers(
        tmp_path,
        test,
        RATELIMIT_EXEMPT="path /robots.txt",
        RATELIMIT_WINDOW="60",
        RATELIMIT_API_KEYS="1",
    )


def test_an_exempt_proxy_does_not_exempt_its_clients(tmp_path: Path) -> None:
    async def test(w: World, agent: ScriptedPeer) -> None:
        await limit(w, agent, "default", 1)
        balancer = w.client("127.6.0.1")
        assert (await balancer.get()).status == 200
        await logged(w, "exempt", "-", "-", "-", "-")
        assert (await balancer.get(X_Forwarded_For="192.0.2.1")).status == 200
        await logged(w, "allow", "-", "-", "-", "-")
        assert (await balancer.get(X_Forwarded_For="127.6.0.9")).status == 200
        await until(lambda: agent.count("rl_default", "192.0.2.1", HTTP_REQ_CNT) == 1, "counted")
        assert "used:1" in await w.runtime("show table ratelimit/rl_default")
        assert "used:0" in await w.runtime("show table ratelimit/rl_unknown")

    peers(
        tmp_path,
        test,
        behind_balancer,
        RATELIMIT_EXEMPT="src 127.6.0.0/24",
        RATELIMIT_WINDOW="60",
    )


def test_unknown_clients_have_a_limit_of_their_own(tmp_path: Path) -> None:
    async def test(w: World, agent: ScriptedPeer) -> None:
        balancer = w.client("127.6.0.1")
        await limit(w, agent, "default", 1)
        await limit(w, agent, "unknown", 2)
        answers = [await balancer.get() for _ in range(6)]
        assert [a.status for a in answers] == [200] * 4 + [429] * 2
        assert answers[-1].headers["ratelimit-policy"] == '"unknown";q=2;w=10'
        await logged(w, "local", "unknown", "-", "-", "-")
        await tell(w, agent, "rlv_unknown", "127.6.0.1", later(THROTTLE))
        assert (await balancer.get()).status == 429
        await logged(w, "throttle", "unknown", "-", "-", "-")
        await tell(w, agent, "rlv_unknown", "127.6.0.1", later(BLOCK))
        assert (await balancer.get()).status == 429
        await logged(w, "block", "unknown", "-", "-", "-")
        named = await balancer.get(X_Forwarded_For="192.0.2.1")
        assert named.status == 200, "its clients are counted apart"
        assert await w.denied() == {"rl_unknown": 4}
        await until(lambda: agent.count("rl_default", "192.0.2.1", HTTP_REQ_CNT) == 1, "counted")
        assert agent.count("rl_unknown", "127.6.0.1", HTTP_REQ_CNT) == 7
        assert agent.count("rl_unknown", "127.6.0.1", GPC0) == 3

    peers(
        tmp_path,
        test,
        behind_balancer,
        RATELIMIT_WINDOW="60",
        RATELIMIT_UNKNOWN_WINDOW="60",
    )


def test_a_blocked_client_is_refused_at_the_connection(tmp_path: Path) -> None:
    async def test(w: World, agent: ScriptedPeer) -> None:
        kept, new = w.client("127.2.0.1"), w.client("127.2.0.1")
        assert (await kept.get()).status == 200
        await tell(w, agent, "rlv_default", "127.2.0.1", later(THROTTLE))
        assert (await w.client("127.2.0.1").get()).status == 429, "a throttle is no block"
        await tell(w, agent, "rlv_default", "127.2.0.1", later(BLOCK))
        answer = await kept.get()
        assert (answer.status, answer.headers["connection"]) == (429, "close")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await new.get()
        assert (await w.client("127.2.0.2").get()).status == 200

    peers(tmp_path, test, RATELIMIT_DIRECT="reject")


def test_a_client_that_may_not_log_in_may_still_read(tmp_path: Path) -> None:
    async def test(w: World, agent: ScriptedPeer) -> None:
        await limit(w, agent, "default", 1000)
        await limit(w, agent, "login", 3)
        client = w.client("127.2.0.1")

        async def post(**headers: str) -> int:
            return (await client.send("POST", "/x/..//%6cogin/", **headers)).status

        assert [await post() for _ in range(8)] == [200] * 6 + [429] * 2
        await logged(w, "local", "login", "-", "-", "-")
        assert await client.statuses(5) == [200] * 5
        # Without a limit of its own, HAProxy's own count holds for what another site causes.
        cross = [await post(Sec_Fetch_Site="cross-site") for _ in range(5)]
        assert cross == [200] * 3 + [429] * 2
        await tell(w, agent, "rlv_login", "127.2.0.1", later(BLOCK))
        assert await post() == 429
        await logged(w, "block", "login", "-", "-", "-")
        await tell(w, agent, "rlv_login_cross", "127.2.0.1", later(THROTTLE))
        assert await post(Sec_Fetch_Site="cross-site") == 429
        await logged(w, "throttle", "login_cross", "-", "-", "-")
        assert await client.statuses(5) == [200] * 5
        count, key = agent.count, "127.2.0.1"
        await until(lambda: count("rl_default", key, HTTP_REQ_CNT) == 25, "all are counted")
        assert (count("rl_login", key, HTTP_REQ_CNT), count("rl_login", key, GPC0)) == (8, 2)
        assert count("rl_login_cross", key, HTTP_REQ_CNT) == 6
        assert count("rl_login_cross", key, GPC0) == 3
        assert count("rl_default", key, GPC0) == 0
        await tell(w, agent, "rlv_login", "127.2.0.1", later(SHADOW_BLOCK))
        await w.runtime("clear table ratelimit/rl_login")
        assert await post() == 200
        await logged(w, "allow", "-", "-", "-", "block:login")

    peers(tmp_path, test, RATELIMIT_LOGIN_PATH="/login", RATELIMIT_WINDOW="60")


def test_a_limit_in_shadow_hides_no_refusal_of_another(tmp_path: Path) -> None:
    async def test(w: World, agent: ScriptedPeer) -> None:
        await limit(w, agent, "default", 1, SHADOW)
        await limit(w, agent, "login", 100)
        client = w.client("127.2.0.1")
        await tell(w, agent, "rlv_default", "127.2.0.1", later(SHADOW_THROTTLE))
        assert await client.statuses(5) == [200] * 5
        for kind, said in ((THROTTLE, "throttle"), (BLOCK, "block")):
            await tell(w, agent, "rlv_login", "127.2.0.1", later(kind))
            assert (await client.send("POST", "/login")).status == 429
            await logged(w, said, "login", "-", "-", "throttle:default")

    peers(tmp_path, test, RATELIMIT_LOGIN_PATH="/login", RATELIMIT_WINDOW="60")


def test_an_api_key_is_a_client_whose_key_no_table_shows(tmp_path: Path) -> None:
    async def test(w: World, agent: ScriptedPeer) -> None:
        await limit(w, agent, "default", 1000)
        await limit(w, agent, "api_key", 2)
        client, key = w.client("127.2.0.1"), "s3cret" * 20

        async def get(value: str) -> int:
            return (await client.get(X_API_Key=value)).status

        hashed = hashlib.sha256(key.encode()).digest()
        assert [await get(key) for _ in range(6)] == [200] * 4 + [429] * 2
        await logged(w, "local", "api_key", "-", "-", "-")
        assert await get(key + "2") == 200, "another key, with the same beginning"
        await tell(w, agent, "rlv_api_key", hashed, later(BLOCK))
        refused = await client.get(X_API_Key=key)
        assert refused.headers["ratelimit-policy"] == '"api_key";q=2;w=10'
        await logged(w, "block", "api_key", "-", "-", "-")
        assert (await client.get()).status == 200
        assert (await client.get(X_API_Key="a,b")).status == 400
        await until(lambda: agent.count("rl_api_key", hashed, HTTP_REQ_CNT) == 6, "counted")
        shown = await w.runtime("show table ratelimit/rl_api_key")
        assert hashed.hex() in shown.lower() and "s3cret" not in shown
        assert await w.denied() == {"rl_agent": 1, "rl_local": 2}

    peers(tmp_path, test, RATELIMIT_API_KEYS="1", RATELIMIT_API_KEY_WINDOW="60")
