"""Agents that share a Redis, as real processes; a test queries them like the HAProxy of each."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from tests.helpers import wire
from tests.helpers.servers import PROGRAM, Server
from tests.helpers.world import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

BLOCKED = "block"
THROTTLED = "throttle"

# A node whose wall clock is wrong: the agent reads only time.time() and time.time_ns().
_WRONG_CLOCK = """
import sys, time
seconds = int(sys.argv.pop(1))
now, now_ns = time.time, time.time_ns
time.time = lambda: now() + seconds
time.time_ns = lambda: now_ns() + seconds * 1_000_000_000
from ratelimit.cli.main import main
main(prog_name="ratelimit")
"""


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait until ``condition`` is true, at most ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.005)


@dataclass
class Answer:
    """The answer of an agent to one hit."""

    frame: wire.Frame
    seconds: float

    @property
    def reason(self) -> str | None:
        """None for an allowed hit."""
        return cast("str | None", self.frame.items.get("reason"))

    def number(self, name: str) -> int:
        value = self.frame.items[name]
        assert isinstance(value, int)
        return value


class Node:
    """One agent; ``python`` is what runs it.

    ``clock`` is how many seconds its wall clock is ahead, ``before`` what its shell does before,
    such as ``ulimit -n 64``.
    """

    python = sys.executable

    def __init__(
        self, folder: Path, name: str, config: str, clock: int = 0, before: str = ""
    ) -> None:
        self.name = name
        self.program = ["-m", "ratelimit"]
        self._before = before
        self.output: int | None = None  # where its log goes; to a file by default
        self._path = folder / f"{name}.sock"
        self._log = folder / f"{name}.log"
        self._file = folder / f"{name}.toml"
        self.write(config)
        self._clock = clock
        self._before_start = 0  # characters that earlier processes logged
        self._sock: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def write(self, config: str) -> None:
        self._file.write_text(f'[agent]\nlisten = ["unix://{self._path}"]\n{config}')

    def configure(self, config: str) -> None:
        """Change its configuration and reload."""
        self.write(config)
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def descriptors(self) -> int:
        """Return the number of its file descriptors."""
        assert self._process is not None
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def start(self) -> Node:
        program = self.program
        if self._clock:
            program = ["-c", _WRONG_CLOCK, str(self._clock)]
        shell = ["bash", "-c", f'{self._before}; exec "$@"', "bash"] if self._before else []
        self._before_start = len(self.log())
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*shell, self.python, *program, "serve", "--config", str(self._file)],
                stdout=log if self.output is None else self.output,
                stderr=log if self.output is None else self.output,
                stdin=subprocess.DEVNULL,
            )
        until(self._connects, f"{self.name} listens")
        return self

    def ops(self) -> str:
        """Return the address of its API, as soon as its log has it: it answers before that."""
        found: list[str] = []

        def logged() -> bool:
            found[:] = re.findall(r'"ops": "([^"]+)"', self.log()[self._before_start :])
            return bool(found)

        until(logged, f"{self.name} has logged its start")
        return found[-1]

    def _connects(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.log()
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        try:
            sock.connect(str(self._path))
        except OSError:
            sock.close()
            return False
        sock.sendall(wire.hello())
        (hello,) = wire.frames(self._read(sock, 1))
        assert hello.kind == wire.AGENT_HELLO
        self._sock = sock
        return True

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def ask(self, client: str | bytes, hits: int = 1) -> Answer:
        """Send hits of an address or, as bytes, of a string; return the answer."""
        assert self._sock is not None
        key = wire.text(client) if isinstance(client, bytes) else wire.address(client)
        frame = wire.notify(wire.message("default", key=key, hits=wire.int64(hits)))
        started = time.monotonic()
        self._sock.sendall(frame)
        (ack,) = wire.frames(self._read(self._sock, 1))
        return Answer(ack, time.monotonic() - started)

    @staticmethod
    def _read(sock: socket.socket, count: int) -> bytes:
        """Return a number of frames."""
        data = b""
        for _ in range(count):
            head = sock.recv(4, socket.MSG_WAITALL)
            data += head + sock.recv(struct.unpack(">I", head)[0], socket.MSG_WAITALL)
        return data

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(PATIENCE)
            finally:
                self._process.kill()
                self._process.wait()


class Fleet:
    """Nodes that share a Redis."""

    def __init__(self, folder: Path, server: Server, config: str) -> None:
        self.server = server
        self.nodes: list[Node] = []
        self._folder = folder
        self._config = config
        self._strangers = 0

    def add(self, clock: int = 0, store: str = "") -> Node:
        """Start another node; ``store`` is added to that section."""
        config = f'[store]\nurl = "{self.server.url}"\n{store}\n{self._config}'
        node = Node(self._folder, f"node{len(self.nodes)}", config, clock)
        self.nodes.append(node)
        return node.start()

    def settled(self, rate: int) -> None:
        """Wait until every node shares clients with all the others.

        A node does so as soon as it speaks of a client that has just more than its share, which is
        less than the share of a node that knows of one node fewer.
        """
        count = len(self.nodes)
        share = rate // (2 * count)
        assert count < 3 or share < rate // (2 * (count - 1))
        until(
            lambda: all(self._speaks(node, share + 1) for node in self.nodes),
            "all nodes share clients with all",
        )

    def _speaks(self, node: Node, hits: int) -> bool:
        self._strangers += 1
        number = self._strangers
        client = f"198.18.{number >> 8}.{number & 255}"
        node.ask(client, hits)
        # Heard of within this time, or with the next attempt.
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            if self.counted(client):
                return True
            time.sleep(0.005)
        return False

    def counted(self, client: str) -> int:
        """Return the hits of an IPv4 address in Redis, summed over all nodes."""
        field = bytes(8) + bytes(map(int, client.split(".")))[::-1] + b"\xff\xff\0\0"
        with self.server.client() as redis:
            keys = cast("list[bytes]", redis.keys("ratelimit:{default.*}:hits:*"))
            states = [redis.hget(cast("str", key), cast("str", field)) for key in sorted(keys)]
        found = [cast("bytes", state) for state in states if state is not None]
        return sum(struct.unpack("<17I", found[-1][12:])) if found else 0

    def endless(self) -> list[bytes]:
        """Return the keys that Redis keeps forever, or longer than a day."""
        with self.server.client() as redis:
            keys = cast("list[bytes]", redis.keys("*"))
            assert keys
            return [key for key in keys if not 0 < cast("int", redis.ttl(key)) <= 90_000]

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()


@contextlib.contextmanager
def fleet(folder: Path, config: str, redis: bool = True) -> Iterator[Fleet]:
    """Yield a fleet without nodes; ``redis`` is whether its server runs."""
    assert PROGRAM is not None, "there is no redis-server"
    server = Server(folder)
    made = Fleet(folder, server, config)
    try:
        if redis:
            server.start()
        yield made
    finally:
        with contextlib.suppress(ProcessLookupError, AssertionError):
            server.resume()
        made.stop()
        server.kill()


def spread(
    nodes: Sequence[Node], client: str, rate: float, seconds: float, weights: Sequence[int] = ()
) -> list[Answer]:
    """Send steady hits round the nodes, as often to each as its weight says.

    Ends with the first refusal. A hit that is late, since the machine was busy, delays the others,
    so that no window ever has more than its ``rate``.
    """
    weighted = zip(nodes, weights or [1] * len(nodes), strict=True)
    turns = [node for node, weight in weighted for _ in range(weight)]
    answers = []
    due = time.monotonic()
    for number in range(int(rate * seconds)):
        answers.append(turns[number % len(turns)].ask(client))
        if answers[-1].reason:
            break
        due = max(due + 1 / rate, time.monotonic())
        time.sleep(max(0, due - time.monotonic()))
    return answers
