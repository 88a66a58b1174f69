"""The CPU cost of a request in peers mode in the agent, without HAProxy.

``python -m benchmarks.updates`` connects to an agent as HAProxy does, and sends pre-built updates
of a count table: two for each request, one when it begins and one when it has ended, with other
clients' in between. The agent and this program have a core each, if there are two. CPU times are
the agent's own, user and system, as the kernel's scheduler accounts them.

"resync" is a reconnection: HAProxy tells all its entries again, which the agent knows.
"""

from __future__ import annotations

import argparse
import contextlib
import select
import socket
import sys
import time
from dataclasses import dataclass

from benchmarks.harness import command
from benchmarks.harness.haproxy import ALLOWING
from benchmarks.harness.programs import Programs, free_address, pin, progress
from benchmarks.harness.report import Column, Figure, Report, Table, Target
from benchmarks.harness.spop import CLIENTS, KNOWN, PLACES
from tests.helpers.peers_wire import CONFIRMED, FINISHED, ack, define, update

_FEW = 20_000
_MANY = 500_000
_BETWEEN = 64
"""Requests that begin before one ends."""

_STORED = (2, 6, 9, 10, 11, 13, 15, 20)
"""Data types of the table: gpc0, conn_cur, http_req_cnt, http_req_rate, http_err_cnt, bytes_in_cnt,
bytes_out_cnt, http_fail_cnt."""

_COUNT = b"\xf1\xf2\xf3"  # in a template, the number of the round
_ROUND = 2288  # of the first; these numbers take three bytes
_LAST = 0xFFFFFFFF  # number of the last update of a load
_SILENCE = 30  # seconds without progress after which a load is given up
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Sample:
    """One load: updates, seconds, and the CPU nanoseconds of the agent."""

    updates: int
    seconds: float
    cpu: int


def key(client: int) -> bytes:
    return bytes(10) + b"\xff\xff" + (KNOWN + client).to_bytes(4)


def template(clients: int) -> bytes:
    """Return two updates for each client, with a place for the counter."""
    begins = [update(n, key(n), 0, 1, _COUNT, 10, _COUNT, 0, 0, 0, 0, 0) for n in range(clients)]
    ends = [
        update(n, key(n), 0, 0, _COUNT, 10, _COUNT, 0, 0, 80_000, 500_000, 0)
        for n in range(clients)
    ]
    ends = ends[-_BETWEEN:] + ends[:-_BETWEEN]
    return b"".join(part for pair in zip(begins, ends, strict=True) for part in pair)


def taught(clients: int) -> bytes:
    """Return all entries as HAProxy teaches them."""
    values = (0, 0, 1, 10, 1, 0, 0, 0, 0, 0)
    return b"".join(update(n, key(n), *values, expire=60_000) for n in range(clients))


class HAProxy:
    """One session with the agent."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.sock.settimeout(_SILENCE)
        self.sock.sendall(b"HAProxyS 2.1\nagent\nedge 1 1\n")
        self.heard = b""
        self.until(b"200\n")
        parameters = (10, 1000)
        self.sock.sendall(define(bits=_STORED, parameters=parameters, expire=3_600_000))

    def until(self, wanted: bytes) -> None:
        """Read until the agent has sent some bytes."""
        while wanted not in self.heard:
            received = self.sock.recv(1 << 16)
            if not received:
                sys.exit("the agent closed the session")
            self.heard = self.heard[-64:] + received
        self.heard = b""

    def send(self, data: memoryview) -> None:
        """Send, and read the acknowledgements meanwhile."""
        while data:
            readable, writable, _ = select.select([self.sock], [self.sock], [], _SILENCE)
            if not readable and not writable:
                sys.exit(f"the agent does not read for {_SILENCE} s")
            if readable:
                received = self.sock.recv(1 << 16)
                if not received:
                    sys.exit("the agent closed the session")
                self.heard = self.heard[-64:] + received
            if writable:
                with contextlib.suppress(BlockingIOError):
                    sent = self.sock.send(data[:_CHUNK], socket.MSG_DONTWAIT)
                    data = data[sent:]


def run(programs: Programs, options: argparse.Namespace) -> Report:
    pin()
    path = str(programs.folder / "peers")
    config = f'peers = ["unix://{path}"]\nmax_clients = {CLIENTS}\n{ALLOWING}'
    agent = programs.agent("updates", "compiled", free_address(), config)
    agent.pin(PLACES[next(reversed(PLACES))])
    # First, because the agent ends a silent session after 5 s.
    progress("preparing")
    prepared = {clients: template(clients) for clients in (_FEW, _MANY)}
    entries = taught(CLIENTS)
    haproxy = HAProxy(path)
    haproxy.send(memoryview(FINISHED))
    haproxy.until(CONFIRMED)
    number = _ROUND

    def load(rounds: bytes, seconds: float, updates: int) -> Sample:
        """Send whole rounds for a time; each has one request of each client."""
        nonlocal number
        cpu, start, sent = agent.cpu(), time.perf_counter(), 0
        while not sent or time.perf_counter() - start < seconds:
            low, high = (number - 240) & 15 | 0xF0, (number - 240) >> 4
            counter = bytes((low, (high - 128) & 0x7F | 0x80, (high - 128) >> 7))
            haproxy.send(memoryview(rounds.replace(_COUNT, counter)))
            number += 1
            sent += updates
        last = update(_LAST, key(0), 0, 0, counter, 10, counter, 0, 0, 80_000, 500_000, 0)
        haproxy.send(memoryview(last))
        haproxy.until(ack(1, _LAST))
        return Sample(sent, time.perf_counter() - start, agent.cpu() - cpu)

    rows: dict[str, list[Figure | None]] = {}
    targets = []
    for clients, rounds in prepared.items():
        progress(f"{clients:,} clients")
        load(rounds, 0, 2 * clients)
        samples = [load(rounds, options.seconds, 2 * clients) for _ in range(options.rounds)]
        rate = Figure.of(sample.updates / sample.seconds for sample in samples)
        cost = Figure.of(2 * sample.cpu / sample.updates / 1000 for sample in samples)
        rows[f"{clients:,} clients in turn"] = [rate, cost]
        if clients == _FEW:
            targets.append(Target("updates a second", rate.median, 1_000_000, at_most=False))
            targets.append(Target("CPU us a request", cost.median, 0.6))
    progress("resync")
    times = []
    for _ in range(options.rounds + 1):
        haproxy.sock.close()
        haproxy = HAProxy(path)
        start = time.perf_counter()
        haproxy.send(memoryview(entries))
        haproxy.send(memoryview(FINISHED))
        haproxy.until(CONFIRMED)
        times.append(time.perf_counter() - start)
    resync = Figure.of(times[1:])  # after the first, the agent knows all entries
    targets.append(Target("seconds of a resync", resync.median, 2))
    columns = (Column("updates a second", "more", 0), Column("CPU us a request", "less", 3))
    note = f"one session, unix socket, {len(prepared[_MANY]) / 2 / _MANY:.0f} bytes an update"
    return Report(
        (
            Table.of("updates", note, columns, rows),
            Table.of(
                "resync",
                f"{CLIENTS:,} entries",
                (Column("seconds", "less", 2),),
                {"resync": [resync]},
                drawn=False,
            ),
        ),
        tuple(targets),
    )


if __name__ == "__main__":
    command.main("updates", __doc__, run, rounds=(7, 3), seconds=(1.0, 0.5))
