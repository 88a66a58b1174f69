"""Clients at some times their limit, each spread over the nodes of a fleet.

In peers mode a model of HAProxy decides at once, by the verdicts that it has been told and by its
cap, and tells the agent its count.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import math
import random
import select
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.harness.buckets import MILLISECOND, TwoBuckets
from benchmarks.harness.edge import VERDICTS, Edge, counts, integers, key
from benchmarks.harness.fleet import RATE, TICK, Fleet, Stream, drain
from benchmarks.harness.haproxy import Mode
from benchmarks.harness.programs import connect
from benchmarks.harness.spop import question
from tests.helpers import wire
from tests.helpers.peers_wire import update

WINDOWS = 3

_MEASURED = 0x0C000000
_GIVE_UP = 1.0  # seconds after the first refusal
_BLOCK = 2  # kind of a verdict
_ALLOWED = len(wire.frame(wire.ACK, b""))  # bytes of an answer without variables


@dataclass(frozen=True)
class Kind:
    """A kind of client: times its limit, spread evenly or not, at steady or random moments."""

    ratio: float
    even: bool
    steady: bool

    def __str__(self) -> str:
        spread, moments = "even" if self.even else "uneven", "steady" if self.steady else "random"
        return f"{self.ratio:g}x, {spread}, {moments}"


class Client:
    """One client that is measured; times are of ``time.perf_counter()``."""

    def __init__(self, number: int, kind: Kind, nodes: int, start: float) -> None:
        self.address = _MEASURED + number
        self.frame = question(self.address)
        self.probe = question(self.address, hits=0)
        self.kind = kind
        self.start = start
        self.end = start + WINDOWS
        self.hits: list[float] = []
        self.admitted: list[float] = []
        self.first = math.inf  # when a refusal was first received,
        self.refused = math.inf  # and when that hit was sent
        self.blocked = [math.inf] * nodes
        self._random = random.Random(number)
        self._nodes = nodes
        self._main = self._next = number % nodes

    def gap(self) -> float:
        """Return seconds from one hit to the next."""
        rate = self.kind.ratio * RATE
        return 1 / rate if self.kind.steady else self._random.expovariate(rate)

    def node(self) -> int:
        """Return the node that the next hit goes to."""
        if self.kind.even and self.kind.steady:
            self._next = (self._next + 1) % self._nodes
            return self._next
        if self.kind.even or self._nodes == 1:
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
        """The hits of the window that ended with the refused one, by an exact log."""
        return sum(self.refused - 1 < at <= self.refused for at in self.hits)

    @property
    def spread(self) -> float:
        """Seconds from the first refusal until the block was in force on all nodes."""
        return max(self.blocked) - self.first


@dataclass(frozen=True)
class Answer:
    """The answer about a client: when the hit or, if it ``looks`` for a block, the probe was sent;
    whether it was allowed; whether by a block it was not.
    """

    client: Client
    sent: float
    looks: bool
    allowed: bool
    blocked: bool


class _Wire:
    """A connection for questions, with the clients of the expected answers."""

    def __init__(self, address: str) -> None:
        self.sock = connect(address)
        self._flying: collections.deque[tuple[Client, float, bool]] = collections.deque()
        self._unsent: list[bytes] = []
        self._rest = b""

    @property
    def waits(self) -> bool:
        return bool(self._flying)

    def ask(self, client: Client, now: float, looks: bool) -> None:
        self._unsent.append(client.probe if looks else client.frame)
        self._flying.append((client, now, looks))

    def flush(self) -> list[Answer]:
        """Send what was asked; return the answers that are known at once."""
        if self._unsent:
            self.sock.sendall(b"".join(self._unsent))
            self._unsent.clear()
        return []

    def receive(self) -> list[Answer]:
        data = self._rest + self.sock.recv(1 << 18)
        at = 0
        answers = []
        while len(data) - at >= 4:
            size = 4 + int.from_bytes(data[at : at + 4])
            if at + size > len(data):
                break
            blocked = data.find(b"block_until", at, at + size) >= 0
            at += size
            answers.append(Answer(*self._flying.popleft(), size == _ALLOWED, blocked))
        self._rest = data[at:]
        return answers


class _Entry:
    """What HAProxy knows of a client."""

    def __init__(self) -> None:
        self.count = self.refused = 0
        self.end = self.kind = 0
        self.cap = TwoBuckets(2 * RATE)
        self.first = time.time_ns() // MILLISECOND & 0xFFFFFFFF


class _Haproxy:
    """An HAProxy whose agent is its peer."""

    waits = False

    def __init__(self, path: str, name: str) -> None:
        self._edge = Edge(path, VERDICTS + counts(), name)  # updates are of the last table
        self._edge.finish()
        self.sock = self._edge.sock
        self._entries: collections.defaultdict[bytes, _Entry] = collections.defaultdict(_Entry)
        self._numbers = itertools.count(1)
        self._unsent: list[bytes] = []
        self._answers: list[Answer] = []

    def ask(self, client: Client, now: float, looks: bool) -> None:
        name = key(client.address)
        entry = self._entries[name]
        clock = time.time_ns()
        refused = clock // MILLISECOND < entry.end
        blocked = refused and entry.kind == _BLOCK
        if not looks and not blocked:
            refused = not entry.cap(clock) or refused
            entry.count += 1
            entry.refused += refused
            values = (entry.refused, entry.count, 0, 0, 0, entry.first)
            self._unsent.append(update(next(self._numbers), name, *values))
        self._answers.append(Answer(client, now, looks, not refused, blocked))

    def flush(self) -> list[Answer]:
        if self._unsent:
            self.sock.sendall(b"".join(self._unsent))
            self._unsent.clear()
        answers, self._answers = self._answers, []
        return answers

    def receive(self) -> list[Answer]:
        for name, values in self._edge.receive():
            seconds, early, kind = integers(values)
            entry = self._entries[name]
            entry.end, entry.kind = 1000 * seconds - early, kind
        return []


def measure(
    fleet: Fleet, mode: Mode, clients: Sequence[Client], streams: Sequence[Stream]
) -> tuple[int, float, float]:
    """Send all hits of all clients.

    Returns the checks, and the seconds of the greatest delay of a hit and of the slowest answer. If
    the machine stops for a moment, a node counts more hits at once than were sent at once.
    """
    clock = time.perf_counter
    wires: Sequence[_Wire | _Haproxy] = (
        [_Haproxy(path, f"edge{node}") for node, path in enumerate(fleet.peers)]
        if mode == "peers"
        else [_Wire(address) for address in fleet.addresses]
    )
    numbers = {wire.sock: number for number, wire in enumerate(wires)}
    others = {stream.sock: stream for stream in streams}
    begin = clock() + 0.05
    # Time, a number that settles ties, client, and whether it is a probe for the block.
    events = [(begin + client.start, i, client, False) for i, client in enumerate(clients)]
    heapq.heapify(events)
    count = len(events)
    checks = 0
    late = slowest = 0.0
    tick = begin
    for stream in streams:
        stream.begin(begin)

    def take(node: int, answers: Sequence[Answer]) -> None:
        nonlocal count, slowest
        now = clock()
        for answer in answers:
            client = answer.client
            slowest = max(slowest, now - answer.sent)
            if answer.allowed:
                if not answer.looks:
                    client.admitted.append(answer.sent)
                continue
            if client.first == math.inf:
                client.first, client.refused = now, answer.sent
                heapq.heappush(events, (now, count, client, True))
                count += 1
            if answer.blocked:
                client.blocked[node] = min(client.blocked[node], now)

    while events or any(wire.waits for wire in wires):
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
                wires[node].ask(client, now, looks)
                checks += 1
            if looks or due < begin + client.end:
                heapq.heappush(events, (due, count, client, looks))
                count += 1
        for node, connection in enumerate(wires):
            take(node, connection.flush())
        if now >= tick:
            tick = now + TICK
            for stream in streams:
                stream.send(now)
        until = min(tick, events[0][0]) if events else tick
        ready = select.select([*numbers, *others], [], [], max(0, until - clock()))[0]
        for sock in ready:
            if sock in others:
                others[sock].receive()
            else:
                take(numbers[sock], wires[numbers[sock]].receive())
    drain(streams)
    for connection in wires:
        connection.sock.close()
    return checks + sum(stream.asked for stream in streams), late, slowest
