"""The cost of the limiter in front of an application, with HAProxy and wrk.

``python -m benchmarks.end_to_end`` loads, in turns, HAProxy alone, HAProxy with its own stick-table
limiter, HAProxy as shipped with the agent, and the same with an agent that only acknowledges: with
traffic that is allowed, and with traffic that is refused. Every HAProxy has one thread, and all
have the same application behind. HAProxy counts the requests and refusals.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.harness import command, http
from benchmarks.harness.haproxy import (
    ALLOWING,
    COMPARISON,
    NEVER,
    REFUSING,
    SHIPPED,
    HAProxy,
    Sample,
    Variant,
    load,
)
from benchmarks.harness.programs import Program, Programs, free_address, rounds
from benchmarks.harness.report import Column, Figure, Report, Table, Target

ATTEMPTS = 3

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
"""The variants that are compared, and the target of each ratio."""


def set_up(programs: Programs) -> tuple[Program, list[Variant]]:
    """Start everything; return the application and the variants."""
    application, backend = programs.application()
    addresses = {name: free_address() for name in ("allowing", "ack", "refusing")}
    allowing = programs.agent("allowing", "compiled", addresses["allowing"], ALLOWING)
    ack = programs.agent("ack", "ack", addresses["ack"])
    refusing = programs.agent("refusing", "compiled", addresses["refusing"], REFUSING)

    def start(name: str, config: Path, agent: Program | None = None, **more: str) -> HAProxy:
        return HAProxy(programs, name, config, agent, RATELIMIT_BACKEND=backend, **more)

    stick = start("stick-refusing", COMPARISON, BENCH_RATE="100")
    blocked = {"RATELIMIT_SPOP": addresses["refusing"]}
    edge = start("edge", SHIPPED, refusing, **blocked)
    direct = start("direct", SHIPPED, refusing, **blocked, RATELIMIT_DIRECT="reject")
    for limiter in (edge, direct):
        limiter.block()
    return application, [
        Variant("HAProxy alone", start("alone", COMPARISON)),
        Variant("stick table", start("stick", COMPARISON, BENCH_RATE=str(NEVER))),
        Variant("agent", start("agent", SHIPPED, allowing, RATELIMIT_SPOP=addresses["allowing"])),
        Variant("ack-only agent", start("ack-only", SHIPPED, ack, RATELIMIT_SPOP=addresses["ack"])),
        Variant("429 by stick table", stick, "refused"),
        Variant("429 as shipped", edge, "refused"),
        Variant("429 by stick table, close", stick, "refused", close=True),
        Variant("429 as shipped, close", edge, "refused", close=True),
        Variant("connection rejected", direct, "rejected", close=True),
    ]


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


def verify(haproxy: HAProxy) -> None:
    """Compare the agent's count of checks with HAProxy's count of requests."""
    passed = haproxy.counters().passed
    assert haproxy.agent is not None
    haproxy.agent.stop()
    checks = haproxy.agent.checks()
    # wrk leaves requests without an answer at its end.
    if not passed <= checks <= passed * 1.01:
        sys.exit(f"HAProxy let {passed} requests pass, the agent checked {checks}")


def report(samples: dict[str, list[Sample]], note: str) -> Report:
    parts = {"HAProxy": "haproxy", "agent": "agent", "application": "application", "wrk": "client"}
    columns = (
        Column("a second", "more", 0),
        *(Column(f"{name}, CPU us", "neither" if name == "wrk" else "less", 1) for name in parts),
    )
    rows: dict[bool, dict[str, list[Figure | None]]] = {False: {}, True: {}}
    for name, taken in samples.items():
        costs = [Figure.of(vars(s)[part] for s in taken) for part in parts.values()]
        rows["429" in name or "rejected" in name][name] = [
            Figure.of(s.rate for s in taken),
            *(cost if cost.high else None for cost in costs),
        ]
    ratios = {}
    targets = []
    for name, other, bound in RATIOS:
        pairs = list(zip(samples[name], samples[other], strict=True))
        ratio = Figure.of(a.rate / b.rate for a, b in pairs)
        ratios[f"{name} : {other}"] = ratio, Figure.of(a.cpu / b.cpu for a, b in pairs)
        if bound is not None:
            targets.append(Target(f"{name} : {other}", ratio.median, bound, at_most=False))
    compared = (Column("a second", "more"), Column("CPU of all processes", "less"))
    return Report(
        (
            Table.of("allowed traffic", note, columns, rows[False]),
            Table.of("blocked traffic", note, columns, rows[True]),
            Table.of("ratios", "the first to the second, round by round", compared, ratios),
        ),
        tuple(targets),
    )


def run(programs: Programs, options: argparse.Namespace) -> Report:
    application, listed = set_up(programs)
    variants = {variant.name: variant for variant in listed}
    samples: dict[str, list[Sample]] = {name: [] for name in variants}
    for name in rounds(options.rounds, variants):
        samples[name].append(answered(variants[name], application, options.seconds))
    verify(variants["agent"].haproxy)
    note = f"wrk, {http.CONNECTIONS} connections, {options.rounds} rounds of {options.seconds:g} s:"
    note += " median (least-greatest). CPU microseconds for each request or refusal"
    return report(samples, note)


if __name__ == "__main__":
    command.main("end_to_end", __doc__, run, rounds=(7, 3), seconds=(2, 1))
