"""What each setting of HAProxy and of the limiter gains or costs.

``python -m benchmarks.settings`` changes one thing at a time in the HAProxy configuration as
shipped, or in the agent beside it, and loads the result in turns with what is shipped. The load is
that of a load balancer in front: 20,000 clients by X-Forwarded-For, so that each is far below a
limit of 100 a second; every request could be a login, and has an API key, for the settings that ask
about those. The programs of a setting are started for each of its turns, since one that polls
without a pause would take a core from all the others.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import command, end_to_end, harness, wrk
from benchmarks.end_to_end import APPLICATION, NEVER, SHIPPED, HAProxy, Variant
from benchmarks.harness import Figure, Programs
from benchmarks.report import Column, Report, Row, Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

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

CFG, SPOE = "haproxy.cfg", "spoe.conf"


@dataclass(frozen=True)
class Edit:
    """A text of a shipped file, which must be there once, and what stands in its place."""

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
    """What is changed; ``variables`` are HAProxy's, ``limit`` is a line of the default limit."""

    name: str
    edits: tuple[Edit, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    limit: str = ""
    unix: bool = False
    checks: int = 1
    """Of each request, by the agent."""

    mux: bool | None = None
    """Only for HAProxy 3.1 and later, which multiplexes SPOP, or only for those before."""


def tune(line: str, before: str = "", mux: bool | None = None) -> Setting:
    return Setting(line, (Edit(CFG, "\nglobal\n", f"\nglobal\n    {before}{line}\n"),), mux=mux)


def spoe(line: str, mux: bool | None = None) -> Setting:
    old = "    use-backend spoa\n"
    return Setting(line, (Edit(SPOE, old, f"{old}    {line}\n"),), mux=mux)


def asked_above(rate: int) -> tuple[Edit, ...]:
    """Have HAProxy count by itself, and ask only about clients with more requests a second."""
    old = "    http-request send-spoe-group rl check if agent_up !unknown_client\n"
    new = "    http-request track-sc2 var(txn.client) table t_seen if !unknown_client\n"
    new += f"{old.rstrip()} {{ sc2_http_req_rate gt {rate} }}\n"
    table = "\nbackend t_seen\n"
    table += "    stick-table type ipv6 size 1m expire 10s store http_req_rate(1s)\n"
    return Edit(CFG, old, new), Edit(CFG, "\nbackend t_alone\n", f"{table}\nbackend t_alone\n")


BASE = Setting("as shipped")

SETTINGS = (
    BASE,
    Setting("as shipped, again"),
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
            Edit(SPOE, "    groups check login api_key\n", "    groups check\n"),
            Edit(SPOE, "    messages default\n", "    messages default login api_key\n"),
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
    # Later ones offer the default in their health check, and refuse it as too big in the answer.
    tune("tune.bufsize 8192", mux=False),
    tune("tune.maxpollevents 20"),
    tune("tune.runqueue-depth 20"),
    tune("tune.sched.low-latency on"),
    tune("tune.fd.edge-triggered on", "expose-experimental-directives\n    "),
    Setting("asks above 10 a second, so of none", asked_above(10), checks=0),
    Setting("asks above 0 a second, so of all", asked_above(0)),
)


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


def write(setting: Setting, folder: Path) -> None:
    """Write HAProxy's files as a setting has them, with this machine as a load balancer."""
    shutil.copytree(SHIPPED.parent, folder)
    with (folder / "lb.lst").open("a") as trusted:
        trusted.write("127.0.0.1\n")
    for edit in setting.edits:
        edit.apply(folder)


def segments() -> int:
    """Return how many TCP segments the machine has sent."""
    names, figures = re.findall(r"(?m)^Tcp: (.*)$", Path("/proc/net/snmp").read_text())
    return int(dict(zip(names.split(), figures.split(), strict=True))["OutSegs"])


def turn(
    programs: Programs, setting: Setting, name: str, application: tuple[Program, str], seconds: int
) -> Sample:
    """Start what a setting needs, load it, and end it.

    Ends the run if the agent did not check as often as it was to be asked.
    """
    folder = programs.folder / name
    write(setting, folder)
    script = folder / "load.lua"
    script.write_text(LOAD)
    address = str(folder / "spop.sock") if setting.unix else harness.free_address()
    limits = LIMITS.replace("[limits.default]\n", f"[limits.default]\n{setting.limit}")
    agent = programs.agent(name, "compiled", address, limits)
    haproxy = HAProxy(
        programs,
        name,
        folder / CFG,
        agent,
        RATELIMIT_BACKEND=application[1],
        RATELIMIT_SPOP=f"unix@{address}" if setting.unix else address,
        **setting.variables,
    )
    passed, sent = haproxy.counters().passed, segments()
    variant = Variant(setting.name, haproxy, script=script)
    loaded = end_to_end.load(variant, application[0], seconds)
    sent = segments() - sent
    passed = haproxy.counters().passed - passed
    haproxy.program.stop()
    agent.stop()
    checks = agent.checks()
    # wrk leaves requests behind unanswered when its time is over, and a busy machine or a setting
    # may keep the agent from answering some in time.
    if abs(checks - setting.checks * passed) > _AMISS * max(1, setting.checks) * passed:
        sys.exit(f"{setting.name}: HAProxy let {passed} requests pass, the agent checked {checks}")
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
    rows = []
    for name, taken in samples.items():
        pairs = list(zip(taken, samples[BASE.name], strict=True))
        rows.append(
            Row.of(
                name,
                Figure.of(s.rate for s in taken),
                Figure.of(s.rate / base.rate for s, base in pairs),
                Figure.of(s.haproxy for s in taken),
                Figure.of(s.agent for s in taken),
                Figure.of(s.both for s in taken),
                Figure.of(s.both / base.both for s, base in pairs),
                Figure.of(s.checks for s in taken),
                Figure.of(s.segments for s in taken),
            )
        )
    return Table("settings", note, columns, tuple(rows))


def offered(haproxy: str) -> list[Setting]:
    """Return the settings that this HAProxy has."""
    said = subprocess.run([haproxy, "-v"], capture_output=True, text=True, check=True).stdout
    ((major, minor),) = re.findall(r"version (\d+)\.(\d+)", said)
    mux = (int(major), int(minor)) >= (3, 1)
    return [setting for setting in SETTINGS if setting.mux in (None, mux)]


def run(programs: Programs, options: argparse.Namespace) -> Report:
    haproxy = harness.require("haproxy")
    settings = offered(haproxy)
    backend = harness.free_address()
    application = programs.start(
        "application", [haproxy, "-db", "-f", str(APPLICATION)], {"BENCH_LISTEN": backend}
    )
    samples: dict[str, list[Sample]] = {setting.name: [] for setting in settings}
    for number in range(options.rounds):
        # Back and forth, so that none always comes after the same one.
        for setting in settings if number % 2 == 0 else reversed(settings):
            harness.progress(f"round {number + 1} of {options.rounds}: {setting.name}")
            name = f"{number}-{settings.index(setting)}"
            taken = turn(programs, setting, name, (application, backend), int(options.seconds))
            samples[setting.name].append(taken)
    absent = ", ".join(setting.name for setting in SETTINGS if setting not in settings)
    note = f"wrk, {wrk.CONNECTIONS} connections, {CLIENTS:,} clients, {options.rounds} rounds of "
    note += f"{options.seconds:g} s: median (least-greatest), ratios round by round; CPU "
    note += "microseconds and TCP segments, of all programs, for each request. This HAProxy does "
    note += f"not have: {absent}"
    return Report((table(samples, note),))


if __name__ == "__main__":
    command.main("settings", __doc__, run, rounds=(5, 2), seconds=(2, 1))
