"""The cost of the limiter in front of an application, with HAProxy and wrk, in both modes.

``python -m benchmarks.end_to_end`` loads, in turns, HAProxy alone, HAProxy with its own stick-table
limiter, and HAProxy as shipped with the agent, by SPOE and as a peer: with 20,000 clients in turn,
none of which is refused, on each HAProxy that is there. Then the machine's HAProxy refuses one
client. An agent that only acknowledges shows what any agent would cost by SPOE. Every HAProxy has
one thread, and all have the same application behind. HAProxy counts the requests and refusals.

The clients come through a load balancer, which names them in X-Forwarded-For: wrk has one address.
"""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks.harness import command, http
from benchmarks.harness.haproxy import (
    ALLOWING,
    COMPARISON,
    NEVER,
    PEERS_FILE,
    REFUSING,
    SHIPPED,
    Guard,
    HAProxy,
    Sample,
    Variant,
    balanced,
    load,
)
from benchmarks.harness.http import Api
from benchmarks.harness.programs import Program, Programs, free_address, progress, require, rounds
from benchmarks.harness.report import Column, Figure, Report, Table, Target
from benchmarks.harness.versions import haproxies

CLIENTS = 20_000
ATTEMPTS = 3

ALONE, STICK, SPOE, PEERS, ACK = "alone", "stick table", "SPOE", "peers", "acknowledged"
RATIOS = (
    (PEERS, STICK, 0.95),
    (PEERS, ALONE, None),
    (SPOE, STICK, None),
    (SPOE, ALONE, None),
    (STICK, ALONE, None),
    (SPOE, ACK, 0.95),
)
"""The variants of each HAProxy that are compared, and the target of each ratio."""

BLOCKED = (
    ("429, SPOE", "429, stick table", 0.9),
    ("429, peers", "429, stick table", 0.9),
    ("429, SPOE, close", "429, stick table, close", 0.9),
    ("429, peers, close", "429, stick table, close", 0.9),
    ("connection rejected", "429, stick table, close", 1.0),
    ("connection rejected", "429, stick table", None),
)
"""The same for refusals."""

CPU = 0.6
"""The most microseconds of the agent's CPU for a request in peers mode."""

ADMITTED = 'ratelimit_verdicts_total{limit="default",verdict="allowed"}'

_AMISS = 0.01  # of the requests, at most; wrk leaves some without an answer at its end


class Setup:
    """Everything that runs."""

    def __init__(self, programs: Programs) -> None:
        self.programs = programs
        self.application, backend = programs.application()
        self.backend = {"RATELIMIT_BACKEND": backend}
        self.guards = {mode: Guard(programs, mode, ALLOWING) for mode in (SPOE, PEERS)}
        self.allowed: dict[str, Variant] = {}
        self.blocked: dict[str, Variant] = {}

    def allowing(self, version: str, program: str, with_ack: bool) -> None:
        """Start the variants that refuse nothing for one HAProxy."""
        more = self.backend | balanced(self.programs)
        script = self.programs.folder / "in-turn.lua"
        script.write_text(http.in_turn(CLIENTS))

        def add(kind: str, haproxy: HAProxy) -> None:
            name = f"{version}, {kind}"
            self.allowed[name] = Variant(name, haproxy, script=script)

        def compared(name: str, **rate: str) -> HAProxy:
            name = f"{name}-{version}"
            return HAProxy(self.programs, name, COMPARISON, None, False, program, **more, **rate)

        add(ALONE, compared("alone"))
        add(STICK, compared("stick", BENCH_RATE=str(NEVER)))
        add(SPOE, self.guards[SPOE].haproxy("spoe", f"spoe-{version}", program, **more))
        add(PEERS, self.guards[PEERS].haproxy("peers", f"peers-{version}", program, **more))
        if with_ack:
            spop = free_address()
            agent = self.programs.agent("ack", "ack", spop)
            settings = {"RATELIMIT_SPOP": spop, **more}
            add(ACK, HAProxy(self.programs, "ack-only", SHIPPED, agent, False, program, **settings))

    def refusing(self) -> None:
        """Start the variants that refuse one client, with the machine's HAProxy."""
        stick = HAProxy(self.programs, "stick", COMPARISON, BENCH_RATE="100", **self.backend)
        by_spoe, by_peers = (Guard(self.programs, f"{m}-block", REFUSING) for m in (SPOE, PEERS))
        edge = by_spoe.haproxy("spoe", "edge", **self.backend)
        peers = by_peers.haproxy("peers", "peers", **self.backend)
        direct = by_spoe.haproxy("spoe", "direct", RATELIMIT_DIRECT="reject", **self.backend)
        for limiter in (edge, peers, direct):
            limiter.block()
        limiters = {"stick table": stick, SPOE: edge, PEERS: peers}
        listed = [Variant(f"429, {kind}", limiter, "refused") for kind, limiter in limiters.items()]
        listed += [
            Variant(f"429, {kind}, close", limiter, "refused", close=True)
            for kind, limiter in limiters.items()
        ]
        listed.append(Variant("connection rejected", direct, "rejected", close=True))
        self.blocked = {variant.name: variant for variant in listed}


def answered(variant: Variant, application: Program, seconds: float) -> Sample:
    """Load an HAProxy whose agent answers every question.

    The load is repeated if the agent waited for the CPU for longer than HAProxy waits for it,
    50 ms.
    """
    for _ in range(ATTEMPTS):
        sample = load(variant, application, seconds)
        if variant.haproxy.agent is None or not variant.haproxy.counted_alone():
            return sample
        variant.haproxy.say("clear table t_alone")
    sys.exit(f"{variant.name}: the agent did not answer every question, {ATTEMPTS} times in a row")


def warm_up(setup: Setup) -> None:
    """Send a request of each client, so that the tables of all programs have it."""
    for variant in setup.allowed.values():
        progress(f"warming up: {variant.name}")
        haproxy = variant.haproxy
        before = haproxy.counters().passed
        while haproxy.counters().passed - before < CLIENTS or (
            haproxy.config == PEERS_FILE and haproxy.entries("ratelimit/rl_default") < CLIENTS
        ):
            http.wrk(haproxy.address, 1, script=variant.script)


def counts(setup: Setup) -> dict[str, tuple[int, int]]:
    """Return by mode the requests that HAProxy let pass, and those that the agent counted."""
    time.sleep(1)  # until HAProxy has told all
    return {
        mode: (
            sum(
                variant.haproxy.counters().passed
                for variant in setup.allowed.values()
                if variant.haproxy.agent is guard.program
            ),
            Api(guard.program).metric(ADMITTED),
        )
        for mode, guard in setup.guards.items()
    }


def verify(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> None:
    """Compare the agents' counts of requests with those of the HAProxies."""
    for mode, earlier in before.items():
        passed, counted = (b - a for a, b in zip(earlier, after[mode], strict=True))
        if abs(counted - passed) > _AMISS * passed:
            sys.exit(f"{mode}: HAProxy let {passed} requests pass, the agent counted {counted}")


def report(
    setup: Setup, versions: list[str], samples: dict[str, list[Sample]], note: str
) -> Report:
    parts = {"HAProxy": "haproxy", "agent": "agent", "application": "application", "wrk": "client"}
    columns = (
        Column("a second", "more", 0),
        *(Column(f"{name}, CPU us", "neither" if name == "wrk" else "less", 2) for name in parts),
    )

    def rows(names: dict[str, Variant]) -> dict[str, list[Figure | None]]:
        return {
            name: [
                Figure.of(s.rate for s in samples[name]),
                *(Figure.of(vars(s)[part] for s in samples[name]) for part in parts.values()),
            ]
            for name in names
        }

    pairs = [
        (f"{version}, {name}", f"{version}, {other}", bound)
        for version in versions
        for name, other, bound in RATIOS
    ]
    ratios = {}
    targets = []
    for name, other, bound in (*pairs, *BLOCKED):
        if name not in samples or other not in samples:
            continue
        both = list(zip(samples[name], samples[other], strict=True))
        ratio = Figure.of(a.rate / b.rate for a, b in both)
        title = f"{name} : {other.removeprefix(name.partition(',')[0] + ', ')}"
        ratios[title] = ratio, Figure.of(a.cpu / b.cpu for a, b in both)
        if bound is not None:
            targets.append(Target(title, ratio.median, bound, at_most=False))
    for version in versions:
        cost = Figure.of(sample.agent for sample in samples[f"{version}, {PEERS}"])
        targets.append(Target(f"agent CPU us a request, {version}, {PEERS}", cost.median, CPU))
    compared = (Column("a second", "more"), Column("CPU of all processes", "less"))
    return Report(
        (
            Table.of("allowed traffic", note, columns, rows(setup.allowed)),
            Table.of("blocked traffic", note, columns, rows(setup.blocked)),
            Table.of("ratios", "the first to the second, round by round", compared, ratios),
        ),
        tuple(targets),
    )


def run(programs: Programs, options: argparse.Namespace) -> Report:
    setup = Setup(programs)
    there = haproxies(programs.folder)
    if options.quick:  # the oldest and the newest
        there = dict([*there.items()][:: max(1, len(there) - 1)])
    for version, program in there.items():
        setup.allowing(version, program, with_ack=program == require("haproxy"))
    setup.refusing()
    variants = setup.allowed | setup.blocked
    samples: dict[str, list[Sample]] = {name: [] for name in variants}
    warm_up(setup)
    before = counts(setup)
    for name in rounds(options.rounds, variants):
        samples[name].append(answered(variants[name], setup.application, options.seconds))
    verify(before, counts(setup))
    note = f"wrk, {http.CONNECTIONS} connections, {CLIENTS:,} clients in turn or one that is "
    note += f"refused, {options.rounds} rounds of {options.seconds:g} s: median (least-greatest). "
    note += "CPU microseconds for each request or refusal"
    return report(setup, list(there), samples, note)


if __name__ == "__main__":
    command.main("end_to_end", __doc__, run, rounds=(7, 2), seconds=(2, 1))
