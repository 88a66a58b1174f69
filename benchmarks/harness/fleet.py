"""A fleet: agents that share a Redis, steady loads for them, and the cost of these."""

from __future__ import annotations

import itertools
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from benchmarks.harness.programs import Program, Programs, connect, free_address, until
from benchmarks.harness.spop import Frames, Probe, shuffled
from tests.helpers import wire
from tests.helpers.servers import Server

RATE = 100  # hits a second, the default limit
LIGHT_CLIENTS = 100_000
HEAVY_CLIENTS = 100
HEAVY_RATE = 0.9 * RATE
"""Hits a second of a heavy client: close to its limit."""

LIGHT = 0x0A000000  # 10.0.0.0 on
HEAVY = 0x0B000000
TICK = 0.001  # seconds between pieces of a steady stream
ALLOWED_LONG = len(wire.frame(wire.ACK, b"", (240, 1)))
"""Bytes of an answer without variables, with ids of the size that ``Frames`` uses."""

_MAX_CLIENTS = 200_000
_SILENCE = 5.0
_WARM_UP = 1.2
_strangers = itertools.count(0x0D000000)  # clients that show whether a node shares


class Fleet:
    """Agents that share a Redis, or a store with another ``url``.

    HAProxy reaches the nodes at ``addresses`` by SPOE, and at ``peers`` as a peer.

    ``limit`` is further configuration of the limit.
    """

    def __init__(
        self,
        programs: Programs,
        name: str,
        nodes: int,
        server: Server | None,
        interval: str = "10ms",
        url: str = "memory://",
        settings: Mapping[str, str] | None = None,
        limit: str = "",
    ) -> None:
        self.name = name
        self.server = server
        self.agents: list[Program] = []
        self.addresses = [free_address() for _ in range(nodes)]
        self.peers = [str(programs.folder / f"{name}-{n}.peers") for n in range(nodes)]
        for number, address in enumerate(self.addresses):
            node = f"{name}-{number}"
            config = (
                f'max_clients = {_MAX_CLIENTS}\npeers = ["unix://{self.peers[number]}"]\n[store]\n'
                f'url = "{server.url if server else url}"\nprefix = "{name}"\n'
                f'state_dir = "{programs.folder / node}"\nsync_interval = "{interval}"\n'
                f"[limits.default]\nrate = {RATE}\n{limit}\n"
            )
            self.agents.append(programs.agent(node, "compiled", address, config, settings))
        if server is not None and nodes > 1:
            for address in self.addresses:
                await_sharing(server, address, RATE // (2 * nodes) + 1)

    def cpu(self) -> int:
        return sum(agent.cpu() for agent in self.agents)

    def stop(self) -> None:
        for agent in self.agents:
            agent.process.terminate()
        for agent in self.agents:
            agent.stop()

    def streams(self, first: int, clients: int, rate: float) -> list[Stream]:
        """Return streams that send each client round all nodes, ``rate`` checks a second in all."""
        frames, nodes = shuffled(first, clients), len(self.addresses)
        return [
            Stream(address, frames, rate / nodes, number * frames.count // nodes)
            for number, address in enumerate(self.addresses)
        ]

    def mix(self, light: float) -> list[Stream]:
        """Return streams of the light clients, so many checks a second, and of the heavy ones."""
        heavy = self.streams(HEAVY, HEAVY_CLIENTS, HEAVY_RATE * HEAVY_CLIENTS)
        return [*self.streams(LIGHT, LIGHT_CLIENTS, light), *heavy]


def await_sharing(server: Server, address: str, hits: int) -> int:
    """Wait until a node shares clients with all the others; return the number of checks.

    It then reports a client with so many hits, just more than its share, to Redis.
    """
    probe = Probe(address)

    def shares() -> bool:
        number = next(_strangers)
        probe.refuses(number, hits)
        time.sleep(0.03)
        field = bytes(8) + number.to_bytes(4, "little") + b"\xff\xff\0\0"
        with server.client() as redis:
            counts = cast("list[bytes]", redis.keys("*:hits:*"))
            return any(redis.hexists(key, field) for key in counts)

    until(f"{address} shares clients", shares)
    probe.sock.close()
    return len(probe.seconds)


@dataclass(frozen=True)
class Usage:
    """The cost of a load of so many checks; the figures of Redis are 0 without one."""

    checks: int
    agents: int  # CPU nanoseconds
    redis: int
    commands: int
    octets: int

    @property
    def commands_a_check(self) -> float:
        return self.commands / self.checks

    @property
    def octets_a_check(self) -> float:
        return self.octets / self.checks

    @property
    def agent_us(self) -> float:
        return self.agents / self.checks / 1000

    @property
    def redis_us(self) -> float:
        return self.redis / self.checks / 1000


class Meter:
    """The use of CPU and network by a fleet and its Redis since the start of the meter."""

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
        # Commands called by scripts are counted there too.
        sent = sum(
            commands.get(f"cmdstat_{name}", {"calls": 0})["calls"]
            for name in ("evalsha", "eval", "ping")
        )
        octets = stats["total_net_input_bytes"] + stats["total_net_output_bytes"]
        return agents, Program(server.process).cpu(), sent, octets

    def usage(self, checks: int) -> Usage:
        return Usage(checks, *(b - a for a, b in zip(self._start, self._read(), strict=True)))


class Stream:
    """Frames of one size, sent again and again to one node at a steady rate.

    ``asked`` and ``received`` count frames and bytes of answers; any answer longer than
    ``ALLOWED_LONG`` is a refusal.
    """

    def __init__(self, address: str, frames: Frames, rate: float, place: int = 0) -> None:
        self.sock = connect(address)
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
        """Send the frames that are due; none while the node is far behind."""
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


def keep_busy(
    streams: Sequence[Stream],
    receivers: Mapping[int, Callable[[], object]],
    end: Callable[[], bool],
) -> Iterator[float]:
    """Send the streams until the end; yield the time every millisecond.

    ``receivers`` take what comes on further descriptors.
    """
    taking = {stream.sock.fileno(): stream.receive for stream in streams} | dict(receivers)
    while not end():
        now = time.perf_counter()
        yield now
        for stream in streams:
            stream.send(now)
        while (left := now + TICK - time.perf_counter()) > 0:
            for number in select.select(list(taking), [], [], left)[0]:
                taking[number]()


def load(fleet: Fleet, streams: Sequence[Stream], seconds: float) -> Usage:
    """Send steady streams for more than a window and then for so long; close them."""
    begin = time.perf_counter()
    for stream in streams:
        stream.begin(begin)
    for _ in keep_busy(streams, {}, lambda: time.perf_counter() - begin > _WARM_UP):
        pass
    meter, before = Meter(fleet), sum(stream.asked for stream in streams)
    end = time.perf_counter() + seconds
    for _ in keep_busy(streams, {}, lambda: time.perf_counter() > end):
        pass
    usage = meter.usage(sum(stream.asked for stream in streams) - before)
    drain(streams)
    return usage


def drain(streams: Sequence[Stream]) -> None:
    """Wait for all answers and close the connections."""
    deadline = time.perf_counter() + _SILENCE
    by_sock = {stream.sock: stream for stream in streams}
    while not all(stream.answered for stream in streams):
        for sock in select.select(list(by_sock), [], [], 0.1)[0]:
            by_sock[sock].receive()
        if time.perf_counter() > deadline:
            sys.exit("an agent does not answer")
    for stream in streams:
        stream.sock.close()
