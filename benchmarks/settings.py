"""The gain or cost of each setting of HAProxy and of the limiter.

``python -m benchmarks.settings`` changes one thing at a time in the shipped HAProxy configuration,
or in the agent behind, and loads the variants in turns. Each round begins and ends with the shipped
configuration, and every result is compared with the mean of these two.

The load is that of a load balancer in front: 20,000 clients by X-Forwarded-For, so that each is far
below a limit of 100 a second. Every request could be a login, and has an API key, for the settings
with limits for those. Each turn has an HAProxy of its own, since one that polls without a pause
would take a core from all the others. The agents stay, so their tables are warm.
"""

from __future__ import annotations

import argparse
import itertools
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.harness import command, http
from benchmarks.harness.haproxy import NEVER, SHIPPED, HAProxy, Variant, load
from benchmarks.harness.http import Api
from benchmarks.harness.programs import Program, Programs, free_address, require, rounds
from benchmarks.harness.report import Column, Report, Table
from benchmarks.harness.versions import version

CLIENTS = 20_000

LOAD = http.in_turn(CLIENTS, "POST", ', ["X-API-Key"] = "key-of-" .. client')

LIMITS = "".join(
    f"[limits.{name}]\nrate = {NEVER}\nblock = []\n" for name in ("default", "login", "api_key")
)

_AMISS = 0.01  # of the checks, at most


CFG, SPOE = "haproxy.cfg", "spoe.conf"


@dataclass(frozen=True)
class Edit:
    """A text that a shipped file must contain once, and the text that replaces it."""

    file: str
    old: str
    new: str

    def apply(self, folder: Path) -> None:
        path = folder / self.file
        text = path.read_text()
        if (count := text.count(self.old)) != 1:
            sys.exit(f"{self.file}: {self.old!r} is there {count} times")
        path.write_text(text.replace(self.old, self.new))


@dataclass(frozen=True)
class Setting:
    """A change; ``variables`` are HAProxy's, ``limit`` is a line of the default limit.

    ``checks`` is how many the agent does for each request. ``mux`` says that the setting is only
    for HAProxy 3.1 and later, which multiplexes SPOP, or only for earlier versions.
    """

    name: str
    edits: tuple[Edit, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    limit: str = ""
    unix: bool = False
    checks: int = 1
    mux: bool | None = None


def tune(line: str, before: str = "") -> Setting:
    return Setting(line, (Edit(CFG, "\nglobal\n", f"\nglobal\n    {before}{line}\n"),))


def spoe(line: str, mux: bool | None = None) -> Setting:
    old = "    use-backend spoa\n"
    return Setting(line, (Edit(SPOE, old, f"{old}    {line}\n"),), mux=mux)


def asked_above(rate: int) -> tuple[Edit, ...]:
    """Let HAProxy count itself, and ask only about clients with more requests a second."""
    old = "    http-request send-spoe-group rl check if agent_up known_client\n"
    new = "    http-request track-sc2 var(txn.client) table t_seen if known_client\n"
    new += f"{old.rstrip()} {{ sc2_http_req_rate gt {rate} }}\n"
    table = "\nbackend t_seen\n"
    table += "    stick-table type ipv6 size 1m expire 10s store http_req_rate(1s)\n"
    return Edit(CFG, old, new), Edit(CFG, "\nbackend t_alone\n", f"{table}\nbackend t_alone\n")


FIRST, LAST = Setting("as shipped"), Setting("as shipped, again")
"""The first and the last of a round; the others are compared with the mean of the two."""

SETTINGS = (
    FIRST,
    Setting("agent on a unix socket", unix=True),
    Setting("headers = true", limit="headers = true\n"),
    Setting(
        "three limits, three frames",
        variables={"RATELIMIT_LOGIN_PATH": "/", "RATELIMIT_API_KEYS": "1"},
        checks=3,
    ),
    Setting(
        "three limits, one frame",
        (
            Edit(SPOE, "    groups check unknown login api_key\n", "    groups check unknown\n"),
            Edit(SPOE, "    messages default\n", "    messages default login api_key\n"),
            Edit(SPOE, "args key=var(txn.login_key) ", "args key=src "),
            Edit(SPOE, "spoe-group login\n    messages login\n", ""),
            Edit(SPOE, "spoe-group api_key\n    messages api_key\n", ""),
        ),
        checks=3,
    ),
    Setting(
        "option dontlog-normal",
        (Edit(CFG, "\nfrontend web\n", "\nfrontend web\n    option dontlog-normal\n"),),
    ),
    Setting("nbthread 2", variables={"RATELIMIT_THREADS": "2"}),
    spoe("no option pipelining", mux=False),
    spoe("max-waiting-frames 5", mux=False),
    spoe("max-waiting-frames 100", mux=False),
    spoe("max-frame-size 256"),
    Setting(
        "server agent, maxconn 4",
        (Edit(CFG, " check inter 500ms", " maxconn 4 check inter 500ms"),),
    ),
    Setting(
        "http-reuse always",
        (Edit(CFG, "\nbackend spoa\n", "\nbackend spoa\n    http-reuse always\n"),),
        mux=True,
    ),
    tune("busy-polling"),
    tune("tune.bufsize 8192"),
    tune("tune.maxpollevents 20"),
    tune("tune.runqueue-depth 20"),
    tune("tune.sched.low-latency on"),
    tune("tune.fd.edge-triggered on", "expose-experimental-directives\n    "),
    Setting("asks above 10 a second, so of none", asked_above(10), checks=0),
    Setting("asks above 0 a second, so of all", asked_above(0)),
    LAST,
)


def offered(haproxy: str) -> list[Setting]:
    """Return the settings that this HAProxy has."""
    major, minor = map(int, version(haproxy).split("."))
    mux = (major, minor) >= (3, 1)
    return [setting for setting in SETTINGS if setting.mux in (None, mux)]


def write(setting: Setting, folder: Path) -> None:
    """Write HAProxy's files with a setting, and with this machine as a load balancer."""
    shutil.copytree(SHIPPED.parent, folder)
    with (folder / "lb.lst").open("a") as trusted:
        trusted.write("127.0.0.1\n")
    for edit in setting.edits:
        edit.apply(folder)


@dataclass(frozen=True)
class Sample:
    """One turn: requests a second, and of each request CPU microseconds, checks, TCP segments.

    ``rate_ratio`` and ``cost_ratio`` compare it with the shipped configuration.
    """

    rate: float
    haproxy: float
    agent: float
    checks: float
    segments: float
    rate_ratio: float = 1
    cost_ratio: float = 1

    @property
    def both(self) -> float:
        return self.haproxy + self.agent


def segments() -> int:
    """Return how many TCP segments the machine has sent."""
    names, figures = re.findall(r"(?m)^Tcp: (.*)$", Path("/proc/net/snmp").read_text())
    return int(dict(zip(names.split(), figures.split(), strict=True))["OutSegs"])


class Setup:
    """What stays: the application, and an agent for each kind of setting that needs one."""

    def __init__(self, programs: Programs, connections: int) -> None:
        self._programs = programs
        self._connections = connections
        self._application, self._backend = programs.application()
        self._agents: dict[tuple[str, bool], tuple[Program, str]] = {}
        self._turns = itertools.count()

    def start(self, setting: Setting) -> None:
        """Start the agent of a setting, if there is none yet."""
        kind, name = (setting.limit, setting.unix), f"agent-{len(self._agents)}"
        if kind in self._agents:
            return
        address = str(self._programs.folder / f"{name}.spop") if setting.unix else free_address()
        limits = LIMITS.replace("[limits.default]\n", f"[limits.default]\n{setting.limit}")
        program = self._programs.agent(name, "compiled", address, limits)
        self._agents[kind] = program, f"unix@{address}" if setting.unix else address

    def turn(self, setting: Setting, seconds: float) -> Sample:
        """Start an HAProxy with a setting, load it, and end it.

        Ends the run if the agent's number of checks is not the expected one.
        """
        agent, spop = self._agents[setting.limit, setting.unix]
        name = f"turn-{next(self._turns)}"
        folder = self._programs.folder / name
        write(setting, folder)
        script = folder / "load.lua"
        script.write_text(LOAD)
        variables = {"RATELIMIT_BACKEND": self._backend, "RATELIMIT_SPOP": spop}
        variables.update(setting.variables)
        haproxy = HAProxy(self._programs, name, folder / CFG, agent, **variables)
        variant = Variant(setting.name, haproxy, script=script, connections=self._connections)
        passed, checks, sent = haproxy.counters().passed, _checks(agent), segments()
        loaded = load(variant, self._application, seconds)
        sent = segments() - sent
        passed = haproxy.counters().passed - passed
        haproxy.program.stop()
        checks = _checks(agent) - checks
        # wrk leaves requests without an answer at its end, at most one on each connection. On a
        # busy machine or with some settings, the agent answers some too late.
        unsure = _AMISS * passed + self._connections
        if abs(checks - setting.checks * passed) > max(1, setting.checks) * unsure:
            sys.exit(f"{setting.name}: {passed} requests passed, the agent checked {checks} times")
        return Sample(loaded.rate, loaded.haproxy, loaded.agent, checks / passed, sent / passed)


def _checks(agent: Program) -> int:
    """Return how many checks an agent has done so far."""
    return Api(agent).metric("ratelimit_checks_total")


def table(samples: dict[str, list[Sample]], note: str) -> Table:
    """Compare each sample with the mean of the first and the last of its round.

    A machine that becomes slower or faster meanwhile affects these and the others alike.
    """
    compared: dict[str, list[Sample]] = {name: [] for name in samples}
    for first, last in zip(samples[FIRST.name], samples[LAST.name], strict=True):
        rate, cost = (first.rate + last.rate) / 2, (first.both + last.both) / 2
        for name, taken in samples.items():
            s = taken[len(compared[name])]
            ratios = {"rate_ratio": s.rate / rate, "cost_ratio": s.both / cost}
            compared[name].append(replace(s, **ratios))
    columns = {
        "rate": Column("requests a second", "more", 0),
        "rate_ratio": Column("to as shipped", "more"),
        "haproxy": Column("CPU us, HAProxy", "less", 1),
        "agent": Column("CPU us, agent", "less", 2),
        "both": Column("CPU us, both", "less", 1),
        "cost_ratio": Column("both to as shipped", "less"),
        "checks": Column("checks a request"),
        "segments": Column("TCP segments a request"),
    }
    return Table.measured("settings", note, columns, compared)


def run(programs: Programs, options: argparse.Namespace) -> Report:
    settings = {setting.name: setting for setting in offered(require("haproxy"))}
    setup = Setup(programs, options.connections)
    for setting in settings.values():
        setup.start(setting)
    samples: dict[str, list[Sample]] = {name: [] for name in settings}
    for name in rounds(options.rounds, settings):
        samples[name].append(setup.turn(settings[name], options.seconds))
    absent = ", ".join(setting.name for setting in SETTINGS if setting.name not in settings)
    note = f"wrk, {options.connections} connections, {CLIENTS:,} clients, {options.rounds} rounds "
    note += f"of {options.seconds:g} s: median (least-greatest), ratios round by round, to the "
    note += "mean of first and last; CPU microseconds, checks and TCP segments of all programs for "
    note += f"each request. This HAProxy does not have: {absent}"
    return Report((table(samples, note),))


def arguments(parser: argparse.ArgumentParser) -> None:
    text = "of wrk, each with one request in flight (%(default)s)"
    parser.add_argument("--connections", type=int, default=http.CONNECTIONS, metavar="N", help=text)


if __name__ == "__main__":
    command.main("settings", __doc__, run, rounds=(12, 3), seconds=(1, 1), arguments=arguments)
