"""The agent connects to HAProxy's own peers socket, which a test plays."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop
from structlog.testing import capture_logs

from ratelimit.agent import dialing as module
from ratelimit.agent.dialing import Dialing
from ratelimit.agent.peers import Peers
from ratelimit.limiter.limiter import Limiter
from ratelimit.model import Address, Limit
from ratelimit.peers.constants import Status
from ratelimit.peers.hub import Hub
from ratelimit.peers.session import Session
from ratelimit.store.sync import Sync
from tests.helpers.peers_wire import Recorder
from tests.helpers.servers import until


class Haproxy:
    """A HAProxy that accepts sessions, one at a time, and counts them."""

    def __init__(self) -> None:
        self.accepted: list[asyncio.StreamWriter] = []
        self.listener = Recorder(Status.SUCCESS)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(self.listener, "edge", time.monotonic_ns())
        self.accepted.append(writer)
        while data := await reader.read(1 << 16):
            writer.write(session.receive_data(data, time.monotonic_ns()))
        writer.close()

    def hang_up(self) -> None:
        self.accepted[-1].close()


@contextlib.asynccontextmanager
async def listening(haproxy: Haproxy, path: Path) -> AsyncIterator[None]:
    server = await asyncio.start_unix_server(haproxy.serve, path)
    async with server:
        yield
    for writer in haproxy.accepted:
        writer.close()
    path.unlink(missing_ok=True)


def made(path: Path) -> tuple[Peers, Dialing]:
    limiter = Limiter([Limit()], max_clients=100)
    peers = Peers(Hub(limiter, "agent", capacity=8), Sync(limiter, 0.01, False))
    return peers, Dialing(peers, [("edge", Address(path=str(path)))])


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF", (0.01, 0.01))


async def ends(task: asyncio.Task[None], peers: Peers) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await peers.close(1)


def test_a_haproxy_without_a_session_is_connected_again_and_again(tmp_path: Path) -> None:
    path, haproxy = tmp_path / "edge.sock", Haproxy()

    async def main() -> None:
        peers, dialing = made(path)
        task = asyncio.create_task(dialing.run())
        with capture_logs() as lines:
            async with asyncio.timeout(20):
                await until(lambda: lines)
                async with listening(haproxy, path):
                    await until(lambda: "edge" in peers.hub.by_name)
                    link = peers.hub.by_name["edge"]
                    assert haproxy.listener.seen.events[0].startswith("hello of agent ")
                    haproxy.hang_up()
                    await until(lambda: peers.hub.by_name.get("edge") not in (None, link))
                    assert len(haproxy.accepted) == 2
                    await ends(task, peers)
        said = [line["event"] for line in lines if "reached" in line["event"]]
        assert said == ["an HAProxy can't be reached"], "once, however many attempts"

    uvloop.run(main())


def test_while_a_successor_starts_it_connects_no_more(tmp_path: Path) -> None:
    path, haproxy = tmp_path / "edge.sock", Haproxy()

    async def main() -> None:
        peers, dialing = made(path)
        task = asyncio.create_task(dialing.run())
        async with asyncio.timeout(20), listening(haproxy, path):
            await until(lambda: "edge" in peers.hub.by_name)
            dialing.pause(True)
            haproxy.hang_up()
            await until(lambda: not peers.sessions)
            await until(lambda: not dialing.wanted("edge"))
            assert len(haproxy.accepted) == 1
            dialing.pause(False)
            await until(lambda: "edge" in peers.hub.by_name)
            await ends(task, peers)

    uvloop.run(main())


def test_a_session_that_haproxy_has_begun_is_kept(tmp_path: Path) -> None:
    path, haproxy = tmp_path / "edge.sock", Haproxy()

    async def main() -> None:
        peers, dialing = made(path)
        here = await peers.listen(Address(path=str(tmp_path / "agent.sock")))
        async with asyncio.timeout(20), listening(haproxy, path):
            _, writer = await asyncio.open_unix_connection(here.path)
            writer.write(b"HAProxyS 2.1\nagent\nedge 1 1\n")
            await until(lambda: "edge" in peers.hub.by_name)
            task = asyncio.create_task(dialing.run())
            await until(lambda: not dialing.wanted("edge"))
            assert not haproxy.accepted
            writer.close()
            await until(lambda: haproxy.accepted)
            await ends(task, peers)

    uvloop.run(main())
