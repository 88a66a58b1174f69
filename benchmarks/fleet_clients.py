"""Clients at some times their limit, each spread over the nodes of a fleet; see ``fleet.py``."""

from __future__ import annotations

import collections
import heapq
import math
import random
import select
import time
from typing import TYPE_CHECKING

from benchmarks import harness
from benchmarks.fleet_load import RATE, TICK, Fleet, Stream, drain
from tests.helpers import wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WINDOWS = 3

_MEASURED = 0x0C000000
_GIVE_UP = 1.0  # seconds after the first refusal
_ALLOWED = len(wire.frame(wire.ACK, b""))  # bytes of an answer without variables


class Client:
    """One client that is measured; times are of ``time.perf_counter()``."""

    def __init__(
        self, number: int, ratio: float, even: bool, steady: bool, nodes: int, start: float
    ) -> None:
        key = b"\x06" + (_MEASURED + number).to_bytes(4)
        self.frame = wire.notify(wire.message("default", key=key))
        self.probe = wire.notify(wire.message("default", key=key, hits=wire.int64(0)))
        self.ratio = ratio
        self.even = even
        self.steady = steady
        self.start = start
        self.end = start + WINDOWS
        self.hits: list[float] = []
        self.admitted: list[float] = []
        self.first = math.inf  # when a refusal was first received,
        self.refused = math.inf  # and when that hit was sent
        self.blocked = [math.inf] * nodes
        self._random = random.Random(number)
        self._next = number % nodes
        self._nodes = nodes
        self._main = number % nodes

    def gap(self) -> float:
        """Return seconds from one hit to the next."""
        rate = self.ratio * RATE
        return 1 / rate if self.steady else self._random.expovariate(rate)

    def node(self) -> int:
        """Return the node that the next hit goes to."""
        if self.even and self.steady:
            self._next = (self._next + 1) % self._nodes
            return self._next
        if self.even or self._nodes == 1:
            return self._random.randrange(self._nodes)
        if self._random.random() < 0.7:
            return self._main
        return (self._main + self._random.randrange(1, self._nodes)) % self._nodes

    @property
    def done(self) -> bool:
        return max(self.blocked) < math.inf

    @property
    def worst(self) -> int:
        """The most hits admitted within a window."""
        most = first = 0
        admitted = sorted(self.admitted)
        for last, at in enumerate(admitted):
            while admitted[first] <= at - 1:
                first += 1
            most = max(most, last - first + 1)
        return most

    @property
    def was_refused(self) -> bool:
        return self.first < math.inf

    @property
    def held(self) -> int:
        """All hits of the window that ended with the refused one, by an exact log."""
        return sum(self.refused - 1 < at <= self.refused for at in self.hits)

    @property
    def spread(self) -> float:
        """Seconds from the first refusal until the block was in force on all nodes."""
        return max(self.blocked) - self.first


class _Wire:
    """A connection for measured clients, and whose answers come next on it."""

    def __init__(self, address: str) -> None:
        self.sock = harness.connect(address)
        self.flying: collections.deque[tuple[Client, float, bool]] = collections.deque()
        self.unsent: list[bytes] = []
        self._rest = b""

    def flush(self) -> None:
        if self.unsent:
            self.sock.sendall(b"".join(self.unsent))
            self.unsent.clear()

    def receive(self) -> list[tuple[Client, float, bool, bool, bool]]:
        """Return client, when its hit was sent, whether it was a probe, allowed, blocked."""
        data = self._rest + self.sock.recv(1 << 18)
        at = 0
        answers = []
        while len(data) - at >= 4:
            size = 4 + int.from_bytes(data[at : at + 4])
            if at + size > len(data):
                break
            blocked = data.find(b"block_until", at, at + size) >= 0
            at += size
            answers.append((*self.flying.popleft(), size == _ALLOWED, blocked))
        self._rest = data[at:]
        return answers


def measure(
    fleet: Fleet, clients: Sequence[Client], streams: Sequence[Stream]
) -> tuple[int, float, float]:
    """Send all hits of all clients.

    Returns checks, by how many seconds the latest hit was late, and what the slowest answer took:
    with a machine that stops for a moment, a node counts more hits at once than were sent at once.
    """
    clock = time.perf_counter
    wires = [_Wire(address) for address in fleet.addresses]
    numbers = {wire.sock: number for number, wire in enumerate(wires)}
    others = {stream.sock: stream for stream in streams}
    begin = clock() + 0.05
    # When, a number that settles ties, whose, and whether it is a look for the block.
    events = [(begin + client.start, i, client, False) for i, client in enumerate(clients)]
    heapq.heapify(events)
    count = len(events)
    checks = 0
    late = slowest = 0.0
    tick = begin
    for stream in streams:
        stream.begin(begin)
    while events or any(wire.flying for wire in wires):
        now = clock()
        while events and events[0][0] <= now:
            due, _, client, looks = heapq.heappop(events)
            if client.done or now - client.first > _GIVE_UP:
                continue
            late = max(late, now - due)
            if looks:
                nodes: Iterable[int] = (n for n, at in enumerate(client.blocked) if at == math.inf)
                due = now + TICK
            else:
                nodes = (client.node(),)
                client.hits.append(now)
                due += client.gap()
            for node in nodes:
                wires[node].unsent.append(client.probe if looks else client.frame)
                wires[node].flying.append((client, now, looks))
                checks += 1
            if looks or due < begin + client.end:
                heapq.heappush(events, (due, count, client, looks))
                count += 1
        for connection in wires:
            connection.flush()
        if now >= tick:
            tick = now + TICK
            for stream in streams:
                stream.send(now)
        until = min(tick, events[0][0]) if events else tick
        ready = select.select([*numbers, *others], [], [], max(0, until - clock()))[0]
        for sock in ready:
            if sock in others:
                others[sock].receive()
                continue
            node = numbers[sock]
            answers = wires[node].receive()
            now = clock()
            for client, sent, looks, allowed, blocked in answers:
                slowest = max(slowest, now - sent)
                if allowed:
                    if not looks:
                        client.admitted.append(sent)
                    continue
                if client.first == math.inf:
                    client.first, client.refused = now, sent
                    heapq.heappush(events, (now, count, client, True))
                    count += 1
                if blocked:
                    client.blocked[node] = min(client.blocked[node], now)
    drain(streams)
    for connection in wires:
        connection.sock.close()
    return checks + sum(stream.asked for stream in streams), late, slowest
