"""Real Redis servers for tests: on free ports, keeping nothing, ended with the test.

``RATELIMIT_TEST_REDIS`` is the command that starts one, ``redis-server`` if it is not set; for
example ``valkey-server`` or ``chroot FOLDER valkey-server``. The server's files are in the tests'
temporary folder, so that one (``TMPDIR``) has to be mounted in the ``chroot`` under the same name.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.helpers.world import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

PROGRAM = shlex.split(os.environ.get("RATELIMIT_TEST_REDIS", "")) or (
    ["redis-server"] if shutil.which("redis-server") else None
)
"""The command, or None if there is no server; a configured one must exist."""

LIMIT = 40
"""Timeout in seconds of every wait in a test."""


class Server:
    """One server, on a port of a host and on a unix socket; its folder is thrown away.

    ``within`` is a command that starts the server's command somewhere else, where ``host`` is.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        tls: bool = False,
        host: str = "127.0.0.1",
        within: Sequence[str] = (),
    ) -> None:
        assert PROGRAM is not None
        self.folder = folder
        self.host = host
        self.port = free_port()
        self.socket = str(folder / f"{self.port}.sock")
        listen = ("--port", "0", "--tls-port", str(self.port)) if tls else (
            "--port", str(self.port)
        )  # fmt: skip
        self._command = [
            *within, *PROGRAM, *listen, "--bind", host, "--unixsocket", self.socket,
            "--dir", str(folder), "--dbfilename", f"{self.port}.rdb",
            "--save", "", "--appendonly", "no", "--enable-debug-command", "yes", *options,
        ]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}"

    def start(self) -> Server:
        """Start the server and wait until it answers, even with an error."""
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        deadline = time.monotonic() + LIMIT
        with self.client() as client:
            while True:
                try:
                    client.ping()
                except (redis.AuthenticationError, redis.ResponseError, redis.BusyLoadingError):
                    break
                except redis.ConnectionError:
                    assert time.monotonic() < deadline, "the server does not start"
                    assert self.process.poll() is None, "the server ended"
                    time.sleep(0.01)
                else:
                    break
        return self

    def client(self, password: str | None = None) -> redis.Redis:
        """Return a client of the test, which bypasses the code under test."""
        return redis.Redis(
            unix_socket_path=self.socket,
            password=password,
            protocol=3,
            retry=Retry(NoBackoff(), 0),
        )

    def do(self, *command: str | int | bytes) -> object:
        with self.client() as client:
            return client.execute_command(*command)

    def save(self) -> Path:
        """Have it write its snapshot, and return the file.

        It refuses while it writes one by itself, as for a replica that has just come.
        """
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                self.do("SAVE")
            except redis.ResponseError as error:
                if "in progress" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return self.folder / f"{self.port}.rdb"

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the server and wait until it has ended."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if os.path.exists(self.socket):
            os.unlink(self.socket)


async def until(condition: Callable[[], object], seconds: float = LIMIT) -> None:
    """Wait until a condition is true. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
