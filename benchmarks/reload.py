"""Whether answers wait while the agent takes 100,000 networks anew.

``python -m benchmarks.reload`` sends an agent a steady load, one frame at a time on each of a few
connections, and tells it to reload. Each answer is timed, before and during the reload; both kinds
meet what else the machine does. Then it compares what an agent without lists and one with them
need in memory, and what a check costs with them.
"""

from __future__ import annotations

import random
import select
import signal
import time
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from benchmarks import command, harness
from benchmarks.harness import Figure, Program, Programs, Target
from benchmarks.report import Column, Report, Row, Table
from tests import wire

if TYPE_CHECKING:
    import argparse
    import socket

NETWORKS = 100_000
CONNECTIONS = 8
RATE = 2000  # checks a second on all connections
_ROUND = 4.0  # seconds of load around a reload
_MIB = 1 << 20


def networks(count: int, seed: int) -> list[str]:
    """Return different networks, of which none is one that the load comes from."""
    rnd = random.Random(seed)
    found: set[IPv4Network] = set()
    while len(found) < count:
        prefix = rnd.randrange(16, 33)
        address = rnd.randrange(0x20000000, 0xE0000000) >> (32 - prefix) << (32 - prefix)
        found.add(IPv4Network((address, prefix)))
    return [str(network) for network in found]


class Load:
    """Frames at a steady rate, each of a client of its own; answers are timed one by one."""

    def __init__(self, address: str) -> None:
        self._socks = [harness.connect(address) for _ in range(CONNECTIONS)]
        self._sent: dict[socket.socket, float] = {}
        self._next = 0

    def run(self, seconds: float, until: float = 0) -> list[tuple[float, float]]:
        """Return when each frame was sent, and how many seconds its answer took.

        Goes on for as long, and until the time has come that ``until`` says.
        """
        clock = time.perf_counter
        found: list[tuple[float, float]] = []
        begin = clock()
        count = 0
        while (now := clock()) - begin < seconds or now < until:
            due = int((now - begin) * RATE) - count
            for sock in self._socks:
                if due > 0 and sock not in self._sent:
                    self._next += 1
                    key = b"\x06" + (0x0A000000 + self._next % 100_000).to_bytes(4)
                    self._sent[sock] = clock()
                    sock.sendall(wire.notify(wire.message("default", key=key)))
                    count += 1
                    due -= 1
            for sock in select.select(self._socks, [], [], 0.0002)[0]:
                sock.recv(1 << 16)
                sent = self._sent.pop(sock)
                found.append((sent, clock() - sent))
        return found

    def close(self) -> None:
        for sock in self._socks:
            sock.close()


def worst(answers: list[tuple[float, float]]) -> float:
    """Return milliseconds of the slowest answer."""
    return 1000 * max(took for _, took in answers)


def reload(program: Program, load: Load, number: int) -> tuple[float, float, float]:
    """Return the slowest answer before and during a reload, and how long that took in seconds."""
    before = worst(load.run(_ROUND / 2))
    start = time.perf_counter()
    program.process.send_signal(signal.SIGHUP)
    during: list[tuple[float, float]] = []
    while program.log.read_text().count("configuration reloaded") < number:
        during += load.run(0.05)
    took = time.perf_counter() - start
    during += load.run(_ROUND / 4)
    return before, worst(during), took


def run(programs: Programs, options: argparse.Namespace) -> Report:
    rounds = options.rounds
    deny = programs.folder / "deny.lst"
    address = harness.free_address()
    config = f'[lists]\ndeny_files = ["{deny}"]\n'
    deny.write_text("\n".join(networks(NETWORKS, 0)))
    program = programs.agent("listed", "compiled", address, config)
    load = Load(address)
    load.run(1)
    taken = []
    for number in range(1, rounds + 1):
        harness.progress(f"reload {number} of {rounds}")
        deny.write_text("\n".join(networks(NETWORKS, number)))
        taken.append(reload(program, load, number))
    listed = program.rss()
    load.close()
    program.stop()
    bare = programs.agent("bare", "compiled", harness.free_address())
    memory = (listed - bare.rss()) / _MIB
    delay = Figure.of(during - before for before, during, _ in taken)
    seconds = Figure.of(took for _, _, took in taken)
    table = Table(
        "reload",
        f"{NETWORKS:,} networks, {RATE:,} checks a second, {rounds} reloads",
        (Column("median (least-greatest)", "less"),),
        (
            Row.of("slowest answer before, ms", Figure.of(before for before, _, _ in taken)),
            Row.of("slowest answer during a reload, ms", Figure.of(d for _, d, _ in taken)),
            Row.of("the one above the other, ms", delay),
            Row.of("a reload, s", seconds),
            Row.of("memory for the lists, MiB", memory),
        ),
        drawn=False,
    )
    targets = (
        Target("answers delayed by a reload, ms", delay.median, 5, at_most=True),
        Target("a reload, s", seconds.median, 2, at_most=True),
        Target("memory for the lists, MiB", memory, 64, at_most=True),
    )
    return Report((table,), targets)


if __name__ == "__main__":
    command.main("reload", __doc__, run, rounds=(15, 5))
