"""Answers of a fleet while Redis hangs, and its memory while Redis is gone; see ``fleet.py``."""

from __future__ import annotations

import itertools
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping

from benchmarks.harness.fleet import RATE, Fleet, drain, keep_busy
from benchmarks.harness.programs import MIB, Programs, progress
from benchmarks.harness.report import Column, Figure, Report, Table, Target
from benchmarks.harness.spop import Probe
from ratelimit.store.redis.store import BACKOFF
from tests.helpers.servers import Server

HUNG = 10.0
"""Seconds that Redis hangs; the answers before are timed for as long."""

ATTEMPTS = round(3600 / (BACKOFF[1] / 2))
"""The most attempts of an hour: each waits for half of the longest back-off at least."""

_NODES = 4
_PARTS = ("before", "while hung", "after")
_LIGHT_RATE = 20_000
_AFTER = 3.0
_EVERY = 0.02  # seconds between clients that show whether counts are shared
_PAIRS = 0x0E000000
_PROBE = 0x0F000000
_BACKOFF = 0.002  # seconds between attempts, instead of up to half a second


class _Pairs:
    """Clients that exceed their limit, with half of the hits on one node and half on another.

    ``shared`` is the time of the first of them that both nodes refused.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.shared: float | None = None
        self._probes = [Probe(address) for address in fleet.addresses[:2]]
        self._clients = itertools.count(_PAIRS)
        self._client = next(self._clients)
        self._due = self._began = 0.0

    def step(self) -> None:
        """Check the last client, and begin another."""
        now = time.perf_counter()
        if self.shared is not None or now < self._due:
            return
        if self._began and all(probe.refuses(self._client, 0) for probe in self._probes):
            self.shared = self._began
            return
        self._client, self._began, self._due = next(self._clients), now, now + _EVERY
        for probe in self._probes:
            probe.refuses(self._client, RATE * 6 // 10)


def _hang_once(fleet: Fleet, server: Server) -> tuple[list[list[float]], float]:
    """Return the answer times before, during and after, and seconds until counts were shared."""
    streams = fleet.mix(_LIGHT_RATE)
    probes = [Probe(address) for address in fleet.addresses]
    receivers: Mapping[int, Callable[[], object]] = {p.sock.fileno(): p.receive for p in probes}
    pairs = _Pairs(fleet)
    for stream in streams:
        stream.begin(time.perf_counter())

    def busy(seconds: float, resumed: bool = False) -> list[float]:
        """Send for so long; return the milliseconds of the answers to the probes."""
        for probe in probes:
            probe.seconds = []
        end = time.perf_counter() + seconds
        for _ in keep_busy(streams, receivers, lambda: time.perf_counter() >= end):
            if resumed:
                pairs.step()
            for number, probe in enumerate(probes):
                if probe.asked is None:
                    probe.send(_PROBE + number, hits=0)
        return [1000 * took for probe in probes for took in probe.seconds]

    busy(1.0)
    times = [busy(HUNG)]
    server.pause()
    times.append(busy(HUNG))
    server.resume()
    resumed = time.perf_counter()
    times.append(busy(_AFTER, resumed=True))
    if pairs.shared is None:
        sys.exit("counts are not shared again")
    drain(streams)
    return times, pairs.shared - resumed


def run_hang(programs: Programs, server: Server, quick: bool) -> Report:
    """Measure answer times before, while and after Redis hangs."""
    rounds = 1 if quick else 5
    fleet = Fleet(programs, "hang", _NODES, server)
    found: dict[str, list[float]] = {}
    above = []
    again = "seconds until counts are shared again"
    for number in range(rounds):
        progress(f"Redis hangs, round {number + 1} of {rounds}")
        times, seconds = _hang_once(fleet, server)
        above.append(max(times[1]) - max(times[0]))
        for part, took in zip(_PARTS, times, strict=True):
            found.setdefault(f"slowest, ms, {part}", []).append(max(took))
        for part, took in zip(_PARTS, times, strict=True):
            nearly = statistics.quantiles(took, n=1000)[-1]
            found.setdefault(f"99.9 %, ms, {part}", []).append(nearly)
        found.setdefault(again, []).append(seconds)
    fleet.stop()
    note = f"{_NODES} nodes at 10 ms, the mix at {_LIGHT_RATE:,} light checks a second; Redis "
    note += f"hangs for {HUNG:g} s. Milliseconds from question to answer in the {HUNG:g} s "
    note += f"before, meanwhile, and after; {rounds} rounds: median (least-greatest)"
    columns = [Column("median (least-greatest)", "less")]
    rows = {name: [values] for name, values in found.items()}
    targets = (
        Target("ms of the slowest answer above before", Figure.of(above).median, 5),
        Target("s until counts are shared again, worst", max(found[again]), 1),
    )
    return Report((Table.of("Redis hangs", note, columns, rows, drawn=False),), targets)


class _Closer:
    """A server that closes every connection at once, and counts the connections."""

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
    """Measure memory while nodes try to reach a store as often as in an hour."""
    nodes = 2
    closer = _Closer()
    settings = {"BENCHMARK_BACKOFF": str(_BACKOFF)}
    fleet = Fleet(programs, "gone", nodes, None, url=closer.url, settings=settings)
    streams = fleet.mix(_LIGHT_RATE)
    begin = time.perf_counter()
    for stream in streams:
        stream.begin(begin)
    rows = {}
    memory: list[list[int]] = []
    attempts, parts = ATTEMPTS // 10 if quick else ATTEMPTS, 4
    warm = attempts // 10  # before memory is first read
    for part in range(parts + 1):
        goal = nodes * (warm + part * (attempts - warm) // parts)
        for _ in keep_busy(streams, {}, lambda goal=goal: closer.count >= goal):  # type: ignore[misc]
            progress(f"Redis is gone, attempt {closer.count // nodes:,} of {attempts:,}")
        memory.append([agent.rss() for agent in fleet.agents])
        name = f"{closer.count / nodes:,.0f} attempts of a node"
        rows[name] = [size / MIB for size in memory[-1]]
    seconds = time.perf_counter() - begin
    checks = sum(stream.asked for stream in streams)
    drain(streams)
    fleet.stop()
    closer.close()
    note = f"{nodes} nodes whose store closes every connection; {checks:,} checks meanwhile, in "
    note += f"{seconds:.0f} s. Attempts come every {_BACKOFF * 1000:g} ms; an hour has at most "
    note += f"{ATTEMPTS:,}"
    columns = [Column(f"MiB, node {number + 1}") for number in range(nodes)]
    grown = max(last / first - 1 for first, last in zip(memory[0], memory[-1], strict=True))
    target = Target("growth of memory while Redis is gone", grown, 0.02)
    return Report((Table.of("Redis is gone", note, columns, rows),), (target,))
