"""One load by wrk, and what it says."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import harness

if TYPE_CHECKING:
    from pathlib import Path

CONNECTIONS = 64

_GRACE = 10  # seconds beyond its time after which wrk is ended


@dataclass(frozen=True)
class Load:
    """What wrk did: ``others`` of its requests got another answer than 2xx or 3xx."""

    requests: int
    others: int
    seconds: float
    cpu: float
    """CPU seconds of wrk itself, user and system."""

    text: str


def load(
    address: str,
    seconds: int,
    *,
    close: bool = False,
    connections: int = CONNECTIONS,
    script: Path | None = None,
) -> Load:
    """Load HOST:PORT over kept-alive connections; with ``close``, each request has one of its own.

    A ``script`` in Lua makes the requests.
    """
    command = [
        harness.require("wrk"),
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        f"http://{address}/",
    ]
    if close:
        command += ["-H", "Connection: close"]
    if script:
        command += ["-s", str(script)]
    cpu = _children()
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=seconds + _GRACE
    )
    cpu = _children() - cpu
    took = re.search(r"(\d+) requests in ([\d.]+)(m?s)", done.stdout)
    if took is None:
        sys.exit(f"{address}: wrk says\n{done.stdout}")
    others = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    return Load(
        requests=int(took[1]),
        others=int(others[1]) if others else 0,
        seconds=float(took[2]) / (1000 if took[3] == "ms" else 1),
        cpu=cpu,
        text=done.stdout,
    )


def _children() -> float:
    """Return the CPU seconds of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
