"""HAProxy's runtime API, with real HAProxy processes: well, hung, dead, without rights."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ratelimit.haproxy import commands, edge_table, runtime_socket, stats
from ratelimit.haproxy.api import Runtime, UnknownServerError
from ratelimit.haproxy.commands import Prefixes
from ratelimit.haproxy.runtime_socket import MAX_QUEUED, EdgeError
from ratelimit.haproxy.stats import Change, Server
from ratelimit.large import LargeDict
from ratelimit.limiter.keys import Network, key_network, network_text
from tests.helpers.edges import TABLE, Edge, edges, unprivileged
from tests.helpers.world import LONGEST, World, until, world
from tests.helpers.world import run as run_world

LATER = "it is updated as soon as it answers"

EVIL = [
    "192.0.2.1;clear table t_block",
    "192.0.2.1\nclear table t_block",
    "192.0.2.1\rclear table t_block",
    "192.0.2.1 data.gpt0 9",
    "::1%;clear table t_block",
    "fe80::1%eth0\nset server app/app1 state maint",
    "2001:db8::/64;clear table t_block",
    "fe80::%;clear table t_block/64",
    "١٩٢.0.2.1",
    "192.0.2.1\0",
    "api-key;clear table t_block",
    "<<\nclear table t_block",
    "",
    ";",
    "🦀",
]
"""Keys that would empty the table if any of it got through."""


@dataclass
class Book:
    """What the edges should have: ends of blocks by client, and the keys blocked by hand."""

    ends: dict[str, int] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    maps: dict[str, list[str]] = field(default_factory=dict)

    def until(self, client: Network) -> int:
        return self.ends.get(network_text(client), 0)

    def by_hand(self) -> Iterator[str]:
        return iter(self.keys)

    def lines(self, name: str) -> Iterator[str]:
        return iter(self.maps.get(name, []))


@contextlib.asynccontextmanager
async def runtime(
    *made: Edge, timeout: float = 1, book: Book | None = None
) -> AsyncIterator[Runtime]:
    """Yield what is tested, beside HAProxies; with a ``book`` it keeps them in step with that."""
    tested = Runtime([str(edge.path) for edge in made], timeout)
    keeping = asyncio.create_task(tested.run(book or Book()))
    try:
        async with edges(*made):
            if book is not None:
                tested.compare()
            yield tested
            assert not keeping.done(), keeping
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await tested.close()


def run(test: Awaitable[None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(LONGEST):
            await test

    asyncio.run(main())


def later(seconds: int = 600) -> int:
    return int(time.time()) + seconds


# ---- words ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "entry"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
        ("64:ff9b::c000:201", "::ffff:192.0.2.1"),
        ("198.51.100.0/24", "::ffff:198.51.100.0"),
        ("2001:db8::/64", "2001:db8::"),
        ("2001:db8::/32", "2001:db8::"),
        ("2001:DB8:0:0::1", None),  # a part of its /64, as are the next two
        ("2001:db8::", None),
        ("2001:db8::/96", None),
    ],
)
def test_an_entry_blocks_nobody_else(key: str, entry: str | None) -> None:
    network = key_network(key)
    assert network is not None
    assert commands.entry_to_push(network, Prefixes()) == entry


@pytest.mark.parametrize(
    ("key", "pushed", "entries"),
    [
        ("10.0.0.0/24", "::ffff:10.0.0.0", ["::ffff:10.0.0.0"]),
        ("10.0.0.0", None, ["::ffff:10.0.0.0", "64:ff9b::a00:0"]),  # not the other 255
        ("10.0.0.7", None, ["::ffff:10.0.0.7", "64:ff9b::a00:7", "::ffff:10.0.0.0"]),
        ("64:ff9b::a00:7", None, ["::ffff:10.0.0.7", "64:ff9b::a00:7", "::ffff:10.0.0.0"]),
        ("2001:db8::/56", "2001:db8::", ["2001:db8::"]),
        ("2001:db8::/64", None, ["2001:db8::"]),  # not the other 255
        ("2001:db8:0:1::/64", None, ["2001:db8:0:1::", "2001:db8::"]),
        ("::1", None, ["::1", "::", "::ffff:0.0.0.0"]),
        (
            "2002:c000:204:7::1",
            None,
            [
                "2002:c000:204:7::1",
                "2002:c000:204::",
                "::ffff:192.0.2.0",
            ],
        ),
        ("2002:c000::/32", "2002:c000::", ["2002:c000::", "::ffff:192.0.0.0"]),
    ],
)
def test_clients_of_other_prefixes(key: str, pushed: str | None, entries: list[str]) -> None:
    network = key_network(key)
    assert network is not None
    prefixes = Prefixes(24, 56)
    assert commands.entry_to_push(network, prefixes) == pushed
    assert commands.entries_of(network, prefixes) == entries


@pytest.mark.parametrize(
    ("key", "network", "inside"),
    [
        ("192.0.2.7", "192.0.2.0/24", True),
        ("64:ff9b::c000:207", "192.0.2.0/24", True),
        ("64:ff9b::c000:307", "192.0.2.0/24", False),
        ("2001:db8::", "2001:db8::/32", True),
        ("2001:db8::", "::/0", True),
        ("192.0.2.7", "::/0", True),  # as in the lists
        ("2001:db8::", "0.0.0.0/0", False),
        ("a key", "::/0", False),
    ],
)
def test_an_entry_is_within_a_network_as_the_agent_counts(
    key: str, network: str, inside: bool
) -> None:
    parsed = key_network(network)
    assert parsed is not None
    assert commands.within(key, parsed) is inside


COMMAND = re.compile(
    r"(set table t_block key [0-9a-f:.]+ data\.gpt0 [0-9]+"
    r"|(clear|show) table t_block key [0-9a-f:.]+)"
    r"(;(clear|show) table t_block key [0-9a-f:.]+"
    r"|;set table t_block key [0-9a-f:.]+ data\.gpt0 [0-9]+)*"
)


@given(
    st.one_of(
        st.text(),
        st.sampled_from(EVIL),
        st.ip_addresses().map(str),
        st.tuples(st.ip_addresses(), st.text(max_size=9)).map(lambda pair: f"{pair[0]}{pair[1]}"),
    ),
    st.integers(),
)
def test_no_key_writes_a_command_of_its_own(key: str, until: int) -> None:
    network = key_network(key)
    if network is None:
        return
    entries = commands.entries_of(network, Prefixes())
    pushed = commands.entry_to_push(network, Prefixes())
    wanted = [commands.show_entries(entries), *map(commands.clear_entry, entries)]
    wanted += [commands.set_entry(pushed, until)] if pushed else []
    for command in wanted:
        assert COMMAND.fullmatch(command), command


@given(st.text())
def test_no_server_writes_a_command_of_its_own(name: str) -> None:
    server = Server(name, name, "", "UP", 1, 0, 0, "")
    try:
        command = stats.set_server(server, "drain")
    except ValueError:
        return
    assert re.fullmatch(r"set server [A-Za-z0-9_.:-]+/[A-Za-z0-9_.:-]+ state drain", command)


def test_lines_fit_into_the_buffer_of_haproxy() -> None:
    wanted = [commands.clear_entry(f"2001:db8::{n:x}") for n in range(1000)]
    lines = list(commands.batches(wanted))
    assert max(map(len, lines)) <= commands.MAX_COMMAND
    assert ";".join(lines) == ";".join(wanted)


# ---- blocks --------------------------------------------------------------------------------


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
def test_an_entry_in_use_is_ended(tmp_path: Path) -> None:
    async def test() -> None:
        made = Edge(
            tmp_path / "edge.sock",
            rules="http-request track-sc0 src table t_block\n"
            "    http-request wait-for-body time 9s",
        )
        async with runtime(made) as tested:
            await tested.push("127.0.0.1", later())
            _, writer = await asyncio.open_connection("127.0.0.1", made.port)
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            await until(lambda: any("use=1" in line for line in made.lines()), "it is in use")
            assert await tested.lift("127.0.0.1") == []
            assert made.entries() == {"::ffff:127.0.0.1": 0}
            writer.close()

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


# ---- comparison ----------------------------------------------------------------------------


def fill(made: Edge, ends: dict[str, int]) -> None:
    """Write entries by themselves, as HAProxy does when it is told by the agent's answers."""
    for line in commands.batches(commands.set_entry(key, end) for key, end in ends.items()):
        made.say(line)


@pytest.mark.integration
def test_a_table_is_made_to_be_as_the_blocklist_says(tmp_path: Path) -> None:
    async def test() -> None:
        end = later()
        book = Book(
            {
                "192.0.2.1": end,
                "192.0.2.2": end,
                "192.0.2.3": end + 1,
                "192.0.2.4": end,
                "2001:db8::/64": end,
                "198.51.100.0": end,
            },
            ["192.0.2.4", "2001:db8::/64", "198.51.100.0/24", "2001:db8:1::5", "192.0.2.9", "key"],
        )
        made = Edge(tmp_path / "edge.sock")
        async with runtime(made, book=book) as tested:
            await until(lambda: tested.corrected == 3, "blocks by hand are added")
            by_hand = {"::ffff:192.0.2.4": end, "::ffff:198.51.100.0": end, "2001:db8::": end}
            assert made.entries() == by_hand
            right = {"::ffff:192.0.2.1": end, "::ffff:192.0.2.3": end - 100}
            over = {"::ffff:192.0.2.5": 1}
            wrong = {"::ffff:192.0.2.2": end + 100, "::ffff:192.0.2.6": end, "64:ff9b::1": end}
            fill(made, right | over | wrong)
            tested.compare()
            await until(lambda: tested.corrected == 6, "what is wrong is put right")
            assert made.entries() == by_hand | right | over | {"::ffff:192.0.2.2": end}
            assert (tested.missed, tested.dropped) == (0, 0)

    run(test())


@pytest.mark.integration
def test_another_process_is_compared(tmp_path: Path) -> None:
    async def test() -> None:
        end = later()
        made = Edge(tmp_path / "edge.sock")
        async with runtime(made, book=Book({"192.0.2.1": end}, ["192.0.2.1"])) as tested:
            await until(lambda: tested.corrected == 1, "it is told")
            made.end()
            await made.start()
            await until(lambda: made.entries() == {"::ffff:192.0.2.1": end}, "it is told again")

    run(test())


@pytest.mark.integration
def test_no_table_is_compared_before_the_blocklist_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_table, "LOOK", 0.01)
    monkeypatch.setattr(edge_table, "_SPACE", 0.01)

    async def test() -> None:
        made = Edge(tmp_path / "edge.sock")
        async with runtime(made) as tested:
            fill(made, {"::ffff:192.0.2.1": later()})
            await tested.push("192.0.2.2", later())
            for _ in range(20):
                await tested.report()
            assert len(made.entries()) == 2
            tested.compare()
            await until(lambda: not made.entries(), "an empty blocklist is known")

    run(test())


async def all_of(tested: runtime_socket.Edge) -> list[list[str]]:
    async with contextlib.aclosing(tested.entries()) as pieces:
        return [lines async for lines in pieces]


@pytest.mark.integration
def test_a_long_table_is_read_in_parts(tmp_path: Path) -> None:
    async def test() -> None:
        made = Edge(tmp_path / "edge.sock")
        tested = runtime_socket.Edge(str(made.path), 1)
        async with edges(made):
            end = later()
            fill(made, {f"::ffff:10.0.{n >> 8}.{n & 255}": end for n in range(5000)})
            pieces = await all_of(tested)
            assert max(map(len, pieces)) <= 400
            assert sum(len(commands.read_entries(lines)) for lines in pieces) == 5000
            # Who has seen enough may stop.
            async with contextlib.aclosing(tested.entries()) as lines:
                await anext(lines)
            assert await tested.ask("show version")
        await tested.close()

    run(test())


def test_entries_are_compared_in_small_steps() -> None:
    book = Book()
    asked = 0

    class Counting(Book):
        def until(self, client: Network) -> int:
            nonlocal asked
            asked += 1
            return super().until(client)

    book = Counting({}, [f"10.0.{n >> 8}.{n & 255}" for n in range(400)])
    lines = [f"0x1: key=::ffff:{key} use=0 exp=9 gpt0={later()}" for key in book.keys]
    right: LargeDict[bool] = LargeDict()
    for steps in (
        edge_table._judged(lines, book, Prefixes(), right),
        edge_table._missing(book.keys, book, Prefixes(), right),
    ):
        asked = done = 0
        for _ in steps:
            assert asked - done <= 8
            done = asked
        assert asked == 400


@pytest.mark.integration
def test_a_table_that_can_not_be_compared_is_tried_again_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_table, "LOOK", 0.01)
    pauses: list[float] = []

    async def test() -> None:
        sleep = asyncio.sleep

        async def pause(seconds: float) -> None:
            pauses.append(seconds)
            await sleep(min(seconds, 0.01))

        book = Book({"192.0.2.1": later()}, ["192.0.2.1"])
        async with runtime(Edge(tmp_path / "edge.sock", "user"), book=book) as tested:
            with monkeypatch.context() as patch:
                patch.setattr("asyncio.sleep", pause)
                # Nor does what can't be told hurry it.
                while len(pauses) < 10:
                    await tested.push("192.0.2.1", later())
                    await sleep(0.01)

    with capture_logs() as logs:
        run(test())
    assert pauses[:10] == [0.02 * 2**n for n in range(10)]
    [line] = [one for one in logs if one["event"] == "edge not compared"]
    assert "level operator" in line["problem"]


@pytest.mark.integration
def test_more_changes_than_can_wait_are_made_by_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_table, "MAX_UNSENT", 40)

    async def test() -> None:
        end = later()
        keys = [f"192.0.2.{n}" for n in range(100)]
        made = Edge(tmp_path / "edge.sock")
        async with runtime(made, book=Book(dict.fromkeys(keys, end), keys)) as tested:
            faults = await asyncio.gather(*(tested.push(key, end) for key in keys))
            assert sum(map(len, faults)) == tested.dropped == tested.missed > 50
            await until(lambda: len(made.entries()) == 100, "it knows them all")

    run(test())


# ---- HAProxy gone wrong --------------------------------------------------------------------


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
def test_questions_to_a_hung_haproxy_are_bounded(tmp_path: Path) -> None:
    async def test() -> None:
        made = Edge(tmp_path / "edge.sock")
        async with runtime(made, timeout=0.3) as tested:
            before = threading.active_count()
            await made.halt()
            reports = await asyncio.gather(*(tested.report() for _ in range(MAX_QUEUED + 10)))
            problems = [report.problem for [report] in reports]
            assert sum("queries is full" in problem for problem in problems) == 10
            assert all(problems)
            assert threading.active_count() <= before + 1
            made.signal(signal.SIGCONT)

            async def well() -> bool:
                [report] = await tested.report()
                return not report.problem

            await until(well, "it is well again")

    run(test())


@pytest.mark.integration
def test_a_dead_haproxy_is_told_when_it_is_back(tmp_path: Path) -> None:
    async def test() -> None:
        made = Edge(tmp_path / "edge.sock")
        end = later()
        book = Book({"192.0.2.1": end, "192.0.2.3": 1}, ["192.0.2.1", "192.0.2.3"])
        async with runtime(made, book=book) as tested:
            made.end()
            [fault] = await tested.push("192.0.2.1", end)
            assert "does not run" in fault.problem and LATER in fault.problem
            await tested.push("192.0.2.2", end)
            await tested.lift("192.0.2.2")
            await tested.push("192.0.2.3", int(time.time()) - 1)  # over before it can be told
            await made.start()
            await until(lambda: made.entries() == {"::ffff:192.0.2.1": end}, "it is told")

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


async def refused(path: Path, problem: str) -> None:
    tested = Runtime([str(path)], 0.3)
    assert problem in (await tested.report())[0].problem
    [fault] = await tested.push("192.0.2.1", later())
    assert fault.socket == str(path) and problem in fault.problem
    await tested.close()


def test_what_is_wrong_with_a_socket_is_said(tmp_path: Path) -> None:
    async def test() -> None:
        await refused(tmp_path / "nowhere.sock", "no such socket")
        (tmp_path / "file").touch()
        await refused(tmp_path / "file", "connection refused")
        path = tmp_path / "closed.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            await refused(path, "connection refused")
            listener.listen()
            await refused(path, "hangs")
            path.chmod(0)
            with unprivileged():
                await refused(path, "may not open it")

    run(test())


def test_another_server_is_not_taken_for_haproxy(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"-ERR unknown command\r\n")
        writer.close()

    async def test() -> None:
        server = await asyncio.start_unix_server(answer, tmp_path / "other.sock")
        async with server:
            await refused(tmp_path / "other.sock", "no `stats socket`")

    run(test())


def test_a_server_that_never_ends_is_not_read_on(tmp_path: Path) -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(ConnectionError):
            while sent < 1 << 28:
                writer.write(b"name,1,2\n" * 1000)
                await writer.drain()
                sent += 9000
        writer.close()

    async def test() -> None:
        server = await asyncio.start_unix_server(flood, tmp_path / "other.sock")
        async with server:
            await refused(tmp_path / "other.sock", "no `stats socket`")
            tested = runtime_socket.Edge(str(tmp_path / "other.sock"), 0.3)
            with pytest.raises(EdgeError, match="name,1,2"):
                await all_of(tested)
            await tested.close()
        assert sent < 1 << 22

    run(test())


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


# ---- servers -------------------------------------------------------------------------------


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


def test_a_haproxy_that_has_answered_since_it_failed_is_asked_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edge = runtime_socket.Edge("/no/such/socket", 5)
    outcomes: list[list[str] | EdgeError] = [EdgeError("it hangs"), ["well"], ["well"]]

    def answers(*_: object) -> list[str]:
        outcome = outcomes.pop(0)
        if isinstance(outcome, EdgeError):
            raise outcome
        return outcome

    monkeypatch.setattr(edge, "_run", answers)

    async def test() -> None:
        failed, well = await asyncio.gather(edge.ask("a"), edge.ask("b"), return_exceptions=True)
        assert isinstance(failed, EdgeError) and well == ["well"]
        assert await edge.ask("c") == ["well"]
        await edge.close()

    run(test())
