"""What the time goes into: HAProxy, the agent, Redis, each under its load.

``python -m benchmarks.profiles`` loads HAProxy as shipped, with an agent and Redis behind it, with
wrk, and looks at HAProxy; it loads an agent without HAProxy, as ``benchmarks.agent`` does, and
looks at that; and it loads four agents with clients near their limits, which is the most that Redis
gets to do, and looks at Redis. ``perf`` samples by the CPU clock, so that it works in a virtual
machine too, and tells where the time of the process is spent: in which program or library, in which
system call, in which function. ``py-spy`` samples the agent's stack with its native frames, and so
names the functions of the compiled modules and what called them.

Both need root, or the right to look at other processes.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import command, harness, wrk
from benchmarks.agent import CONNECTIONS, Bench, known
from benchmarks.fleet_load import HEAVY, RATE, Fleet, frames_of, load, streams_to
from benchmarks.harness import Figure, Programs
from benchmarks.peers import ALLOWED, Setup
from benchmarks.report import Column, Report, Row, Table
from tests.helpers.servers import Server

if TYPE_CHECKING:
    import argparse

SHOWN = 12
"""Functions and system calls that are shown, at most."""

_LEAST = 0.5  # percent below which a part is not shown
_EVERYTHING = 80  # percent from which on a caller is the whole program, and tells nothing
_LOOP = "uv_run, core.c"  # is in the stack of the thread that answers, and of no other
_FREQUENCY = 997  # samples a second; not in step with anything
_LONGER = 2  # seconds that a load goes on for beyond its samples
_TIMEOUT = 30  # seconds for a sampler to end after its load
_IN_FLIGHT = 8
_WORST_CLIENTS = 500
_NODES = 4


@dataclass
class Shares:
    """Percent of a program's time by part, of each round."""

    rounds: list[dict[str, float]] = field(default_factory=list)

    def rows(self, kind: str) -> list[Row]:
        """Return the greatest parts; what a round does not have is 0 there."""
        names = {name for shares in self.rounds for name in shares}
        figures = {
            name: Figure.of(shares.get(name, 0.0) for shares in self.rounds) for name in names
        }
        greatest = sorted(names, key=lambda name: -figures[name].median)[:SHOWN]
        return [
            Row.of(f"{kind}: {name}", figures[name])
            for name in greatest
            if figures[name].median >= _LEAST
        ]


class Perf:
    """Samples of a process, of some rounds."""

    def __init__(self, programs: Programs) -> None:
        self._perf = harness.require("perf", "linux-perf")
        self._file = programs.folder / "perf.data"
        self._objects, self._calls, self._functions = Shares(), Shares(), Shares()

    def start(self, pid: int, seconds: float) -> subprocess.Popen[str]:
        record = ["record", "-q", "-g", "-e", "cpu-clock", "-F", str(_FREQUENCY), "-p", str(pid)]
        return _start(self._perf, *record, "-o", self._file, "--", "sleep", str(seconds))

    def finish(self, process: subprocess.Popen[str]) -> None:
        _output(process)
        self._objects.rounds.append(self._shares("dso"))
        self._functions.rounds.append(self._shares("dso,sym"))
        # A system call is what is below it, so that it is one number and not all of the kernel.
        calls = self._shares("sym", "--children")
        found = ((re.fullmatch(r"__\w+?_sys_(\w+)", name), share) for name, share in calls.items())
        self._calls.rounds.append({match[1]: share for match, share in found if match})

    def rows(self) -> list[Row]:
        functions = self._functions.rows("function")
        return [*self._objects.rows("in"), *self._calls.rows("system call"), *functions]

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

    def rows(self) -> list[Row]:
        return [*self._itself.rows("itself"), *self._within.rows("with what it calls")]


def _plain(name: str) -> str:
    """Return an object or a function as a reader knows it."""
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
    """Return what Cython makes of a dotted name: each part after its length."""
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


def run(programs: Programs, options: argparse.Namespace) -> Report:
    seconds = options.seconds
    haproxy, agent, spied, redis = Perf(programs), Perf(programs), Spy(programs), Perf(programs)
    lasting = int(seconds) + _LONGER
    door = Setup(programs).agent(ALLOWED, redis=True)
    for number in range(options.rounds):
        harness.progress(f"round {number + 1} of {options.rounds}: HAProxy")
        sampler = haproxy.start(door.programs[0].pid, seconds)
        wrk.load(door.address, lasting)
        haproxy.finish(sampler)
    for program in door.programs:
        program.stop()
    bench, asked = Bench(programs, "agent", "compiled", unix=False), known()
    bench.probe(asked)
    for number in range(options.rounds):
        harness.progress(f"round {number + 1} of {options.rounds}: agent")
        profile: Perf | Spy
        for profile in (agent, spied):
            sampler = profile.start(bench.program.pid, seconds)
            bench.load(asked, _IN_FLIGHT, lasting)
            profile.finish(sampler)
    bench.finish()
    server = Server(programs.folder)
    with contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        server.start()
        assert server.process
        fleet = Fleet(programs, "worst", _NODES, server, "10ms")
        frames = frames_of(HEAVY, _WORST_CLIENTS)
        for number in range(options.rounds):
            harness.progress(f"round {number + 1} of {options.rounds}: Redis")
            streams = streams_to(fleet, frames, 0.9 * RATE * _WORST_CLIENTS)
            sampler = redis.start(server.process.pid, seconds)
            load(fleet, streams, lasting)
            redis.finish(sampler)
            for stream in streams:
                stream.sock.close()
        fleet.stop()
    note = f"{options.rounds} rounds of {seconds:g} s, perf by the CPU clock; "
    front = f"{note}wrk, {wrk.CONNECTIONS} connections, through HAProxy as shipped, with Redis"
    alone = f"{CONNECTIONS} connections with {_IN_FLIGHT} frames in flight on each, without HAProxy"
    worst = f"{note}{_NODES} agents, {_WORST_CLIENTS} clients at 0.9 of their limit"
    stacks = f"{options.rounds} rounds of {seconds:g} s, py-spy with native frames; {alone}"
    tables = (
        ("HAProxy", front, haproxy),
        ("agent", f"{note}{alone}", agent),
        ("agent, stacks", stacks, spied),
        ("Redis", worst, redis),
    )
    column = (Column("% of its time", digits=1),)
    return Report(tuple(Table(title, n, column, tuple(p.rows())) for title, n, p in tables))


if __name__ == "__main__":
    command.main("profiles", __doc__, run, rounds=(3, 1), seconds=(4, 2))
