"""What each setting of HAProxy and of the limiter gains or costs.

``python -m benchmarks.settings`` changes one thing at a time in the HAProxy configuration as
shipped, or in the agent beside it, and loads the results in turns. Each round begins and ends with
what is shipped, and all are compared with the mean of these two.

The load is that of a load balancer in front: 20,000 clients by X-Forwarded-For, so that each is far
below a limit of 100 a second. Every request could be a login, and has an API key, for the settings
that ask about those. Each turn has an HAProxy of its own, since one that polls without a pause
would take a core from all the others; the agents stay, so that their tables are warm.
"""

from __future__ import annotations

import itertools
import re
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import command, end_to_end, harness, wrk
from benchmarks.changes import CFG, FIRST, LAST, SETTINGS, Setting, offered, write
from benchmarks.end_to_end import APPLICATION, NEVER, HAProxy, Variant
from benchmarks.harness import Figure, Programs
from benchmarks.report import Column, Report, Row, Table

if TYPE_CHECKING:
    import argparse

    from benchmarks.harness import Program

CLIENTS = 20_000

LOAD = f"""
local requests, last = {{}}, 0
function init()
    for n = 1, {CLIENTS} do
        local client = string.format("10.0.%d.%d", math.floor(n / 250), n % 250 + 1)
        requests[n] = wrk.format("POST", "/", {{
            ["X-Forwarded-For"] = client, ["X-API-Key"] = "key-of-" .. client
        }})
    end
end
function request()
    last = last % {CLIENTS} + 1
    return requests[last]
end
"""

LIMITS = "".join(
    f"[limits.{name}]\nrate = {NEVER}\nblock = []\n" for name in ("default", "login", "api_key")
)

_AMISS = 0.01  # of the checks, at most


@dataclass(frozen=True)
class Sample:
    """One turn: requests a second, and of each request CPU microseconds, checks, TCP segments."""

    rate: float
    haproxy: float
    agent: float
    checks: float
    segments: float

    @property
    def both(self) -> float:
        return self.haproxy + self.agent


def segments() -> int:
    """Return how many TCP segments the machine has sent."""
    names, figures = re.findall(r"(?m)^Tcp: (.*)$", Path("/proc/net/snmp").read_text())
    return int(dict(zip(names.split(), figures.split(), strict=True))["OutSegs"])


@dataclass(frozen=True)
class Agent:
    """An agent; ``spop`` is where HAProxy finds it, ``metrics`` the address of its metrics."""

    program: Program
    spop: str
    metrics: str

    def checks(self) -> int:
        """Return how many checks it did so far."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=5) as answer:
            (count,) = re.findall(rb"(?m)^ratelimit_checks_total (\S+)$", answer.read())
        return int(float(count))


class Setup:
    """What stays: the application, and an agent for all settings that are none of its own."""

    def __init__(self, programs: Programs, haproxy: str, connections: int) -> None:
        self._programs = programs
        self._connections = connections
        self._backend = harness.free_address()
        command_line = [haproxy, "-db", "-f", str(APPLICATION)]
        self._application = programs.start(
            "application", command_line, {"BENCH_LISTEN": self._backend}
        )
        self._agents: dict[tuple[str, bool], Agent] = {}
        self._turns = itertools.count()

    def start(self, setting: Setting) -> None:
        """Start the agent of a setting, if there is none yet."""
        kind, name = (setting.limit, setting.unix), f"agent-{len(self._agents)}"
        if kind in self._agents:
            return
        address, metrics = harness.free_address(), harness.free_address()
        if setting.unix:
            address = str(self._programs.folder / f"{name}.spop")
        limits = LIMITS.replace("[limits.default]\n", f"[limits.default]\n{setting.limit}")
        more = {"RATELIMIT_OPS__LISTEN": metrics}
        program = self._programs.agent(name, "compiled", address, limits, more)
        spop = f"unix@{address}" if setting.unix else address
        self._agents[kind] = Agent(program, spop, metrics)

    def turn(self, setting: Setting, seconds: int) -> Sample:
        """Start an HAProxy as a setting has it, load it, and end it.

        Ends the run if the agent did not check as often as it was to be asked.
        """
        name, agent = f"turn-{next(self._turns)}", self._agents[setting.limit, setting.unix]
        folder = self._programs.folder / name
        write(setting, folder)
        script = folder / "load.lua"
        script.write_text(LOAD)
        addresses = {"RATELIMIT_BACKEND": self._backend, "RATELIMIT_SPOP": agent.spop}
        variables = {**addresses, **setting.variables}
        haproxy = HAProxy(self._programs, name, folder / CFG, agent.program, **variables)
        passed, checks, sent = haproxy.counters().passed, agent.checks(), segments()
        variant = Variant(setting.name, haproxy, script=script, connections=self._connections)
        loaded = end_to_end.load(variant, self._application, seconds)
        sent = segments() - sent
        passed = haproxy.counters().passed - passed
        haproxy.program.stop()
        checks = agent.checks() - checks
        # wrk leaves requests behind unanswered when its time is over, and a busy machine or a
        # setting may keep the agent from answering some in time.
        if abs(checks - setting.checks * passed) > _AMISS * max(1, setting.checks) * passed:
            sys.exit(f"{setting.name}: {passed} requests passed, the agent checked {checks} times")
        return Sample(loaded.rate, loaded.haproxy, loaded.agent, checks / passed, sent / passed)


def table(samples: dict[str, list[Sample]], note: str) -> Table:
    columns = (
        Column("requests a second", "more", 0),
        Column("to as shipped", "more"),
        Column("CPU us, HAProxy", "less", 1),
        Column("CPU us, agent", "less", 2),
        Column("CPU us, both", "less", 1),
        Column("both to as shipped", "less"),
        Column("checks a request"),
        Column("TCP segments a request"),
    )
    # A machine that becomes slower or faster meanwhile does so for what is in the middle, too.
    shipped = list(zip(samples[FIRST.name], samples[LAST.name], strict=True))
    rates = [(first.rate + last.rate) / 2 for first, last in shipped]
    costs = [(first.both + last.both) / 2 for first, last in shipped]
    rows = []
    for name, taken in samples.items():
        rows.append(
            Row.of(
                name,
                Figure.of(s.rate for s in taken),
                Figure.of(s.rate / rate for s, rate in zip(taken, rates, strict=True)),
                Figure.of(s.haproxy for s in taken),
                Figure.of(s.agent for s in taken),
                Figure.of(s.both for s in taken),
                Figure.of(s.both / cost for s, cost in zip(taken, costs, strict=True)),
                Figure.of(s.checks for s in taken),
                Figure.of(s.segments for s in taken),
            )
        )
    return Table("settings", note, columns, tuple(rows))


def run(programs: Programs, options: argparse.Namespace) -> Report:
    haproxy = harness.require("haproxy")
    settings = offered(haproxy)
    setup = Setup(programs, haproxy, options.connections)
    for setting in settings:
        setup.start(setting)
    samples: dict[str, list[Sample]] = {setting.name: [] for setting in settings}
    for number in range(options.rounds):
        # Back and forth, so that none always comes after the same one.
        for setting in settings if number % 2 == 0 else reversed(settings):
            harness.progress(f"round {number + 1} of {options.rounds}: {setting.name}")
            samples[setting.name].append(setup.turn(setting, int(options.seconds)))
    absent = ", ".join(setting.name for setting in SETTINGS if setting not in settings)
    note = f"wrk, {options.connections} connections, {CLIENTS:,} clients, {options.rounds} rounds "
    note += (
        f"of {options.seconds:g} s: median (least-greatest), ratios round by round, to the mean "
    )
    note += "of first and last; CPU microseconds, checks and TCP segments of all programs for each "
    note += f"request. This HAProxy does not have: {absent}"
    return Report((table(samples, note),))


def arguments(parser: argparse.ArgumentParser) -> None:
    text = "of wrk: as many requests are under way (%(default)s)"
    parser.add_argument("--connections", type=int, default=wrk.CONNECTIONS, metavar="N", help=text)


if __name__ == "__main__":
    command.main("settings", __doc__, run, rounds=(12, 3), seconds=(1, 1), arguments=arguments)
