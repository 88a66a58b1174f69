"""``ratelimit doctor`` finds and names planted faults; HAProxy, agent and Redis are real."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest
from rich.console import Console

from ratelimit import __version__
from ratelimit.api.client import Client
from ratelimit.cli.tables import status_tables
from ratelimit.config import load
from ratelimit.doctor import State, diagnose
from ratelimit.store import Events, Node, open_store
from tests.helpers.edges import halt, unprivileged
from tests.helpers.plant import Plant, replaced, run, without
from tests.helpers.servers import Server
from tests.helpers.world import free_port, until

# ---- well ----------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_sound_installation(plant: Plant) -> None:
    async def test() -> None:
        async with plant(RATELIMIT_STATS_LEVEL="admin") as made:
            checks = await made.checks()
            assert checks["haproxy: questions"].state is State.UNSURE  # nobody has come yet
            assert "--probe" in checks["haproxy: questions"].fix
            await asyncio.to_thread(
                Client(made.url).post, "/v1/blocks", {"key": "203.0.113.7", "ttl": "1m"}
            )
            checks = await made.checks(probe=True)
            assert {one.state for one in checks.values()} == {State.OK}
            assert list(checks) == [
                *("agent", "ops API", "groups", "store", "versions", "haproxy", "haproxy: clock"),
                *("haproxy: agent", "haproxy: questions", "haproxy: edge table"),
                "haproxy: maps",
            ]
            assert "1 compared with the blocklist agree" in checks["haproxy: edge table"].finding
            assert "100::1" not in await made.world.runtime("show table t_block")
            checks = await made.checks()
            assert {one.state for one in checks.values()} == {State.OK}

    run(test())


# ---- the ten faults ------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("lines", [("filter spoe", "send-spoe-group"), ("send-spoe-group",)])
def test_engine_not_loaded_or_group_not_sent(plant: Plant, lines: tuple[str, ...]) -> None:
    async def test() -> None:
        async with plant(edit=without("haproxy.cfg", *lines)) as made:
            for probe in (True, False):
                broken = await made.broken(probe)
                assert list(broken) == ["haproxy: questions"]
                check = broken["haproxy: questions"]
                assert "the SPOE filter is not loaded, or no group is sent" in check.finding
                assert "filter spoe engine rl" in check.fix and "send-spoe-group rl" in check.fix
                assert f"grep -nE 'filter spoe|send-spoe-group' {plant.folder}" in check.fix

    run(test())


@pytest.mark.integration
def test_wrong_group(plant: Plant) -> None:
    async def test() -> None:
        def edit(files: Path) -> None:
            replaced("spoe.conf", "spoe-message default", "spoe-message standard")(files)
            replaced("spoe.conf", "messages default", "messages standard")(files)

        async with plant(edit=edit) as made:
            for probe in (True, False):
                broken = await made.broken(probe)
                assert list(broken) == ["groups"]
                assert "for 'standard'" in broken["groups"].finding
                assert "send-spoe-group rl" in broken["groups"].fix
                assert "[limits.NAME]" in broken["groups"].fix

    run(test())


@pytest.mark.integration
def test_a_key_that_is_missing(plant: Plant) -> None:
    async def test() -> None:
        edit = replaced("spoe.conf", "args key=src", "args key=req.hdr(x-none)")
        async with plant(edit=edit) as made:
            check = (await made.checks(probe=True))["groups"]
            assert check.state is State.UNSURE and "no valid key" in check.finding

    run(test())


@pytest.mark.integration
def test_agent_down(plant: Plant) -> None:
    async def test() -> None:
        async with plant() as made:
            made.world.stop_agent()
            await until(lambda: made.world.agent_is("DOWN"), "HAProxy misses the agent")
            broken = await made.broken()
            assert list(broken) == ["agent", "ops API", "haproxy: agent"]
            assert "ratelimit serve" in broken["agent"].fix
            assert "counts alone" in broken["haproxy: agent"].finding
            assert "the agent is down" in broken["haproxy: agent"].fix

    run(test())


@pytest.mark.integration
def test_agent_hung(plant: Plant) -> None:
    async def test() -> None:
        async with plant() as made:
            assert made.world.agent is not None
            made.world.agent.send_signal(signal.SIGSTOP)
            await until(lambda: made.world.agent_is("DOWN"), "HAProxy misses the agent")
            broken = await made.broken()
            assert "no answer within 1 s" in broken["agent"].finding
            assert "haproxy: agent" in broken

    run(test())


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


@pytest.mark.integration
def test_backend_of_the_agent_is_another_address(plant: Plant) -> None:
    async def test() -> None:
        spop = f"127.0.0.1:{free_port()}"
        async with plant(agent=False, RATELIMIT_SPOP=spop) as made:
            made.world.start_agent(made.more)
            await until(lambda: listens(plant.folder / "spop.sock"), "the agent listens")
            check = (await made.broken())["haproxy: agent"]
            assert spop in check.finding and "L4CON" in check.finding
            assert f"unix://{plant.folder}/spop.sock" in check.fix and "RATELIMIT_SPOP" in check.fix

    run(test())


@pytest.mark.integration
def test_agent_drained_or_without_a_backend(plant: Plant) -> None:
    async def test() -> None:
        async with plant(RATELIMIT_STATS_LEVEL="admin") as made:
            await made.world.runtime("set server spoa/agent state maint")
            broken = await made.broken()
            assert list(broken) == ["haproxy: agent"]
            assert "ratelimit haproxy ready spoa/" in broken["haproxy: agent"].fix

    run(test())


@pytest.mark.integration
def test_wrong_socket_path(plant: Plant) -> None:
    async def test() -> None:
        async with plant(socket="elsewhere.sock") as made:
            broken = await made.broken()
            assert list(broken) == ["haproxy"]
            assert "no such socket" in broken["haproxy"].finding
            assert "`[haproxy] sockets`" in broken["haproxy"].fix

    run(test())


@pytest.mark.integration
def test_table_missing(plant: Plant) -> None:
    async def test() -> None:
        async with plant(edit=replaced("haproxy.cfg", "t_block", "t_other")) as made:
            broken = await made.broken()
            assert list(broken) == ["haproxy: edge table"]
            assert "no stick table t_block" in broken["haproxy: edge table"].finding
            assert "backend t_block" in broken["haproxy: edge table"].fix

    run(test())


@pytest.mark.integration
def test_table_forgets_too_early(plant: Plant) -> None:
    async def test() -> None:
        async with plant(edit=replaced("haproxy.cfg", "expire 2h", "expire 10m")) as made:
            broken = await made.broken()
            assert list(broken) == ["haproxy: edge table"]
            finding = broken["haproxy: edge table"].finding
            assert "after 10m" in finding and "limit default is 1h" in finding
            assert "`expire 1h`" in broken["haproxy: edge table"].fix

    run(test())


@pytest.mark.integration
@pytest.mark.parametrize("edge", ["64", "56"])
def test_an_edge_that_counts_other_clients(plant: Plant, edge: str) -> None:
    async def test() -> None:
        config = "[limits.default]\nipv6_prefix = 56\n"
        async with plant(config, RATELIMIT_IPV6_PREFIX=edge) as made:
            check = (await made.checks())["haproxy: edge table"]
            if edge == "56":
                assert check.state is State.OK
            else:
                assert check.state is State.UNSURE
                assert "limits.default.ipv6_prefix is 56" in check.finding
                assert "RATELIMIT_IPV6_PREFIX=56" in check.fix

    run(test())


@pytest.mark.integration
def test_a_limit_that_haproxy_never_asks_about(plant: Plant) -> None:
    async def test() -> None:
        async with plant("[limits.login]\nrate = 5\n") as made:
            assert "limits" not in await made.checks(), "nobody has come yet"
            check = (await made.checks(probe=True))["limits"]
            assert check.state is State.UNSURE
            assert "limits.login" in check.finding and "RATELIMIT_LOGIN_PATH" in check.fix

    run(test())


@pytest.mark.integration
def test_maps_that_are_not_there(plant: Plant) -> None:
    async def test() -> None:
        edit = without("haproxy.cfg", "rl_lists.map")
        async with plant(edit=edit, RATELIMIT_STATS_LEVEL="admin") as made:
            check = (await made.checks())["haproxy: maps"]
            assert check.state is State.UNSURE
            assert "no map rl_lists.map" in check.finding and "map_ip" in check.fix

    run(test())


@pytest.mark.integration
def test_a_load_balancer_that_is_in_no_list(plant: Plant) -> None:
    async def test() -> None:
        async with plant() as made:
            client = made.world.client("127.0.0.1")
            assert "trusted proxies" not in await made.checks()
            for n in range(20):
                await client.get(X_Forwarded_For=f"192.0.2.{n}")

            async def found() -> bool:
                return "trusted proxies" in await made.checks()

            await until(found, "it is found")
            check = (await made.checks())["trusted proxies"]
            assert check.state is State.UNSURE
            assert "127.0.0.1" in check.finding and "lb.lst" in check.fix
            status = await asyncio.to_thread(Client(made.url).get, "/v1/status")
            shown = Console(width=100, record=True, file=io.StringIO())
            shown.print(status_tables(status))
            assert re.search("possible proxies +127.0.0.1: not in lb.lst", shown.export_text())

    run(test())


@pytest.mark.integration
def test_a_proxy_that_does_not_name_its_clients(plant: Plant) -> None:
    async def test() -> None:
        edit = replaced("lb.lst", "# a line.", "# a line.\n127.0.0.1\n#")
        async with plant("[limits.unknown]\nrate = 2\nwindow = '30s'\n", edit=edit) as made:
            assert "unknown clients" not in await made.checks(), "no request has come yet"
            assert await made.world.client("127.0.0.1").statuses(3) == [200, 200, 429]
            check = (await made.checks())["unknown clients"]
            assert check.state is State.UNSURE
            assert check.finding.startswith("3 of 3 requests") and "1 of them" in check.finding
            assert "lb.lst" in check.fix and "cdn.lst" in check.fix
            status = await asyncio.to_thread(Client(made.url).get, "/v1/status")
            shown = Console(width=100, record=True, file=io.StringIO())
            shown.print(status_tables(status))
            assert re.search("unknown clients +3 requests; 1 refused", shown.export_text())

    run(test())


@pytest.mark.integration
def test_socket_without_rights(plant: Plant) -> None:
    async def test() -> None:
        async with plant(RATELIMIT_STATS_LEVEL="user") as made:
            broken = await made.broken()
            assert list(broken) == ["haproxy: edge table"]
            assert "level operator" in broken["haproxy: edge table"].finding
            assert "RATELIMIT_STATS_LEVEL" in broken["haproxy: edge table"].fix

    run(test())


@pytest.mark.integration
def test_socket_file_without_rights(plant: Plant) -> None:
    async def test() -> None:
        async with plant() as made:
            (plant.folder / "haproxy.sock").chmod(0)
            path = plant.folder / "ratelimit.toml"
            config = load(path)
            with unprivileged():
                checks = await diagnose(config, Client(made.url))
            [check] = [one for one in checks if one.subject.endswith("haproxy.sock")]
            assert check.state is State.BROKEN
            assert "may not open it" in check.finding and "let the user" in check.fix

    run(test())


@pytest.mark.integration
@pytest.mark.parametrize("ahead", [90.0, -90.0])
def test_clocks_off(plant: Plant, tmp_path: Path, ahead: float) -> None:
    async def test() -> None:
        redis = Server(tmp_path).start()
        try:
            async with plant(f"[store]\nurl = '{redis.url}'\n") as made:
                assert not await made.broken()
                broken = await made.broken(ahead=ahead)
                assert list(broken) == ["clock of the store", "haproxy: clock"]
                word = "behind" if ahead > 0 else "ahead of"
                for check in broken.values():
                    found = re.search(rf"([\d.]+) s {word} the local clock", check.finding)
                    # As exact as a machine that is busy with other tests answers.
                    assert found and float(found[1]) == pytest.approx(90, abs=5), check.finding
                    assert "NTP" in check.fix
        finally:
            redis.kill()

    run(test())


@pytest.mark.integration
def test_redis_unreachable(plant: Plant, tmp_path: Path) -> None:
    async def test() -> None:
        redis = Server(tmp_path).start()
        try:
            async with plant(f"[store]\nurl = '{redis.url}'\n") as made:
                checks = await made.checks()
                assert checks["store"].state is State.OK and "redis" in checks["store"].finding
                redis.pause()
                assert "no answer" in (await made.broken())["store"].finding
                redis.kill()
                broken = await made.broken()
                assert list(broken) == ["store"]
                assert str(redis.port) in broken["store"].finding
                assert "`[store] url`" in broken["store"].fix
        finally:
            redis.kill()

    run(test())


@pytest.mark.integration
def test_versions_differ(plant: Plant, tmp_path: Path) -> None:
    async def test() -> None:
        redis = Server(tmp_path).start()
        other = open_store(
            redis.url,
            prefix="ratelimit",
            state_dir="",
            events=Events(),
            node=Node("old", "0.0.1", int(time.time())),
        )
        try:
            async with plant(f"[store]\nurl = '{redis.url}'\n") as made:
                assert not await made.broken()
                await other.start()
                broken = await made.broken()
                assert list(broken) == ["versions"]
                assert "0.0.1: node old" in broken["versions"].finding
                assert f"{__version__}: this command, node " in broken["versions"].finding
                assert "restart" in broken["versions"].fix
        finally:
            await other.close()
            redis.kill()

    run(test())


# ---- more ----------------------------------------------------------------------------------


@pytest.mark.integration
def test_an_edge_that_refuses_whom_the_agent_does_not(plant: Plant) -> None:
    async def test() -> None:
        async with plant() as made:
            end = int(time.time()) + 600
            for key in ("::ffff:203.0.113.8", "2001:db8::"):
                await made.world.runtime(f"set table t_block key {key} data.gpt0 {end}")
            check = (await made.broken())["haproxy: edge table"]
            assert "203.0.113.8" in check.finding and "2001:db8::" in check.finding
            assert "2 of 2" in check.finding and "blocks remove" in check.fix

    run(test())


@pytest.mark.integration
def test_haproxy_hung(plant: Plant) -> None:
    async def test() -> None:
        async with plant() as made:
            found = re.search(r"\nPid: (\d+)", await made.world.runtime("show info"))
            assert found is not None
            worker = int(found[1])
            await halt(worker)
            try:
                broken = await made.broken()
            finally:
                os.kill(worker, signal.SIGCONT)
            assert list(broken) == ["haproxy"] and "hangs" in broken["haproxy"].finding

    run(test())


@pytest.mark.integration
def test_a_probe_that_says_nothing(plant: Plant) -> None:
    async def test() -> None:
        async with plant() as made:
            for site, words in (
                (f"http://127.0.0.1:{free_port()}/", "gave no answer"),
                ("not a URL", "gave no answer"),
                (f"{made.url}/healthz", "was not answered by this HAProxy"),
            ):
                checks = await diagnose(load(made.config), Client(made.url), site)
                [check] = [one for one in checks if one.subject.endswith("questions")]
                assert check.state is State.UNSURE and words in check.finding

    run(test())
