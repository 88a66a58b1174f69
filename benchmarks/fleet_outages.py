"""How a fleet answers while Redis hangs, and its memory while Redis is gone; see ``fleet.py``."""

from __future__ import annotations

import itertools
import select
import socket
import statistics
import sys
import threading
import time
from typing import TYPE_CHECKING

from benchmarks import harness
from benchmarks.fleet_load import (
    HEAVY,
    HEAVY_CLIENTS,
    LIGHT,
    LIGHT_CLIENTS,
    RATE,
    TICK,
    Fleet,
    Stream,
    drain,
    frames_of,
    streams_to,
)
from benchmarks.harness import Figure, Programs, Target
from benchmarks.report import Column, Report, Row, Table
from ratelimit.store.redis.store import BACKOFF
from tests.helpers import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.helpers.servers import Server

HUNG = 10.0
"""Seconds that Redis hangs; the answers before are watched for as long."""

ATTEMPTS = round(3600 / (BACKOFF[1] / 2))
"""As many attempts as an hour can have: each waits for half of the longest back-off at least."""

_NODES = 4
_PARTS = ("before", "while hung", "after")
_LIGHT_RATE = 20_000
_AFTER = 3.0
_EVERY = 0.02  # seconds between clients that show whether counts are shared
_PAIRS = 0x0E000000
_PROBE = 0x0F000000
_BACKOFF = 0.002  # seconds between attempts, instead of up to half a second


class _Probe:
    """Asks one node a question at a time, and notes how long each answer took."""

    def __init__(self, address: str, number: int) -> None:
        self.sock = harness.connect(address)
        self.seconds: list[float] = []
        self._frame = wire.notify(
            wire.message("default", hits=wire.int64(0), key=b"\x06" + (_PROBE + number).to_bytes(4))
        )
        self._asked: float | None = None

    def send(self, now: float) -> None:
        if self._asked is None:
            self._asked = now
            self.sock.sendall(self._frame)

    def receive(self) -> None:
        self.sock.recv(1 << 16)
        assert self._asked is not None
        self.seconds.append(time.perf_counter() - self._asked)
        self._asked = None


class _Pairs:
    """Clients that spend more than their limit, half on one node and half on another.

    ``shared`` is when the first of them began that both nodes refused.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self.shared: float | None = None
        self._socks = [harness.connect(address) for address in addresses[:2]]
        self._keys = (b"\x06" + (_PAIRS + n).to_bytes(4) for n in itertools.count())
        self._began: float | None = None
        self._key = b""

    def step(self, now: float) -> None:
        """Look what became of the last client, and begin another."""
        if self._began is not None:
            refused = [self._ask(sock, 0) for sock in self._socks]
            if all(refused):
                self.shared = self._began
                return
        self._key = next(self._keys)
        self._began = now
        for sock in self._socks:
            self._ask(sock, RATE * 6 // 10)

    def _ask(self, sock: socket.socket, hits: int) -> bool:
        sock.sendall(wire.notify(wire.message("default", key=self._key, hits=wire.int64(hits))))
        (answer,) = wire.frames(sock.recv(1 << 16))
        return "deny" in answer.items

    def close(self) -> None:
        for sock in self._socks:
            sock.close()


def _mix(fleet: Fleet) -> list[Stream]:
    light = frames_of(LIGHT, LIGHT_CLIENTS)
    heavy = frames_of(HEAVY, HEAVY_CLIENTS)
    heavy_rate = 0.9 * RATE * HEAVY_CLIENTS
    return [*streams_to(fleet, light, _LIGHT_RATE), *streams_to(fleet, heavy, heavy_rate)]


def _keep_busy(
    streams: Sequence[Stream], probes: Sequence[_Probe], until: Callable[[float], bool]
) -> Iterator[float]:
    """Send the streams, and a question of each probe every millisecond; yield between."""
    socks = {stream.sock: stream.receive for stream in streams}
    socks |= {probe.sock: probe.receive for probe in probes}
    while not until(now := time.perf_counter()):
        yield now
        for stream in streams:
            stream.send(now)
        for probe in probes:
            probe.send(time.perf_counter())
        while (left := now + TICK - time.perf_counter()) > 0:
            for sock in select.select(list(socks), [], [], left)[0]:
                socks[sock]()


def _hang_once(fleet: Fleet, server: Server) -> tuple[list[list[float]], float]:
    """Return the answer times before, during and after, and seconds until counts were shared."""
    streams = _mix(fleet)
    probes = [_Probe(address, n) for n, address in enumerate(fleet.addresses)]
    pairs = _Pairs(fleet.addresses)
    begin = time.perf_counter()
    for stream in streams:
        stream.begin(begin)
    times: list[list[float]] = []
    resumed = 0.0
    for part in (1.0, HUNG, HUNG, _AFTER):  # the first is not counted
        if len(times) == 2:
            server.pause()
        elif len(times) == 3:
            server.resume()
            resumed = time.perf_counter()
        for probe in probes:
            probe.seconds = []
        end = time.perf_counter() + part
        due = 0.0
        for now in _keep_busy(streams, probes, lambda now, end=end: now >= end):  # type: ignore[misc]
            if resumed and pairs.shared is None and now >= due:
                due = now + _EVERY
                pairs.step(now)
        times.append([1000 * seconds for probe in probes for seconds in probe.seconds])
    if pairs.shared is None:
        sys.exit("counts are not shared again")
    drain(streams)
    pairs.close()
    for sock in [stream.sock for stream in streams] + [probe.sock for probe in probes]:
        sock.close()
    return times[1:], pairs.shared - resumed


def run_hang(programs: Programs, server: Server, quick: bool) -> Report:
    """Measure answer times before, while and after Redis hangs."""
    rounds = 1 if quick else 5
    fleet = Fleet(programs, "hang", _NODES, server, "10ms")
    taken: list[list[float]] = []
    above = []
    shared = []
    for number in range(rounds):
        harness.progress(f"Redis hangs, round {number + 1} of {rounds}")
        times, seconds = _hang_once(fleet, server)
        slowest = [max(part) for part in times]
        above.append(slowest[1] - slowest[0])
        shared.append(seconds)
        nearly = [statistics.quantiles(part, n=1000)[-1] for part in times]
        taken.append([*slowest, *nearly, seconds])
    fleet.stop()
    note = f"{_NODES} nodes at 10 ms, the mix at {_LIGHT_RATE:,} light checks a second; Redis "
    note += f"hangs for {HUNG:g} s. Milliseconds from question to answer in {HUNG:g} s "
    note += f"before, then, and after; {rounds} rounds: median (least-greatest)"
    names = [f"{what} {when}" for what in ("slowest, ms,", "99.9 %, ms,") for when in _PARTS]
    names.append("seconds until counts are shared again")
    values = zip(*taken, strict=True)
    rows = (Row.of(name, Figure.of(those)) for name, those in zip(names, values, strict=True))
    columns = (Column("median (least-greatest)", "less"),)
    table = Table("Redis hangs", note, columns, tuple(rows), drawn=False)
    more, longest = Figure.of(above).median, Figure.of(shared).high
    targets = (
        Target("ms of the slowest answer above before", more, 5, at_most=True),
        Target("s until counts are shared again, worst", longest, 1, at_most=True),
    )
    return Report((table,), targets)


class _Closer:
    """A server that closes every connection at once, and counts them."""

    def __init__(self) -> None:
        self.count = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.close()
            self.count += 1

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def run_gone(programs: Programs, server: Server, quick: bool) -> Report:
    """Measure memory while nodes try as often to reach a store as they would in an hour."""
    nodes = 2
    closer = _Closer()
    settings = {"BENCHMARK_BACKOFF": str(_BACKOFF)}
    fleet = Fleet(programs, "gone", nodes, None, "10ms", closer.url, settings)
    streams = _mix(fleet)
    begin = time.perf_counter()
    for stream in streams:
        stream.begin(begin)
    rows = []
    grown = 0.0
    first: list[int] = []
    attempts, parts = ATTEMPTS // 10 if quick else ATTEMPTS, 4
    for part in range(parts + 1):
        warm = attempts // 10  # until memory is first read
        goal = nodes * (warm + part * (attempts - warm) // parts)
        for _ in _keep_busy(streams, [], lambda _, goal=goal: closer.count >= goal):  # type: ignore[misc]
            harness.progress(f"Redis is gone, attempt {closer.count // nodes:,} of {attempts:,}")
        memory = [agent.rss() for agent in fleet.agents]
        first = first or memory
        grown = max(after / before - 1 for before, after in zip(first, memory, strict=True))
        name = f"{closer.count / nodes:,.0f} attempts of a node"
        rows.append(Row.of(name, *(size / 2**20 for size in memory)))
    seconds = time.perf_counter() - begin
    checks = sum(stream.asked for stream in streams)
    drain(streams)
    for stream in streams:
        stream.sock.close()
    fleet.stop()
    closer.close()
    note = f"{nodes} nodes whose store closes every connection; {checks:,} checks meanwhile, in "
    note += f"{seconds:.0f} s. "
    note += f"Attempts come every {_BACKOFF * 1000:g} ms; no hour has more than {ATTEMPTS:,}"
    columns = tuple(Column(f"MiB, node {number + 1}") for number in range(nodes))
    target = Target("growth of memory while Redis is gone", grown, 0.02, at_most=True)
    return Report((Table("Redis is gone", note, columns, tuple(rows)),), (target,))
