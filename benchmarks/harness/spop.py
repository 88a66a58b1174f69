"""NOTIFY frames for an agent, as HAProxy sends them, and the full load of one agent."""

from __future__ import annotations

import functools
import random
import select
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

from benchmarks.harness.haproxy import ALLOWING
from benchmarks.harness.programs import CORES, Form, Programs, connect, free_address
from tests.helpers import wire

DEPTHS = (1, 8, 64)
"""Frames in flight on a connection."""

DEPTH = max(DEPTHS)
CONNECTIONS = 4
CLIENTS = 1_000_000
"""The size of the table of an agent under full load."""

ADDRESSES = 100_000
KNOWN = 0x0A000000
"""10.0.0.0: the addresses that come again and again."""

NETWORKS = 100_000
"""Entries of a long list."""

PLACES = {"one core": CORES[-1], "two cores": CORES[0]} if CORES[1:] else {"one core": CORES[0]}
"""The core of the agent; this program is on the last core."""

_FIRST_STREAM, _STREAMS = 240, 2048  # ids that take two bytes on the wire
_SILENCE = 5  # seconds without an answer after which a load is given up
_AT_ONCE = 50  # checks whose answers are awaited together


@dataclass(frozen=True)
class Frames:
    """NOTIFY frames of one size in one buffer; the first few follow again after the last."""

    data: memoryview
    count: int
    size: int

    @classmethod
    def of(
        cls, addresses: Sequence[int], limits: Sequence[str] = ("default",), **arguments: bytes
    ) -> Frames:
        """Build one frame for each IPv4 address, with a message for each limit."""
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
        built += built[:DEPTH]
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
    """A connection to the agent, and its place in the frames."""

    def __init__(self, address: str) -> None:
        self.sock = connect(address)
        self.place = 0  # of the next frame, in bytes
        self.left = 0  # frames still to be sent
        self.flying = 0  # frames not yet answered
        self.part = 0  # bytes of an answer that is incomplete


class Bench:
    """An agent and the connections that load it."""

    def __init__(
        self,
        programs: Programs,
        name: str,
        form: Form = "compiled",
        unix: bool = False,
        config: str = ALLOWING,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.address = address = str(programs.folder / f"{name}.spop") if unix else free_address()
        self.name = name
        self.form = form
        config = f"max_clients = {CLIENTS}\n{config}"
        self.program = programs.agent(name, form, address, config, settings)
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
        self.program.pin(PLACES[place])

    def probe(self, frames: Frames, refused: bool = False) -> None:
        """Send the first frame and examine its answer; all others have the same size."""
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

    def load(
        self, frames: Frames, depth: int, seconds: float = 3600, checks: int = sys.maxsize
    ) -> Sample:
        """Keep ``depth`` frames in flight on each connection, for a time or a number of checks."""
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
        """End the agent and compare its count of checks with the number of frames."""
        for peer in self._peers.values():
            peer.sock.close()
        self._poll.close()
        self.program.stop()
        if self.form != "ack" and self.checks != self.program.checks():
            sys.exit(f"{self.name}: {self.checks} frames, {self.program.checks()} checks")


def known(limits: tuple[str, ...] = ("default",)) -> Frames:
    """Return the frames of the addresses that come again and again, in random order."""
    return shuffled(KNOWN, ADDRESSES, limits)


@functools.cache
def shuffled(first: int, count: int, limits: tuple[str, ...] = ("default",)) -> Frames:
    """Return the frames of so many addresses in random order."""
    addresses = list(range(first, first + count))
    random.Random(1).shuffle(addresses)
    return Frames.of(addresses, limits)


def block(address: str, first: int, count: int, limit: str) -> None:
    """Block so many clients, a multiple of 50, by two hits each at a limit with rate 1."""
    frames = Frames.of(range(first, first + count), (limit,), hits=wire.int64(2))
    size = _AT_ONCE * frames.size
    with connect(address) as sock:
        for start in range(0, count * frames.size, size):
            sock.sendall(frames.data[start : start + size])
            answers = b""
            while answers.count(b"block_until") < _AT_ONCE:
                answers += sock.recv(1 << 16)


class Probe:
    """A connection with one question at a time; ``seconds`` are the times of the answers."""

    def __init__(self, address: str) -> None:
        self.sock = connect(address)
        self.seconds: list[float] = []
        self.asked: float | None = None

    def send(self, client: int, hits: int = 1) -> None:
        """Ask about an IPv4 address."""
        self.asked = time.perf_counter()
        self.sock.sendall(question(client, hits))

    def receive(self) -> wire.Frame:
        """Return the answer."""
        (answer,) = wire.frames(self.sock.recv(1 << 16))
        assert self.asked is not None
        self.seconds.append(time.perf_counter() - self.asked)
        self.asked = None
        return answer

    def refuses(self, client: int, hits: int) -> bool:
        """Ask, and tell whether the client is refused."""
        self.send(client, hits)
        return "deny" in self.receive().items


def question(client: int, hits: int = 1) -> bytes:
    """Return a frame with hits of an IPv4 address."""
    key = b"\x06" + client.to_bytes(4)
    return wire.notify(wire.message("default", key=key, hits=wire.int64(hits)))


def networks(count: int, seed: int) -> list[str]:
    """Return different networks, which contain no address of a load."""
    rnd = random.Random(seed)
    found: set[IPv4Network] = set()
    while len(found) < count:
        prefix = rnd.randrange(16, 33)
        address = rnd.randrange(0x20000000, 0xE0000000) >> (32 - prefix) << (32 - prefix)
        found.add(IPv4Network((address, prefix)))
    return [str(network) for network in found]
