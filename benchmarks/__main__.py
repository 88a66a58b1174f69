"""``python -m benchmarks [--quick] [--json FILE] [NAME...]``: all benchmarks, or those named.

Each runs in a process of its own, one after the other, and writes its record to one file of
results. The end of the output names each that failed or exceeded its time limit.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import report
from benchmarks.harness.programs import ROOT

BENCHMARKS = (
    "agent",
    "updates",
    "end_to_end",
    "settings",
    "settings --connections=8",
    "limiters",
    "accuracy",
    "fleet --accuracy",
    "fleet --accuracy --mode=peers",
    "fleet --cost",
    "fleet --hang",
    "fleet --gone",
    "table",
    "reload",
    "restart",
    "reconnect",
    "replay",
    "flood",
    "flood --mode=peers",
    "admission",
    "admitted",
    "resync",
    "operations",
    "turns",
    "profiles",
)

LIMITS = (600, 120)
"""The most seconds of one benchmark, in a whole run and in a quick one."""

_STOP_TIMEOUT = 10  # seconds from SIGTERM to SIGKILL


def measure(name: str, file: Path, quick: bool, limit: float) -> str:
    """Run one benchmark and return its fault, or nothing."""
    command = [sys.executable, "-m", *f"benchmarks.{name}".split(), "--json", str(file)]
    with subprocess.Popen([*command, *["--quick"] * quick], cwd=ROOT) as process:
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.terminate()  # it ends the programs that it started
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT)
            process.kill()
            return f"took more than {limit:g} s"
        except KeyboardInterrupt:
            process.wait()  # it got the Ctrl-C, too
            raise
    return f"ended with {code}" if code else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="short runs")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        default=ROOT / "build" / "benchmarks.json",
        help="the file of results (%(default)s)",
    )
    options = parser.parse_args()
    kinds = {name.split()[0] for name in BENCHMARKS}
    if unknown := [name for name in options.names if name not in kinds.union(BENCHMARKS)]:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    wanted = [name for name in BENCHMARKS if {name, name.split()[0]}.intersection(options.names)]
    file: Path = options.json.resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    failures = {}
    missed = []
    for name in wanted or BENCHMARKS:
        print(f"== {name}\n", flush=True)
        if failure := measure(name, file, options.quick, LIMITS[options.quick]):
            failures[name] = failure
            print(f"{name} {failure}", flush=True)
        else:
            targets = report.read(file)[name].report.targets
            missed += [f"{name}: {target}" for target in targets if not target.reached]
        print(flush=True)
    print(f"The results are in {os.path.relpath(file)}.")
    for line in missed:
        print(line)
    for name, failure in failures.items():
        print(f"FAILED   {name} {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
