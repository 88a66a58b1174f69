"""A load test with locust: visitors, heavy clients, attackers and a swarm, through real servers.

``python -m benchmarks.loadtest`` starts a Redis, an agent that uses it, three demo applications
and HAProxy with the shipped configuration, and then locust with ``benchmarks/locustfile.py``. It
ends by itself; with 1 if a visitor was refused or an attacker got through more than its limit
allows.
``--web`` shows locust's own page, where the test is started by hand; Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import harness, plan
from benchmarks.end_to_end import SHIPPED, HAProxy
from benchmarks.harness import ROOT, Program, Programs

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.plan import Plan

APPLICATIONS = 3

_LOOK = 5  # seconds


def start(programs: Programs, run: Plan) -> tuple[HAProxy, dict[str, list[Program]]]:
    """Start the servers; return HAProxy and all of them by what they are."""
    redis, address = programs.redis()
    spop = harness.free_address()
    store = {"RATELIMIT_STORE__URL": f"redis://{address}"}
    agent = programs.agent("agent", "compiled", spop, run.config, store)
    backends = {}
    applications = []
    for number in range(1, APPLICATIONS + 1):
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            backends[f"RATELIMIT_BACKEND{number}"] = f"127.0.0.1:{listener.getsockname()[1]}"
            command = [sys.executable, "-m", "ratelimit.cli.demo", str(listener.fileno())]
            applications.append(
                programs.start(f"application{number}", command, files=[listener.fileno()])
            )
    haproxy = HAProxy(
        programs,
        "haproxy",
        SHIPPED,
        agent,
        RATELIMIT_SPOP=spop,
        RATELIMIT_LOGIN_PATH="/login",
        **backends,
    )
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
    run = plan.QUICK if options.quick else plan.FULL
    with Programs() as programs:
        haproxy, servers = start(programs, run)
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
        # Its table forgets within seconds, so one look at the end would miss what has been.
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
                f"{sum(looks)} of {len(looks)} looks show that the agent did not answer in time, or"
                " was away: HAProxy counted alone meanwhile, and logins were not counted"
            )
    sys.exit(code)


def follow(command: list[str], look: Callable[[], None]) -> int:
    """Run locust to its end and return its exit code; it ends with this program.

    ``look`` is called every few seconds meanwhile.
    """
    locust = subprocess.Popen(command, cwd=ROOT)
    try:
        while True:
            try:
                return locust.wait(_LOOK)
            except subprocess.TimeoutExpired:
                look()
            except KeyboardInterrupt:
                continue  # it was told as well, and still has to report
    finally:
        if locust.poll() is None:
            locust.terminate()
            locust.wait(harness.STOP_TIMEOUT)


if __name__ == "__main__":
    main()
