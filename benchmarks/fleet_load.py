"""Agents that share a Redis, steady loads for them, and what both take; see ``fleet.py``."""

from __future__ import annotations

import random
import select
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from benchmarks import harness
from benchmarks.agent import Frames
from benchmarks.harness import Program, Programs
from tests.helpers import wire

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.helpers.servers import Server

RATE = 100  # hits a second, the default limit
LIGHT_CLIENTS = 100_000
HEAVY_CLIENTS = 100
MAX_CLIENTS = 200_000

LIGHT = 0x0A000000  # 10.0.0.0 on
HEAVY = 0x0B000000
TICK = 0.001  # seconds between pieces of a steady stream
ALLOWED_LONG = len(wire.frame(wire.ACK, b"", (240, 1)))
"""Bytes of an answer without variables, with ids of the size that ``Frames`` uses."""

_PROBES = 0x0D000000
_SILENCE = 5.0
_WARM_UP = 1.2


class Fleet:
    """Agents that share a store; without a ``server``, ``url`` says what each has.

    ``limit`` is more of the limit's configuration.
    """

    def __init__(
        self,
        programs: Programs,
        name: str,
        nodes: int,
        server: Server | None,
        interval: str,
        url: str = "memory://",
        settings: Mapping[str, str] | None = None,
        limit: str = "",
    ) -> None:
        self.name = name
        self.server = server
        self.agents: list[Program] = []
        self.addresses = [harness.free_address() for _ in range(nodes)]
        self._probe = _PROBES
        for number, address in enumerate(self.addresses):
            folder = programs.folder / f"{name}-{number}"
            url = server.url if server else url
            config = (
                f"max_clients = {MAX_CLIENTS}\n[store]\n"
                f'url = "{url}"\nprefix = "{name}"\nstate_dir = "{folder}"\n'
                f'sync_interval = "{interval}"\n[limits.default]\nrate = {RATE}\n{limit}\n'
            )
            self.agents.append(
                programs.agent(f"{name}-{number}", "compiled", address, config, settings)
            )
        if server is not None and nodes > 1:
            for address in self.addresses:
                self._wait_until_known(server, address)

    def cpu(self) -> int:
        return sum(agent.cpu() for agent in self.agents)

    def stop(self) -> None:
        for agent in self.agents:
            agent.process.terminate()
        for agent in self.agents:
            agent.stop()

    def _wait_until_known(self, server: Server, address: str) -> None:
        """Wait until a node shares clients with all the others.

        It does so as soon as it speaks of a client that has just more than its share.
        """
        share = RATE // (2 * len(self.addresses))
        deadline = time.monotonic() + 10
        with harness.connect(address) as sock, server.client() as redis:
            while True:
                self._probe += 1
                key = self._probe.to_bytes(4)
                message = wire.message("default", key=b"\x06" + key, hits=wire.int64(share + 1))
                sock.sendall(wire.notify(message))
                sock.recv(1 << 16)
                time.sleep(0.03)
                field = bytes(8) + key[::-1] + b"\xff\xff\0\0"
                found = redis.keys(f"{self.name}:*:hits:*")
                if any(redis.hexists(counts, field) for counts in cast("list[bytes]", found)):
                    return
                if time.monotonic() > deadline:
                    sys.exit(f"{self.name}: {address} shares no client")


@dataclass(frozen=True)
class Usage:
    """What a load of so many checks took; of Redis all is 0 where there is none."""

    checks: int
    agents: int  # CPU nanoseconds
    redis: int
    commands: int
    octets: int

    def per_check(self, value: float) -> float:
        return value / self.checks

    @property
    def agent_us(self) -> float:
        return self.agents / self.checks / 1000

    @property
    def redis_us(self) -> float:
        return self.redis / self.checks / 1000


class Meter:
    """Reads what a fleet and its Redis have used so far."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._start = self._read()

    def _read(self) -> tuple[int, int, int, int]:
        agents = self._fleet.cpu()
        server = self._fleet.server
        if server is None:
            return agents, 0, 0, 0
        assert server.process is not None
        with server.client() as client:
            commands = cast("dict[str, dict[str, int]]", client.info("commandstats"))
            stats = cast("dict[str, int]", client.info("stats"))
        # What the scripts call is counted there too.
        sent = sum(
            commands.get(f"cmdstat_{name}", {"calls": 0})["calls"]
            for name in ("evalsha", "eval", "ping")
        )
        octets = stats["total_net_input_bytes"] + stats["total_net_output_bytes"]
        return agents, Program(server.process, Path()).cpu(), sent, octets

    def usage(self, checks: int) -> Usage:
        return Usage(checks, *(b - a for a, b in zip(self._start, self._read(), strict=True)))


class Stream:
    """Frames of one size that go round, sent to one node at a steady rate.

    ``asked`` and ``received`` count frames and bytes of answers; any answer longer than
    ``ALLOWED_LONG`` is a refusal, which here shows in the bytes.
    """

    def __init__(self, address: str, frames: Frames, rate: float, place: int = 0) -> None:
        self.sock = harness.connect(address)
        self.rate = rate
        self.asked = 0
        self.received = 0
        self._frames = frames
        self._place = place % frames.count
        self._start = 0.0
        self._sent = 0

    def begin(self, now: float) -> None:
        self._start = now
        self._sent = 0

    def send(self, now: float) -> None:
        """Send what is due; nothing while the node is far behind."""
        due = int((now - self._start) * self.rate) - self._sent
        if self.asked - self.received // ALLOWED_LONG > 20_000:
            self._sent += due
            return
        size, count = self._frames.size, self._frames.count
        while due > 0:
            piece = min(due, count - self._place)
            self.sock.sendall(self._frames.data[self._place * size : (self._place + piece) * size])
            self._place = (self._place + piece) % count
            self._sent += piece
            self.asked += piece
            due -= piece

    def receive(self) -> None:
        self.received += len(self.sock.recv(1 << 18))

    @property
    def answered(self) -> bool:
        return self.received >= self.asked * ALLOWED_LONG

    @property
    def excess(self) -> int:
        """Bytes of refusals."""
        return self.received - self.asked * ALLOWED_LONG


def load(fleet: Fleet, streams: Sequence[Stream], seconds: float) -> Usage:
    """Send steady streams for a while, after they have gone on for more than a window."""
    clock = time.perf_counter
    by_sock = {stream.sock: stream for stream in streams}
    begin = clock()
    for stream in streams:
        stream.begin(begin)
    meter: Meter | None = None
    before = 0
    while True:
        now = clock()
        if meter is None and now - begin > _WARM_UP:
            meter, before = Meter(fleet), sum(stream.asked for stream in streams)
            now = clock()
        if now - begin > _WARM_UP + seconds:
            break
        for stream in streams:
            stream.send(now)
        while (left := now + TICK - clock()) > 0:
            for sock in select.select(list(by_sock), [], [], left)[0]:
                by_sock[sock].receive()
    assert meter is not None
    usage = meter.usage(sum(stream.asked for stream in streams) - before)
    drain(streams)
    return usage


def drain(streams: Sequence[Stream]) -> None:
    deadline = time.perf_counter() + _SILENCE
    by_sock = {stream.sock: stream for stream in streams}
    while not all(stream.answered for stream in streams):
        for sock in select.select(list(by_sock), [], [], 0.1)[0]:
            by_sock[sock].receive()
        if time.perf_counter() > deadline:
            sys.exit("an agent does not answer")


def frames_of(first: int, count: int, seed: int = 1) -> Frames:
    addresses = list(range(first, first + count))
    random.Random(seed).shuffle(addresses)
    return Frames.of(addresses)


def streams_to(fleet: Fleet, frames: Frames, rate: float) -> list[Stream]:
    """Return streams that send each client round all nodes, ``rate`` checks a second in all."""
    nodes = len(fleet.addresses)
    return [
        Stream(address, frames, rate / nodes, number * frames.count // nodes)
        for number, address in enumerate(fleet.addresses)
    ]
