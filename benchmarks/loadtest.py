"""A load test with locust: visitors, heavy clients, attackers and a swarm, through real servers.

``python -m benchmarks.loadtest`` starts a Redis, an agent, three demo applications and HAProxy with
the shipped configuration, and then locust with ``benchmarks/locustfile.py``. It ends by itself, and
exits with status 1 if a visitor was refused or an attacker passed more than its limit allows.
``--web`` shows locust's own page, where the test is started by hand; Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.haproxy import SHIPPED, HAProxy
from benchmarks.harness.programs import ROOT, STOP_TIMEOUT, Program, Programs, free_address
from benchmarks.judgement import Rule

APPLICATIONS = 3

_LOOK = 5  # seconds

DEFAULT = Rule(rate=100, window=1.0)
"""The limit of an empty configuration."""


@dataclass(frozen=True)
class Plan:
    """A load test: seconds of ramp, plateau and decline, and the clients of each class.

    A swarm of 2,000 addresses at the default limit would send 200,000 requests a second, which is
    too much for Python. So the swarm requests the login form, with the limit ``login``. ``block``
    is the ladder of this limit and of ``default``, in seconds.
    """

    ramp: int
    plateau: int
    decline: int
    login: Rule
    block: tuple[int, ...]
    clients: Mapping[str, int]

    @property
    def config(self) -> str:
        """Return the limits for the agent's configuration."""
        ladder = [f"{seconds}s" for seconds in self.block]
        # Half of the clients at the login form are attackers: the fuse would end the blocks.
        return (
            f"[limits.default]\nblock = {ladder}\n[limits.login]\nrate = {self.login.rate}\n"
            f'window = "{self.login.window * 1000:.0f}ms"\nblock = {ladder}\nfuse = 0\n'
        )

    def users(self, seconds: float) -> int | None:
        """Return the number of clients at a time after the start, None at the end."""
        most = sum(self.clients.values())
        if seconds < self.ramp:
            return max(int(most * (int(seconds) + 1) / self.ramp), 1)
        seconds -= self.ramp + self.plateau
        if seconds < 0:
            return most
        if seconds < self.decline:
            return max(int(most * (1 - (int(seconds) + 1) / self.decline)), 1)
        return None


FULL = Plan(
    ramp=22,  # locust starts a hundred clients a second, not more
    plateau=30,
    decline=8,
    login=Rule(rate=10, window=10.0),
    block=(10, 60, 600, 3600),
    clients={
        "Visitor": 100,
        "Heavy": 4,
        "Attacker": 2,
        "Flooder": 1,
        "JustAbove": 1000,
        "JustBelow": 1000,
        "Returning": 5,
    },
)

QUICK = Plan(
    ramp=1,
    plateau=4,
    decline=1,
    login=Rule(rate=10, window=1.0),
    block=(1, 60),
    clients={
        "Visitor": 20,
        "Heavy": 4,
        "Attacker": 1,
        "Flooder": 1,
        "JustAbove": 20,
        "JustBelow": 20,
        "Returning": 2,
    },
)


def start(programs: Programs, plan: Plan) -> tuple[HAProxy, dict[str, list[Program]]]:
    """Start the servers; return HAProxy, and the programs of each kind."""
    server, redis = programs.redis()
    spop = free_address()
    store = {"RATELIMIT_STORE__URL": server.url}
    agent = programs.agent("agent", "compiled", spop, plan.config, store)
    settings = {"RATELIMIT_SPOP": spop, "RATELIMIT_LOGIN_PATH": "/login"}
    applications = []
    for number in range(1, APPLICATIONS + 1):
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            settings[f"RATELIMIT_BACKEND{number}"] = f"127.0.0.1:{listener.getsockname()[1]}"
            command = [sys.executable, "-m", "ratelimit.cli.demo", str(listener.fileno())]
            name = f"application{number}"
            applications.append(programs.start(name, command, files=[listener.fileno()]))
    haproxy = HAProxy(programs, "haproxy", SHIPPED, agent, **settings)
    return haproxy, {
        "HAProxy": [haproxy.program],
        "agent": [agent],
        "Redis": [redis],
        "applications": applications,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loadtest", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="some seconds, few clients")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--web", action="store_true", help="show locust's page")
    parser.add_argument("--web-port", type=int, default=8089, help="where (8089)")
    options = parser.parse_args()
    with Programs() as programs:
        haproxy, servers = start(programs, QUICK if options.quick else FULL)
        command = [sys.executable, "-m", "locust", "-f", "benchmarks/locustfile.py"]
        command += ["--host", f"http://{haproxy.address}", "--skip-log-setup"]
        if options.quick:
            command += ["--quick"]
        if options.json:
            command += ["--report", str(options.json.absolute())]
        if options.web:
            command += ["--web-host", "127.0.0.1", "--web-port", str(options.web_port)]
            print(f"http://127.0.0.1:{options.web_port}", flush=True)
        else:
            command += ["--headless"]
        before = {name: sum(p.cpu() for p in found) for name, found in servers.items()}
        begin = time.monotonic()
        # The table of HAProxy expires within seconds, so one look at the end would not suffice.
        looks: list[bool] = []
        code = follow(command, lambda: looks.append(haproxy.counted_alone()))
        seconds = time.monotonic() - begin
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cores = {"locust": (used.ru_utime + used.ru_stime) / seconds} | {
            name: (sum(p.cpu() for p in found) - before[name]) / seconds / 1e9
            for name, found in servers.items()
        }
        print("cores used: " + ", ".join(f"{name} {value:.2f}" for name, value in cores.items()))
        counters = haproxy.counters()
        print(f"HAProxy counted {counters.passed:,} answers 200 and {counters.refused:,} refusals")
        if any(looks):
            print(
                f"{sum(looks)} of {len(looks)} looks show that the agent did not answer in time: "
                "HAProxy counted alone meanwhile, and logins were not counted"
            )
    sys.exit(code)


def follow(command: list[str], look: Callable[[], None]) -> int:
    """Run locust to its end and return its exit code; call ``look`` every few seconds."""
    locust = subprocess.Popen(command, cwd=ROOT)
    try:
        while True:
            try:
                return locust.wait(_LOOK)
            except subprocess.TimeoutExpired:
                look()
            except KeyboardInterrupt:
                continue  # locust got the Ctrl-C, too, and still has to report
    finally:
        if locust.poll() is None:
            locust.terminate()
            locust.wait(STOP_TIMEOUT)


if __name__ == "__main__":
    main()
