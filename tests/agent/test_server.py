"""The agent over real sockets; a second passes by ``tick()``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvloop
from structlog.testing import capture_logs

from ratelimit.agent import server as agent_module
from ratelimit.agent.server import (
    CLOSE_TIMEOUT,
    FRAME_TIMEOUT,
    HANDSHAKE_TIMEOUT,
    IDLE_TIMEOUT,
    Agent,
)
from ratelimit.agent.trust import Trusted
from ratelimit.limiter.limiter import Limiter
from ratelimit.model import Address, Limit
from ratelimit.spop.constants import Status
from tests.helpers import wire
from tests.helpers.network import Network
from tests.helpers.servers import until

LOOPBACK = Address("127.0.0.1", 0)
ASK = wire.message("default", key=wire.address("192.0.2.1"))


def run(test: Callable[[Agent, Address], Awaitable[None]], address: Address = LOOPBACK) -> None:
    """Run ``test`` with an agent that listens on ``address``; nothing may take ten seconds."""

    async def main() -> None:
        agent = Agent(Limiter([Limit(rate=1000)], max_clients=1000))
        bound = await agent.listen(address)
        try:
            async with asyncio.timeout(10):
                await test(agent, bound)
        finally:
            await agent.close(1)

    uvloop.run(main())


@contextlib.asynccontextmanager
async def connected(
    address: Address, greet: bool = True
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    if address.path:
        reader, writer = await asyncio.open_unix_connection(address.path)
    else:
        reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        if greet:
            writer.write(wire.hello())
            assert (await frame(reader)).kind == wire.AGENT_HELLO
        yield reader, writer
    finally:
        writer.close()


async def frame(reader: asyncio.StreamReader) -> wire.Frame:
    head = await reader.readexactly(4)
    (found,) = wire.frames(head + await reader.readexactly(struct.unpack(">I", head)[0]))
    return found


async def ended(reader: asyncio.StreamReader) -> Status:
    """Wait for the end of a connection; return the status it was given."""
    frames = wire.frames(await reader.read())
    assert frames[-1].kind == wire.AGENT_DISCONNECT
    status = frames[-1].items["status-code"]
    assert isinstance(status, int)
    return Status(status)


async def peers(agent: Agent, count: int) -> None:
    """Wait until the agent has ``count`` connections."""
    await until(lambda: len(agent.peers) == count)


def test_tcp_and_unix(tmp_path: Path) -> None:
    async def test(agent: Agent, address: Address) -> None:
        async with connected(address) as (reader, writer):
            writer.write(wire.notify(ASK, ids=(9, 4)))
            assert (await frame(reader)).ids == (9, 4)

    run(test)
    run(test, Address("::1", 0))
    run(test, Address(path=str(tmp_path / "spop.sock")))


def test_a_peer_on_loopback_needs_no_trust() -> None:
    async def test(agent: Agent, address: Address) -> None:
        for source in ("127.0.0.1", "127.8.7.6"):
            reader, writer = await asyncio.open_connection(
                address.host, address.port, local_addr=(source, 0)
            )
            writer.write(wire.hello())
            assert (await frame(reader)).kind == wire.AGENT_HELLO
            writer.close()
        assert agent.untrusted == 0

    run(test)


# Greets the agent, as another machine would, and tells the kind of the answer.
GREET = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as agent:
    try:
        agent.sendall(bytes.fromhex(sys.argv[3]))
        answer = agent.recv(100)
    except ConnectionError:
        answer = b""
print(answer[4] if answer else "cut")
"""


@pytest.mark.integration
@pytest.mark.root
def test_a_peer_beyond_loopback_has_to_be_trusted(network: Network) -> None:
    async def greet(bound: Address) -> str:
        ran = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", network.name, sys.executable, "-c", GREET),
            *(network.here, str(bound.port), wire.hello().hex()),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await ran.communicate()
        return out.decode().strip()

    async def test(agent: Agent, address: Address) -> None:
        assert [await greet(address) for _ in range(20)] == ["cut"] * 20
        assert (agent.untrusted, agent.protocol_errors, len(agent.peers)) == (20, 0, 0)
        agent.trusted = Trusted((f"{network.there}/32",))
        assert await greet(address) == str(wire.AGENT_HELLO)
        agent.trusted = Trusted((f"{network.here}/32",))
        assert await greet(address) == "cut"
        assert agent.untrusted == 21
        agent.tick()

    with capture_logs() as lines:
        run(test, Address(network.here, 0))
        run(test, Address("::", 0))  # by IPv4 on a socket of both kinds
    refused = [line for line in lines if line["event"].startswith("connection refused")]
    assert {line["peer"].removeprefix("::ffff:") for line in refused} == {network.there}
    assert len(refused) == 2 * 10
    assert [line["count"] for line in lines if line["event"] == "more connections ended"] == [
        11,
        11,
    ]


def test_half_close_is_answered_before_the_end() -> None:
    async def test(agent: Agent, address: Address) -> None:
        async with connected(address) as (reader, writer):
            writer.write(wire.notify(ASK) * 500)
            writer.write_eof()
            acks = wire.frames(await reader.read())
            assert [ack.kind for ack in acks] == [wire.ACK] * 500
        await peers(agent, 0)

    run(test)


def test_a_broken_connection_disturbs_no_other() -> None:
    async def test(agent: Agent, address: Address) -> None:
        async with connected(address) as (reader, writer):
            for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\0", os.urandom(4000), b"\xff" * 9000):
                async with connected(address, greet=False) as (broken, noisy):
                    noisy.write(noise)
                    assert await ended(broken) in (Status.TOO_BIG, Status.INVALID)
                writer.write(wire.notify(ASK))
                assert (await frame(reader)).kind == wire.ACK
            assert agent.protocol_errors == 4
            await peers(agent, 1)

    run(test)


def test_a_reset_is_a_normal_end() -> None:
    async def test(agent: Agent, address: Address) -> None:
        async with connected(address) as (_, writer):
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.write(wire.notify(ASK))
        await peers(agent, 0)
        assert agent.protocol_errors == 0

    run(test)


def test_a_peer_that_says_nothing_is_told_and_dropped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def test(agent: Agent, address: Address) -> None:
        async with connected(address, greet=False) as (reader, writer):
            writer.write(wire.hello()[:9])
            await peers(agent, 1)
            for _ in range(HANDSHAKE_TIMEOUT + 1):
                agent.tick()
            assert await ended(reader) == Status.TIMEOUT
        await peers(agent, 0)
        assert "no HAPROXY-HELLO in time" in capsys.readouterr().out

    run(test)


@pytest.mark.parametrize(("rest", "limit"), [(b"", IDLE_TIMEOUT), (b"\0\0\1", FRAME_TIMEOUT)])
def test_silence_ends_a_connection_and_a_byte_puts_it_off(rest: bytes, limit: int) -> None:
    async def test(agent: Agent, address: Address) -> None:
        async with connected(address) as (reader, writer):
            agent.tick()
            for _ in range(limit):
                agent.tick()
            writer.write(wire.notify(ASK) + rest)
            assert (await frame(reader)).kind == wire.ACK
            for _ in range(limit + 1):
                agent.tick()
            assert len(agent.peers) == 1
            agent.tick()
            assert await ended(reader) == Status.TIMEOUT

    run(test)


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "MAX_CONNECTIONS", 20)

    async def test(agent: Agent, address: Address) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(20):
                await stack.enter_async_context(connected(address, greet=False))
            await peers(agent, 20)
            for _ in range(30):
                async with connected(address, greet=False) as (reader, _):
                    assert await ended(reader) == Status.RESOURCES
            assert agent.refused == 30
            await peers(agent, 20)
            for _ in range(HANDSHAKE_TIMEOUT + CLOSE_TIMEOUT + 2):
                agent.tick()
            await peers(agent, 0)  # without their doing anything
        async with connected(address):
            pass

    run(test)


def test_a_peer_that_does_not_read_is_not_read_from_and_in_the_end_cut() -> None:
    async def test(agent: Agent, address: Address) -> None:
        async with connected(address) as (_, writer), connected(address) as (reader, other):
            cast_away = asyncio.create_task(flood(writer))
            await until(lambda: any(peer.stuck for peer in agent.peers))
            other.write(wire.notify(ASK))
            assert (await frame(reader)).kind == wire.ACK

            def cut() -> bool:
                agent.tick()
                return len(agent.peers) < 2

            await until(cut)
            with contextlib.suppress(ConnectionError):
                await cast_away

    async def flood(writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        while True:
            writer.write(wire.notify(ASK) * 1000)
            await writer.drain()

    run(test)


def test_close_answers_what_was_read_and_says_goodbye() -> None:
    async def test(agent: Agent, address: Address) -> None:
        async with connected(address) as (reader, writer):
            writer.write(wire.notify(ASK) * 100)
            acks = [await frame(reader) for _ in range(100)]
            assert {ack.kind for ack in acks} == {wire.ACK}
            closing = asyncio.create_task(agent.close(5))
            assert await ended(reader) == Status.NORMAL
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(address.host, address.port)
        await closing
        assert not agent.peers

    run(test)


def test_close_cuts_a_peer_that_does_not_leave() -> None:
    async def test(agent: Agent, address: Address) -> None:
        async with connected(address):
            await agent.close(0.01)
            await peers(agent, 0)

    run(test)
