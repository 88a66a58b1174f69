"""What the limiter costs in front of an application, with HAProxy and wrk.

``python -m benchmarks.end_to_end`` loads, in turns, HAProxy alone, HAProxy with its own stick-table
limiter, HAProxy as shipped with the agent, and the same with an agent that only acknowledges. First
with traffic that is allowed, then with traffic that is refused. Every HAProxy has one thread, and
one application is behind them all. Requests and refusals are counted by HAProxy.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import http.client
import re
import resource
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import harness
from benchmarks.harness import ROOT, Figure, Programs, Target

if TYPE_CHECKING:
    from benchmarks.harness import Program

CONNECTIONS = 64

SHIPPED = ROOT / "haproxy" / "haproxy.cfg"
COMPARISON = ROOT / "benchmarks" / "haproxy" / "comparison.cfg"
APPLICATION = ROOT / "benchmarks" / "haproxy" / "application.cfg"

NEVER = 10_000_000
"""The rate of limits that allowed traffic does not reach: the highest that the agent takes."""

ALLOWING = f"[limits.default]\nrate = {NEVER}\nblock = []\n"
REFUSING = '[limits.default]\nrate = 100\nblock = ["1h"]\n'

_WRK_GRACE = 10  # seconds beyond its time after which wrk is ended


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
        program = harness.find("haproxy")
        if program is None:
            sys.exit("HAProxy is not installed: apt-get install haproxy")
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
        host, _, port = self.address.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", "/")
            return connection.getresponse().status

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
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", f"http://{haproxy.address}/"]
    if variant.close:
        command += ["-H", "Connection: close"]
    before = haproxy.counters()
    cpu = [program.cpu() for program in programs]
    own = _children()
    try:
        wrk = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=seconds + _WRK_GRACE
        )
    except FileNotFoundError:
        sys.exit("wrk is not installed: apt-get install wrk")
    own = _children() - own
    cpu = [program.cpu() - start for program, start in zip(programs, cpu, strict=True)]
    after = haproxy.counters()
    took = re.search(r"requests in ([\d.]+)(m?s)", wrk.stdout)
    if took is None:
        sys.exit(f"{variant.name}: wrk says\n{wrk.stdout}")
    elapsed = float(took[1]) / (1000 if took[2] == "ms" else 1)
    done = {kind: vars(after)[kind] - start for kind, start in vars(before).items()}
    count = done.pop(variant.kind)
    if count < 100 * sum(done.values()):
        sys.exit(f"{variant.name}: {count} {variant.kind}, but also {done}\n{wrk.stdout}")
    if haproxy.agent is not None and haproxy.counted_alone():
        sys.exit(f"{variant.name}: the agent did not answer every question")
    return Sample(
        rate=count / elapsed,
        haproxy=cpu[0] / count / 1000,
        agent=cpu[1] / count / 1000 if haproxy.agent else 0.0,
        application=cpu[2] / count / 1000,
        client=own / count * 1e6,
    )


def _children() -> float:
    """Return the CPU seconds of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def set_up(programs: Programs, form: str, shipped: Path) -> tuple[Program, list[Variant]]:
    """Start everything; return the application and the ways to load."""
    backend = harness.free_address()
    haproxy = harness.find("haproxy") or "haproxy"
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


def report(samples: dict[str, list[Sample]], rounds: int, seconds: int) -> dict[str, Any]:
    """Print the figures and return them."""
    head = ["", "a second", "HAProxy", "agent", "application", "wrk"]
    results = []
    rows: dict[bool, list[list[str]]] = {False: [], True: []}
    for name, taken in samples.items():
        rate = Figure.of(s.rate for s in taken)
        costs = {
            part: Figure.of(vars(s)[part] for s in taken)
            for part in ("haproxy", "agent", "application", "client")
        }
        row = [name, rate.text(0), *(c.text(1) if c.high else "-" for c in costs.values())]
        rows["429" in name or "rejected" in name].append(row)
        results.append({"variant": name, "per_second": rate, "cpu_us": costs})
    print(
        f"wrk, {CONNECTIONS} connections, {rounds} rounds of {seconds} s: median (least-greatest)"
    )
    print("CPU microseconds for each request or refusal\n")
    for refused, title in ((False, "allowed traffic"), (True, "blocked traffic")):
        harness.table([title, *head[1:]], rows[refused])
    ratios = []
    targets = []
    for name, other, bound in RATIOS:
        pairs = list(zip(samples[name], samples[other], strict=True))
        ratio = Figure.of(a.rate / b.rate for a, b in pairs)
        cpu = Figure.of(a.cpu / b.cpu for a, b in pairs)
        ratios.append({"of": name, "to": other, "per_second": ratio, "cpu": cpu})
        if bound is not None:
            targets.append(Target(f"{name} : {other}", ratio.median, bound, at_most=False))
    harness.table(
        ["ratios, round by round", "a second", "CPU of all processes"],
        [[f"{r['of']} : {r['to']}", str(r["per_second"]), str(r["cpu"])] for r in ratios],
    )
    return {"variants": results, "ratios": ratios, "targets": targets}


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__)
    parser.add_argument("--plain", action="store_true", help="the agent as plain Python")
    parser.add_argument("--config", type=Path, default=SHIPPED, help="another haproxy.cfg")
    parser.add_argument("--rounds", type=int, help="how often each has its turn (7; quick: 3)")
    parser.add_argument("--seconds", type=int, help="whole seconds a turn (2; quick: 1)")
    parser.add_argument("--quick", action="store_true", help="a short run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    options = parser.parse_args()
    rounds = options.rounds or (3 if options.quick else 7)
    seconds = options.seconds or (1 if options.quick else 2)
    with Programs() as programs:
        form = "plain" if options.plain else "compiled"
        application, variants = set_up(programs, form, options.config)
        samples: dict[str, list[Sample]] = {variant.name: [] for variant in variants}
        for number in range(rounds):
            # Back and forth, so that none always comes after the same one.
            for variant in variants if number % 2 == 0 else reversed(variants):
                harness.progress(f"round {number + 1} of {rounds}: {variant.name}")
                samples[variant.name].append(load(variant, application, seconds))
        verify(variants)
    harness.finish(report(samples, rounds, seconds), options.json)


if __name__ == "__main__":
    main()
