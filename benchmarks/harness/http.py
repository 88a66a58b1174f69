"""HTTP: single requests, the API of an agent, and the loads of wrk and of ``paced.c``."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import resource
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.programs import Program, pair, put_first, require

CONNECTIONS = 64
"""Connections of wrk."""

_GRACE = 10  # seconds after which a load is killed that does not end in time
_RECORD = struct.Struct("=qII")  # of paced.c


def get(address: str, source: str = "") -> int:
    """Send HOST:PORT one request, from an address if given; return the status of the answer."""
    bound = (source, 0) if source else None
    connection = http.client.HTTPConnection(*pair(address), timeout=10, source_address=bound)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        return connection.getresponse().status


class Api:
    """The API of an agent, over one ``connection``."""

    def __init__(self, program: Program, patience: float = 10) -> None:
        self.address = program.logged(r'"ops": "([^"]+)"')[-1]
        self.connection = http.client.HTTPConnection(*pair(self.address), timeout=patience)

    def __call__(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """Send a request; return status and body of the answer."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        sent = json.dumps(body) if body is not None else None
        self.connection.request(method, path, sent, headers)
        answer = self.connection.getresponse()
        return answer.status, answer.read()

    def get(self, path: str) -> Any:
        """Return the JSON of a path."""
        status, raw = self("GET", path)
        if status != http.client.OK:
            sys.exit(f"{path}: {status} {raw.decode()}")
        return json.loads(raw)

    def metric(self, name: str) -> int:
        """Return a metric; of one with labels the sum, or the one whose labels are in the name."""
        _, metrics = self("GET", "/metrics")
        labels = "" if "{" in name else r"(?:\{.*\})?"
        values = re.findall(rf"(?m)^{re.escape(name)}{labels} (\S+)$", metrics.decode())
        if not values:
            sys.exit(f"{self.address} has no metric {name}")
        return int(sum(map(float, values)))


@dataclass(frozen=True)
class Wrk:
    """The result of wrk: ``others`` of its requests had another answer than 2xx or 3xx.

    ``cpu`` is its own CPU time in seconds, user and system.
    """

    requests: int
    others: int
    seconds: float
    cpu: float
    text: str


def wrk(
    address: str,
    seconds: float,
    *,
    close: bool = False,
    connections: int = CONNECTIONS,
    script: Path | None = None,
) -> Wrk:
    """Load HOST:PORT over kept-alive connections; with ``close``, over one for each request.

    ``script`` is a Lua script that makes the requests.
    """
    command = [require("wrk"), "-t1", f"-c{connections}", f"-d{int(seconds)}s"]
    command += ["-H", "Connection: close"] * close
    if script:
        command += ["-s", str(script)]
    before = _children()
    done = subprocess.run(
        [*command, f"http://{address}/"],
        capture_output=True, text=True, check=True, timeout=seconds + _GRACE,
    )  # fmt: skip
    took = re.search(r"(\d+) requests in ([\d.]+)(m?s)", done.stdout)
    if took is None:
        sys.exit(f"{address}: wrk says\n{done.stdout}")
    others = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    return Wrk(
        requests=int(took[1]),
        others=int(others[1]) if others else 0,
        seconds=float(took[2]) / (1000 if took[3] == "ms" else 1),
        cpu=_children() - before,
        text=done.stdout,
    )


def in_turn(clients: int, method: str = "GET", fields: str = "") -> str:
    """Return a script of wrk: the requests of clients in turn, as a load balancer forwards them.

    Each run begins with another one. ``fields`` are further header fields in Lua, each with a comma
    before it.
    """
    return f"""
local requests, last = {{}}, os.time() * 7919 % {clients}
function init()
    for n = 1, {clients} do
        local client = string.format("10.0.%d.%d", math.floor(n / 250), n % 250 + 1)
        requests[n] = wrk.format("{method}", "/", {{ ["X-Forwarded-For"] = client{fields} }})
    end
end
function request()
    last = last % {clients} + 1
    return requests[last]
end
"""


def _children() -> float:
    """Return the CPU seconds of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@dataclass(frozen=True)
class Crowd:
    """Clients of one kind: their first address, and their requests a second in all.

    With a ``step`` of 0 they are one client with so many connections.
    """

    source: str
    clients: int
    rate: float
    step: int = 1


@dataclass(frozen=True)
class Request:
    """A request: when it was due (``time.monotonic()``), seconds to its answer, status or 0."""

    due: float
    took: float
    status: int


@dataclass(frozen=True)
class Paced:
    """The result of ``paced.c``, which says what the counts mean."""

    sent: int
    allowed: int
    refused: int
    failed: int
    withheld: int
    leaked: int
    late_p99_us: float
    records: bytes

    def requests(self) -> list[Request]:
        found = _RECORD.iter_unpack(self.records)
        return [Request(due / 1e9, took / 1e9, status) for due, took, status in found]

    def took(self) -> list[int]:
        """Return the nanoseconds that each admitted request took, in ascending order."""
        found = _RECORD.iter_unpack(self.records)
        return sorted(took for _, took, status in found if status == http.client.OK)


class Sender:
    """A crowd that sends requests, in a process of its own; ``measures`` gives it priority."""

    def __init__(
        self,
        program: str,
        address: str,
        crowd: Crowd,
        seed: int,
        seconds: float,
        measures: bool = True,
    ) -> None:
        self._seconds = seconds
        command = [program, str(pair(address)[1]), crowd.source, str(crowd.clients)]
        command += [str(crowd.step), str(crowd.rate), str(seconds), str(seed)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        if measures:
            put_first(self.process)

    def result(self) -> Paced:
        """Return the result at the end."""
        try:
            output, _ = self.process.communicate(timeout=self._seconds + _GRACE)
        finally:
            self.process.kill()
        if self.process.returncode:
            sys.exit(f"{self.process.args!r} failed")
        line, _, records = output.partition(b"\n")
        return Paced(**json.loads(line), records=records)
