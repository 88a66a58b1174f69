"""haproxy/peers.cfg refuses as haproxy.cfg does, and masks addresses alike."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.helpers.peers_mode import (
    BLOCK,
    ENFORCE,
    THROTTLE,
    later,
    limit,
    peered,
    peers,
    ratelimit,
    tell,
)
from tests.helpers.scripted_peer import (
    HTTP_REQ_CNT,
    ScriptedPeer,
)
from tests.helpers.world import (
    LONGEST,
    PEERS_FILE,
    World,
    free_port,
    run,
    until,
    world,
)

pytestmark = pytest.mark.integration


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
