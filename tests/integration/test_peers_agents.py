"""Agents in peers mode that are killed, hang, hand over, and share a Redis."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers.servers import Server
from tests.helpers.world import (
    LONGEST,
    PATIENCE,
    PEERS_FILE,
    World,
    closed,
    free_port,
    until,
    world,
)
from tests.integration.certificates import make_certificate
from tests.integration.test_peers import attack, blocked, passes

pytestmark = pytest.mark.integration

RATE = 20
LIMIT = f"[limits.default]\nrate = {RATE}\nwindow = '1m'\nblock = ['5m']\n"
"""A limit that outlasts a test."""


async def state(w: World) -> dict[str, Any]:
    """Return what an agent says of its HAProxy; nothing without one."""
    async with httpx.AsyncClient(trust_env=False) as client:
        try:
            answer = await client.get(f"http://{await w.ops()}/v1/status")
        except httpx.TransportError:
            return {}
    peers: list[dict[str, Any]] = answer.json().get("peers", [])
    return peers[0] if peers else {}


async def counts(w: World) -> bool:
    """Return whether an agent counts for its HAProxy, which has all its verdicts."""
    seen = await state(w)
    return bool(seen.get("counting") and seen["taught"])


async def stands_by(w: World) -> bool:
    seen = await state(w)
    return bool(seen.get("taught") and not seen["counting"])


def logged(w: World, line: str) -> int:
    return w.agent_log().count(line)


async def send(w: World, address: str, number: int) -> None:
    """Send requests that a client may send."""
    assert await w.client(address).statuses(number) == [200] * number


@contextlib.asynccontextmanager
async def another(w: World, config: str) -> AsyncIterator[World]:
    """Yield a second agent of the world's HAProxy."""
    other = World(w.folder / "second", 0, file=PEERS_FILE)
    other.folder.mkdir(exist_ok=True)
    other.start_agent(f'peer_name = "agent2"\n{config}')
    try:
        await until(other.agent_listens, "the second agent listens")
        yield other
    finally:
        await other.down()


def of_redis(folder: Path, server: Server) -> str:
    """Return the configuration of an agent that shares a Redis, and connects to HAProxy."""
    sockets = f'[haproxy]\npeer_sockets = ["haproxy@unix://{folder}/local.sock"]\n'
    return f'[store]\nurl = "{server.url}"\n{sockets}{LIMIT}'


def test_of_two_agents_of_one_haproxy_one_counts_and_the_other_takes_over(tmp_path: Path) -> None:
    async def test(w: World, server: Server) -> None:
        config = of_redis(w.folder, server)
        await until(lambda: counts(w), "the first agent counts")
        async with another(w, config) as other:
            await until(lambda: stands_by(other), "the second agent has all counts")
            assert (await state(other))["counted_by"] == "agent"
            await attack(w, "127.4.0.1")
            await send(w, "127.4.0.2", RATE // 2)

            # Killed: the other one takes over, blocks stay, and no request counts twice.
            w.stop_agent(signal.SIGKILL)
            await until(lambda: counts(other), "the second agent counts")
            assert await blocked(w, "127.4.0.1") and not await passes(w, "127.4.0.1")
            await send(w, "127.4.0.2", RATE // 2 - 1)
            await attack(w, "127.4.0.3")
            w.start_agent(config)
            await until(lambda: stands_by(w), "the first agent is back and does not count")

            # Hung: what it has not read is not counted when it goes on.
            await send(w, "127.4.0.4", RATE // 3)
            assert other.agent is not None
            other.agent.send_signal(signal.SIGSTOP)
            await until(lambda: counts(w), "the first agent counts")
            await send(w, "127.4.0.4", RATE // 3)
            other.agent.send_signal(signal.SIGCONT)
            await until(lambda: stands_by(other), "the second agent does not count any more")
            await send(w, "127.4.0.4", RATE // 3)

            # Redis is lost: the agent that counts goes on, and has the lease afterwards.
            server.kill()
            await until(lambda: logged(w, "store lost") > 0, "the first agent misses Redis")
            await until(lambda: logged(other, "store lost") > 0, "the second agent misses Redis")
            await attack(w, "127.4.0.5")
            assert await counts(w) and await stands_by(other)
            server.start()
            await until(lambda: logged(w, "store back") > 0, "the first agent has Redis back")
            await until(lambda: logged(other, "store back") > 0, "the second agent has Redis back")
            key = "ratelimit:{fleet}:lease:haproxy"
            await until(lambda: server.do("HGET", key, "agent") == b"agent", "it asks again")
            assert await counts(w) and await stands_by(other)
            assert logged(w, "are forgotten") == 0

            # Stopped: the other one takes over at once.
            w.stop_agent()
            await until(lambda: counts(other), "the second agent counts")
            assert await blocked(w, "127.4.0.5")

    async def main() -> None:
        server = Server(tmp_path).start()
        config = of_redis(tmp_path, server)
        env = {"RATELIMIT_PEERS2": f"unix@{tmp_path}/second/peers.sock", "RATELIMIT_WINDOW": "60"}
        try:
            async with (
                asyncio.timeout(LONGEST),
                world(tmp_path, config, env=env, file=PEERS_FILE) as w,
            ):
                await test(w, server)
        finally:
            server.kill()

    asyncio.run(main())


def test_agents_of_several_haproxies_count_together_in_redis(tmp_path: Path) -> None:
    async def test(w: World, other: World) -> None:
        await until(lambda: counts(w), "the first agent counts")
        await until(lambda: counts(other), "the second agent counts")
        here, there = w.client("127.4.0.10"), other.client("127.4.0.10")

        async def both() -> bool:
            await here.get()
            await there.get()
            return await blocked(w, "127.4.0.10") and await blocked(other, "127.4.0.10")

        await until(both, "both HAProxies refuse the client")
        # The agents tell each other, and HAProxy, some milliseconds after a request.
        assert RATE <= w.requests["127.4.0.10"] <= 2 * RATE
        await send(other, "127.4.0.11", 5)

    async def main() -> None:
        server = Server(tmp_path).start()
        config = f'[store]\nurl = "{server.url}"\n{LIMIT}'
        env = {"RATELIMIT_WINDOW": "60"}
        try:
            async with (
                asyncio.timeout(LONGEST),
                world(tmp_path, config, env=env, file=PEERS_FILE) as w,
            ):
                other = World(w.folder / "other", free_port(), w.backend, file=PEERS_FILE)
                shutil.copytree(w.folder / "haproxy", other.folder / "haproxy")
                other.env = {**env, "RATELIMIT_LOCALPEER": "other"}
                other.start_agent(config)
                try:
                    await until(other.agent_listens, "the other agent listens")
                    other.start_haproxy()
                    await until(other.listens, "the other HAProxy listens")
                    await test(w, other)
                finally:
                    await other.down()
        finally:
            server.kill()

    asyncio.run(main())


def run(folder: Path, test: Callable[[World], Awaitable[None]], config: str, **env: str) -> None:
    async def main() -> None:
        env["RATELIMIT_WINDOW"] = "60"
        async with asyncio.timeout(LONGEST), world(folder, config, env=env, file=PEERS_FILE) as w:
            await until(lambda: counts(w), "the agent counts")
            await test(w)

    asyncio.run(main())


def test_an_agent_connects_to_haproxy_when_it_starts_and_takes_over(tmp_path: Path) -> None:
    config = f'{LIMIT}[haproxy]\npeer_sockets = ["haproxy@unix://{tmp_path}/local.sock"]\n'

    async def test(w: World) -> None:
        assert w.agent is not None
        await attack(w, "127.4.0.20")
        # Handed over: HAProxy ends the session with the predecessor because of the successor's.
        w.agent.send_signal(signal.SIGUSR2)
        w.agent.wait(PATIENCE)
        (successor,) = map(int, re.findall(r'"successor": (\d+)', w.agent_log()))
        try:
            await until(lambda: counts(w), "the successor counts")
            assert (await state(w))["pid"] == 0, "it has connected; HAProxy says its process"
            assert not await passes(w, "127.4.0.20")
            await attack(w, "127.4.0.21")
        finally:
            os.kill(successor, signal.SIGKILL)
        # Killed: the next one connects at once.
        await until(lambda: not Path(f"/proc/{successor}/fd/0").exists(), "it has ended")
        w.start_agent(config)
        await until(lambda: counts(w), "the new agent counts")
        assert not await passes(w, "127.4.0.20") and not await passes(w, "127.4.0.21")
        await attack(w, "127.4.0.22")

    run(tmp_path, test, config)


def test_haproxy_and_the_agent_verify_each_other(tmp_path: Path) -> None:
    port, local = free_port(), free_port()
    certificate, both = tmp_path / "certificate.pem", tmp_path / "both.pem"
    make_certificate(certificate)
    both.write_text(certificate.read_text() + Path(f"{certificate}.key").read_text())

    def edit(folder: Path) -> None:
        path, tls = folder / PEERS_FILE, f"ssl ca-file {certificate} crt {both}"
        text = path.read_text()
        for line in ("server agent", "bind"):
            (found,) = re.findall(rf'^    {line} "\$.RATELIMIT_PEERS.*"$', text, re.MULTILINE)
            text = text.replace(found, f"{found} {tls} verify required")
        path.write_text(text)

    async def main() -> None:
        env = {
            "RATELIMIT_PEERS": f"127.0.0.1:{port}",
            "RATELIMIT_PEERS_LISTEN": f"127.0.0.1:{local}",
            "RATELIMIT_WINDOW": "60",
        }
        made = world(tmp_path, agent=False, edit=edit, env=env, file=PEERS_FILE)
        async with asyncio.timeout(LONGEST), made as w:
            w.peers = f"tcp://127.0.0.1:{port}"
            keys = f'peers_ca = "{certificate}"\npeers_certificate = "{both}"\n{LIMIT}'
            # The agent connects.
            dials = f'[haproxy]\npeer_sockets = ["haproxy@tcp://127.0.0.1:{local}"]\n'
            w.start_agent(keys + dials)
            await until(lambda: counts(w), "the agent counts")
            await attack(w, "127.4.0.30")
            w.stop_agent()
            # HAProxy connects.
            w.start_agent(keys)
            await until(lambda: counts(w), "the agent counts")
            await attack(w, "127.4.0.31")
            # Without a certificate, no hello is read.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            writer.write(b"HAProxyS 2.1\nagent\nstranger 1 1\n")
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                assert await reader.read() == b""
            await closed(writer)

    asyncio.run(main())
