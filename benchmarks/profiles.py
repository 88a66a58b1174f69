"""Where the CPU time goes in HAProxy, the agent and Redis, each under its load.

``python -m benchmarks.profiles`` profiles HAProxy as shipped, with an agent and Redis behind it,
under wrk; an agent without HAProxy, loaded as in ``benchmarks.agent``; and Redis under four agents
with clients near their limits, which is the largest load for Redis. ``perf`` samples by the CPU
clock, so it works in a virtual machine, too, and shows the share of each program or library, system
call and function. ``py-spy`` samples the agent's stack with its native frames, so it names the
functions of the compiled modules and their callers.

Both need root, or the right to trace other processes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import command, http
from benchmarks.harness.fleet import HEAVY, HEAVY_RATE, Fleet, load
from benchmarks.harness.haproxy import ALLOWING, SHIPPED, HAProxy
from benchmarks.harness.programs import Programs, free_address, progress, require
from benchmarks.harness.report import Column, Figure, Report, Table
from benchmarks.harness.spop import CONNECTIONS, Bench, known

SHOWN = 12
"""Functions and system calls that are shown, at most."""

_LEAST = 0.5  # percent below which a part is not shown
_EVERYTHING = 80  # percent above which a caller is the whole program
_LOOP = "uv_run, core.c"  # only in the stack of the thread that answers
_FREQUENCY = 997  # samples a second; in step with no other period
_LONGER = 2  # seconds of a load after its samples
_TIMEOUT = 30  # seconds for a sampler to end after its load
_IN_FLIGHT = 8
_WORST_CLIENTS = 500
_NODES = 4


@dataclass
class Shares:
    """Percent of a program's time by part, for each round."""

    rounds: list[dict[str, float]] = field(default_factory=list)

    def rows(self, kind: str) -> dict[str, list[Figure]]:
        """Return the greatest parts; a part that a round does not have is 0 there."""
        names = {name for shares in self.rounds for name in shares}
        figures = {
            name: Figure.of(shares.get(name, 0.0) for shares in self.rounds) for name in names
        }
        greatest = sorted(names, key=lambda name: -figures[name].median)[:SHOWN]
        return {
            f"{kind}: {name}": [figures[name]]
            for name in greatest
            if figures[name].median >= _LEAST
        }


class Perf:
    """Samples of a process, of some rounds."""

    def __init__(self, programs: Programs) -> None:
        self._perf = require("perf", "linux-perf")
        self._file = programs.folder / "perf.data"
        self._objects, self._calls, self._functions = Shares(), Shares(), Shares()

    def start(self, pid: int, seconds: float) -> subprocess.Popen[str]:
        record = ["record", "-q", "-g", "-e", "cpu-clock", "-F", str(_FREQUENCY), "-p", str(pid)]
        return _start(self._perf, *record, "-o", self._file, "--", "sleep", str(seconds))

    def finish(self, process: subprocess.Popen[str]) -> None:
        _output(process)
        self._objects.rounds.append(self._shares("dso"))
        self._functions.rounds.append(self._shares("dso,sym"))
        # A system call includes its callees, so it is one number and not all of the kernel.
        calls = self._shares("sym", "--children")
        found = ((re.fullmatch(r"__\w+?_sys_(\w+)", name), share) for name, share in calls.items())
        self._calls.rounds.append({match[1]: share for match, share in found if match})

    def rows(self) -> dict[str, list[Figure]]:
        parts = self._objects.rows("in") | self._calls.rows("system call")
        return parts | self._functions.rows("function")

    def _shares(self, by: str, way: str = "--no-children") -> dict[str, float]:
        options = ("--stdio", way, "-g", "none", "-t", ";", "-s", by)
        shown = _output(_start(self._perf, "report", "-i", self._file, *options))
        found: dict[str, float] = defaultdict(float)
        for line in shown.splitlines():
            if share := re.match(r"\s*([\d.]+)%\s*;(?:\s*[\d.]+%\s*;)?(.+)", line):
                *place, name = (_plain(part) for part in share[2].split(";"))
                found[", ".join([name, *place])] += float(share[1])
        return dict(found)


class Spy:
    """Samples of the agent's stack, of some rounds."""

    def __init__(self, programs: Programs) -> None:
        self._spy = Path(sys.executable).parent / "py-spy"
        if not self._spy.exists():
            sys.exit("there is no py-spy: pip install --group bench")
        self._file = programs.folder / "stacks.txt"
        self._itself, self._within = Shares(), Shares()

    def start(self, pid: int, seconds: float) -> subprocess.Popen[str]:
        options = ("--native", "-f", "raw", "-r", "200", "-d", str(round(seconds)), "-p", str(pid))
        return _start(self._spy, "record", *options, "-o", self._file)

    def finish(self, process: subprocess.Popen[str]) -> None:
        _output(process)
        itself, within = Counter[str](), Counter[str]()
        for line in self._file.read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            frames = [_frame(frame) for frame in stack.split(";")]
            if _LOOP not in frames:
                continue
            itself[frames[-1]] += int(count)
            for frame in set(frames):
                within[frame] += int(count)
        total = itself.total() or 1
        self._itself.rounds.append({n: 100 * c / total for n, c in itself.items()})
        shares = {n: 100 * c / total for n, c in within.items()}
        self._within.rounds.append({n: s for n, s in shares.items() if s < _EVERYTHING})

    def rows(self) -> dict[str, list[Figure]]:
        return self._itself.rows("itself") | self._within.rows("with its callees")


def _plain(name: str) -> str:
    """Return the usual name of an object or a function."""
    name = re.sub(r"^\[[.kuGg]\] ", "", name.strip().removesuffix("-").strip())
    name = re.sub(r"\.(cpython-|so\b).*", "", name)
    if name.startswith("0x"):
        return "without a symbol"
    if found := re.fullmatch(r"__pyx_[a-z]+_(?:[a-z]+_)?(\d+.*)", name):
        return _demangled(found[1])
    # Debian's redis-server is one file with several names.
    names = {"[kernel.kallsyms]": "kernel", "redis-check-rdb": "redis-server"}
    return names.get(name, name)


def _demangled(name: str) -> str:
    """Return the dotted name of a function of Cython, which writes each part after its length."""
    parts = []
    while found := re.match(r"_?(\d+)", name):
        size = int(found[1])
        parts.append(name[found.end() :][:size])
        name = name[found.end() + size :]
    return ".".join([*parts, name.lstrip("_")]).removesuffix(".")


def _frame(text: str) -> str:
    """Return a frame's function and file, without the line and the name of the machine."""
    found = re.fullmatch(r"(.+) \((?:.*/)?([^/:]+?)(?:\.cpython[^:]*)?(?::\d+)?\)", text)
    return f"{found[1]}, {found[2]}" if found else text


def _start(*command_line: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(word) for word in command_line],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _output(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=_TIMEOUT)
    if process.returncode:
        sys.exit(f"{process.args!r}: {errors}")
    return out


def profile_haproxy(programs: Programs, rounds: int, seconds: float) -> Perf:
    """Profile HAProxy as shipped, with an agent and Redis."""
    profile, spop = Perf(programs), free_address()
    server, _ = programs.redis()
    _, backend = programs.application()
    config = f'{ALLOWING}[store]\nurl = "{server.url}"\n'
    agent = programs.agent("agent", "compiled", spop, config)
    settings = {"RATELIMIT_SPOP": spop, "RATELIMIT_BACKEND": backend}
    haproxy = HAProxy(programs, "shipped", SHIPPED, agent, **settings)
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}: HAProxy")
        sampler = profile.start(haproxy.program.pid, seconds)
        http.wrk(haproxy.address, seconds + _LONGER)
        profile.finish(sampler)
    return profile


def profile_agent(programs: Programs, rounds: int, seconds: float) -> tuple[Perf, Spy]:
    """Profile an agent that is loaded directly."""
    profiles = Perf(programs), Spy(programs)
    bench = Bench(programs, "agent")
    bench.probe(known())
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}: agent")
        for profile in profiles:
            sampler = profile.start(bench.program.pid, seconds)
            bench.load(known(), _IN_FLIGHT, seconds + _LONGER)
            profile.finish(sampler)
    bench.finish()
    return profiles


def profile_redis(programs: Programs, rounds: int, seconds: float) -> Perf:
    """Profile Redis under agents whose clients are all near their limits."""
    profile = Perf(programs)
    server, program = programs.redis()
    fleet = Fleet(programs, "worst", _NODES, server)
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}: Redis")
        streams = fleet.streams(HEAVY, _WORST_CLIENTS, HEAVY_RATE * _WORST_CLIENTS)
        sampler = profile.start(program.pid, seconds)
        load(fleet, streams, seconds + _LONGER)
        profile.finish(sampler)
    return profile


def run(_: Programs, options: argparse.Namespace) -> Report:
    rounds, seconds = options.rounds, options.seconds
    with Programs() as programs:
        haproxy = profile_haproxy(programs, rounds, seconds)
    with Programs() as programs:
        agent, spied = profile_agent(programs, rounds, seconds)
    with Programs() as programs:
        redis = profile_redis(programs, rounds, seconds)
    note = f"{rounds} rounds of {seconds:g} s, perf by the CPU clock; "
    front = f"{note}wrk, {http.CONNECTIONS} connections, through HAProxy as shipped, with Redis"
    alone = f"{CONNECTIONS} connections with {_IN_FLIGHT} frames in flight on each, without HAProxy"
    worst = f"{note}{_NODES} agents, {_WORST_CLIENTS} clients at 0.9 of their limit"
    stacks = f"{rounds} rounds of {seconds:g} s, py-spy with native frames; {alone}"
    tables = (
        ("HAProxy", front, haproxy),
        ("agent", f"{note}{alone}", agent),
        ("agent, stacks", stacks, spied),
        ("Redis", worst, redis),
    )
    column = (Column("% of its time", digits=1),)
    return Report(tuple(Table.of(title, n, column, p.rows()) for title, n, p in tables))


if __name__ == "__main__":
    command.main("profiles", __doc__, run, rounds=(3, 1), seconds=(4, 2))
