"""HAProxy processes in both modes, the limits of the agents behind, and a load by wrk."""

from __future__ import annotations

import csv
import http.client
import re
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.harness.http import CONNECTIONS, get, wrk
from benchmarks.harness.programs import (
    HARNESS,
    ROOT,
    Program,
    Programs,
    free_address,
    require,
    until,
    wait_for,
)
from ratelimit.peers.link import LIMITS

SHIPPED = ROOT / "haproxy" / "haproxy.cfg"
PEERS_FILE = ROOT / "haproxy" / "peers.cfg"
COMPARISON = HARNESS / "comparison.cfg"

Mode = Literal["spoe", "peers"]
MODES: tuple[Mode, ...] = ("spoe", "peers")

NEVER = 10_000_000
"""A rate that no client reaches: the highest that the agent accepts."""

ALLOWING = f"[limits.default]\nrate = {NEVER}\nblock = []\n"
REFUSING = '[limits.default]\nrate = 100\nblock = ["1h"]\n'


@dataclass(frozen=True)
class Counters:
    """What an HAProxy has counted so far; ``rejected`` connections sent no byte."""

    passed: int
    refused: int
    failed: int
    rejected: int


class HAProxy:
    """One HAProxy, and its agent, if any.

    Its socket is NAME.sock. ``reloads`` starts it with a master process and keeps its log.
    ``program`` is another HAProxy than that of ``programs``.
    """

    def __init__(
        self,
        programs: Programs,
        name: str,
        config: Path,
        agent: Program | None = None,
        reloads: bool = False,
        program: str = "",
        /,
        **settings: str,
    ) -> None:
        self.name = name
        self.config = config
        self.agent = agent
        self.address = free_address()
        self.socket = programs.folder / f"{name}.sock"
        self.program = programs.start(
            name,
            [
                program or programs.haproxy or require("haproxy"),
                *["-W"] * reloads,
                "-db",
                "-f",
                str(config),
            ],
            {
                "RATELIMIT_LISTEN": self.address,
                "RATELIMIT_STATS_SOCKET": str(self.socket),
                "RATELIMIT_THREADS": "1",
                **settings,
            },
            log=reloads,  # otherwise written as in production, and discarded
        )
        wait_for(self.program, lambda: get(self.address))
        if config == PEERS_FILE:
            until("the agent has taught HAProxy", self.is_taught, program=self.program)

    def is_taught(self) -> bool:
        """Return whether the agent has told all verdicts, and HAProxy all counts."""
        # The third value is the time of the last word of an agent that is complete.
        return bool(re.search(r" gpt2=[1-9]", self.say(f"show table ratelimit/{LIMITS}")))

    def entries(self, table: str) -> int:
        """Return the number of entries of a table."""
        (used,) = re.findall(r"used:(\d+)", self.say(f"show table {table}"))
        return int(used)

    def block(self) -> None:
        """Send requests until one is refused, or a connection."""
        for _ in range(1000):
            try:
                if get(self.address) == http.client.TOO_MANY_REQUESTS:
                    return
            except (http.client.HTTPException, OSError):
                return
        sys.exit(f"{self.name}: does not refuse")

    def counters(self) -> Counters:
        rows = csv.DictReader(self.say("show stat").removeprefix("# ").splitlines())
        (row,) = (r for r in rows if (r["pxname"], r["svname"]) == ("web", "FRONTEND"))
        return Counters(*(int(row[name]) for name in ("hrsp_2xx", "hrsp_4xx", "hrsp_5xx", "dcon")))

    def counted_alone(self) -> bool:
        """Tell whether HAProxy had to count a client itself because no agent answered."""
        return self.config == SHIPPED and self.entries("t_alone") > 0

    def say(self, command: str) -> str:
        """Send a command to its runtime API; return the answer."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(self.socket))
            sock.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: sock.recv(1 << 16), b"")).decode()


class Guard:
    """An agent for both modes, with the settings of the HAProxies that use it.

    ``config`` is its configuration without ``[agent] listen`` and ``peers``. Both sockets are unix
    sockets.
    """

    def __init__(self, programs: Programs, name: str, config: str) -> None:
        self.spop, self.peers = (str(programs.folder / f"{name}.{s}") for s in ("spop", "peers"))
        lines = f'peers = ["unix://{self.peers}"]\n{config}'
        self.program = programs.agent(name, "compiled", self.spop, lines)
        self._programs = programs

    def haproxy(self, mode: Mode, name: str, program: str = "", **settings: str) -> HAProxy:
        """Start an HAProxy with this agent, as shipped for a mode."""
        if mode == "spoe":
            settings["RATELIMIT_SPOP"] = f"unix@{self.spop}"
            config = SHIPPED
        else:
            settings["RATELIMIT_PEERS"] = f"unix@{self.peers}"
            settings["RATELIMIT_LOCALPEER"] = name
            settings["RATELIMIT_PEERS_LISTEN"] = free_address()
            config = PEERS_FILE
        return HAProxy(self._programs, name, config, self.program, False, program, **settings)


def balanced(programs: Programs) -> dict[str, str]:
    """Return the settings of an HAProxy that has this machine as its load balancer."""
    folder = programs.folder / "balanced"
    if not folder.exists():
        folder.mkdir()
        shutil.copy(SHIPPED.parent / "cdn.lst", folder)
        (folder / "lb.lst").write_text("127.0.0.1\n")
    return {"RATELIMIT_HAPROXY_DIR": str(folder), "BENCH_BALANCER": "127.0.0.1"}


@dataclass(frozen=True)
class Variant:
    """One way to be loaded by wrk; ``kind`` names the counter of what is measured."""

    name: str
    haproxy: HAProxy
    kind: str = "passed"
    close: bool = False
    connections: int = CONNECTIONS
    script: Path | None = None


@dataclass(frozen=True)
class Sample:
    """One load: requests or refusals a second, and CPU microseconds of each process for one."""

    rate: float
    haproxy: float
    agent: float
    application: float
    client: float

    @property
    def cpu(self) -> float:
        return self.haproxy + self.agent + self.application + self.client


def load(variant: Variant, application: Program, seconds: float) -> Sample:
    """Load an HAProxy with wrk. Ends the run if it did much else than it was to do."""
    haproxy = variant.haproxy
    programs = (haproxy.program, haproxy.agent or haproxy.program, application)
    before = vars(haproxy.counters())
    cpu = [program.cpu() for program in programs]
    done = wrk(
        haproxy.address, seconds,
        close=variant.close, connections=variant.connections, script=variant.script,
    )  # fmt: skip
    cpu = [program.cpu() - start for program, start in zip(programs, cpu, strict=True)]
    counts = {kind: now - before[kind] for kind, now in vars(haproxy.counters()).items()}
    count = counts.pop(variant.kind)
    if count < 20 * sum(counts.values()):
        sys.exit(f"{variant.name}: {count} {variant.kind}, but also {counts}\n{done.text}")
    return Sample(
        rate=count / done.seconds,
        haproxy=cpu[0] / count / 1000,
        agent=cpu[1] / count / 1000 if haproxy.agent else 0.0,
        application=cpu[2] / count / 1000,
        client=done.cpu / count * 1e6,
    )
