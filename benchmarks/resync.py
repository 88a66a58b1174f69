"""What a HAProxy costs that connects again as a peer: time, and turns of the agent's event loop.

``python -m benchmarks.resync`` connects to an agent with 100,000 blocks as HAProxy does. An HAProxy
that comes back tells 1,000,000 entries, which the agent knows. An HAProxy that has started again
has none, and is taught all blocks. The longest turn is the longest time for which other work waits,
such as a question by SPOE.

The agent's loop never sleeps here, so that each turn begins at the end of the one before. Turns are
in CPU time; other work of the machine does not count.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

from benchmarks.harness import command, stored
from benchmarks.harness.edge import VERDICTS, Edge, counts, key
from benchmarks.harness.haproxy import NEVER
from benchmarks.harness.launch import Turns
from benchmarks.harness.programs import Programs, free_address, pin, progress, until
from benchmarks.harness.report import Column, Report, Table, Target
from benchmarks.harness.spop import CLIENTS, KNOWN, PLACES
from ratelimit.model import Block
from tests.helpers.peers_wire import ASK, update

BLOCKS = 100_000
RESYNC = 2.0
"""The most seconds of a resynchronisation."""
TAUGHT = 0.5
"""The most seconds until an HAProxy has all blocks."""
TURN = 1.0
"""The most milliseconds of a turn."""

_BLOCKED = 0x0B000000  # 11.0.0.0
_PATIENCE = 240  # seconds for the agent to read all blocks
_TOLD = b"\0\1"  # what the agent says when it has told all


@dataclass(frozen=True)
class Sample:
    """Seconds, the longest turn in milliseconds of CPU, and turns above a millisecond."""

    seconds: float
    longest: float
    long: int


def blocks(now: int) -> Iterator[Block]:
    rnd = random.Random(1)
    for n in range(BLOCKS):
        end = now + rnd.randrange(3600, 86_400)
        address = str(IPv4Address(_BLOCKED + n))
        yield Block(address, "default", "over 100 in 1s", 1, now, end, order=now * 1_000_000)


def entries() -> bytes:
    """Return all entries as HAProxy tells them at a resynchronisation."""
    told = (0, 1, 10, 1, 0, 1_000_000)
    return b"".join(update(n, key(KNOWN + n), *told, expire=60_000) for n in range(CLIENTS))


class Site:
    """The agent and the times of its turns."""

    def __init__(self, programs: Programs) -> None:
        self._path = str(programs.folder / "peers")
        server, _ = programs.redis()
        stored.write(server.url, blocks(int(time.time())))
        file = programs.folder / "turns"
        self.turns = Turns(file)
        config = f'peers = ["unix://{self._path}"]\nmax_clients = {CLIENTS}\n'
        config += f'[store]\nurl = "{server.url}"\n[limits.default]\nrate = {NEVER}\n'
        settings = {"BENCHMARK_TURNS": str(file)}
        self.agent = programs.agent("resync", "compiled", free_address(), config, settings)
        self.agent.pin(PLACES[next(reversed(PLACES))])
        until("all blocks are read", self._is_read, _PATIENCE, self.agent)

    def _is_read(self) -> bool:
        return bool(self.agent.logged('"store (reached|back)"'))

    def resync(self, told: bytes) -> Sample:
        """Connect again and tell all entries, until the agent has read them."""
        self.turns.clear()
        edge = Edge(self._path, counts())
        start = time.perf_counter()
        edge.send(told)
        edge.finish()
        return self._end(edge, start)

    def teach(self) -> Sample:
        """Start again, ask for all blocks, and wait for them."""
        self.turns.clear()
        edge = Edge(self._path, VERDICTS, "restarted")
        start = time.perf_counter()
        edge.finish()
        told = edge.controls[_TOLD[1]]
        edge.send(ASK)
        edge.until(lambda: edge.controls[_TOLD[1]] > told and edge.told >= BLOCKS)
        return self._end(edge, start)

    def _end(self, edge: Edge, start: float) -> Sample:
        seconds = time.perf_counter() - start
        edge.sock.close()
        return Sample(seconds, self.turns.longest, self.turns.long)


def run(programs: Programs, options: argparse.Namespace) -> Report:
    pin()
    site = Site(programs)
    progress("preparing")
    told = entries()
    # At first the agent learns all entries, and makes the table of verdicts.
    site.resync(told)
    site.teach()
    resync, teach = f"{CLIENTS:,} entries are told", f"{BLOCKS:,} blocks are taught"
    samples: dict[str, list[Sample]] = {resync: [], teach: []}
    for number in range(options.rounds):
        progress(f"round {number + 1} of {options.rounds}")
        samples[resync].append(site.resync(told))
        samples[teach].append(site.teach())
    columns = {
        "seconds": Column("seconds", "less"),
        "longest": Column("longest turn, ms of CPU", "less"),
        "long": Column("turns above 1 ms", "less", 0),
    }
    note = f"unix socket, {options.rounds} rounds; the agent knows {CLIENTS:,} clients and has "
    note += f"{BLOCKS:,} blocks"
    table = Table.measured("resync", note, columns, samples)
    targets = [
        Target(f"seconds, {name}", sorted(s.seconds for s in taken)[len(taken) // 2], bound)
        for (name, taken), bound in zip(samples.items(), (RESYNC, TAUGHT), strict=True)
    ]
    targets += [
        Target(f"ms of a turn, {name}", max(s.longest for s in taken), TURN)
        for name, taken in samples.items()
    ]
    return Report((table,), tuple(targets))


if __name__ == "__main__":
    command.main("resync", __doc__, run, rounds=(10, 3))
