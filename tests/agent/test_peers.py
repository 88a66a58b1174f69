"""The peers' sockets over real connections; a second passes by ``tick()``."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvloop
from structlog.testing import capture_logs

from ratelimit.agent import peers as module
from ratelimit.agent.peers import CLOSE_TIMEOUT, Peers
from ratelimit.limiter.limiter import Limiter
from ratelimit.model import EVERY_LIMIT, Address, Block, Limit
from ratelimit.peers.hub import Hub
from ratelimit.peers.listener import Listener
from ratelimit.peers.session import Session
from ratelimit.peers.updates import UpdateReader
from ratelimit.store.sync import Sync
from tests.helpers.fake_haproxy import GPT, TABLES, ipv4
from tests.helpers.servers import until
from tests.integration.certificates import make_certificate

LOOPBACK = Address("127.0.0.1", 0)
HELLO = b"HAProxyS 2.1\nagent\nhaproxy 1 1\n"


def run(
    test: Callable[[Peers, Address], Awaitable[None]],
    address: Address = LOOPBACK,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Run ``test`` with sockets for peers on ``address``; nothing may take ten seconds."""

    async def main() -> None:
        limiter = Limiter([Limit(rate=10)], max_clients=1_000)
        sync = Sync(limiter, 0.01, False)
        peers = Peers(Hub(limiter, "agent", capacity=1_000), sync, tls=tls)
        bound = await peers.listen(address)
        peers.tick()
        tasks = [asyncio.create_task(peers.run()), asyncio.create_task(peers.rebuild())]
        try:
            async with asyncio.timeout(10):
                await test(peers, bound)
        finally:
            for task in tasks:
                task.cancel()
            await peers.close(1)
            assert not peers.sessions and not peers.hub.links

    uvloop.run(main())


@contextlib.asynccontextmanager
async def connected(
    address: Address,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    if address.path:
        reader, writer = await asyncio.open_unix_connection(address.path)
    else:
        reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


class Client(Listener):
    """A HAProxy on a socket; ``verdicts`` are those it was told, by key."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.verdicts: dict[bytes, tuple[int, int]] = {}
        self.limits: dict[bytes, int] = {}
        self.session = Session(self, "haproxy", time.monotonic_ns(), "agent", 1)

    def on_table(self, session: Session, definition: object) -> object:
        return True

    def on_update(self, session: Session, definition: object, update: UpdateReader) -> None:
        if update.definition.name == "rlv_default":
            self.verdicts[update.key()] = update.value(GPT), update.value(GPT + 2)
        else:
            self.limits[update.key()] = update.value(GPT + 2)

    async def pump(self, condition: Callable[[], bool]) -> None:
        """Pass data in both directions until ``condition`` is true."""
        self.writer.write(self.session.take())
        while not condition():
            data = await self.reader.read(1 << 16)
            assert data, self.session.error
            self.writer.write(self.session.receive_data(data, time.monotonic_ns()))

    async def connect(self) -> None:
        await self.pump(lambda: self.session.opened)
        for table in TABLES:
            self.session.define(table)
        self.session.finished()
        await self.pump(lambda: bool(self.limits.get(b"default")))


def block(key: str) -> Block:
    now = int(time.time())
    return Block(key, EVERY_LIMIT, "", 0, now, now + 600, order=1)


def test_counts_go_in_and_verdicts_come_out(tmp_path: Path) -> None:
    async def test(peers: Peers, address: Address) -> None:
        async with connected(address) as streams:
            client = Client(*streams)
            await client.connect()
            key = ipv4("192.0.2.7")
            for number in range(1, 12):
                client.session.update(TABLES[0], key, [number, 0, number, 0])
            await client.pump(lambda: key in client.verdicts)
            assert peers.hub.limiter.blocks == 1
            other = ipv4("192.0.2.8")
            peers.hub.limiter.apply(block("192.0.2.8"))
            await client.pump(lambda: other in client.verdicts)

    run(test, LOOPBACK)
    run(test, Address(path=str(tmp_path / "peers.sock")))


def test_many_blocks_are_taught_in_slices() -> None:
    async def test(peers: Peers, address: Address) -> None:
        for number in range(3_000):
            peers.hub.limiter.apply(block(f"10.0.{number >> 8}.{number & 255}"))
        async with connected(address) as streams:
            client = Client(*streams)
            await client.connect()
            assert len(client.verdicts) == 3_000

    run(test)


def test_long_reads_of_several_sessions_share_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one turn of the loop brings is processed in the turns after it, one slice in each."""
    planned: list[Callable[[], object]] = []
    monkeypatch.setattr(module, "call", planned.append)

    async def test(peers: Peers, address: Address) -> None:
        async with connected(address), connected(address):
            await until(lambda: len(peers.sessions) == 2)
            for peer in peers.sessions:
                peer.data_received(b"x" * (module._LARGE_PIECE + 1))
            assert len(planned) == 2
            assert peers.protocol_errors == 0
            for work in planned:
                work()
            assert peers.protocol_errors == 2

    run(test)


def test_a_long_read_is_processed_in_slices_and_none_of_it_is_lost() -> None:
    async def test(peers: Peers, address: Address) -> None:
        async with connected(address) as streams:
            client = Client(*streams)
            await client.connect()
            for number in range(20_000):
                key = ipv4(f"10.0.{number >> 8}.{number & 255}")
                while not client.session.update(TABLES[0], key, [1, 0, 1, 0]):
                    client.writer.write(client.session.take())
            client.writer.write(client.session.take())
            await until(lambda: peers.hub.engine.checks == 20_000)

    run(test)


@pytest.mark.parametrize(
    ("sent", "answer", "why"),
    [
        (b"GET / HTTP/1.1\r\n", b"501\n", "no hello"),
        (HELLO.replace(b"2.1", b"9.1"), b"502\n", "version 9.1"),
        (HELLO.replace(b"agent", b"other"), b"503\n", "expects a peer other, not agent"),
        (HELLO + b"\x77\x80", b"200\n\x00\x00\x01\x00", "unknown class 119"),
    ],
)
def test_what_breaks_the_protocol_ends_the_session_with_one_line(
    sent: bytes, answer: bytes, why: str
) -> None:
    async def test(peers: Peers, address: Address) -> None:
        with capture_logs() as lines:
            async with connected(address) as (reader, writer):
                writer.write(sent)
                assert await reader.read() == answer
        assert peers.protocol_errors == 1
        (line,) = lines
        assert why in line["why"]

    run(test)


def test_sessions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SESSIONS", 2)

    async def test(peers: Peers, address: Address) -> None:
        async with connected(address), connected(address):
            await until(lambda: len(peers.sessions) == 2)
            async with connected(address) as (reader, _):
                assert await reader.read() == b"300\n"
        assert peers.refused == 1

    run(test)


def seconds_pass(peers: Peers, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    now = time.monotonic_ns()
    with monkeypatch.context() as patched:
        for second in range(1, count + 1):
            later = now + second * 10**9
            patched.setattr(time, "monotonic_ns", lambda later=later: later)
            peers.tick()


def test_a_peer_that_says_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(peers: Peers, address: Address) -> None:
        async with connected(address) as (reader, _):
            await until(lambda: len(peers.sessions) == 1)
            seconds_pass(peers, monkeypatch, 6)
            assert await reader.read() == b"501\n"

    run(test)


def test_a_peer_is_kept_while_the_tables_of_verdicts_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(peers: Peers, address: Address) -> None:
        async with connected(address) as streams:
            client = Client(*streams)
            await client.connect()
            (table,) = peers.hub.verdicts.values()
            peers.hub._stale[table] = None  # without a word to rebuild()
            client.session.update(TABLES[0], ipv4("192.0.2.7"), [1, 0, 1, 0])
            client.writer.write(client.session.take())
            (peer,) = peers.sessions
            await until(lambda: bool(peer._held))
            seconds_pass(peers, monkeypatch, 9)
            assert peers.protocol_errors == 0
            peers.hub.on_stale()
            await until(lambda: peers.hub.engine.checks == 1)

    run(test)


def test_a_peer_that_does_not_read_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WRITE_LIMIT", 1 << 12)

    async def test(peers: Peers, address: Address) -> None:
        async with connected(address) as (reader, writer):
            client = Client(reader, writer)
            await client.connect()
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            (peer,) = peers.sessions
            sock = peer._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            numbers = itertools.count()

            def sticks() -> bool:
                for number in itertools.islice(numbers, 500):
                    key = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
                    peers.hub.limiter.apply(block(key))
                return peer._stuck

            await until(sticks)
            for _ in range(CLOSE_TIMEOUT + 1):
                peers.tick()
            await until(lambda: not peers.sessions)

    run(test)


def test_a_connection_without_a_tls_handshake_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "certificate.pem"
    make_certificate(path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, f"{path}.key")

    async def test(peers: Peers, address: Address) -> None:
        for _ in range(3):
            async with connected(address) as (reader, writer):
                writer.write(HELLO)
                with contextlib.suppress(ConnectionError):
                    await reader.read()
        assert not peers.hub.links

    run(test, tls=context)


def test_what_was_read_of_a_lost_connection_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Callable[[], object]] = []

    async def test(peers: Peers, address: Address) -> None:
        async with connected(address) as streams:
            client = Client(*streams)
            await client.connect()
            (peer,) = peers.sessions
            for number in range(1_000):
                key = ipv4(f"10.0.{number >> 8}.{number & 255}")
                while not client.session.update(TABLES[0], key, [1, 0, 1, 0]):
                    pass
            monkeypatch.setattr(module, "call", planned.append)
            peer.data_received(client.session.take())
            peer.connection_lost(ConnectionResetError())
            for work in planned:
                work()
            peer.abort()

    run(test)


def test_a_peer_beyond_loopback_has_to_be_trusted() -> None:
    limiter = Limiter([Limit()], max_clients=100)
    peers = Peers(Hub(limiter, "agent", capacity=8), Sync(limiter, 0.01, False))
    with capture_logs() as lines:
        assert not peers.admits("192.0.2.1")
    assert peers.untrusted == 1
    assert lines[0]["peer"] == "192.0.2.1"
    assert peers.admits("127.0.0.1")
