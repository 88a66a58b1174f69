"""What a check costs the agent, socket to socket, without HAProxy.

``python -m benchmarks.agent`` sends pre-built NOTIFY frames over a few connections, so many in
flight on each, and counts the bytes that come back. The compiled agent, the plain one, and one
that only acknowledges take turns, so that whatever else the machine does meets all of them. CPU
times are the agent's own, user and system, as the kernel's scheduler accounts them.

Both ends share one core, where what they exchange is in its cache and no other core is woken up,
and then have a core each, as HAProxy and its agent have when both are busy. They are pinned, for
else the kernel changes from one to the other as it likes.

"All in use" is an agent that does for a check whatever it can do: three limits, 100,000 networks
on the allow list, ``headers = true``, and Redis, by which two agents (one on TCP, one on a unix
socket) share the counts of 100 clients from which every tenth request comes.

``--limits`` instead compares frames that ask for one limit with such that ask for three, and with
an agent that has 100,000 networks in its lists or tells all clients what is left. ``--start``
measures the time from the start of the process to its first answer.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from benchmarks import command, harness
from benchmarks.harness import CORES, Figure, Programs, Target
from benchmarks.reload import NETWORKS, networks
from benchmarks.report import Column, Report, Row, Table
from tests.helpers import wire
from tests.helpers.servers import PROGRAM, Server

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from benchmarks.harness import Form

DEPTHS = (1, 8, 64)
ADDRESSES = 100_000
CLIENTS = 1_000_000
CONNECTIONS = 4

_HIGH = 10_000_000
ALLOWING = f"[limits.default]\nrate = {_HIGH}\nblock = []\n"
REFUSING = '[limits.default]\nrate = 1\nblock = ["1h"]\nfuse = 0\n'

PLACES = {"one core": CORES[-1], "two cores": CORES[0]} if CORES[1:] else {"one core": CORES[0]}
"""Where the agent runs; this program is on the last core."""

BOUNDS = {8: 1.0, 64: 0.4}
"""The most CPU microseconds that a check may cost with all in use, by frames in flight."""

RATE = 1_000_000
"""The least checks a second of one agent with all in use."""

_REFUSED = ", all refused"
_IN_USE = "compiled, all in use"
_NAMES = ("default", "sign-in", "api-key")  # as long as each other: all frames have one size
_BUSY = 100  # clients that the nodes share
_KNOWN = 0x0A000000  # 10.0.0.0: the addresses that come again and again
_FIRST_STREAM, _STREAMS = 240, 2048  # ids that take two bytes on the wire
_SILENCE = 5  # seconds without an answer after which a load is given up


@dataclass(frozen=True)
class Frames:
    """NOTIFY frames of one size in one piece; the first few follow again after the last."""

    data: memoryview
    count: int
    size: int

    @classmethod
    def of(
        cls, addresses: Sequence[int], limits: Sequence[str] = ("default",), **arguments: bytes
    ) -> Frames:
        """Build one frame for each IPv4 address, that asks for each limit."""
        address = wire.address("0.0.0.0")
        messages = [wire.message(limit, **arguments, key=address) for limit in limits]
        heads = [
            wire.notify(*messages, ids=(stream, 1))[: -len(b"".join(messages))] + messages[0][:-4]
            for stream in range(_FIRST_STREAM, _FIRST_STREAM + _STREAMS)
        ]
        rest = [message[:-4] for message in messages[1:]]
        built = [
            heads[i % _STREAMS] + a.to_bytes(4).join([b"", *rest, b""])
            for i, a in enumerate(addresses)
        ]
        built += built[: max(DEPTHS)]
        return cls(memoryview(b"".join(built)), len(addresses), len(built[0]))


@dataclass(frozen=True)
class Sample:
    """One load: checks, seconds, and the CPU nanoseconds of the agent and of this program."""

    checks: int
    seconds: float
    cpu: int
    own: int

    @property
    def rate(self) -> float:
        return self.checks / self.seconds

    @property
    def cost(self) -> float:
        """Microseconds of the agent's CPU per check."""
        return self.cpu / self.checks / 1000


class _Peer:
    """A connection to the agent, and where it is in its frames."""

    def __init__(self, address: str) -> None:
        self.sock = harness.connect(address)
        self.place = 0  # of the next frame, in bytes
        self.left = 0  # frames still to be sent
        self.flying = 0  # frames not yet answered
        self.part = 0  # bytes of an answer of which the rest has not come


class Bench:
    """An agent, the connections to it, and what its answers look like."""

    def __init__(
        self, programs: Programs, name: str, form: Form, unix: bool, config: str = ALLOWING
    ) -> None:
        address = _address(programs, name, unix)
        self.name = name
        self.form = form
        self.program = programs.agent(name, form, address, f"max_clients = {CLIENTS}\n{config}")
        self.checks = 0
        self._buffer = bytearray(1 << 20)
        self._poll = select.epoll()
        self._peers: dict[int, _Peer] = {}
        for _ in range(CONNECTIONS):
            peer = _Peer(address)
            self._peers[peer.sock.fileno()] = peer
            self._poll.register(peer.sock, select.EPOLLIN)
        self._answer_size = 0

    def move(self, place: str) -> None:
        os.sched_setaffinity(self.program.pid, {PLACES[place]})

    def probe(self, frames: Frames, refused: bool = False) -> None:
        """Send the first frame and look closely at its answer; all the others are of its size."""
        sock = next(iter(self._peers.values())).sock
        sock.settimeout(_SILENCE)
        sock.sendall(frames.data[: frames.size])
        answer = sock.recv(1 << 16)
        (ack,) = wire.frames(answer)
        if ack.ids != (_FIRST_STREAM, 1) or ("deny" in ack.items) != refused:
            sys.exit(f"{self.name}: answers {ack}")
        self._answer_size = len(answer)
        self.checks += 1
        for peer in self._peers.values():
            peer.sock.setblocking(False)

    def ask(self, message: bytes) -> None:
        """Send one message in a frame and wait for the answer."""
        sock = next(iter(self._peers.values())).sock
        sock.setblocking(True)
        sock.sendall(wire.notify(message))
        wire.frames(sock.recv(1 << 16))
        sock.setblocking(False)
        self.checks += 1

    def load(
        self, frames: Frames, depth: int, seconds: float = 3600, checks: int = sys.maxsize
    ) -> Sample:
        """Keep ``depth`` frames in flight on each connection, for a time or so many checks."""
        peers = self._peers
        each = checks // len(peers)
        answer_size = self._answer_size
        frame_size = frames.size
        data = frames.data
        end = frames.count * frame_size
        poll = self._poll.poll
        buffer = self._buffer
        clock = time.perf_counter
        sent = 0
        cpu = self.program.cpu()
        own = time.process_time_ns()
        start = clock()
        for i, peer in enumerate(peers.values()):
            first = i * (frames.count // len(peers)) * frame_size
            size = depth * frame_size
            peer.sock.send(data[first : first + size])
            peer.place = (first + size) % end
            peer.left = each - depth
            peer.flying = depth
            sent += depth
        busy = len(peers)
        while busy:
            events = poll(_SILENCE)
            if not events:
                sys.exit(f"{self.name}: no answer for {_SILENCE} s")
            over = clock() - start > seconds
            for number, _ in events:
                peer = peers[number]
                received = peer.sock.recv_into(buffer)
                if not received:
                    sys.exit(f"{self.name}: the agent closed a connection")
                answers, peer.part = divmod(peer.part + received, answer_size)
                count = 0 if over else min(answers, peer.left)
                peer.flying += count - answers
                if count:
                    place = peer.place
                    size = count * frame_size
                    if peer.sock.send(data[place : place + size]) != size:
                        sys.exit(f"{self.name}: the agent does not read")
                    place += size
                    peer.place = place if place < end else place - end
                    peer.left -= count
                    sent += count
                elif not peer.flying:
                    busy -= 1
        elapsed = clock() - start
        self.checks += sent
        own = time.process_time_ns() - own
        return Sample(sent, elapsed, self.program.cpu() - cpu, own)

    def finish(self) -> None:
        """End the agent and compare what it counted with what it was asked."""
        for peer in self._peers.values():
            peer.sock.close()
        self._poll.close()
        self.program.stop()
        if self.form != "ack" and self.checks != self.program.checks():
            sys.exit(f"{self.name}: {self.checks} asked, {self.program.checks()} checked")


def pin() -> None:
    """Put this program on the core where it is to stay."""
    os.sched_setaffinity(0, {CORES[-1]})


def _address(programs: Programs, name: str, unix: bool) -> str:
    return str(programs.folder / f"{name}.sock") if unix else harness.free_address()


def known(limits: Sequence[str] = ("default",)) -> Frames:
    """Return the frames of the addresses that come again and again, in no order."""
    addresses = [_KNOWN + i for i in range(ADDRESSES)]
    random.Random(1).shuffle(addresses)
    return Frames.of(addresses, limits)


def mixed() -> Frames:
    """Return such frames of which each asks for one of three limits, most for the same.

    Every tenth is of a busy client, of which there are few.
    """
    parts = [known((name,)) for name in _NAMES]
    busy = Frames.of(range(_KNOWN, _KNOWN + _BUSY), _NAMES[:1])
    size = busy.size
    built = []
    for i in range(ADDRESSES + max(DEPTHS)):
        part = {7: busy, 8: parts[1], 9: parts[2]}.get(i % 10, parts[0])
        start = (i // 10 % _BUSY if part is busy else i % ADDRESSES) * size
        built.append(part.data[start : start + size])
    return Frames(memoryview(b"".join(built)), ADDRESSES, size)


class Fleet:
    """Two agents with all in use, that share clients by Redis; ``benches`` load them."""

    def __init__(self, programs: Programs, server: Server) -> None:
        self.server = server
        lists = programs.folder / "in-use.lst"
        lists.write_text("\n".join(networks(NETWORKS, 1)))
        config = f'[store]\nurl = "{server.url}"\n[lists]\nallow_files = ["{lists}"]\n'
        for name in _NAMES:
            config += f"[limits.{name}]\nrate = {_HIGH}\n"
            config += 'window = "1h"\nblock = []\nheaders = true\n'
        self.benches = [
            Bench(programs, _IN_USE, "compiled", unix=False, config=config),
            Bench(programs, f"{_IN_USE}, unix", "compiled", unix=True, config=config),
        ]

    def warm(self, frames: Frames) -> None:
        """Have the agents share the busy clients, and know the others."""
        # More than one of two nodes' part of the limit, and much less than the limit for both.
        hits = wire.int64(_HIGH * 3 // 10)
        busy = Frames.of(range(_KNOWN, _KNOWN + _BUSY), hits=hits)
        for bench in self.benches:
            bench.probe(frames)
            for number in range(_SILENCE * 10):
                if self._shared(1):
                    break
                # Until the nodes know of each other, they share nobody.
                bench.ask(wire.message("default", key=b"\x06" + number.to_bytes(4), hits=hits))
                time.sleep(0.1)
            bench.load(busy, min(DEPTHS), checks=_BUSY)
            bench.load(frames, max(DEPTHS), checks=ADDRESSES)
        deadline = time.monotonic() + _SILENCE
        while not self._shared(_BUSY):
            if time.monotonic() > deadline:
                sys.exit(f"the agents do not share {_BUSY} clients")
            time.sleep(0.05)

    def _shared(self, clients: int) -> bool:
        with self.server.client() as redis:
            keys = cast("list[bytes]", redis.keys("*:hits:*"))
            fields = [cast("list[bytes]", redis.hkeys(key)) for key in keys]
        return len({field[:16] for some in fields for field in some}) >= clients


def run_load(programs: Programs, rounds: int, seconds: float, unix: bool) -> Report:
    """Load all agents in turns, at each depth and place."""
    if PROGRAM is None:
        sys.exit("there is no redis-server: apt-get install redis-server")
    with contextlib.ExitStack() as stack:
        server = Server(programs.folder)
        stack.callback(server.kill)
        server.start()
        return _run_load(programs, server, rounds, seconds, unix)


def _run_load(
    programs: Programs, server: Server, rounds: int, seconds: float, unix: bool
) -> Report:
    frames = known()
    turns: list[tuple[Bench, Frames, int]] = []
    for form in ("compiled", "plain", "ack"):
        bench = Bench(programs, form, form, unix)
        bench.probe(frames)
        bench.load(frames, max(DEPTHS), checks=ADDRESSES)
        turns += [(bench, frames, depth) for depth in DEPTHS]
    fleet = Fleet(programs, server)
    mix = mixed()
    fleet.warm(mix)
    turns += [(bench, mix, depth) for bench in fleet.benches for depth in DEPTHS]
    over = Frames.of([_KNOWN + i for i in range(ADDRESSES)], hits=wire.int64(2))
    for form in ("compiled", "plain"):
        bench = Bench(programs, f"{form}{_REFUSED}", form, unix, REFUSING)
        bench.probe(over, refused=True)
        bench.load(over, max(DEPTHS), checks=ADDRESSES)
        turns.append((bench, over, max(DEPTHS)))
    samples: dict[tuple[str, str, int], list[Sample]] = {}
    for number in range(rounds):
        harness.progress(f"round {number + 1} of {rounds}")
        for place in PLACES:
            for bench, asked, depth in turns:
                bench.move(place)
                taken = samples.setdefault((place, bench.name, depth), [])
                taken.append(bench.load(asked, depth, seconds))
    for bench in dict.fromkeys(bench for bench, *_ in turns):
        bench.finish()

    note = f"{CONNECTIONS} {'unix' if unix else 'tcp'} connections, {ADDRESSES:,} addresses, "
    note += f"{rounds} rounds of {seconds:g} s: median (least-greatest). Busy is how much of the "
    note += "time each ran: an agent that ran for less than its whole core, or its share of one, "
    note += "waited for work, and can do more checks a second"
    columns = (
        Column("checks a second", "more", 0),
        Column("CPU us a check", "less", 3),
        Column("plain to compiled", digits=1),
        Column("agent busy, %", digits=0),
        Column("loader busy, %", digits=0),
    )
    rows: dict[str, list[Row]] = {place: [] for place in PLACES}
    targets = []
    for (place, name, depth), taken in samples.items():
        cost = Figure.of(s.cost for s in taken)
        ratio = None
        if name.startswith("compiled") and not name.startswith(_IN_USE):
            plain = samples[place, name.replace("compiled", "plain"), depth]
            ratio = Figure.of(p.cost / c.cost for p, c in zip(plain, taken, strict=True))
        rows[place].append(
            Row.of(
                f"{name}, {depth} in flight",
                Figure.of(s.rate for s in taken),
                cost,
                ratio,
                Figure.of(100 * s.cpu / s.seconds / 1e9 for s in taken),
                Figure.of(100 * s.own / s.seconds / 1e9 for s in taken),
            )
        )
        title = f"{name}, {depth} in flight, {place}"
        if name.startswith(_IN_USE) and depth in BOUNDS:
            targets.append(Target(f"CPU us a check, {title}", cost.median, BOUNDS[depth], True))
        if name.startswith(_IN_USE) and depth == max(DEPTHS):
            rate = Figure.of(s.rate for s in taken)
            targets.append(Target(f"checks a second, {title}", rate.median, RATE, at_most=False))
        if name == "compiled" and depth == max(DEPTHS) and ratio:
            targets.append(Target(f"plain to {title}", ratio.median, 10, at_most=False))
    tables = (Table(place, note, columns, tuple(those)) for place, those in rows.items())
    return Report(tuple(tables), tuple(targets))


def run_limits(programs: Programs, rounds: int, seconds: float, unix: bool) -> Report:
    """Load agents in turns that have more to do for a frame than to count one client once."""
    names = ("default", "login", "api")
    three = "".join(f"[limits.{name}]\nrate = 10_000_000\nblock = []\n" for name in names)
    lists = programs.folder / "allow.lst"
    lists.write_text("\n".join(networks(NETWORKS, 1)))
    listed = f'[lists]\nallow_files = ["{lists}"]\n'
    one, all_three = known(), known(names)
    turns: dict[str, tuple[Bench, Frames]] = {}
    for name, config, frames in (
        ("one limit", ALLOWING, one),
        ("three limits in a frame", three, all_three),
        (
            f"one, {NETWORKS:,} networks listed",
            f"{ALLOWING}{listed}",
            one,
        ),
        ("one, headers = true", f"{ALLOWING}headers = true\n", one),
    ):
        bench = Bench(programs, name, "compiled", unix, config)
        bench.move(next(iter(PLACES)))
        bench.probe(frames)
        bench.load(frames, max(DEPTHS), checks=ADDRESSES)
        turns[name] = bench, frames
    rows = []
    targets = []
    for depth in (8, 64):
        costs: dict[str, list[float]] = {name: [] for name in turns}
        for number in range(rounds):
            harness.progress(f"{depth} in flight, round {number + 1} of {rounds}")
            for name, (bench, frames) in turns.items():
                costs[name].append(bench.load(frames, depth, seconds).cost)
        for name, taken in costs.items():
            cost = Figure.of(taken)
            ratio = Figure.of(b / a for a, b in zip(costs["one limit"], taken, strict=True))
            rows.append(Row.of(f"{name}, {depth} in flight", cost, ratio))
            if name == "three limits in a frame":
                title = f"CPU a frame, three limits to one, {depth} in flight"
                targets.append(Target(title, ratio.median, 2, at_most=True))
    columns = (Column("CPU us a frame", "less", 3), Column("to one limit", "less"))
    note = f"{rounds} rounds of {seconds:g} s: median (least-greatest)"
    return Report((Table("limits", note, columns, tuple(rows)),), tuple(targets))


def run_start(programs: Programs, rounds: int, unix: bool) -> Report:
    """Start agents one after the other and wait for the first answer of each."""
    frames = Frames.of([_KNOWN])
    taken: dict[Form, list[float]] = {"compiled": [], "plain": []}
    for number in range(rounds):
        for form, times in taken.items():
            name = f"{form}{number}"
            address = _address(programs, name, unix)
            start = time.perf_counter()
            program = programs.agent(name, form, address, f"max_clients = {CLIENTS}\n{ALLOWING}")
            with harness.connect(address) as sock:
                sock.sendall(frames.data[: frames.size])
                wire.frames(sock.recv(1 << 16))
            times.append(time.perf_counter() - start)
            program.stop()
    figures = {form: Figure.of(times) for form, times in taken.items()}
    targets = [
        Target(f"seconds to the first answer, {form}", figure.median, 1, at_most=True)
        for form, figure in figures.items()
    ]
    note = f"from the start of the process to its first answer, {rounds} times"
    rows = tuple(Row.of(form, figure) for form, figure in figures.items())
    return Report((Table("start", note, (Column("seconds", "less"),), rows),), tuple(targets))


def arguments(parser: argparse.ArgumentParser) -> None:
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--limits", action="store_true", help="three limits, lists, headers instead")
    mode.add_argument("--start", action="store_true", help="measure the start instead")
    parser.add_argument("--unix", action="store_true", help="unix sockets instead of TCP")


def run(programs: Programs, options: argparse.Namespace) -> Report:
    if options.start:
        return run_start(programs, options.rounds, options.unix)
    pin()
    measure = run_limits if options.limits else run_load
    return measure(programs, options.rounds, options.seconds, options.unix)


if __name__ == "__main__":
    command.main("agent", __doc__, run, rounds=(7, 3), seconds=(0.4, 0.2), arguments=arguments)
