"""This limiter beside what else a user would run: how fast, how dear, how exact.

``python -m benchmarks.peers`` puts limiters in front of the same application in turns, and loads
them with wrk: with traffic that no limit refuses, then with one client that is far above a limit of
100 a second. The CPU time is of all processes but wrk: limiter, application, Redis. Every HAProxy
has one thread, nginx and aiohttp are one process. HAProxy and nginx log each request, aiohttp none.

Two applications: a HAProxy that answers at once, for limiters that stand before an application; and
aiohttp, for the library ``limits``, which an application calls by itself.

How exact: clients at twice the limit at random (Poisson), and others that send 80 requests within
80 ms, once in each second at a random moment, with limits that do not block. No second should see
more than 100 let through. A refusal is wrong if fewer than 100 requests, refused ones too, had come
in the second before. Neither depends on whether a limiter counts what it refuses.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvloop

from benchmarks import accuracy, command, harness, wrk
from benchmarks.end_to_end import APPLICATION, COMPARISON, NEVER, SHIPPED, HAProxy
from benchmarks.harness import Figure, Programs
from benchmarks.report import Column, Report, Row, Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from benchmarks.harness import Form, Program

RATE = accuracy.RATE
CLIENTS = 4
"""Of each kind, all at the same time."""

_ASKED = 0.99  # of the requests, at least; a busy machine keeps the agent from answering some
_EDGE = 0.002  # seconds by which a limiter's clock may see a request later than its sender's
_GIVE_UP = 10  # seconds beyond the end of a client's requests

ALLOWED = f"[limits.default]\nrate = {NEVER}\nblock = []\n"
REFUSED = f'[limits.default]\nrate = {RATE}\nblock = ["1h"]\n'
COUNTED = f"[limits.default]\nrate = {RATE}\nblock = []\n"

NGINX = """
daemon off;
master_process off;
pid {folder}/{name}.pid;
error_log /dev/null error;
events {{ worker_connections 1024; }}
http {{
    access_log /dev/stdout;
    client_body_temp_path {folder}/{name}-1;
    proxy_temp_path {folder}/{name}-2;
    fastcgi_temp_path {folder}/{name}-3;
    uwsgi_temp_path {folder}/{name}-4;
    scgi_temp_path {folder}/{name}-5;
    keepalive_requests 1000000000;
    limit_req_zone $binary_remote_addr zone=clients:16m rate={rate}r/s;
    limit_req_status 429;
    upstream app {{ server {backend}; keepalive 64; keepalive_requests 1000000000; }}
    server {{
        listen {address};
        location / {{
            {limit}
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header X-Forwarded-For $remote_addr;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Door:
    """Where requests go in, and all programs that work for them."""

    address: str
    programs: tuple[Program, ...]
    agent: Program | None = None
    """The limiter's agent, which tells in the end what it was asked."""

    def cpu(self) -> int:
        return sum(program.cpu() for program in self.programs)


@dataclass(frozen=True)
class Peer:
    """A way to limit, set up with a limit that is never reached, one that blocks, one that counts.

    ``base`` is the name of the same without a limiter. What does not limit has ``allowed`` alone,
    and what knows no blocks has the same door twice.
    """

    name: str
    base: str
    allowed: Door
    refused: Door | None = None
    counted: Door | None = None


class Setup:
    """Starts the peers' programs."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self._numbers = itertools.count()
        self._redis, address = programs.redis()
        self._redis_url = f"redis://{address}"
        haproxy = harness.require("haproxy")
        self._backend = harness.free_address()
        environment = {"BENCH_LISTEN": self._backend}
        command_line = [haproxy, "-db", "-f", str(APPLICATION)]
        self._application = programs.start("application", command_line, environment)

    def _name(self, kind: str) -> str:
        return f"{kind}-{next(self._numbers)}"

    def haproxy(self, rate: int | None = None, behind: Door | None = None) -> Door:
        """Start HAProxy alone, or with its stick table."""
        backend, others = self._behind(behind)
        settings = {"RATELIMIT_BACKEND": backend} | ({"BENCH_RATE": str(rate)} if rate else {})
        started = HAProxy(self._programs, self._name("haproxy"), COMPARISON, None, **settings)
        return Door(started.address, (started.program, *others))

    def agent(
        self,
        config: str,
        form: Form = "compiled",
        *,
        redis: bool = False,
        behind: Door | None = None,
    ) -> Door:
        """Start the agent, or the one that only acknowledges, and HAProxy as shipped."""
        spop = harness.free_address()
        name = self._name("agent")
        if redis:
            config += f'[store]\nurl = "{self._redis_url}"\nprefix = "{name}"\n'
        agent = self._programs.agent(name, form, spop, config)
        backend, others = self._behind(behind)
        started = HAProxy(
            self._programs,
            self._name("shipped"),
            SHIPPED,
            agent,
            RATELIMIT_SPOP=spop,
            RATELIMIT_BACKEND=backend,
        )
        stores = (self._redis,) if redis else ()
        asked = None if form == "ack" else agent
        return Door(started.address, (started.program, agent, *others, *stores), asked)

    def nginx(self, rate: int = 0, burst: int = 0) -> Door:
        program = harness.require("nginx", "nginx-light")
        name, address = self._name("nginx"), harness.free_address()
        file = self._programs.folder / f"{name}.conf"
        file.write_text(
            NGINX.format(
                folder=self._programs.folder,
                name=name,
                rate=rate or 1,
                backend=self._backend,
                address=address,
                limit=f"limit_req zone=clients burst={burst} nodelay;" if rate else "",
            )
        )
        started = self._programs.start(name, [program, "-c", str(file)], log=False)
        return self._ready(address, started, self._application)

    def aiohttp(self, storage: str = "", rate: int = 0) -> Door:
        address = harness.free_address()
        limited = [storage, str(rate)] if storage else []
        port = address.rpartition(":")[2]
        line = [sys.executable, "-m", "benchmarks.peer_app", port, *limited]
        started = self._programs.start(self._name("aiohttp"), line)
        return self._ready(address, started, *([self._redis] if "redis" in storage else []))

    def limits_redis(self, rate: int) -> Door:
        return self.aiohttp(f"async+{self._redis_url}/{next(self._numbers) % 16}", rate)

    def _behind(self, door: Door | None) -> tuple[str, tuple[Program, ...]]:
        return (door.address, door.programs) if door else (self._backend, (self._application,))

    @staticmethod
    def _ready(address: str, *programs: Program) -> Door:
        harness.wait_for(programs[0], lambda: harness.get(address))
        return Door(address, programs)


def set_up(start: Setup) -> list[Peer]:
    alone, nginx, aiohttp = "HAProxy alone", "nginx alone", "aiohttp alone"
    never = start.aiohttp("async+memory://", NEVER)
    stick, bucket = start.haproxy(RATE), start.nginx(RATE, burst=RATE)
    memory, shared = start.aiohttp("async+memory://", RATE), start.limits_redis(RATE)

    def ours(name: str, form: Form, *, redis: bool = False) -> Peer:
        doors = (start.agent(c, form, redis=redis) for c in (ALLOWED, REFUSED, COUNTED))
        return Peer(name, alone, *doors)

    app = start.aiohttp()
    return [
        Peer(alone, alone, start.haproxy()),
        Peer("HAProxy, stick table", alone, start.haproxy(NEVER), stick, stick),
        ours("HAProxy, ratelimit", "compiled"),
        ours("HAProxy, ratelimit, Redis", "compiled", redis=True),
        ours("HAProxy, ratelimit, plain Python", "plain"),
        Peer("HAProxy, agent that only acknowledges", alone, start.agent("", "ack")),
        Peer(nginx, nginx, start.nginx()),
        Peer("nginx, limit_req", nginx, start.nginx(NEVER, burst=NEVER), bucket, bucket),
        Peer(aiohttp, aiohttp, app),
        Peer("aiohttp, limits, memory", aiohttp, never, memory, memory),
        Peer("aiohttp, limits, Redis", aiohttp, start.limits_redis(NEVER), shared, shared),
        Peer("aiohttp behind HAProxy alone", aiohttp, start.haproxy(behind=app)),
        Peer(
            "aiohttp behind HAProxy, ratelimit, Redis",
            aiohttp,
            start.agent(ALLOWED, redis=True, behind=app),
            start.agent(REFUSED, redis=True, behind=app),
        ),
    ]


@dataclass(frozen=True)
class Sample:
    """One load: requests or refusals, how many a second, and CPU microseconds for each."""

    count: int
    rate: float
    cpu: float


def load(peer: Peer, door: Door, seconds: int, *, refused: bool) -> Sample:
    cpu = door.cpu()
    loaded = wrk.load(door.address, seconds)
    cpu = door.cpu() - cpu
    count = loaded.others if refused else loaded.requests - loaded.others
    if count < 0.9 * loaded.requests:
        sys.exit(f"{peer.name}: {count} are as expected\n{loaded.text}")
    return Sample(loaded.requests, loaded.requests / loaded.seconds, cpu / loaded.requests / 1000)


@dataclass(frozen=True)
class Answer:
    """When a request was sent, in seconds, and whether it was let through."""

    at: float
    passed: bool


async def client(address: str, source: str, begin: float, times: Sequence[int]) -> list[Answer]:
    """Send requests at their times, one after the other on one connection."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), local_addr=(source, 0))
    found = []
    for due in times:
        await asyncio.sleep(max(0, begin + due / accuracy.SECOND - time.monotonic()))
        at = time.monotonic()
        writer.write(f"GET / HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        (length,) = (line for line in lines if line.startswith("content-length:"))
        await reader.readexactly(int(length.partition(":")[2]))
        found.append(Answer(at, status.split()[1] == "200"))
    writer.close()
    return found


async def _clients(address: str, seconds: int) -> list[list[Answer]]:
    begin = time.monotonic() + 0.2
    kinds: list[Callable[[random.Random], list[int]]] = [
        lambda rng: list(accuracy.poisson(2 * RATE, seconds, rng)),
        lambda rng: list(accuracy.bursts(1000, 0.08, seconds, rng)),
    ]
    tasks = [
        client(address, f"127.0.1.{number}", begin, kind(random.Random(number)))
        for number, kind in enumerate((k for k in kinds for _ in range(CLIENTS)), start=1)
    ]
    async with asyncio.timeout(seconds + _GIVE_UP):
        return await asyncio.gather(*tasks)


def most(answers: Sequence[Answer]) -> int:
    """Return the most requests that were let through within a second."""
    passed = [answer.at for answer in answers if answer.passed]
    return max(sum(at - 1 + _EDGE < other <= at for other in passed) for at in passed)


def wrong(answers: Sequence[Answer]) -> float:
    """Return percent of the requests that were refused with fewer in the second than the limit."""
    count = sum(
        not answer.passed
        and sum(answer.at - 1 - _EDGE < a.at <= answer.at for a in answers) <= RATE
        for answer in answers
    )
    return 100 * count / len(answers)


def verify(peer: Peer, requests: int) -> None:
    """End if the agent was not asked about the requests: HAProxy counts alone when it is slow."""
    if peer.allowed.agent:
        peer.allowed.agent.stop()
        checks = peer.allowed.agent.checks()
        if checks < _ASKED * requests:
            sys.exit(f"{peer.name}: {requests} requests, but the agent was asked {checks} times")


def row(
    peer: Peer, samples: dict[str, list[tuple[Sample, Sample | None]]], exact: list[list[Answer]]
) -> Row:
    taken, bases = samples[peer.name], samples[peer.base]
    refusals = [refused for _, refused in taken if refused]
    random_ones, bursts = exact[:CLIENTS], exact[CLIENTS:]
    return Row.of(
        peer.name,
        Figure.of(allowed.rate for allowed, _ in taken),
        Figure.of(allowed.cpu for allowed, _ in taken),
        Figure.of(a.cpu - b.cpu for (a, _), (b, _) in zip(taken, bases, strict=True))
        if peer.name != peer.base
        else None,
        Figure.of(refused.rate for refused in refusals) if refusals else None,
        Figure.of(refused.cpu for refused in refusals) if refusals else None,
        Figure.of(most(answers) for answers in random_ones) if exact else None,
        Figure.of(most(answers) for answers in bursts) if exact else None,
        Figure.of(wrong(answers) for answers in bursts) if exact else None,
    )


def run(programs: Programs, options: argparse.Namespace) -> Report:
    peers = set_up(Setup(programs))
    samples: dict[str, list[tuple[Sample, Sample | None]]] = {peer.name: [] for peer in peers}
    seconds = int(options.seconds)
    for number in range(options.rounds):
        # Back and forth, so that none always comes after the same one.
        for peer in peers if number % 2 == 0 else reversed(peers):
            harness.progress(f"round {number + 1} of {options.rounds}: {peer.name}")
            refused = load(peer, peer.refused, seconds, refused=True) if peer.refused else None
            samples[peer.name].append((load(peer, peer.allowed, seconds, refused=False), refused))
    exact: dict[str, list[list[Answer]]] = {}
    for peer in peers:
        harness.progress(f"how exact: {peer.name}")
        door = peer.counted
        exact[peer.name] = uvloop.run(_clients(door.address, 2 + 2 * seconds)) if door else []
    for peer in peers:
        verify(peer, sum(allowed.count for allowed, _ in samples[peer.name]))
    columns = (
        Column("requests a second", "more", 0),
        Column("CPU us a request, all processes", "less", 1),
        Column("above no limiter", "less", 1),
        Column("429s a second", "more", 0),
        Column("CPU us a 429", "less", 1),
        Column("most in a second, of 100, at 200/s", "less", 0),
        Column("most in a second, of 100, in bursts", "less", 0),
        Column("refused wrongly in bursts, %", "less", 1),
    )
    note = f"wrk, {wrk.CONNECTIONS} connections, {options.rounds} rounds of {seconds} s; then "
    note += f"{2 + 2 * seconds} s with {CLIENTS} clients of each kind: median (least-greatest)"
    rows = tuple(row(peer, samples, exact[peer.name]) for peer in peers)
    return Report((Table("peers", note, columns, rows),))


if __name__ == "__main__":
    command.main("peers", __doc__, run, rounds=(7, 2), seconds=(1, 1))
