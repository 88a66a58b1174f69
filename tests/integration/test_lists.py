"""Lists and blocks by hand at HAProxy: with the agent, without it, and started without it."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import httpx
import pytest

from ratelimit.haproxy.maps import BLOCKS, LISTS, NAMES
from tests.helpers.world import (
    PEERS_FILE,
    SPOE_FILE,
    World,
    closed,
    free_port,
    run,
    until,
    world,
)

pytestmark = pytest.mark.integration

MONITOR, CRAWLER, VISITOR = "127.3.0.1", "127.4.0.7", "127.5.0.1"
LISTED = f"[lists]\nallow = ['{MONITOR}']\ndeny = ['127.4.0.0/24']\n"


async def statuses(w: World, client: str, count: int) -> list[int]:
    return await w.client(client).statuses(count)


async def as_named(w: World, name: str) -> str:
    """Return what HAProxy calls a map of its own."""
    known = await w.runtime("show map")
    return f"opt@./{name}" if f"(opt@./{name})" in known else f"./{name}"


async def filled(w: World, lists: int, blocks: int = 0) -> None:
    """Wait until HAProxy has so many entries in its maps."""

    async def done() -> bool:
        shown = [await w.runtime(f"show map {await as_named(w, name)}") for name in NAMES]
        return [len(text.split("\n")) - 2 for text in shown] == [lists, blocks]

    await until(done, f"HAProxy has {lists} networks and {blocks} blocks")


async def stopped(w: World) -> None:
    w.stop_agent(signal.SIGKILL)
    await until(lambda: w.agent_is("DOWN"), "HAProxy misses the agent")


async def holds(w: World) -> None:
    """See that lists and a network that is blocked hold, whoever enforces them."""
    assert await statuses(w, MONITOR, 200) == [200] * 200
    refused = await w.client(CRAWLER).get()
    assert refused.status == 429
    assert 3599 <= int(refused.headers["retry-after"]) <= 3600
    assert (await w.client("127.4.1.7").get()).status == 200, "of another network"
    assert (await w.client("127.6.0.200").get()).status == 429, "not the first of its network"
    assert (await w.client("127.6.1.1").get()).status == 200


def test_lists_and_blocked_networks_hold_without_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("RATELIMIT_OPS__LISTEN", f"127.0.0.1:{port}")
    maps = tmp_path / "haproxy"  # where HAProxy finds them as shipped

    async def test(w: World) -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as api:
            block = {"key": "127.6.0.0/24", "ttl": "1h"}
            assert (await api.post("/v1/blocks", json=block)).status_code == 201
        await filled(w, 2, 1)
        await holds(w)
        checks = w.requests[MONITOR]
        assert checks == 200

        # HAProxy has the lists without a reload, and again when it is another process.
        assert w.agent is not None
        await w.reload()
        await filled(w, 2, 1)
        await until(lambda: "127.6.0.0/24" in (maps / BLOCKS).read_text(), "it is in the file")
        assert "127.3.0.1/32 -1" in (maps / LISTS).read_text()
        await stopped(w)
        await holds(w)

        # A restart without an agent knows the files.
        assert w.haproxy is not None
        w.haproxy.terminate()
        w.haproxy.wait()
        w.start_haproxy()
        await until(w.listens, "HAProxy listens")
        await until(lambda: w.agent_is("DOWN"), "HAProxy misses the agent")
        await holds(w)
        assert 429 in await statuses(w, VISITOR, 100), "others are counted"

        # A block by hand that has ended hides no other of the same client.
        after = "127.8.0.1"
        assert (await w.client(after).get()).status == 200
        await w.runtime(f"set table t_block key ::ffff:{after} data.gpt0 {int(time.time()) + 600}")
        await w.runtime(f"add map {await as_named(w, BLOCKS)} 127.8.0.0/24 1")
        await filled(w, 2, 2)
        assert (await w.client(after).get()).status == 429

    limits = f"[haproxy]\nsockets = ['{tmp_path}/haproxy.sock']\nmaps_dir = '{maps}'\n{LISTED}"
    run(
        tmp_path,
        test,
        limits,
        RATELIMIT_ALONE_RATE="20",
        RATELIMIT_STATS_LEVEL="admin",
    )


def test_a_block_by_hand_of_any_addresses_is_lifted_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("RATELIMIT_OPS__LISTEN", f"127.0.0.1:{port}")

    async def test(w: World) -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as api:
            for key, inside in (("127.6.0.0/24", "127.6.0.9"), ("127.7.0.0/28", "127.7.0.3")):
                block = {"key": key, "ttl": "1h"}
                assert (await api.post("/v1/blocks", json=block)).status_code == 201
                await filled(w, 0, 1)
                assert (await w.client(inside).get()).status == 429
                assert await w.denied() == {"rl_edge": 1}, "without a question"
                await w.runtime("clear counters all")
                answer = await api.delete(f"/v1/blocks/{key.replace('/', '%2F')}")
                assert answer.status_code in (200, 204)
                assert (await w.client(inside).get()).status == 200
        await filled(w, 0, 0)

    limits = f"[haproxy]\nsockets = ['{tmp_path}/haproxy.sock']\n"
    run(
        tmp_path,
        test,
        limits,
        RATELIMIT_STATS_LEVEL="admin",
    )


def test_the_allow_list_beats_what_the_edge_remembers(tmp_path: Path) -> None:
    config = f"[haproxy]\nsockets = ['{tmp_path}/haproxy.sock']\n"
    strict = f"{config}[limits.default]\nrate = 5\nwindow = '30s'\nblock = ['1h']\n"

    async def test(w: World) -> None:
        assert (await statuses(w, MONITOR, 7))[-1] == 429
        assert (await statuses(w, VISITOR, 7))[-1] == 429
        w.configure(f"{strict}{LISTED}")
        await filled(w, 2)
        assert await statuses(w, MONITOR, 20) == [200] * 20
        assert (await w.client(VISITOR).get()).status == 429

    run(tmp_path, test, strict, RATELIMIT_STATS_LEVEL="admin")


def test_lists_refuse_at_the_connection(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        await filled(w, 2)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await w.client(CRAWLER).get()
        assert await statuses(w, MONITOR, 150) == [200] * 150
        assert await w.listens()

    config = f"[haproxy]\nsockets = ['{tmp_path}/haproxy.sock']\n{LISTED}"
    run(tmp_path, test, config, RATELIMIT_DIRECT="reject", RATELIMIT_STATS_LEVEL="admin")


def test_ipv6_and_mapped_addresses_are_listed(tmp_path: Path) -> None:
    port = free_port()

    async def test(w: World) -> None:
        await filled(w, 2)
        for client, status in (
            ("2001:db8::1", 429),
            ("2001:db9::1", 200),
            ("192.0.2.9", 429),
            ("::ffff:192.0.2.9", 429),
            ("192.0.3.9", 200),
        ):
            family = "TCP6" if ":" in client else "TCP4"
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"PROXY {family} {client} {'::1' if ':' in client else '127.0.0.1'} 1 80\r\n"
            writer.write(f"{head}GET / HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert int((await reader.readline()).split()[1]) == status, client
            await closed(writer)

    lists = "[lists]\ndeny = ['2001:db8::/32', '192.0.2.0/24']\n"
    config = f"[haproxy]\nsockets = ['{tmp_path}/haproxy.sock']\n{lists}"

    def edit(folder: Path) -> None:
        text = (folder / "haproxy.cfg").read_text()
        bind = '    bind "${RATELIMIT_LISTEN[*]-:8080}"\n'
        assert bind in text
        more = f"{bind}    bind 127.0.0.1:{port} accept-proxy\n"
        (folder / "haproxy.cfg").write_text(text.replace(bind, more))

    run(tmp_path, test, config, edit=edit, RATELIMIT_STATS_LEVEL="admin")


def test_a_block_that_has_ended_hides_no_wider_one_from_haproxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("RATELIMIT_OPS__LISTEN", f"127.0.0.1:{port}")

    async def test(w: World) -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as api:
            for key, ttl in (("127.6.0.0/24", "1h"), ("127.6.0.8/29", "1s"), ("127.6.0.9", "1s")):
                answer = await api.post("/v1/blocks", json={"key": key, "ttl": ttl})
                assert answer.status_code == 201
                if ttl == "1h":
                    await filled(w, 0, 1)  # from here on, no comparison fills the maps again
        await filled(w, 0, 1)
        await stopped(w)
        assert (await w.client("127.6.0.9").get()).status == 429

    limits = f"[haproxy]\nsockets = ['{tmp_path}/haproxy.sock']\n"
    run(tmp_path, test, limits, RATELIMIT_STATS_LEVEL="admin")


def test_a_block_that_ends_without_the_agent_hides_no_wider_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("RATELIMIT_OPS__LISTEN", f"127.0.0.1:{port}")
    narrow, wide = "127.6.0.9", "127.6.0.0/24"

    async def test(w: World) -> None:
        async def blocked(key: str, ttl: str) -> int:
            answer = await api.post("/v1/blocks", json={"key": key, "ttl": ttl})
            assert answer.status_code == 201
            return int(answer.json()["until"])

        async def until_end(key: str, end: int) -> None:
            async def shown() -> bool:
                lines = (await w.runtime(f"show map {await as_named(w, BLOCKS)}")).splitlines()
                return any(line.split()[1:] == [key, str(end)] for line in lines)

            await until(shown, f"HAProxy blocks {key} until {end}")

        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as api:
            soon = await blocked(narrow, "10s")
            late = await blocked(wide, "1h")
            await until_end(narrow, late)
            assert (await api.delete(f"/v1/blocks/{wide}")).status_code == 204
            await until_end(narrow, soon)
            late = await blocked(wide, "1h")
            await until_end(narrow, late)
        await stopped(w)
        await until(lambda: time.time() > soon, "the narrow block has ended")
        assert (await w.client(narrow).get()).status == 429
        assert (await w.client("127.6.0.10").get()).status == 429

    limits = f"[haproxy]\nsockets = ['{tmp_path}/haproxy.sock']\n"
    run(tmp_path, test, limits, RATELIMIT_STATS_LEVEL="admin")


@pytest.mark.parametrize("file", [SPOE_FILE, PEERS_FILE])
def test_all_rules_look_into_the_same_maps(tmp_path: Path, file: str) -> None:
    """Before 3.3, HAProxy could have a map of its own for each line that names one."""

    async def main() -> None:
        env = {"RATELIMIT_DIRECT": "reject", "RATELIMIT_STATS_LEVEL": "admin"}
        async with world(tmp_path, agent=False, file=file, env=env) as w:
            known = await w.runtime("show map")
            assert [known.count(f"{name}) ") for name in NAMES] == [1, 1]

    asyncio.run(main())
