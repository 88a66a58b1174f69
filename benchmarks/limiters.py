"""This limiter compared with others that a user could run: speed, cost, accuracy.

``python -m benchmarks.limiters`` puts limiters in front of the same application in turns, and loads
them with wrk: with traffic that no limit refuses, then with one client far above a limit of 100 a
second. The CPU time is that of all processes but wrk: limiter, application, Redis. Every HAProxy
has one thread, nginx and aiohttp are one process. HAProxy and nginx log each request, aiohttp does
not.

There are two applications: an HAProxy that answers at once, for limiters in front of an
application; and aiohttp, for the library ``limits``, which an application calls itself.

Accuracy: some clients send at twice the limit at random (Poisson), others 80 requests within 80 ms
once in each second at a random moment, with limits that do not block. In no second should more than
100 be allowed. A refusal is wrong if fewer than 100 requests, including refused ones, had come in
the second before. Neither figure depends on whether a limiter counts the requests that it refuses.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template

import uvloop

from benchmarks.harness import command, http
from benchmarks.harness.arrivals import RATE, SECOND, bursts, poisson
from benchmarks.harness.haproxy import (
    ALLOWING,
    COMPARISON,
    NEVER,
    REFUSING,
    SHIPPED,
    Guard,
    HAProxy,
)
from benchmarks.harness.programs import (
    HARNESS,
    Form,
    Program,
    Programs,
    free_address,
    pair,
    progress,
    require,
    rounds,
    wait_for,
)
from benchmarks.harness.report import Column, Report, Table
from tests.helpers.world import Client

CLIENTS = 4
"""Clients of each kind, all at the same time."""

_ASKED = 0.99  # the least share of requests that the agent checks; on a busy machine it is late
_EDGE = 0.002  # seconds by which a limiter's clock may see a request later than its sender's
_GIVE_UP = 10  # seconds after the end of a client's requests
_COUNTING = f"[limits.default]\nrate = {RATE}\nblock = []\n"


@dataclass(frozen=True)
class Door:
    """The address of a limiter, all programs that work for it, and its agent if it has one."""

    address: str
    programs: tuple[Program, ...]
    agent: Program | None = None

    def cpu(self) -> int:
        return sum(program.cpu() for program in self.programs)


@dataclass(frozen=True)
class Limiter:
    """A limiter, with a limit that is never reached, one that blocks, and one that counts.

    ``base`` is the name of the same without a limiter. Without a limiter there is
    only ``allowed``, and one without blocks has the same door twice.
    """

    name: str
    base: str
    allowed: Door
    refused: Door | None = None
    counted: Door | None = None


class Setup:
    """Starts the programs of the limiters."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self._numbers = itertools.count()
        server, self._redis = programs.redis()
        self._redis_url = server.url
        self._application, self._backend = programs.application()

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
        name, spop = self._name("agent"), free_address()
        if redis:
            config += f'[store]\nurl = "{self._redis_url}"\nprefix = "{name}"\n'
        agent = self._programs.agent(name, form, spop, config)
        backend, others = self._behind(behind)
        settings = {"RATELIMIT_SPOP": spop, "RATELIMIT_BACKEND": backend}
        started = HAProxy(self._programs, self._name("shipped"), SHIPPED, agent, **settings)
        stores = (self._redis,) if redis else ()
        asked = None if form == "ack" else agent
        return Door(started.address, (started.program, agent, *others, *stores), asked)

    def as_peer(self, config: str) -> Door:
        """Start the agent, and HAProxy as shipped for peers mode."""
        guard = Guard(self._programs, self._name("agent"), config)
        started = guard.haproxy("peers", self._name("peers"), RATELIMIT_BACKEND=self._backend)
        return Door(started.address, (started.program, guard.program, self._application))

    def nginx(self, rate: int = 0, burst: int = 0) -> Door:
        program = require("nginx", "nginx-light")
        name, address = self._name("nginx"), free_address()
        file = self._programs.folder / f"{name}.conf"
        settings = {
            "folder": str(self._programs.folder),
            "name": name,
            "rate": str(rate or 1),
            "backend": self._backend,
            "address": address,
            "limit": f"limit_req zone=clients burst={burst} nodelay;" if rate else "",
        }
        # safe: the names without braces are nginx's own variables
        file.write_text(Template((HARNESS / "nginx.conf").read_text()).safe_substitute(settings))
        started = self._programs.start(name, [program, "-c", str(file)], log=False)
        return self._ready(address, started, self._application)

    def aiohttp(self, storage: str = "", rate: int = 0) -> Door:
        address = free_address()
        limited = [storage, str(rate)] if storage else []
        line = [sys.executable, "-m", "benchmarks.harness.limited_app", str(pair(address)[1])]
        started = self._programs.start(self._name("aiohttp"), [*line, *limited])
        return self._ready(address, started, *([self._redis] if "redis" in storage else []))

    def limits_redis(self, rate: int) -> Door:
        return self.aiohttp(f"async+{self._redis_url}/{next(self._numbers) % 16}", rate)

    def _behind(self, door: Door | None) -> tuple[str, tuple[Program, ...]]:
        return (door.address, door.programs) if door else (self._backend, (self._application,))

    @staticmethod
    def _ready(address: str, *programs: Program) -> Door:
        wait_for(programs[0], lambda: http.get(address))
        return Door(address, programs)


def set_up(start: Setup) -> list[Limiter]:
    alone, nginx, aiohttp = "HAProxy alone", "nginx alone", "aiohttp alone"
    never = start.aiohttp("async+memory://", NEVER)
    stick, bucket = start.haproxy(RATE), start.nginx(RATE, burst=RATE)
    memory, shared = start.aiohttp("async+memory://", RATE), start.limits_redis(RATE)

    def ours(name: str, form: Form, *, redis: bool = False) -> Limiter:
        doors = (start.agent(c, form, redis=redis) for c in (ALLOWING, REFUSING, _COUNTING))
        return Limiter(name, alone, *doors)

    peer = (start.as_peer(config) for config in (ALLOWING, REFUSING, _COUNTING))
    app = start.aiohttp()
    return [
        Limiter(alone, alone, start.haproxy()),
        Limiter("HAProxy, stick table", alone, start.haproxy(NEVER), stick, stick),
        ours("HAProxy, ratelimit", "compiled"),
        ours("HAProxy, ratelimit, Redis", "compiled", redis=True),
        ours("HAProxy, ratelimit, plain Python", "plain"),
        Limiter("HAProxy, ratelimit as a peer", alone, *peer),
        Limiter("HAProxy, agent that only acknowledges", alone, start.agent("", "ack")),
        Limiter(nginx, nginx, start.nginx()),
        Limiter("nginx, limit_req", nginx, start.nginx(NEVER, burst=NEVER), bucket, bucket),
        Limiter(aiohttp, aiohttp, app),
        Limiter("aiohttp, limits, memory", aiohttp, never, memory, memory),
        Limiter("aiohttp, limits, Redis", aiohttp, start.limits_redis(NEVER), shared, shared),
        Limiter("aiohttp behind HAProxy alone", aiohttp, start.haproxy(behind=app)),
        Limiter(
            "aiohttp behind HAProxy, ratelimit, Redis",
            aiohttp,
            start.agent(ALLOWING, redis=True, behind=app),
            start.agent(REFUSING, redis=True, behind=app),
        ),
    ]


@dataclass(frozen=True)
class Sample:
    """One load: requests or refusals, how many a second, and CPU microseconds for each."""

    count: int
    rate: float
    cpu: float


def load(limiter: Limiter, door: Door, seconds: float, *, refused: bool) -> Sample:
    cpu = door.cpu()
    loaded = http.wrk(door.address, seconds)
    cpu = door.cpu() - cpu
    count = loaded.others if refused else loaded.requests - loaded.others
    if count < 0.9 * loaded.requests:
        sys.exit(f"{limiter.name}: {count} are as expected\n{loaded.text}")
    return Sample(loaded.requests, loaded.requests / loaded.seconds, cpu / loaded.requests / 1000)


@dataclass(frozen=True)
class Answer:
    """When a request was sent, in seconds, and whether it was allowed."""

    at: float
    passed: bool


async def client(address: str, source: str, begin: float, times: Sequence[int]) -> list[Answer]:
    """Send requests at their times, one after the other on one connection."""
    sender = Client(pair(address)[1], source)
    found = []
    for due in times:
        await asyncio.sleep(max(0, begin + due / SECOND - time.monotonic()))
        at = time.monotonic()
        found.append(Answer(at, (await sender.get()).status == 200))
    await sender.close()
    return found


async def clients(address: str, seconds: int) -> tuple[list[list[Answer]], list[list[Answer]]]:
    """Return the answers to the clients at random and to those in bursts."""
    begin = time.monotonic() + 0.2
    seeds = [random.Random(number) for number in range(1, 2 * CLIENTS + 1)]
    times = [list(poisson(2 * RATE, seconds, rng)) for rng in seeds[:CLIENTS]]
    times += [list(bursts(1000, 0.08, seconds, rng)) for rng in seeds[CLIENTS:]]
    async with asyncio.timeout(seconds + _GIVE_UP):
        found = await asyncio.gather(
            *(client(address, f"127.0.1.{n}", begin, some) for n, some in enumerate(times, start=1))
        )
    return found[:CLIENTS], found[CLIENTS:]


def most(answers: Sequence[Answer]) -> int:
    """Return the most requests that were allowed within a second."""
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


def verify(limiter: Limiter, requests: int) -> None:
    """End if the agent did not check the requests: HAProxy counts itself when it is slow."""
    if limiter.allowed.agent:
        limiter.allowed.agent.stop()
        checks = limiter.allowed.agent.checks()
        if checks < _ASKED * requests:
            sys.exit(f"{limiter.name}: {requests} requests, but the agent checked {checks}")


def run(programs: Programs, options: argparse.Namespace) -> Report:
    limiters = {one.name: one for one in set_up(Setup(programs))}
    allowed: dict[str, list[Sample]] = {name: [] for name in limiters}
    refused: dict[str, list[Sample]] = {name: [] for name in limiters}
    for name in rounds(options.rounds, limiters):
        limiter = limiters[name]
        if limiter.refused:
            refused[name].append(load(limiter, limiter.refused, options.seconds, refused=True))
        allowed[name].append(load(limiter, limiter.allowed, options.seconds, refused=False))
    rows = {}
    exact = 2 + 2 * int(options.seconds)
    for name, limiter in limiters.items():
        progress(f"accuracy: {name}")
        door = limiter.counted
        random_ones, in_bursts = uvloop.run(clients(door.address, exact)) if door else ([], [])
        pairs = zip(allowed[name], allowed[limiter.base], strict=True)
        rows[name] = (
            [sample.rate for sample in allowed[name]],
            [sample.cpu for sample in allowed[name]],
            [a.cpu - b.cpu for a, b in pairs] if name != limiter.base else None,
            [sample.rate for sample in refused[name]],
            [sample.cpu for sample in refused[name]],
            [most(answers) for answers in random_ones],
            [most(answers) for answers in in_bursts],
            [wrong(answers) for answers in in_bursts],
        )
    for name, limiter in limiters.items():
        verify(limiter, sum(sample.count for sample in allowed[name]))
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
    note = f"wrk, {http.CONNECTIONS} connections, {options.rounds} rounds of {options.seconds:g} s;"
    note += f" then {exact} s with {CLIENTS} clients of each kind: median (least-greatest)"
    return Report((Table.of("limiters", note, columns, rows),))


if __name__ == "__main__":
    command.main("limiters", __doc__, run, rounds=(7, 2), seconds=(1, 1))
