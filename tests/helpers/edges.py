"""Plain HAProxy processes for tests of the runtime API: one process each, ended with the test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.helpers.world import HAPROXY, free_port, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

TABLE = "stick-table type ipv6 size 1m expire 2h store gpt0"

CONFIG = """
global
    fd-hard-limit 1024
    stats socket {path} mode 600 level {level}
defaults
    mode http
    timeout connect 1s
    timeout client 10s
    timeout server 10s
frontend web
    bind 127.0.0.1:{port}
    {rules}
    http-request return status 200
backend app
    server app1 127.0.0.1:1 weight 10
    server app2 127.0.0.1:2 weight 10
backend spare
    server app2 127.0.0.1:3
    server only 127.0.0.1:4
{more}
"""


@dataclass
class Edge:
    """An HAProxy with a socket, a frontend that answers 200, unused servers, and a table."""

    path: Path
    level: str = "admin"
    rules: str = ""
    more: str = f"backend t_block\n    {TABLE}\n"
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    async def start(self) -> Edge:
        config = self.path.with_suffix(".cfg")
        config.write_text(
            CONFIG.format(
                path=self.path,
                level=self.level,
                port=self.port,
                rules=self.rules,
                more=self.more,
            )
        )
        log = self.path.with_suffix(".log")
        with log.open("ab") as written:
            self.process = subprocess.Popen(
                [*HAPROXY, "-db", "-f", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
            )
        await until(self.answers, f"HAProxy answers: {log.read_text()}")
        return self

    def answers(self) -> bool:
        try:
            return bool(self.say("show version"))
        except OSError:
            return False

    def say(self, command: str) -> str:
        """Send a command without the code under test."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(self.path))
            sock.sendall(command.encode() + b"\n")
            parts = iter(lambda: sock.recv(1 << 16), b"")
            return b"".join(parts).decode()

    def entries(self) -> dict[str, int]:
        """Return the edge table: ends of blocks by key, in HAProxy's form."""
        words = [dict(w.split("=", 1) for w in line.split() if "=" in w) for line in self.lines()]
        return {word["key"]: int(word["gpt0"]) for word in words if "key" in word}

    def lines(self) -> list[str]:
        return self.say("show table t_block").splitlines()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def halt(self) -> None:
        assert self.process is not None
        await halt(self.process.pid)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process = None


async def halt(pid: int) -> None:
    """Stop a process; threads stop only when they get a processor."""
    os.kill(pid, signal.SIGSTOP)
    threads = Path(f"/proc/{pid}/task")

    def stopped() -> bool:
        states = (path.read_text().rpartition(") ")[2] for path in threads.glob("*/stat"))
        return all(state.startswith("T") for state in states)

    await until(stopped, "every thread has stopped")


@contextlib.asynccontextmanager
async def edges(*made: Edge) -> AsyncIterator[None]:
    """Run an asynchronous test."""
    try:
        await asyncio.gather(*(edge.start() for edge in made))
        yield
    finally:
        for edge in made:
            edge.end()


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Run as a user who may not open root's files, unless already so."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
