"""How long an HAProxy in peers mode is without an agent while the agent is replaced.

``python -m benchmarks.reconnect`` replaces the agent of an HAProxy in three ways, each with and
without ``[haproxy] peer_sockets``, by which the agent connects to HAProxy: handed over to a
successor (SIGUSR2), stopped and started, killed and started. HAProxy has an agent while a session
is established and the agent has told that HAProxy knows all verdicts. HAProxy is asked for both as
often as it answers. Without an agent, the verdicts that HAProxy has still hold, and it refuses
above the rate by its own count.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.harness import command
from benchmarks.harness.haproxy import ALLOWING, PEERS_FILE, HAProxy
from benchmarks.harness.programs import Program, Programs, free_address, progress, until
from benchmarks.harness.report import Column, Report, Table, Target

HANDED_OVER = 100
"""The most milliseconds without an agent in a hand-over, if the agent connects."""

_NAME = "haproxy"
_QUIET = 0.5  # seconds before each turn
_LIMIT = 60.0  # seconds of each step on a busy machine


@dataclass(frozen=True)
class Gap:
    """Milliseconds."""

    without: float


class Watch(threading.Thread):
    """Asks HAProxy for its agent until ``end()``; ``without`` are the seconds without one."""

    def __init__(self, haproxy: HAProxy) -> None:
        super().__init__(daemon=True)
        self.without = 0.0
        self._haproxy = haproxy
        self._ended = threading.Event()

    def run(self) -> None:
        before = time.monotonic()
        while not self._ended.is_set():
            there = has_agent(self._haproxy)
            now = time.monotonic()
            if not there:
                self.without += now - before
            before = now

    def end(self) -> float:
        self._ended.set()
        self.join()
        return self.without


def has_agent(haproxy: HAProxy) -> bool:
    session = re.search(r"id=agent\(remote,active\) .*last_status=ESTA", haproxy.say("show peers"))
    return session is not None and haproxy.is_taught()


class Site:
    """An HAProxy and its agent, which ``connects`` to HAProxy or waits for it."""

    def __init__(self, programs: Programs, connects: bool) -> None:
        self._programs = programs
        self._path = str(programs.folder / "agent.peers")
        local = free_address()
        self._config = programs.folder / "agent.toml"
        text = f'[agent]\nlisten = ["tcp://{free_address()}"]\npeers = ["unix://{self._path}"]\n'
        if connects:
            text += f'[haproxy]\npeer_sockets = ["{_NAME}@tcp://{local}"]\n'
        self._config.write_text(text + ALLOWING)
        self._starts = 0
        self._agent = self._start()
        settings = {
            "RATELIMIT_PEERS": f"unix@{self._path}",
            "RATELIMIT_PEERS_LISTEN": local,
            "RATELIMIT_LOCALPEER": _NAME,
        }
        self.haproxy = HAProxy(programs, _NAME, PEERS_FILE, None, **settings)
        until("HAProxy has an agent", lambda: has_agent(self.haproxy), _LIMIT)
        self._pid = self._agent.pid
        programs.at_end(self._kill)

    def measure(self, replace: Callable[[Site], None]) -> Gap:
        time.sleep(_QUIET)
        watch = Watch(self.haproxy)
        watch.start()
        replace(self)
        until("HAProxy has an agent", lambda: has_agent(self.haproxy), _LIMIT)
        time.sleep(_QUIET)
        return Gap(1000 * watch.end())

    def hand_over(self) -> None:
        log = self._agent.log
        begun = log.stat().st_size
        os.kill(self._pid, signal.SIGUSR2)

        def said() -> list[str]:
            return re.findall(r'successor": (\d+)', log.read_bytes()[begun:].decode())

        until("the agent has a successor", said, _LIMIT)
        predecessor, self._pid = self._pid, int(said()[0])
        until("the predecessor has ended", lambda: not _lives(predecessor), _LIMIT)

    def stop_and_start(self) -> None:
        self._end(signal.SIGTERM)

    def kill_and_start(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        os.kill(self._pid, number)
        until("the agent has ended", lambda: not _lives(self._pid), _LIMIT)
        self._agent = self._start()
        self._pid = self._agent.pid

    def _start(self) -> Program:
        self._starts += 1
        line = [sys.executable, "-m", "ratelimit", "serve", "--config", str(self._config)]
        state = self._programs.folder / "state"
        settings = {"RATELIMIT_OPS__LISTEN": "127.0.0.1:0", "STATE_DIRECTORY": str(state)}
        program = self._programs.start(f"agent-{self._starts}", line, settings)
        until("the agent starts", lambda: program.logged("agent started"), _LIMIT, program)
        return program

    def _kill(self) -> None:
        if _lives(self._pid):
            os.kill(self._pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    """Return whether a process runs; one that its parent has not waited for does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except FileNotFoundError:
        return False


WAYS: dict[str, Callable[[Site], None]] = {
    "handed over": Site.hand_over,
    "stopped and started": Site.stop_and_start,
    "killed and started": Site.kill_and_start,
}


def run(_: Programs, options: argparse.Namespace) -> Report:
    found: dict[str, list[Gap]] = {}
    for connects, who in ((True, "the agent connects"), (False, "HAProxy connects")):
        with Programs() as programs:
            site = Site(programs, connects)
            for number in range(1, options.rounds + 1):
                for way, replace in WAYS.items():
                    progress(f"{who}, {way}, {number} of {options.rounds}")
                    found.setdefault(f"{way}, {who}", []).append(site.measure(replace))
    table = Table.measured(
        "reconnect",
        f"{options.rounds} rounds; an agent that is started again is a new process of Python",
        {"without": Column("ms without an agent", "less", 0)},
        found,
    )
    longest = max(gap.without for gap in found["handed over, the agent connects"])
    return Report((table,), (Target("ms without an agent in a hand-over", longest, HANDED_OVER),))


if __name__ == "__main__":
    command.main("reconnect", __doc__, run, rounds=(5, 1))
