"""HAProxy's runtime API, with real HAProxy processes: well, hung, dead, without rights."""

from __future__ import annotations

import asyncio
import signal
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from ratelimit.haproxy.api import Runtime, UnknownServerError
from ratelimit.haproxy.stats import Change
from tests.helpers.edges import TABLE, Edge
from tests.helpers.runtime import EVIL, Book, later, run, runtime
from tests.helpers.world import World, until, world
from tests.helpers.world import run as run_world

LATER = "it is updated as soon as it answers"


@pytest.mark.integration
def test_a_pushed_block_refuses_the_next_request_and_a_lift_lets_it_pass(tmp_path: Path) -> None:
    async def test(made: World) -> None:
        tested = Runtime([f"{tmp_path}/haproxy.sock"])
        client, other = made.client("127.0.0.9"), made.client("127.0.0.8")
        assert (await client.get()).status == 200
        end = later(100)
        assert await tested.push("127.0.0.9", end) == []
        refused = await client.get()
        assert refused.status == 429 and 98 <= int(refused.headers["retry-after"]) <= 100
        assert (await other.get()).status == 200
        [entry] = await tested.edge("127.0.0.9")
        assert (entry.key, entry.until) == ("127.0.0.9", end)
        [report] = await tested.report()
        assert report.frontends[0].denied_requests == 1
        assert report.edge is not None and report.edge.used == 1
        assert report.agent == "UP"
        assert await tested.lift("127.0.0.9") == []
        assert await tested.edge("127.0.0.9") == []
        assert (await client.get()).status == 200
        await tested.close()

    run_world(tmp_path, test)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("client", "network"),
    [
        ("2002:c000:204:7::1", "2002:c000:204::/48"),
        ("::1", "::/64"),
        ("64:ff9b::c000:207", "192.0.2.0/24"),
        ("64:ff9b::c000:207", "192.0.2.7"),
    ],
)
def test_an_address_that_haproxy_takes_for_another_is_lifted(
    tmp_path: Path, client: str, network: str
) -> None:
    async def test(made: World) -> None:
        (made.folder / "haproxy" / "lb.lst").write_text("127.0.0.9\n")
        await made.reload()
        balancer = made.client("127.0.0.9")
        tested = Runtime([f"{tmp_path}/haproxy.sock"])
        for key in (client, network):
            while (await balancer.get(X_Forwarded_For=client)).status == 200:
                pass
            assert "gpt0=" in await made.runtime("show table t_block")
            assert len(await tested.edge(client)) == 1
            assert await tested.lift(key) == []
            assert "gpt0=" not in await made.runtime("show table t_block")
        await tested.close()

    run_world(tmp_path, test, "[limits.default]\nrate = 5\nwindow = '1m'\n")


@pytest.mark.integration
def test_ten_thousand_blocks_and_a_network_lifted(tmp_path: Path) -> None:
    async def test() -> None:
        first, second = Edge(tmp_path / "first.sock"), Edge(tmp_path / "second.sock")
        async with runtime(first, second, timeout=20) as tested:
            base, end = int(IPv4Address("10.1.0.0")), later()
            clients = [str(IPv4Address(base + n)) for n in range(10_000)]
            faults = await asyncio.gather(*(tested.push(client, end) for client in clients))
            assert not any(faults)
            await tested.push("192.0.2.1", end)
            await tested.push("2001:db8::/64", end)
            for edge in (first, second):
                assert len(edge.entries()) == 10_002
                assert set(edge.entries().values()) == {end}
            assert await tested.lift("10.1.0.0/16") == []
            rest = {"::ffff:192.0.2.1": end, "2001:db8::": end}
            assert first.entries() == second.entries() == rest
            # The entry of the /64 is what refuses a single address in it.
            assert await tested.lift("2001:db8::5") == []
            assert await tested.lift("192.0.2.1") == []
            assert first.entries() == second.entries() == {}

    run(test())


@pytest.mark.integration
@pytest.mark.parametrize("key", EVIL)
def test_nothing_comes_through_a_key(tmp_path: Path, key: str) -> None:
    async def test() -> None:
        made = Edge(tmp_path / "edge.sock")
        async with runtime(made) as tested:
            end = later()
            await tested.push("198.51.100.1", end)
            before = made.say("show servers state")
            assert await tested.push(key, end) == []
            assert await tested.lift(key) == []
            assert await tested.edge(key) == []
            with pytest.raises(UnknownServerError):
                await tested.act(key, "drain")
            assert made.entries() == {"::ffff:198.51.100.1": end}
            assert states(made.say("show servers state")) == states(before)

    run(test())


def states(shown: str) -> list[list[str]]:
    """Name, state, administrative state and weight; the rest moves on."""
    return [line.split()[3:8] for line in shown.splitlines()[2:] if line]


@pytest.mark.integration
def test_a_hung_haproxy_delays_no_other_and_learns_what_it_missed(tmp_path: Path) -> None:
    async def test() -> None:
        well, hung = Edge(tmp_path / "well.sock"), Edge(tmp_path / "hung.sock")
        end = later()
        book = Book({"192.0.2.2": end}, ["192.0.2.2"])
        async with runtime(well, hung, timeout=0.3, book=book) as tested:
            await tested.push("192.0.2.1", end)
            await hung.halt()
            for fault in (await tested.push("192.0.2.2", end), await tested.lift("192.0.2.1")):
                assert [f.socket for f in fault] == [str(hung.path)]
                assert "hangs" in fault[0].problem and LATER in fault[0].problem
            assert well.entries() == {"::ffff:192.0.2.2": end}
            first, second = await tested.report()
            assert not first.problem and first.version
            assert "hangs" in second.problem and not second.version
            assert [fault.socket for fault in tested.faults] == [str(hung.path)]
            assert [entry.socket for entry in await tested.edge("192.0.2.2")] == [str(well.path)]
            hung.signal(signal.SIGCONT)
            await until(lambda: hung.entries() == well.entries(), "it learns what it missed")
            await until(lambda: not tested.faults, "it is well again")

    run(test())


@pytest.mark.integration
def test_a_reload_is_lived_through(tmp_path: Path) -> None:
    async def test(made: World) -> None:
        tested = Runtime([f"{tmp_path}/haproxy.sock"])
        await made.reload()

        async def pushed() -> bool:
            return await tested.push("127.0.0.9", later()) == []

        await until(pushed, "the new worker takes it")
        assert (await made.client("127.0.0.9").get()).status == 429
        [after] = await tested.report()
        assert not after.problem and after.edge is not None
        await tested.close()

    run_world(tmp_path, test)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("level", "more", "problem"),
    [
        ("user", f"backend t_block\n    {TABLE}\n", "level operator"),
        ("admin", "", "no stick table t_block"),
        ("admin", f"backend t_block\n    {TABLE.replace('gpt0', 'gpc0')}\n", "store gpt0"),
        ("admin", f"backend t_block\n    {TABLE.replace('ipv6', 'integer')}\n", "type ipv6"),
    ],
)
def test_a_refusal_is_explained(tmp_path: Path, level: str, more: str, problem: str) -> None:
    async def test() -> None:
        made = Edge(tmp_path / "edge.sock", level, more=more)
        async with runtime(made) as tested:
            for fault in (
                await tested.push("192.0.2.1", later()),
                await tested.push("192.0.2.2", later()),
                await tested.lift("192.0.2.2"),
                await tested.lift("192.0.2.0/24"),
            ):
                if not fault and "gpc0" in more:
                    continue  # an empty table does not say what it stores
                if problem == "type ipv6" and not fault:
                    # HAProxy 3 takes what is no number for 0, and says nothing.
                    [report] = await tested.report()
                    assert not report.version.startswith("2.")
                    continue
                assert [f.socket for f in fault] == [str(made.path)]
                assert problem in fault[0].problem
            # It refuses, but is well: what needs no rights is answered.
            [report] = await tested.report()
            assert report.level == level and tested.faults == []

    run(test())


@pytest.mark.integration
def test_a_server_is_drained_weighted_and_made_ready(tmp_path: Path) -> None:
    async def test() -> None:
        first, second = Edge(tmp_path / "first.sock"), Edge(tmp_path / "second.sock")
        async with runtime(first, second) as tested:

            async def after(name: str, change: Change) -> list[tuple[str, int]]:
                acted = await tested.act(name, change)
                assert [one.socket for one in acted] == tested.sockets
                assert not any(one.problem for one in acted)
                return [(one.server.status, one.server.weight) for one in acted if one.server]

            assert await after("app/app1", "drain") == [("DRAIN", 10)] * 2
            assert await after("app/app1", 256) == [("DRAIN", 256)] * 2
            assert await after("app/app1", "ready") == [("no check", 256)] * 2
            assert await after("spare/only", 0) == [("no check", 0)] * 2
            for other in ("app/other", "app2", "app/"):
                with pytest.raises(UnknownServerError):
                    await tested.act(other, "drain")
            second.end()
            well, dead = await tested.act("app/app1", "drain")
            assert well.server is not None and well.server.status == "DRAIN"
            assert dead.socket == str(second.path) and "does not run" in dead.problem

    run(test())


@pytest.mark.integration
def test_without_the_rights_a_server_stays_as_it_was(tmp_path: Path) -> None:
    async def test() -> None:
        made = Edge(tmp_path / "edge.sock", "operator")
        async with runtime(made) as tested:
            [acted] = await tested.act("app/app1", "drain")
            assert "level admin" in acted.problem
            assert acted.server is not None and acted.server.status == "no check"

    run(test())


@pytest.mark.integration
def test_the_shipped_configuration_can_give_the_rights(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, agent=False, env={"RATELIMIT_STATS_LEVEL": "admin"}):
            tested = Runtime([f"{tmp_path}/haproxy.sock"])
            [acted] = await tested.act("app/app1", "drain")
            assert acted.server is not None and acted.server.status == "DRAIN"
            await tested.close()

    run(main())


def test_without_haproxy_there_is_nothing_to_do() -> None:
    async def test() -> None:
        tested = Runtime([])
        assert await tested.push("192.0.2.1", later()) == []
        assert await tested.lift("192.0.2.1") == []
        assert await tested.report() == []
        assert await tested.edge("192.0.2.1") == []
        with pytest.raises(UnknownServerError):
            await tested.act("app/app1", "drain")
        await tested.close()

    run(test())
