"""haproxy/peers.cfg on its own: what HAProxy does with what an agent has told it.

The agent is a script, so that the ends of verdicts and the seconds of its marker are exact.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from ratelimit.haproxy.process import files
from tests.helpers.peers_mode import (
    BLOCK,
    DENYLIST,
    ENFORCE,
    FUSED,
    NO_CAP,
    SHADOW,
    SHADOW_BLOCK,
    SHADOW_THROTTLE,
    THROTTLE,
    Verdict,
    behind_balancer,
    fields,
    later,
    limit,
    logged,
    now_ms,
    peers,
    tell,
)
from tests.helpers.scripted_peer import (
    GPC0,
    GPT,
    HTTP_REQ_CNT,
    HTTP_REQ_RATE,
    ScriptedPeer,
    scripted_peer,
)
from tests.helpers.world import (
    HAPROXY,
    LONGEST,
    PEERS_FILE,
    Client,
    World,
    until,
    world,
)

pytestmark = pytest.mark.integration

# ---- The file -------------------------------------------------------------------------------

EVERYTHING = {
    "RATELIMIT_LOGIN_PATH": "/login",
    "RATELIMIT_API_KEYS": "1",
    "RATELIMIT_CORS": "*",
    "RATELIMIT_GRPC": "1",
    "RATELIMIT_X_HEADERS": "1",
    "RATELIMIT_EXEMPT": "path /robots.txt",
    "RATELIMIT_IPV4_PREFIX": "24",
    "RATELIMIT_PEERS2": "127.0.0.1:9194",
    "RATELIMIT_LOCALPEER": "edge-1",
    "RATELIMIT_THREADS": "1",
    "RATELIMIT_METRICS": "127.0.0.1:8405",
    "RATELIMIT_BACKEND_DNS": "localhost:80",
}


@pytest.mark.parametrize("settings", [{}, EVERYTHING, EVERYTHING | {"RATELIMIT_DIRECT": "reject"}])
def test_no_warning(settings: dict[str, str]) -> None:
    ran = subprocess.run(
        [*HAPROXY, "-c", "-f", str(files() / PEERS_FILE)],
        env={"PATH": os.environ["PATH"], **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    # From 3.4 on it warns root of being root.
    warned = [line for line in ran.stderr.splitlines() if "WARNING" in line]
    assert [line for line in warned if "HAProxy was started as" not in line] == []


def test_haproxy_tells_the_tables_that_the_agent_expects(tmp_path: Path) -> None:
    async def test(w: World, agent: ScriptedPeer) -> None:
        client = w.client("127.2.0.1")
        await client.send("POST", "/login", X_API_Key="k")
        await client.send("POST", "/login", Sec_Fetch_Site="cross-site")
        await w.client("127.6.0.1").get()
        names = {"rl_default", "rl_unknown", "rl_login", "rl_login_cross", "rl_api_key"}
        await until(lambda: set(agent.tables) == names, "all tables are told")
        for name, table in agent.tables.items():
            assert table.types == [GPC0, HTTP_REQ_CNT, HTTP_REQ_RATE, GPT], name
            assert table.arrays == {GPT: 1}
        periods = {name: table.periods[HTTP_REQ_RATE] for name, table in agent.tables.items()}
        login = dict.fromkeys(("rl_login", "rl_login_cross"), 60_000)
        rest = dict.fromkeys(("rl_unknown", "rl_api_key"), 1000)
        assert periods == {"rl_default": 10_000} | login | rest
        assert agent.hello == ["HAProxyS 2.1", "agent", agent.hello[2]]
        assert agent.hello[2].startswith("edge-1 ")

    peers(
        tmp_path,
        test,
        behind_balancer,
        RATELIMIT_LOGIN_PATH="/login",
        RATELIMIT_API_KEYS="1",
        RATELIMIT_WINDOW="10",
        RATELIMIT_LOCALPEER="edge-1",
    )


def test_the_first_request_of_a_client_tells_haproxys_clock(tmp_path: Path) -> None:
    async def test(w: World, agent: ScriptedPeer) -> None:
        client = w.client("127.2.0.1")
        before = now_ms()
        await client.get()
        after = now_ms()
        await until(lambda: agent.count("rl_default", "127.2.0.1", GPT) >= 0, "it is told")
        told = agent.count("rl_default", "127.2.0.1", GPT)
        # HAProxy reads its clock when it wakes up, and corrects it by the monotonic one.
        assert (told - before) % 2**32 <= after - before + 2 or (before - told) % 2**32 <= 2
        await client.get()
        await until(lambda: agent.count("rl_default", "127.2.0.1", HTTP_REQ_CNT) == 2, "counted")
        assert agent.count("rl_default", "127.2.0.1", GPT) == told

    peers(tmp_path, test)


# ---- Verdicts -------------------------------------------------------------------------------


def test_a_blocked_client_is_refused_and_not_counted(tmp_path: Path) -> None:
    async def test(w: World, agent: ScriptedPeer) -> None:
        await limit(w, agent, "default", 100)
        blocked, other = w.client("127.2.0.1"), w.client("127.2.0.2")
        await tell(w, agent, "rlv_default", "127.2.0.1", later(BLOCK, 60))
        assert await other.statuses(3) == [200] * 3
        refused = await blocked.get()
        assert refused.status == 429
        wait = int(refused.headers["retry-after"])
        assert 50 <= wait <= 60
        assert refused.headers["ratelimit"] == f'"default";r=0;t={wait}'
        assert refused.headers["ratelimit-policy"] == '"default";q=100;w=10'
        await logged(w, "block", "default", "-", "-", "-")
        assert await w.denied() == {"rl_agent": 1}
        assert "127.2.0.1 " not in await w.runtime("show table ratelimit/rl_default")
        await tell(w, agent, "rlv_default", "127.2.0.1", (0, 0, 0))
        assert (await blocked.get()).status == 200, "the block was lifted"

    peers(tmp_path, test)


def test_a_verdict_of_a_list_has_no_end(tmp_path: Path) -> None:
    async def test(w: World, agent: ScriptedPeer) -> None:
        await tell(w, agent, "rlv_default", "127.2.0.1", (4_294_967_295, 0, DENYLIST))
        refused = await w.client("127.2.0.1").get()
        assert (refused.status, refused.headers["retry-after"]) == (429, "3600")
        await logged(w, "denylist", "default", "-", "-", "-")

    peers(tmp_path, test)


def test_a_throttle_ends_at_its_exact_millisecond(tmp_path: Path) -> None:
    async def test(w: World, agent: ScriptedPeer) -> None:
        await limit(w, agent, "default", 1_000_000)
        client = w.client("127.2.0.1")
        for part in (0, 1, 500, 999):
            # An end at that part of a second, at least half a second away.
            end = (now_ms() + 500) // 1000 * 1000 + 1000 + part
            verdict = Verdict(end, THROTTLE)
            await tell(w, agent, "rlv_default", "127.2.0.1", verdict.values())
            refused = allowed = 0
            while not allowed:
                sent = now_ms()
                answer = await client.get()
                answered = now_ms()
                if answer.status == 429:
                    refused += 1
                    assert sent <= end, "refused after its end"
                    seconds = int(answer.headers["retry-after"])
                    assert end - answered - 2 <= seconds * 1000 <= end - sent + 1001
                else:
                    allowed += 1
                    assert answered >= end - 2, "allowed before its end"
            assert refused > 0
        await until(lambda: "throttle" in {line[0] for line in fields(w)}, "they are logged")
        denied = (await w.denied())["rl_agent"]
        count, key = agent.count, "127.2.0.1"
        await until(lambda: count("rl_default", key, GPC0) == denied, "each refusal is counted")
        assert count("rl_default", key, HTTP_REQ_CNT) == denied + 4, "and each request"

    peers(tmp_path, test)


def test_a_throttle_that_has_ended_refuses_nothing(tmp_path: Path) -> None:
    async def test(w: World, agent: ScriptedPeer) -> None:
        await limit(w, agent, "default", 100)
        # It ended a few milliseconds ago; its whole second, rounded up, has not ended.
        while now_ms() % 1000 > 500 or now_ms() % 1000 < 5:
            await asyncio.sleep(0.01)
        await tell(w, agent, "rlv_default", "127.2.0.1", Verdict(now_ms() - 3, THROTTLE).values())
        assert (await w.client("127.2.0.1").get()).status == 200
        await logged(w, "allow", "-", "-", "-", "-")

    peers(tmp_path, test)


@pytest.mark.parametrize(
    ("kind", "said"), [(SHADOW_THROTTLE, "throttle:default"), (SHADOW_BLOCK, "block:default")]
)
def test_a_verdict_in_shadow_is_only_logged(tmp_path: Path, kind: int, said: str) -> None:
    async def test(w: World, agent: ScriptedPeer) -> None:
        await limit(w, agent, "default", 100, SHADOW)
        await tell(w, agent, "rlv_default", "127.2.0.1", later(kind))
        assert (await w.client("127.2.0.1").get()).status == 200
        await logged(w, "allow", "-", "-", "-", said)
        await until(
            lambda: agent.count("rl_default", "127.2.0.1", HTTP_REQ_CNT) == 1, "it is counted"
        )
        # A block by hand holds.
        await tell(w, agent, "rlv_default", "127.2.0.1", later(BLOCK))
        assert (await w.client("127.2.0.1").get()).status == 429

    peers(tmp_path, test)


def test_a_kind_that_is_not_known_refuses_nothing(tmp_path: Path) -> None:
    async def test(w: World, agent: ScriptedPeer) -> None:
        await tell(w, agent, "rlv_default", "127.2.0.1", later(6))
        assert (await w.client("127.2.0.1").get()).status == 200

    peers(tmp_path, test)


def test_verdicts_survive_a_reload_without_an_agent(tmp_path: Path) -> None:
    async def main() -> None:
        made = world(tmp_path, agent=False, file=PEERS_FILE)
        async with asyncio.timeout(LONGEST), made as w:
            async with scripted_peer(tmp_path / "peers.sock") as agent:
                await agent.connected()
                await tell(w, agent, "rlv_default", "127.2.0.1", later(BLOCK))
            await w.reload()

            async def refused() -> bool:
                client = Client(w.port, "127.2.0.1")
                try:
                    return (await client.get()).status == 429
                finally:
                    await client.close()

            await until(refused, "the new worker has the block")
            assert (await w.client("127.2.0.2").get()).status == 200

    asyncio.run(main())


# ---- HAProxy's own cap ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "age", "allowed"),
    [
        (ENFORCE, 0, 20),
        (FUSED, 0, 20),
        (ENFORCE, 100, 10),
        (ENFORCE, -100, 10),
        (FUSED, 100, 10),
        (SHADOW, 0, 60),
        (NO_CAP, 0, 60),
        (NO_CAP, 100, 60),
    ],
)
def test_the_cap(tmp_path: Path, mode: int, age: int, allowed: int) -> None:
    """Twice the rate while the agent is connected, the rate otherwise."""

    async def test(w: World, agent: ScriptedPeer) -> None:
        client = w.client("127.2.0.1")
        await limit(w, agent, "default", 10, mode, age)
        answers = [await client.get() for _ in range(60)]
        await limit(w, agent, "default", 10, mode, age)
        assert [a.status for a in answers] == [200] * allowed + [429] * (60 - allowed)
        denied = {"rl_local": 60 - allowed} if allowed < 60 else {}
        assert await w.denied() == denied
        if denied:
            await logged(w, "local", "default", "-", "-", "-")
            assert answers[-1].headers["ratelimit-policy"] == '"default";q=10;w=10'
            assert 1 <= int(answers[-1].headers["retry-after"]) <= 10
        else:
            away = "alone" if age else "allow"
            shadow = "throttle:default" if mode == SHADOW else "-"
            await logged(w, away, "-", "-", "-", shadow)
        await until(
            lambda: agent.count("rl_default", "127.2.0.1", HTTP_REQ_CNT) == 60, "all are counted"
        )
        assert agent.count("rl_default", "127.2.0.1", GPC0) == 60 - allowed

    peers(tmp_path, test, RATELIMIT_WINDOW="60")


def test_haproxy_counts_alone_before_it_has_met_an_agent(tmp_path: Path) -> None:
    async def main() -> None:
        made = world(
            tmp_path,
            agent=False,
            file=PEERS_FILE,
            env={"RATELIMIT_WINDOW": "60", "RATELIMIT_ALONE_RATE": "7"},
        )
        async with asyncio.timeout(LONGEST), made as w:
            client = w.client("127.2.0.1")
            answers = [await client.get() for _ in range(20)]
            assert [a.status for a in answers] == [200] * 7 + [429] * 13
            assert answers[-1].headers["ratelimit-policy"] == '"default";q=7;w=60'
            await until(lambda: len(fields(w)) == 20, "all are logged")
            assert [line[0] for line in fields(w)] == ["alone"] * 7 + ["local"] * 13
            assert (await w.client("127.2.0.2").get()).status == 200

    asyncio.run(main())


def test_the_rate_of_a_reloaded_limit_holds_at_once(tmp_path: Path) -> None:
    async def test(w: World, agent: ScriptedPeer) -> None:
        await limit(w, agent, "default", 10)
        assert (await w.client("127.2.0.1").statuses(21))[19:] == [200, 429]
        await limit(w, agent, "default", 5)
        assert (await w.client("127.2.0.2").statuses(11))[9:] == [200, 429]

    peers(tmp_path, test, RATELIMIT_WINDOW="60")


# ---- Lists, exempt, unknown -----------------------------------------------------------------


# ---- Further limits -------------------------------------------------------------------------


# ---- Clients --------------------------------------------------------------------------------


# ---- The same refusals as haproxy.cfg -------------------------------------------------------
