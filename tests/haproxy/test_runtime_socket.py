"""The socket of the runtime API: HAProxy well, hung, dead, or another program."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from pathlib import Path

import pytest

from ratelimit.haproxy import commands, runtime_socket
from ratelimit.haproxy.api import Runtime
from ratelimit.haproxy.runtime_socket import MAX_QUEUED, EdgeError
from tests.helpers.edges import Edge, edges, unprivileged
from tests.helpers.runtime import fill, later, run, runtime
from tests.helpers.world import until


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
