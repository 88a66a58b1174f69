"""What clients notice while agent, HAProxy and Redis are restarted in turn.

``python -m benchmarks.restart`` sends 2,000 requests a second through HAProxy as shipped, with one
agent and a Redis that keeps an append-only file, and restarts each of them several times. For each
restart it counts failed requests and those that HAProxy counted alone because no agent answered,
and it shows the slowest answer, timed from when the request was due. The agent is restarted in
three ways: handed over to a successor (SIGUSR2); stopped and started; and the same while its
listening socket is held open, as by systemd's socket activation. Agent and Redis are restarted once
more with 100,000 blocks, which the agent reads from Redis again.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import command
from benchmarks.harness.haproxy import SHIPPED, HAProxy
from benchmarks.harness.http import Crowd, Sender
from benchmarks.harness.programs import Programs, free_address, progress, until
from benchmarks.harness.report import Column, Report, Table, Target
from benchmarks.harness.spop import block

CROWD = Crowd("127.77.0.1", clients=200, rate=2000)

TIMEOUT = 50
"""Milliseconds: ``timeout processing`` of the shipped spoe.conf."""

BLOCKS = 100_000
"""Entries of a long blocklist."""

_QUIET = 3.0  # seconds before each restart, whose slowest answer is shown, too
_AFTER = 3.0  # seconds after a restart that still count as part of it
_BLOCKED = 0x0B000000  # 11.0.0.0: the addresses that are blocked
_LIMIT = 60.0  # seconds for each step of a restart, on a busy machine
_LONGEST = 580  # seconds of a load

# Becomes the agent, with a socket as its file descriptor 3, as systemd does for a service.
_ACTIVATE = 'exec 3<&"$0"; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'


@dataclass(frozen=True)
class Restart:
    """The requests during one restart; times are milliseconds."""

    requests: int
    failed: int
    alone: int
    slowest: float
    slowest_before: float


class Site:
    """An application, HAProxy, its agent and a Redis, under load.

    With ``held`` the agent's listening socket outlives the agent. ``blocks`` is the number of
    blocked clients, which send no request.
    """

    def __init__(self, programs: Programs, held: bool = False, blocks: int = 0) -> None:
        self._programs = programs
        self._redis, _ = programs.redis("--appendonly", "yes")
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024) if held else None
        self._spop = free_address()
        if self._listener is not None:
            self._spop = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._config = programs.folder / "agent.toml"
        self._config.write_text(
            f'[agent]\nlisten = ["tcp://{self._spop}"]\n[store]\nurl = "{self._redis.url}"\n'
            '[limits.blocks]\nrate = 1\nblock = ["1h"]\nfuse = 0\n'
        )
        self._starts = 0
        self._agent, self._log = self._start_agent()
        programs.at_end(self._stop_agent)
        _, backend = programs.application()
        settings = {"RATELIMIT_SPOP": self._spop, "RATELIMIT_BACKEND": backend}
        self._haproxy = HAProxy(programs, "haproxy", SHIPPED, None, True, **settings)
        if blocks:
            block(self._spop, _BLOCKED, blocks, "blocks")
            with self._redis.client() as redis:
                # One more field identifies the list.
                stored = "ratelimit:{fleet}:blocks"
                until("Redis has the blocks", lambda: redis.hlen(stored) > blocks, _LIMIT)
        paced = programs.compiled("paced")
        self._load = Sender(paced, self._haproxy.address, CROWD, 1, _LONGEST, measures=False)
        programs.at_end(self._load.process.kill)
        time.sleep(_QUIET)

    def restart(
        self, turns: Sequence[tuple[str, Callable[[Site], None]]], rounds: int
    ) -> dict[str, list[Restart]]:
        """Restart each in its turn, several times; return the results by the turn's name."""
        log = self._haproxy.program.log
        marks = []
        for number in range(1, rounds + 1):
            for name, action in turns:
                progress(f"{name}, {number} of {rounds}")
                quiet = time.monotonic()
                time.sleep(_QUIET)
                begin, logged = time.monotonic(), log.stat().st_size
                action(self)
                time.sleep(_AFTER)
                marks.append((name, quiet, begin, time.monotonic(), logged, log.stat().st_size))
        self._load.process.terminate()
        requests = self._load.result().requests()
        found: dict[str, list[Restart]] = {name: [] for name, _ in turns}
        for name, quiet, begin, end, logged, logged_end in marks:
            during = [r for r in requests if begin <= r.due < end]
            lines = log.read_text()[logged:logged_end]
            verdicts = re.findall(r'HTTP/1\.1" (\w+)', lines)
            found[name].append(
                Restart(
                    requests=len(during),
                    failed=sum(r.status != 200 for r in during),
                    alone=verdicts.count("alone"),
                    slowest=1000 * max(r.took for r in during),
                    slowest_before=1000 * max(r.took for r in requests if quiet <= r.due < begin),
                )
            )
        return found

    # Restarts; each returns once the new process answers.

    def hand_over(self) -> None:
        begun = self._log.stat().st_size
        os.kill(self._agent, signal.SIGUSR2)
        self._await_log("agent started", begun)
        (self._agent,) = map(int, re.findall(r'"successor": (\d+)', self._said(begun)))

    def stop_and_start(self) -> None:
        self._stop_agent()
        self._agent, self._log = self._start_agent()

    def reload_haproxy(self) -> None:
        def loaded() -> int:
            return len(self._haproxy.program.logged("Loading success"))

        before = loaded()
        self._haproxy.program.process.send_signal(signal.SIGUSR2)
        until("HAProxy has a new worker", lambda: loaded() > before, _LIMIT)

    def restart_redis(self) -> None:
        self._redis.signal(signal.SIGTERM)
        assert self._redis.process is not None
        self._redis.process.wait(_LIMIT)
        begun = self._log.stat().st_size
        self._redis.start()
        self._await_log("store back", begun)

    def _said(self, begun: int) -> str:
        return self._log.read_bytes()[begun:].decode()

    def _await_log(self, text: str, begun: int) -> None:
        until(f"the agent logs: {text}", lambda: text in self._said(begun), _LIMIT)

    def _start_agent(self) -> tuple[int, Path]:
        self._starts += 1
        line = [sys.executable, "-m", "ratelimit", "serve", "--config", str(self._config)]
        files = []
        if self._listener is not None:
            files = [self._listener.fileno()]
            line = ["bash", "-c", _ACTIVATE, str(files[0]), *line]
        settings = {"RATELIMIT_OPS__LISTEN": "127.0.0.1:0"}
        program = self._programs.start(f"agent-{self._starts}", line, settings, files=files)
        until("the agent starts", lambda: program.logged("agent started"), _LIMIT, program)
        return program.pid, program.log

    def _stop_agent(self) -> None:
        try:
            process = os.pidfd_open(self._agent)  # a successor is not a child of this process
        except ProcessLookupError:
            return
        os.kill(self._agent, signal.SIGTERM)
        stopped, _, _ = select.select([process], [], [], _LIMIT)
        os.close(process)
        if not stopped:
            sys.exit("the agent does not stop")


def run(_: Programs, options: argparse.Namespace) -> Report:
    with Programs() as programs:
        found = Site(programs).restart(
            [
                ("agent, handed over", Site.hand_over),
                ("HAProxy, reloaded", Site.reload_haproxy),
                ("Redis, stopped and started", Site.restart_redis),
                ("agent, stopped and started", Site.stop_and_start),
            ],
            options.rounds,
        )
    with Programs() as programs:
        turns = [("agent, stopped and started, socket held", Site.stop_and_start)]
        found |= Site(programs, held=True).restart(turns, options.rounds)
    with Programs() as programs:
        turns = [
            (f"agent, handed over, {BLOCKS:,} blocks", Site.hand_over),
            (f"Redis, stopped and started, {BLOCKS:,} blocks", Site.restart_redis),
        ]
        found |= Site(programs, blocks=BLOCKS).restart(turns, options.rounds)
    rolling = [each for name in list(found)[:3] for each in found[name]]
    table = Table.measured(
        "restarted",
        f"{CROWD.rate:,} requests a second, {options.rounds} rounds; requests and failures of a "
        "restart, and milliseconds from when a request was due to its answer",
        {
            "requests": Column("requests", digits=0),
            "failed": Column("failed", "less", 0),
            "alone": Column("counted by HAProxy alone", "less", 0),
            "slowest": Column("slowest answer, ms", "less", 1),
            "slowest_before": Column("slowest before, ms", digits=1),
        },
        found,
    )
    failed = sum(each.failed for each in rolling)
    slowest = max(each.slowest for each in rolling)
    targets = (
        Target("requests that failed in rolling restarts", failed, 0),
        Target("ms of the slowest answer in rolling restarts", slowest, TIMEOUT),
    )
    return Report((table,), targets)


if __name__ == "__main__":
    command.main("restart", __doc__, run, rounds=(5, 1))
