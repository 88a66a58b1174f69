"""A small world for the tests: applications, the agent, HAProxy with the shipped files, clients.

Everything runs as real processes on free ports of loopback and ends with the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from ratelimit.haproxy.process import files

HAPROXY = os.environ.get("RATELIMIT_TEST_HAPROXY", "haproxy").split()
"""Command of HAProxy; several words run another version, such as ``chroot DIR haproxy``."""

PATIENCE = 60.0
"""Timeout in seconds of every wait in a test."""

LONGEST = 180.0
"""Maximum seconds of a test on a busy machine."""

SPOE_FILE, PEERS_FILE = "haproxy.cfg", "peers.cfg"
"""The shipped configurations of the two modes."""

SIGNAL_LOST = 5.0
"""Seconds after which a reload that did not begin is asked for again."""

PROCESSING_TIMEOUT = 0.05
"""Seconds, from spoe.conf."""

SHIPPED = "50ms"
"""The same as it is there: HAProxy lets a request pass if the agent has not answered by then."""

PATIENT = "2s"
"""Longer than a busy machine delays an answer, so that HAProxy does what the agent says."""


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    """Wait until ``condition`` is true."""
    deadline = time.monotonic() + PATIENCE
    while True:
        result = condition()
        if (await result) if isinstance(result, Awaitable) else result:
            return
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        await asyncio.sleep(0.01)


def free_port() -> int:
    """Return a port on which no process listens.

    None of those that the kernel gives to connections, which it might give away before it is used;
    nor one that is such with 10,000 more, as the second port of a cluster's node.
    """
    while True:
        port = 10_000 + secrets.randbelow(12_000)  # not seeded by tests, unlike random
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def ask_for(folder: Path, processing: str) -> None:
    """Set how long HAProxy waits for an answer of the agent."""
    conf = folder / "spoe.conf"
    shipped = f"timeout processing {SHIPPED}\n"
    assert shipped in conf.read_text()
    conf.write_text(conf.read_text().replace(shipped, f"timeout processing {processing}\n"))


def haproxy_version() -> tuple[int, int]:
    said = subprocess.run([*HAPROXY, "-v"], capture_output=True, text=True, check=True).stdout
    major, minor = re.findall(r"version (\d+)\.(\d+)", said)[0]
    return int(major), int(minor)


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float = 0.0


class Client:
    """An HTTP/1.1 client with its own address and keep-alive."""

    def __init__(self, port: int, source: str) -> None:
        self.source = source
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def get(self, path: str = "/", **headers: str) -> Answer:
        return await self.send("GET", path, **headers)

    async def send(self, method: str, path: str, **headers: str) -> Answer:
        """Send a request without a body.

        A kept connection that turns out closed is opened again (RFC 9112, section 9.3.1): the
        server may close it at any time between two requests.
        """
        kept = self._streams is not None
        started = time.monotonic()
        try:
            answer = await self._send(method, path, headers)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            await self.close()
            partial = error.partial if isinstance(error, asyncio.IncompleteReadError) else b""
            if not kept or partial:
                raise
            answer = await self._send(method, path, headers)
        answer.seconds = time.monotonic() - started
        return answer

    async def _send(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        listed = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in headers.items())
        if self._streams is None:
            self._streams = await asyncio.open_connection(
                "::1" if ":" in self.source else "127.0.0.1",
                self._port,
                local_addr=(self.source, 0),
            )
        reader, writer = self._streams
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: test\r\n{listed}\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        first, *rest = head.decode("latin-1").split("\r\n")
        found = {k.lower(): v.strip() for k, v in (h.split(":", 1) for h in rest if h)}
        body = await reader.readexactly(int(found.get("content-length", 0)))
        if found.get("connection") == "close":
            await self.close()
        return Answer(int(first.split()[1]), found, body)

    async def statuses(self, count: int) -> list[int]:
        return [(await self.get()).status for _ in range(count)]

    async def close(self) -> None:
        if self._streams is not None:
            await closed(self._streams[1])
            self._streams = None


@dataclass
class World:
    folder: Path
    port: int
    backend: int = 0
    spop: str = ""
    env: dict[str, str] = field(default_factory=dict)
    inside: tuple[str, ...] = ()
    """A command that runs HAProxy; HAProxy's own command line is appended."""
    file: str = SPOE_FILE
    """The shipped configuration that HAProxy runs."""
    peers: str = ""
    """Where the agent listens for peers; by default on a unix socket."""
    requests: Counter[str] = field(default_factory=Counter)
    head: str = ""
    """Last request of a client at the application: request line and header fields."""
    status: str = "200 OK"
    """Of the application's answers to clients, not to health checks."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    """The application answers requests for /slow when this is set."""
    agent: subprocess.Popen[bytes] | None = None
    haproxy: subprocess.Popen[bytes] | None = None
    _clients: list[Client] = field(default_factory=list)
    _before_start: int = 0  # bytes that earlier agents logged
    _served: list[asyncio.StreamWriter] = field(default_factory=list)

    def client(self, source: str) -> Client:
        made = Client(self.port, source)
        self._clients.append(made)
        return made

    # ---- the application -------------------------------------------------------------------

    async def application(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._served.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                found = re.search(r"(?im)^x-forwarded-for: *(\S+)", head)
                if found:  # health checks have none
                    self.requests[found[1]] += 1
                    self.head = head
                body = f"{found[1] if found else 'nobody'}\n".encode()
                if head.startswith("GET /slow "):
                    await self.released.wait()
                status = self.status if found else "200 OK"
                start = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(start.encode() + body)
        await closed(writer)

    # ---- the agent -------------------------------------------------------------------------

    def start_agent(self, config: str = "") -> None:
        """Start ``ratelimit serve``; ``config`` is appended to its file."""
        path = self.write_config(config)
        with open(self.folder / "agent.log", "ab") as log:
            self._before_start = log.tell()
            self.agent = subprocess.Popen(
                [sys.executable, "-m", "ratelimit", "serve", "--config", str(path)],
                stdout=log,
                stderr=log,
            )

    def write_config(self, config: str) -> Path:
        path = self.folder / "ratelimit.toml"
        text = f'[agent]\nlisten = ["unix://{self.folder}/spop.sock"]\n'
        if self.file == PEERS_FILE:
            text += f'peers = ["{self.peers or f"unix://{self.folder}/peers.sock"}"]\n'
        path.write_text(text + config)
        return path

    def configure(self, config: str) -> None:
        """Change the agent's configuration and reload."""
        assert self.agent is not None
        self.write_config(config)
        self.agent.send_signal(signal.SIGHUP)

    def agent_listens(self) -> bool:
        assert self.agent is not None and self.agent.poll() is None, self.agent_log()
        return (self.folder / "spop.sock").exists()

    async def ops(self) -> str:
        """Return the address of the API of the agent that was started last."""
        found: list[bytes] = []

        def logged() -> bool:
            said = (self.folder / "agent.log").read_bytes()[self._before_start :]
            found[:] = re.findall(rb'"ops": "([^"]+)"', said)
            return bool(found)

        await until(logged, "the agent has logged its start")
        return found[-1].decode()

    def agent_log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def stop_agent(self, number: int = signal.SIGTERM) -> int:
        assert self.agent is not None
        self.agent.send_signal(number)
        return self.agent.wait(PATIENCE)

    def checks(self) -> int:
        """Return the number of checks that the agent has answered, from its last log line."""
        self.stop_agent()
        found = re.findall(r'"checks": (\d+)', self.agent_log())
        return int(found[-1])

    # ---- HAProxy ---------------------------------------------------------------------------

    def start_haproxy(self) -> None:
        settings = {
            "RATELIMIT_LISTEN": f"127.0.0.1:{self.port},::1:{self.port}",
            "RATELIMIT_SPOP": f"unix@{self.folder}/spop.sock",
            "RATELIMIT_PEERS": f"unix@{self.folder}/peers.sock",
            "RATELIMIT_PEERS_LISTEN": f"unix@{self.folder}/local.sock",
            "RATELIMIT_STATS_SOCKET": f"{self.folder}/haproxy.sock",
            **self.env,
        }
        if "RATELIMIT_BACKEND_DNS" not in self.env:
            settings.setdefault("RATELIMIT_BACKEND", f"127.0.0.1:{self.backend}")
        config = str(self.folder / "haproxy" / self.file)
        with open(self.folder / "haproxy.log", "ab") as log:
            self.haproxy = subprocess.Popen(
                [*self.inside, *HAPROXY, "-W", "-db", "-f", config],
                cwd=self.folder / "haproxy",
                env={**os.environ, **settings},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def haproxy_log(self) -> str:
        return (self.folder / "haproxy.log").read_text()

    async def runtime(self, command: str) -> str:
        """Send a command to HAProxy's runtime API."""
        reader, writer = await asyncio.open_unix_connection(f"{self.folder}/haproxy.sock")
        writer.write(command.encode() + b"\n")
        answer = await asyncio.wait_for(reader.read(), PATIENCE)
        await closed(writer)
        return answer.decode()

    async def servers(self, backend: str) -> dict[str, dict[str, str]]:
        """Return HAProxy's view of the servers of a backend, by name; empty until it starts."""
        try:
            entries = await self._stat()
        except (FileNotFoundError, ConnectionRefusedError):
            return {}  # HAProxy has not created its socket yet
        return {
            entry["svname"]: entry
            for entry in entries
            if entry["pxname"] == backend and entry["svname"] not in ("FRONTEND", "BACKEND")
        }

    async def denied(self) -> dict[str, int]:
        """Return the number of denied requests of each backend, without zeros."""
        rows = [row for row in await self._stat() if row["svname"] == "BACKEND"]
        return {row["pxname"]: int(row["dreq"]) for row in rows if int(row["dreq"] or 0)}

    async def _stat(self) -> list[dict[str, str]]:
        stat = await self.runtime("show stat")
        header, *rows = [line.split(",") for line in stat.lstrip("# ").splitlines() if line]
        return [dict(zip(header, row, strict=False)) for row in rows]

    async def up(self, backend: str = "app") -> set[str]:
        """Return the addresses of the servers that are up."""
        found = await self.servers(backend)
        return {one["addr"] for one in found.values() if one["status"].startswith("UP")}

    async def agent_is(self, *states: str) -> bool:
        """Return whether HAProxy sees the agent in one of ``states``."""
        agent = (await self.servers("spoa")).get("agent")
        if agent is None or agent["status"] not in states:
            return False
        return agent["status"].startswith("MAINT") or agent["check_status"] != "INI"

    async def agent_is_peer(self) -> bool:
        """Return whether HAProxy has been told all verdicts, and that the agent is connected."""
        try:
            return "key=default" in await self.runtime("show table ratelimit/rlc_caps")
        except OSError:
            return False  # HAProxy has not created its socket yet

    async def reload(self) -> None:
        """Reload HAProxy and wait until its new worker has seen the agent's health."""
        haproxy = self.haproxy
        assert haproxy is not None

        def loaded() -> int:
            return self.haproxy_log().count("Loading success")

        # The first worker listens before the master is ready for a signal.
        await until(lambda: loaded() > 0, "a first worker")
        before = loaded()
        sent = -PATIENCE

        def reloaded() -> bool:
            nonlocal sent
            # The master loses a signal that comes while it is about to wait for signals.
            if loaded() == before and time.monotonic() - sent > SIGNAL_LOST:
                sent = time.monotonic()
                haproxy.send_signal(signal.SIGUSR2)
            return loaded() > before

        try:
            await until(reloaded, "a new worker")
        except AssertionError as error:
            error.add_note(self.haproxy_log())
            raise
        if self.file == SPOE_FILE:
            await until(lambda: self.agent_is("UP"), "the new worker sees the agent")

    async def listens(self) -> bool:
        assert self.haproxy is not None and self.haproxy.poll() is None, self.haproxy_log()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        await closed(writer)
        return True

    async def down(self) -> None:
        for client in self._clients:
            await client.close()
        for process in (self.haproxy, self.agent):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                try:
                    process.wait(3)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        for writer in self._served:
            await closed(writer)


@contextlib.asynccontextmanager
async def world(
    folder: Path,
    config: str = "",
    agent: bool = True,
    port: int | None = None,
    edit: Callable[[Path], object] = lambda files: None,
    env: dict[str, str] | None = None,
    inside: tuple[str, ...] = (),
    processing: str = PATIENT,
    file: str = SPOE_FILE,
) -> AsyncIterator[World]:
    """Yield a world in which HAProxy has seen the agent's health; ``edit`` changes its files.

    ``processing`` is how long HAProxy waits for an answer of the agent; a test of what happens
    without one sets ``SHIPPED``.
    """
    made = World(folder, port=port or free_port(), env=env or {}, inside=inside, file=file)
    shutil.copytree(files(), folder / "haproxy", ignore=shutil.ignore_patterns("__pycache__"))
    ask_for(folder / "haproxy", processing)
    edit(folder / "haproxy")
    application = await asyncio.start_server(made.application, "127.0.0.1", 0)
    try:
        if agent:
            made.start_agent(config)
            await until(made.agent_listens, "the agent listens")
        made.backend = application.sockets[0].getsockname()[1]
        made.start_haproxy()
        await until(made.listens, "HAProxy listens")
        if file == PEERS_FILE:
            if agent:
                await until(made.agent_is_peer, "HAProxy knows the agent's limits")
        elif agent:
            await until(lambda: made.agent_is("UP"), "HAProxy sees the agent")
        else:
            missing = ("DOWN", "MAINT (resolution)")
            await until(lambda: made.agent_is(*missing), "HAProxy misses the agent")
        yield made
    finally:
        application.close()
        await made.down()


def run(
    folder: Path,
    test: Callable[[World], Awaitable[None]],
    config: str = "",
    agent: bool = True,
    port: int | None = None,
    edit: Callable[[Path], object] = lambda files: None,
    processing: str = PATIENT,
    file: str = SPOE_FILE,
    **env: str,
) -> None:
    """Run ``test`` in a world of its own; ``world()`` has the parameters."""

    async def main() -> None:
        made = world(folder, config, agent, port, edit, env, processing=processing, file=file)
        async with asyncio.timeout(LONGEST), made as w:
            await test(w)

    asyncio.run(main())
