"""What becomes of the traffic when the agent or HAProxy goes away and comes back."""

from __future__ import annotations

import asyncio
import signal
import socket
import struct
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers.world import LONGEST, SHIPPED, World, haproxy_version, run, until, world
from tests.integration.visitors import load, more

pytestmark = pytest.mark.integration


def questions(w: World) -> Counter[bool]:
    """How many requests of visitors the agent was asked about, by whether it failed to answer."""
    found: Counter[bool] = Counter()
    for line in w.haproxy_log().splitlines():
        if "127.9.0." in line and '"GET' in line:
            _, _, asked_ms, error, _ = line.rsplit('"', 1)[1].split()
            if asked_ms != "-":
                found[error != "-"] += 1
    return found


def test_the_agent_is_killed_and_started_again(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        async with load(w) as answers:
            w.stop_agent(signal.SIGKILL)
            await more(answers)
            await until(lambda: w.agent_is("DOWN"), "HAProxy misses the agent")
            await more(answers)
            w.start_agent()
            await until(lambda: w.agent_is("UP"), "HAProxy sees the new agent")
            await more(answers)
        assert w.checks() >= 100

    run(tmp_path, test, processing=SHIPPED)


def test_the_agent_hangs(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        assert w.agent is not None
        async with load(w) as answers:
            w.agent.send_signal(signal.SIGSTOP)
            await until(lambda: w.agent_is("DOWN"), "HAProxy gives the agent up")
            await more(answers, 50)
            before = questions(w)
            assert before[True] > 0, "some waited in vain until two checks had failed"
            await more(answers, 300)
            assert questions(w) == before, "nobody is asked any more"
            w.agent.send_signal(signal.SIGCONT)
            await until(lambda: w.agent_is("UP"), "HAProxy sees the agent again")
            await more(answers, 300)
            await until(lambda: questions(w)[False] > before[False], "the agent is asked again")

    run(tmp_path, test, processing=SHIPPED)


def test_the_agent_is_stopped_gently_under_load(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        async with load(w) as answers:
            assert w.stop_agent(signal.SIGTERM) == 0
            assert "Traceback" not in w.agent_log()
            await more(answers)
            w.start_agent()
            await until(lambda: w.agent_is("UP"), "HAProxy sees the new agent")
            await more(answers)

    run(tmp_path, test, processing=SHIPPED)


def test_haproxy_is_reloaded_under_load(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        async with load(w) as answers:
            for _ in range(3):
                await w.reload()
                await more(answers)
        assert w.checks() >= len(answers) * 0.9

    run(tmp_path, test, processing=SHIPPED)


@pytest.mark.parametrize(("way", "since"), [("reset", (3, 1)), ("half-closed", (3, 3))])
def test_a_client_that_leaves_while_the_agent_is_asked(
    tmp_path: Path, way: str, since: tuple[int, int]
) -> None:
    """HAProxy tells of that since a version; before, the question ends with its time."""

    def edit(files: Path) -> None:
        cfg = files / "haproxy.cfg"
        cfg.write_text(cfg.read_text().replace("fall 2 rise 1", "fall 100000 rise 1"))

    sources = [f"127.9.3.{n}" for n in range(1, 9)]

    async def leave(w: World, source: str) -> None:
        with socket.create_connection(("127.0.0.1", w.port), 5, (source, 0)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            await until(lambda: under_way(w, source), "the agent is asked")
            if way == "reset":
                linger = struct.pack("ii", 1, 0)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                client.close()
            else:
                client.shutdown(socket.SHUT_WR)
            await until(lambda: f"{source}:" in w.haproxy_log(), "it is logged")

    async def main() -> None:
        async with asyncio.timeout(LONGEST), world(tmp_path, edit=edit, processing="5s") as w:
            assert w.agent is not None
            w.agent.send_signal(signal.SIGSTOP)
            await asyncio.gather(*(leave(w, source) for source in sources))
            table = await w.runtime("show table t_alone")
            verdicts = {}
            for source in sources:
                (line,) = [one for one in w.haproxy_log().splitlines() if f"{source}:" in one]
                verdicts[source] = line.rsplit('"', 1)[1].split()[0]
                left = verdicts[source] == "left"
                assert (f"{source} " in table) is not left, line
                assert not (left and w.requests[source]), line
            # It does not see each of them leave.
            told = haproxy_version() >= since
            assert set(verdicts.values()) - {"alone"} == ({"left"} if told else set()), verdicts
            w.agent.send_signal(signal.SIGCONT)

    asyncio.run(main())


async def under_way(w: World, source: str) -> bool:
    """Tell whether HAProxy has a request of a client."""
    return f"{source}:" in await w.runtime("show sess")


@pytest.mark.parametrize("hung", [False, True])
def test_without_the_agent_haproxy_itself_refuses_above_the_limit(
    tmp_path: Path, hung: bool
) -> None:
    async def test(w: World) -> None:
        visitor = w.client("127.9.1.2")
        assert (await visitor.get()).status == 200
        assert "used:0" in await w.runtime("show table t_alone"), "nothing is tracked while well"
        assert w.agent is not None
        if hung:
            w.agent.send_signal(signal.SIGSTOP)
        else:
            w.stop_agent(signal.SIGKILL)
        await until(lambda: w.agent_is("DOWN"), "HAProxy misses the agent")

        attacker = w.client("127.9.1.1")
        answers = [await attacker.get() for _ in range(100)]
        found = Counter(answer.status for answer in answers)
        assert found[200] + found[429] == 100
        # The limit a second, and what a slow machine needs beyond one second.
        seconds = sum(answer.seconds for answer in answers)
        assert 18 <= found[200] <= 20 * (seconds + 1)
        assert found[429] > 0
        refused = [a.headers for a in answers if a.status == 429]
        assert {told["retry-after"] for told in refused} == {"1"}
        assert {told["ratelimit-policy"] for told in refused} == {'"default";q=20;w=1'}
        assert {told["ratelimit"] for told in refused} == {'"default";r=0;t=1'}
        assert (await visitor.get()).status == 200

        if hung:
            w.agent.send_signal(signal.SIGCONT)
        else:
            w.start_agent(limit)
        await until(lambda: w.agent_is("UP"), "HAProxy sees the agent")
        newcomer = w.client("127.9.1.3")
        assert await newcomer.statuses(101) == [200] * 100 + [429]

    limit = "[limits.default]\nwindow = '30s'\n"
    run(tmp_path, test, limit, RATELIMIT_ALONE_RATE="20")


def test_haproxy_starts_before_the_agent(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        client = w.client("127.9.2.1")
        assert (await client.get()).status == 200
        w.start_agent()
        await until(lambda: w.agent_is("UP"), "HAProxy sees the agent")
        assert (await client.get()).status == 200
        assert w.checks() == 1

    run(tmp_path, test, agent=False)
