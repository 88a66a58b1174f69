"""What visitors notice while agent, HAProxy and Redis are restarted in turn.

``python -m benchmarks.restart`` sends 2,000 requests a second through HAProxy as shipped, with one
agent and a Redis that keeps an append-only file, and restarts each of them several times. For each
restart it tells how many requests failed, the slowest answer, and how many HAProxy had to count
alone, for no agent answered. Answer times are from when a request was due. The agent is restarted
in three ways: handed over to a successor (SIGUSR2); stopped and started; and the same while its
listening socket is held open, as by systemd's socket activation. Agent and Redis are restarted
once more with 100,000 blocks, which the agent has to take from Redis again.
"""

from __future__ import annotations

import array
import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from benchmarks import command, harness
from benchmarks.agent import Frames
from benchmarks.end_to_end import APPLICATION, SHIPPED
from benchmarks.harness import ROOT, Figure, Programs, Target
from benchmarks.report import Column, Report, Row, Table
from tests.helpers import wire
from tests.helpers.servers import Server

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

RATE = 2000
"""Requests a second."""

TIMEOUT = 50
"""Milliseconds: ``timeout processing`` of the shipped spoe.conf."""

BLOCKS = 100_000
"""Entries of a long blocklist."""

_QUIET = 3.0  # seconds before each restart, whose slowest answer is shown beside
_AFTER = 3.0  # seconds after it that still count as its own
_BLOCKED = 0x0B000000  # 11.0.0.0: the addresses that are blocked
_AT_ONCE = 50  # checks, of which a number of blocks is a multiple
_LIMIT = 20.0  # seconds for anything that is waited for

# Becomes the agent, with a socket as its file descriptor 3, as systemd does for a service.
_ACTIVATE = 'exec 3<&"$0"; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'


@dataclass(frozen=True)
class Restart:
    """What became of the requests of one restart; times are milliseconds."""

    requests: int
    failed: int
    slowest: float
    slowest_before: float
    alone: int


class Site:
    """An application, HAProxy, its agent and a Redis, and the load on them.

    ``held`` is whether the agent's listening socket outlives the agent, ``blocks`` how many
    clients are blocked, none of which comes.
    """

    def __init__(self, programs: Programs, name: str, held: bool = False, blocks: int = 0) -> None:
        self._programs = programs
        self._folder = programs.folder / name
        self._folder.mkdir()
        self._name = name
        self._blocks = blocks
        self._agents: list[int] = []
        self._redis = Server(self._folder, "--appendonly", "yes")
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024) if held else None
        if self._listener is None:
            self._spop = harness.free_address()
        else:
            self._spop = f"127.0.0.1:{self._listener.getsockname()[1]}"
        config = f'[agent]\nlisten = ["tcp://{self._spop}"]\n[store]\nurl = "{self._redis.url}"\n'
        config += '[limits.blocks]\nrate = 1\nblock = ["1h"]\nfuse = 0\n'
        (self._folder / "agent.toml").write_text(config)
        self._agent_log = self._folder / "agent.log"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(self._end)
            self._begin()
            self._stack = stack.pop_all()
        return self

    def _begin(self) -> None:
        self._redis.start()
        self._start_agent()
        backend, self.address = harness.free_address(), harness.free_address()
        haproxy = harness.require("haproxy")
        self._programs.start(
            f"{self._name}-application",
            [haproxy, "-db", "-f", str(APPLICATION)],
            {"BENCH_LISTEN": backend},
        )
        self._haproxy = self._programs.start(
            f"{self._name}-haproxy",
            [haproxy, "-W", "-db", "-f", str(SHIPPED)],
            {
                "RATELIMIT_LISTEN": self.address,
                "RATELIMIT_SPOP": self._spop,
                "RATELIMIT_BACKEND": backend,
                "RATELIMIT_THREADS": "1",
            },
        )
        if self._blocks:
            self._block(self._blocks)
        host, _, port = self.address.rpartition(":")
        harness.wait_for(
            self._haproxy, lambda: socket.create_connection((host, int(port)), 1).close()
        )
        self._file = self._folder / "visitors"
        self._visitors = self._programs.start(
            f"{self._name}-visitors",
            [sys.executable, "-m", "benchmarks.visitors", self.address, str(RATE), str(self._file)],
        )
        time.sleep(_QUIET)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        for agent in self._agents:
            with contextlib.suppress(ProcessLookupError):
                os.kill(agent, signal.SIGTERM)
        self._redis.kill()

    def log(self) -> str:
        return self._haproxy.log.read_text()

    def mark(self) -> tuple[float, int]:
        """Return the time, and how much HAProxy has logged so far."""
        return time.monotonic(), self._haproxy.log.stat().st_size

    def finish(self) -> array.array[float]:
        """End the load; return what became of it, as ``visitors`` has it."""
        self._visitors.process.terminate()
        self._visitors.process.wait(_LIMIT)
        record = array.array("d")
        record.frombytes(self._file.read_bytes())
        return record

    # Restarts; each returns once the new process answers.

    def hand_over(self) -> None:
        (before,) = self._agents
        begun = self._agent_log.stat().st_size
        os.kill(before, signal.SIGUSR2)
        _until(lambda: '"successor": ' in self._said(begun))
        self._agents += map(int, re.findall(r'"successor": (\d+)', self._said(begun)))
        _until(lambda: "agent started" in self._said(begun))
        self._agents.remove(before)

    def stop_and_start(self) -> None:
        agent = self._agents.pop()
        # A successor is no child of this process.
        with os.fdopen(os.pidfd_open(agent)) as process:
            os.kill(agent, signal.SIGTERM)
            if not select.select([process], [], [], _LIMIT)[0]:
                sys.exit("the agent does not stop")
        with contextlib.suppress(ChildProcessError):
            os.waitpid(agent, 0)
        self._start_agent()

    def reload_haproxy(self) -> None:
        before = self.log().count("Loading success")
        self._haproxy.process.send_signal(signal.SIGUSR2)
        _until(lambda: self.log().count("Loading success") > before)

    def restart_redis(self) -> None:
        self._redis.signal(signal.SIGTERM)
        assert self._redis.process is not None
        self._redis.process.wait(_LIMIT)
        begun = self._agent_log.stat().st_size
        self._redis.start()
        _until(lambda: "store back" in self._agent_log.read_text()[begun:])

    def _block(self, count: int) -> None:
        """Have so many clients blocked, and Redis know."""
        frames = Frames.of(range(_BLOCKED, _BLOCKED + count), ("blocks",), hits=wire.int64(2))
        size = _AT_ONCE * frames.size
        with harness.connect(self._spop) as sock:
            for start in range(0, count * frames.size, size):
                sock.sendall(frames.data[start : start + size])
                answers = b""
                while answers.count(b"block_until") < _AT_ONCE:
                    answers += sock.recv(1 << 16)
        with self._redis.client() as redis:
            # One field more says which list this is.
            _until(lambda: redis.hlen("ratelimit:{fleet}:blocks") > count)

    def _said(self, begun: int) -> str:
        return self._agent_log.read_bytes()[begun:].decode()

    def _start_agent(self) -> None:
        agent = [sys.executable, "-m", "ratelimit", "serve"]
        agent += ["--config", str(self._folder / "agent.toml")]
        listener = self._listener
        if listener is not None:
            agent = ["bash", "-c", _ACTIVATE, str(listener.fileno()), *agent]
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RATELIMIT_")}
        with self._agent_log.open("ab") as log:
            begun = log.tell()
            process = subprocess.Popen(
                agent,
                cwd=ROOT,
                env={**kept, "RATELIMIT_OPS__LISTEN": "127.0.0.1:0"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[] if listener is None else [listener.fileno()],
            )
        process.returncode = 0  # waited for by its number, like a successor
        self._agents.append(process.pid)
        _until(lambda: "agent started" in self._said(begun))


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LIMIT
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("a restart takes too long")
        time.sleep(0.01)


def restart(
    site: Site, turns: Sequence[tuple[str, Callable[[], None]]], rounds: int
) -> dict[str, list[Restart]]:
    """Restart each in its turn, several times; return what the visitors got, by the turn's name."""
    marks = []
    for number in range(1, rounds + 1):
        for name, action in turns:
            harness.progress(f"{name}, {number} of {rounds}")
            quiet = time.monotonic()
            time.sleep(_QUIET)
            begun = site.mark()
            action()
            time.sleep(_AFTER)
            marks.append((name, quiet, begun, site.mark()))
    record = site.finish()
    log = site.log()
    found: dict[str, list[Restart]] = {name: [] for name, _ in turns}
    for name, quiet, (begin, logged), (end, logged_end) in marks:
        before = [record[at + 1] for at in range(0, len(record), 3) if quiet <= record[at] < begin]
        during = [at for at in range(0, len(record), 3) if begin <= record[at] < end]
        verdicts = re.findall(r'(?m)" (\w+) [^"\n]*$', log[logged:logged_end])
        found[name].append(
            Restart(
                requests=len(during),
                failed=sum(record[at + 2] != 200 for at in during),
                slowest=1000 * max(record[at + 1] for at in during),
                slowest_before=1000 * max(before),
                alone=sum(verdict == "alone" for verdict in verdicts),
            )
        )
    return found


def run(programs: Programs, options: argparse.Namespace) -> Report:
    with Site(programs, "open") as site:
        found = restart(
            site,
            [
                ("agent, handed over", site.hand_over),
                ("HAProxy, reloaded", site.reload_haproxy),
                ("Redis, stopped and started", site.restart_redis),
                ("agent, stopped and started", site.stop_and_start),
            ],
            options.rounds,
        )
    with Site(programs, "held", held=True) as site:
        turns = [("agent, stopped and started, socket held", site.stop_and_start)]
        found |= restart(site, turns, options.rounds)
    with Site(programs, "blocks", blocks=BLOCKS) as site:
        turns = [
            (f"agent, handed over, {BLOCKS:,} blocks", site.hand_over),
            (f"Redis, stopped and started, {BLOCKS:,} blocks", site.restart_redis),
        ]
        found |= restart(site, turns, options.rounds)
    rolling = [each for name in list(found)[:3] for each in found[name]]
    table = Table(
        "restarted",
        f"{RATE:,} requests a second, {options.rounds} rounds; requests and failures of a restart,"
        f" and milliseconds from when a request was due to its answer",
        (
            Column("requests", digits=0),
            Column("failed", "less", 0),
            Column("counted by HAProxy alone", "less", 0),
            Column("slowest answer, ms", "less", 1),
            Column("slowest before, ms", digits=1),
        ),
        tuple(
            Row.of(
                name,
                Figure.of(each.requests for each in restarts),
                Figure.of(each.failed for each in restarts),
                Figure.of(each.alone for each in restarts),
                Figure.of(each.slowest for each in restarts),
                Figure.of(each.slowest_before for each in restarts),
            )
            for name, restarts in found.items()
        ),
    )
    targets = (
        Target(
            "requests that failed in rolling restarts",
            sum(each.failed for each in rolling),
            0,
            at_most=True,
        ),
        Target(
            "ms of the slowest answer in rolling restarts",
            max(each.slowest for each in rolling),
            TIMEOUT,
            at_most=True,
        ),
    )
    return Report((table,), targets)


if __name__ == "__main__":
    command.main("restart", __doc__, run, rounds=(5, 1))
