"""haproxy/peers.cfg on its own: what HAProxy does with what an agent has told it.

The agent is a script, so that the ends of verdicts and the seconds of its marker are exact.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from ratelimit.haproxy.process import files
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
    Answer,
    Client,
    World,
    free_port,
    run,
    until,
    world,
)

pytestmark = pytest.mark.integration

THROTTLE, BLOCK, DENYLIST, SHADOW_THROTTLE, SHADOW_BLOCK = range(1, 6)
ENFORCE, SHADOW, FUSED, NO_CAP = range(1, 5)


@contextlib.asynccontextmanager
async def peered(
    folder: Path,
    env: dict[str, str],
    edit: Callable[[Path], object] = lambda files: None,
    port: int | None = None,
) -> AsyncIterator[tuple[World, ScriptedPeer]]:
    """Yield HAProxy with the file, and the agent that it is connected to."""
    made = world(folder, agent=False, port=port, edit=edit, env=env, file=PEERS_FILE)
    async with scripted_peer(folder / "peers.sock") as agent, made as w:
        await agent.connected()
        yield w, agent


def peers(
    folder: Path,
    test: Callable[[World, ScriptedPeer], Awaitable[None]],
    edit: Callable[[Path], object] = lambda files: None,
    port: int | None = None,
    **env: str,
) -> None:
    """Run ``test`` with HAProxy and the agent that it is connected to."""

    async def main() -> None:
        async with asyncio.timeout(LONGEST), peered(folder, env, edit, port) as (w, agent):
            await test(w, agent)

    asyncio.run(main())


@dataclass(frozen=True)
class Verdict:
    """A verdict as it is told: its end in milliseconds of the epoch, and its kind."""

    end: int
    kind: int

    def values(self) -> tuple[int, int, int]:
        seconds = -(-self.end // 1000)
        return seconds, seconds * 1000 - self.end, self.kind


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def later(kind: int, seconds: float = 600) -> Sequence[int]:
    """Return the values of a verdict that ends in ``seconds``."""
    return Verdict(now_ms() + round(seconds * 1000), kind).values()


async def tell(
    w: World, agent: ScriptedPeer, table: str, key: str | bytes, values: Sequence[int]
) -> None:
    """Tell an entry, and wait until HAProxy has it."""
    agent.tell(table, key, values)
    shown = " ".join(f"gpt{number}={value}" for number, value in enumerate(values))

    async def there() -> bool:
        return shown in await w.runtime(f"show table ratelimit/{table}")

    await until(there, f"HAProxy has {shown} in {table}")


async def limit(
    w: World, agent: ScriptedPeer, name: str, rate: int, mode: int = ENFORCE, age: int = 0
) -> None:
    """Tell the limit of ``name``, with a window of 10 s, as ``age`` seconds ago."""
    await tell(w, agent, "rlc_limits", name, (rate, mode, int(time.time()) - age, 10))


def fields(w: World) -> list[list[str]]:
    """Return the last fields of each request in HAProxy's log, from the verdict on."""
    lines = [line for line in w.haproxy_log().splitlines() if ' HTTP/1.1" ' in line]
    return [line.rsplit('"', 1)[1].split() for line in lines]


async def logged(w: World, *expected: str) -> None:
    """Wait until the last request is logged with ``expected`` as the last fields."""
    await until(lambda: fields(w)[-1:] == [list(expected)], f"the log ends with {expected}")


def ratelimit(answer: Answer) -> dict[str, str]:
    """Return what a refusal says, without the fields of HTTP."""
    return {**answer.headers, "body": answer.body.decode(), "status": str(answer.status)}


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
        lambda folder: (folder / "lb.lst").write_text("127.6.0.0/24\n"),
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
        lambda folder: (folder / "lb.lst").write_text("127.6.0.0/24\n"),
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


# ---- Further limits -------------------------------------------------------------------------


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


# ---- Clients --------------------------------------------------------------------------------


def on_both(port: int) -> str:
    """Return the addresses of a dual-stack socket, on which IPv4 clients have mapped addresses."""
    return f"[::]:{port}"


def test_a_mapped_address_is_masked_as_ipv4(tmp_path: Path) -> None:
    async def test(w: World, agent: ScriptedPeer) -> None:
        await limit(w, agent, "default", 2)
        found = [(await w.client(f"127.2.0.{i}").get()).status for i in range(1, 6)]
        assert found == [200] * 4 + [429]
        assert (await w.client("127.2.1.1").get()).status == 200
        assert (await w.client("::1").get()).status == 200
        count = agent.count
        await until(lambda: count("rl_default", "127.2.0.0", HTTP_REQ_CNT) == 5, "one client")
        await tell(w, agent, "rlv_default", "127.2.1.0", later(BLOCK))
        assert (await w.client("127.2.1.7").get()).status == 429

    port = free_port()
    peers(tmp_path, test, port=port, RATELIMIT_LISTEN=on_both(port), RATELIMIT_IPV4_PREFIX="24")


def test_a_mapped_address_is_masked_as_ipv4_in_the_other_file(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        assert (await w.client("127.2.0.1").statuses(3))[1:] == [429, 429]
        assert "key=::ffff:127.2.0.0 " in await w.runtime("show table t_block")
        assert (await w.client("127.2.0.9").get()).status == 429
        assert await w.denied() == {"rl_agent": 1, "rl_edge": 2}

    limits = "[limits.default]\nrate = 1\nwindow = '30s'\nipv4_prefix = 24\n"
    port = free_port()
    run(
        tmp_path,
        test,
        limits,
        port=port,
        RATELIMIT_LISTEN=on_both(port),
        RATELIMIT_IPV4_PREFIX="24",
    )


# ---- The same refusals as haproxy.cfg -------------------------------------------------------

FORMS: dict[str, dict[str, str]] = {
    "plain": {},
    "all": {"RATELIMIT_X_HEADERS": "1", "RATELIMIT_CORS": "*", "RATELIMIT_GRPC": "1"},
}
ASKED: dict[str, dict[str, str]] = {
    "plain": {},
    "all": {"Content_Type": "application/grpc", "Origin": "https://a.example"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", ["[]", "['1h']"])
def test_a_refusal_says_what_that_of_the_other_file_says(
    tmp_path: Path, form: str, block: str
) -> None:
    env, headers = FORMS[form], ASKED[form]
    kind = THROTTLE if block == "[]" else BLOCK
    said: dict[str, str] = {}
    (tmp_path / "spoe").mkdir()
    (tmp_path / "peers").mkdir()

    async def asking(w: World) -> None:
        client = w.client("127.2.0.1")
        assert (await client.get(**headers)).status == 200
        said.update(ratelimit(await client.get(**headers)))

    async def told(w: World, agent: ScriptedPeer) -> None:
        await tell(w, agent, "rlc_limits", "default", (1, ENFORCE, int(time.time()), 30))
        client = w.client("127.2.0.1")
        wait = int(said["retry-after"])
        # Retry-After counts down: ask until it is the same.
        await tell(w, agent, "rlv_default", "127.2.0.1", later(kind, wait + 1))
        answers: list[dict[str, str]] = []

        async def same() -> bool:
            answers.append(ratelimit(await client.get(**headers)))
            return int(answers[-1]["retry-after"]) <= wait

        await until(same, f"Retry-After: {wait}")
        assert answers[-1] == said

    limits = f"[limits.default]\nrate = 1\nwindow = '30s'\nblock = {block}\n"

    async def main() -> None:
        async with world(tmp_path / "spoe", limits, env=env) as w:
            await asking(w)
        async with peered(tmp_path / "peers", env) as (w, agent):
            await told(w, agent)

    asyncio.run(main())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("unknown", [False, True])
def test_a_refusal_without_an_agent_says_what_that_of_the_other_file_says(
    folder: Path, form: str, unknown: bool
) -> None:
    """By HAProxy alone, and by a map."""
    env = FORMS[form] | {"RATELIMIT_ALONE_RATE": "3", "RATELIMIT_UNKNOWN_RATE": "3"}
    said: list[dict[str, str]] = []

    def edit(folder: Path) -> None:
        (folder / "lb.lst").write_text("127.6.0.0/24\n")
        (folder / "rl_lists.map").write_text("127.4.0.0/24 4294967295\n")

    async def test(w: World) -> None:
        client = w.client("127.6.0.1" if unknown else "127.2.0.1")
        for who in (client, w.client("127.4.0.1")):
            answer = await who.get(**ASKED[form])
            while "retry-after" not in answer.headers:
                answer = await who.get(**ASKED[form])
            said.append(ratelimit(answer))

    async def main() -> None:
        for file in ("haproxy.cfg", PEERS_FILE):
            own = folder / file[0]
            own.mkdir()
            made = world(own, agent=False, edit=edit, env=env, file=file)
            async with asyncio.timeout(LONGEST), made as w:
                await test(w)

    asyncio.run(main())
    assert said[:2] == said[2:]
