"""What the limiter costs in front of an application, with HAProxy and wrk.

``python -m benchmarks.end_to_end`` loads, in turns, HAProxy alone, HAProxy with its own stick-table
limiter, HAProxy as shipped with the agent, and the same with an agent that only acknowledges. First
with traffic that is allowed, then with traffic that is refused. Every HAProxy has one thread, and
one application is behind them all. Requests and refusals are counted by HAProxy.
"""

from __future__ import annotations

import csv
import http.client
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import command, harness, wrk
from benchmarks.harness import ROOT, Figure, Programs, Target
from benchmarks.report import Column, Report, Row, Table

if TYPE_CHECKING:
    import argparse

    from benchmarks.harness import Program

SHIPPED = ROOT / "haproxy" / "haproxy.cfg"
COMPARISON = ROOT / "benchmarks" / "haproxy" / "comparison.cfg"
APPLICATION = ROOT / "benchmarks" / "haproxy" / "application.cfg"

NEVER = 10_000_000
"""The rate of limits that allowed traffic does not reach: the highest that the agent takes."""

ATTEMPTS = 3

ALLOWING = f"[limits.default]\nrate = {NEVER}\nblock = []\n"
REFUSING = '[limits.default]\nrate = 100\nblock = ["1h"]\n'


@dataclass(frozen=True)
class Counters:
    """What a HAProxy has done so far, by its own account."""

    passed: int
    refused: int
    failed: int
    rejected: int
    """Connections refused before a byte was read."""


class HAProxy:
    """One HAProxy, and the agent that it asks, if any."""

    def __init__(
        self,
        programs: Programs,
        name: str,
        config: Path,
        agent: Program | None = None,
        **settings: str,
    ) -> None:
        program = harness.require("haproxy")
        self.name = name
        self.agent = agent
        self.address = harness.free_address()
        self._socket = str(programs.folder / f"{name}.sock")
        self.program = programs.start(
            name,
            [program, "-db", "-f", str(config)],
            {
                "RATELIMIT_LISTEN": self.address,
                "RATELIMIT_STATS_SOCKET": self._socket,
                "RATELIMIT_THREADS": "1",
                **settings,
            },
            # Its log is written as in production, and read by nobody.
            log=False,
        )
        harness.wait_for(self.program, self.get)

    def get(self) -> int:
        """Send one request and return the status of the answer."""
        return harness.get(self.address)

    def block(self) -> None:
        """Send requests until they are refused, and a connection if that is what is refused."""
        for _ in range(1000):
            try:
                if self.get() == http.client.TOO_MANY_REQUESTS:
                    break
            except (http.client.HTTPException, OSError):
                return
        else:
            sys.exit(f"{self.name}: does not refuse")

    def counters(self) -> Counters:
        rows = csv.DictReader(self._command("show stat").removeprefix("# ").splitlines())
        (row,) = (r for r in rows if (r["pxname"], r["svname"]) == ("web", "FRONTEND"))
        return Counters(
            int(row["hrsp_2xx"]), int(row["hrsp_4xx"]), int(row["hrsp_5xx"]), int(row["dcon"])
        )

    def counted_alone(self) -> bool:
        """Tell whether HAProxy had to count a client because no agent answered."""
        return "used:0" not in self._command("show table t_alone")

    def forget_alone(self) -> None:
        self._command("clear table t_alone")

    def _command(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(self._socket)
            sock.sendall(f"{command}\n".encode())
            answer = b""
            while part := sock.recv(1 << 16):
                answer += part
        return answer.decode()


@dataclass(frozen=True)
class Variant:
    """One way to be loaded; the kind says which requests count."""

    name: str
    haproxy: HAProxy
    kind: str = "passed"
    close: bool = False
    connections: int = wrk.CONNECTIONS
    script: Path | None = None
    """What wrk sends instead of a plain GET, in Lua."""


@dataclass(frozen=True)
class Sample:
    """One load: what counted, a second, and CPU microseconds of each process for each of it."""

    rate: float
    haproxy: float
    agent: float
    application: float
    client: float

    @property
    def cpu(self) -> float:
        return self.haproxy + self.agent + self.application + self.client


def load(variant: Variant, application: Program, seconds: int) -> Sample:
    """Load a HAProxy with wrk."""
    haproxy = variant.haproxy
    programs = (haproxy.program, haproxy.agent or haproxy.program, application)
    before = haproxy.counters()
    cpu = [program.cpu() for program in programs]
    loaded = wrk.load(
        haproxy.address,
        seconds,
        close=variant.close,
        connections=variant.connections,
        script=variant.script,
    )
    cpu = [program.cpu() - start for program, start in zip(programs, cpu, strict=True)]
    after = haproxy.counters()
    done = {kind: vars(after)[kind] - start for kind, start in vars(before).items()}
    count = done.pop(variant.kind)
    if count < 20 * sum(done.values()):
        sys.exit(f"{variant.name}: {count} {variant.kind}, but also {done}\n{loaded.text}")
    return Sample(
        rate=count / loaded.seconds,
        haproxy=cpu[0] / count / 1000,
        agent=cpu[1] / count / 1000 if haproxy.agent else 0.0,
        application=cpu[2] / count / 1000,
        client=loaded.cpu / count * 1e6,
    )


def answered(variant: Variant, application: Program, seconds: int) -> Sample:
    """Load a HAProxy whose agent answers every question.

    A process that waits for the CPU for longer than HAProxy waits for the agent, 50 ms, spoils a
    load, which is repeated.
    """
    for _ in range(ATTEMPTS):
        sample = load(variant, application, seconds)
        if variant.haproxy.agent is None or not variant.haproxy.counted_alone():
            return sample
        variant.haproxy.forget_alone()
    sys.exit(f"{variant.name}: the agent did not answer every question, {ATTEMPTS} times in a row")


def set_up(programs: Programs, form: str, shipped: Path) -> tuple[Program, list[Variant]]:
    """Start everything; return the application and the ways to load."""
    backend = harness.free_address()
    haproxy = harness.require("haproxy")
    application = programs.start(
        "application", [haproxy, "-db", "-f", str(APPLICATION)], {"BENCH_LISTEN": backend}
    )
    addresses = {name: harness.free_address() for name in ("allowing", "ack", "refusing")}
    allowing = programs.agent("allowing", form, addresses["allowing"], ALLOWING)
    ack = programs.agent("ack", "ack", addresses["ack"])
    refusing = programs.agent("refusing", form, addresses["refusing"], REFUSING)

    def start(name: str, config: Path, agent: Program | None = None, **more: str) -> HAProxy:
        return HAProxy(programs, name, config, agent, RATELIMIT_BACKEND=backend, **more)

    stick = start("stick-refusing", COMPARISON, BENCH_RATE="100")
    edge = start("edge", shipped, refusing, RATELIMIT_SPOP=addresses["refusing"])
    direct = start(
        "direct", shipped, refusing, RATELIMIT_SPOP=addresses["refusing"], RATELIMIT_DIRECT="reject"
    )
    for limiter in (edge, direct):
        limiter.block()
    return application, [
        Variant("HAProxy alone", start("alone", COMPARISON)),
        Variant("stick table", start("stick", COMPARISON, BENCH_RATE=str(NEVER))),
        Variant("agent", start("agent", shipped, allowing, RATELIMIT_SPOP=addresses["allowing"])),
        Variant("ack-only agent", start("ack-only", shipped, ack, RATELIMIT_SPOP=addresses["ack"])),
        Variant("429 by stick table", stick, "refused"),
        Variant("429 as shipped", edge, "refused"),
        Variant("429 by stick table, close", stick, "refused", close=True),
        Variant("429 as shipped, close", edge, "refused", close=True),
        Variant("connection rejected", direct, "rejected", close=True),
    ]


RATIOS = (
    ("agent", "ack-only agent", 0.95),
    ("agent", "stick table", None),
    ("agent", "HAProxy alone", None),
    ("stick table", "HAProxy alone", None),
    ("429 as shipped", "429 by stick table", 0.9),
    ("429 as shipped, close", "429 by stick table, close", 0.9),
    ("connection rejected", "429 by stick table, close", 1.0),
    ("connection rejected", "429 by stick table", None),
)
"""Which is compared with which, and the least that it should be."""


def tables(samples: dict[str, list[Sample]], rounds: int, seconds: float) -> Report:
    """Return the figures of all variants, and of which is compared with which."""
    parts = {"HAProxy": "haproxy", "agent": "agent", "application": "application", "wrk": "client"}
    columns = (
        Column("a second", "more", 0),
        *(Column(f"{name}, CPU us", "neither" if name == "wrk" else "less", 1) for name in parts),
    )
    note = f"wrk, {wrk.CONNECTIONS} connections, {rounds} rounds of {seconds:g} s: median (least-"
    note += "greatest). CPU microseconds for each request or refusal"
    rows: dict[bool, list[Row]] = {False: [], True: []}
    for name, taken in samples.items():
        rate = Figure.of(s.rate for s in taken)
        costs = [Figure.of(vars(s)[part] for s in taken) for part in parts.values()]
        row = Row.of(name, rate, *(cost if cost.high else None for cost in costs))
        rows["429" in name or "rejected" in name].append(row)
    ratios = []
    targets = []
    for name, other, bound in RATIOS:
        pairs = list(zip(samples[name], samples[other], strict=True))
        ratio = Figure.of(a.rate / b.rate for a, b in pairs)
        ratios.append(
            Row.of(f"{name} : {other}", ratio, Figure.of(a.cpu / b.cpu for a, b in pairs))
        )
        if bound is not None:
            targets.append(Target(f"{name} : {other}", ratio.median, bound, at_most=False))
    compared = (Column("a second", "more"), Column("CPU of all processes", "less"))
    return Report(
        (
            Table("allowed traffic", note, columns, tuple(rows[False])),
            Table("blocked traffic", note, columns, tuple(rows[True])),
            Table("ratios", "the one to the other, round by round", compared, tuple(ratios)),
        ),
        tuple(targets),
    )


def verify(variants: list[Variant]) -> None:
    """Compare what the agent counted with what HAProxy let pass."""
    (haproxy,) = (variant.haproxy for variant in variants if variant.name == "agent")
    passed = haproxy.counters().passed
    if haproxy.agent is not None:
        haproxy.agent.stop()
        checks = haproxy.agent.checks()
        # wrk leaves requests behind unanswered when its time is over.
        if not passed <= checks <= passed * 1.01:
            sys.exit(f"HAProxy let {passed} requests pass, the agent checked {checks}")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plain", action="store_true", help="the agent as plain Python")
    parser.add_argument("--config", type=Path, default=SHIPPED, help="another haproxy.cfg")


def run(programs: Programs, options: argparse.Namespace) -> Report:
    form = "plain" if options.plain else "compiled"
    application, variants = set_up(programs, form, options.config)
    samples: dict[str, list[Sample]] = {variant.name: [] for variant in variants}
    for number in range(options.rounds):
        # Back and forth, so that none always comes after the same one.
        for variant in variants if number % 2 == 0 else reversed(variants):
            harness.progress(f"round {number + 1} of {options.rounds}: {variant.name}")
            samples[variant.name].append(answered(variant, application, int(options.seconds)))
    verify(variants)
    return tables(samples, options.rounds, options.seconds)


if __name__ == "__main__":
    command.main("end_to_end", __doc__, run, rounds=(7, 3), seconds=(2, 1), arguments=arguments)
