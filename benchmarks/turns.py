"""The longest turn of the agent's event loop, in CPU time, whatever it does next to the answers.

``python -m benchmarks.turns`` runs an agent whose lists are full: 200,000 blocks, 100,000 of them
by hand and 20,000 of these of networks, 100,000 networks on the deny list, and a HAProxy whose edge
table has 100,000 entries. Each route of its API is asked for. It reloads, drops what has ended,
comes back from outages of Redis, and compares the edge table. A check that comes meanwhile waits
for the turn under way, so the longest one is what any of this may cost a check.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import functools
import http.client
import random
import re
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from benchmarks import command, harness
from benchmarks.agent import Frames
from benchmarks.end_to_end import SHIPPED, HAProxy
from benchmarks.harness import Figure, Programs, Target
from benchmarks.operations import Api
from benchmarks.probe import Turns
from benchmarks.reload import networks
from benchmarks.report import Column, Report, Row, Table
from ratelimit.haproxy.commands import batches, set_entry
from ratelimit.model import EVERY_LIMIT, Block
from ratelimit.store.redis.store import RedisStore
from ratelimit.store.redis.url import parse
from tests.helpers import wire

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

BLOCKS = 200_000
BY_HAND = 100_000
NETWORKS = 20_000
LISTED = 100_000
ENTRIES = 100_000
ENDING = 20_000
"""Blocks that end at about the same time, in each round."""

BOUND = 5
"""The most milliseconds of a turn."""

_ENDED = 25_000  # of the blocks; others may take their places
_LENGTH = 10  # seconds of a block that ends
_READERS = 16
_PATIENCE = 240  # seconds
_AT_ONCE = 50  # checks
_LIMITS = 0x0B000000  # 11.0.0.0: blocked by a limit
_HANDS = 0x0C000000
_STALE = 0x0D000000  # refused by the edge alone
_STRANGERS = 0x10000000  # 16.0.0.0; no listed network is below 32.0.0.0

ROUTES = {
    "GET /v1/blocks": "/v1/blocks?limit=1000",
    "GET /v1/blocks?q=, not found": "/v1/blocks?q=nothing",
    "GET /v1/blocks/{key}": "/v1/blocks/12.0.0.0%2F24",
    "GET /v1/clients": "/v1/clients?n=1000",
    "GET /v1/clients?sort=blocked": "/v1/clients?n=1000&sort=blocked",
    "GET /v1/clients/{key}": "/v1/clients/2001:db8::1",
    "GET /v1/limits": "/v1/limits",
    "GET /v1/status": "/v1/status",
    "GET /v1/nodes": "/v1/nodes",
    "GET /v1/haproxy": "/v1/haproxy",
    "GET /metrics": "/metrics",
    "GET /openapi.json": "/openapi.json",
    "GET /healthz": "/healthz",
    "GET /readyz": "/readyz",
    "GET /": "/",
}
"""What is read, by its name in the report."""


class Site:
    """The agent with its lists, Redis and HAProxy."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        folder = programs.folder
        self._spop = f"{folder}/spop.sock"
        self._edge = folder / "edge.sock"
        self._redis, address = programs.redis()
        self._url = f"redis://{address}"
        (folder / "deny.lst").write_text("\n".join(networks(LISTED, 1)))
        (folder / "maps").mkdir()
        self.turns = Turns(folder / "turns")
        self._clients = _STRANGERS
        asyncio.run(_tell(self._url, _blocks(int(time.time()))))
        HAProxy(
            programs,
            "edge",
            SHIPPED,
            RATELIMIT_SPOP=f"unix@{self._spop}",
            RATELIMIT_STATS_LEVEL="admin",
        )
        self.program: harness.Program

    def start(self) -> None:
        """Start the agent, which reads all that Redis has."""
        folder = self._programs.folder
        self.program = self._programs.agent(
            "agent",
            "compiled",
            self._spop,
            f'[store]\nurl = "{self._url}"\n'
            f'[haproxy]\nsockets = ["{self._edge}"]\nmaps_dir = "{folder}/maps"\n'
            f'[lists]\ndeny_files = ["{folder}/deny.lst"]\n'
            "[limits.default]\nipv4_prefix = 32\n[limits.login]\n"
            f'[limits.short]\nrate = 1\nblock = ["{_LENGTH}s"]\nforget = "1s"\nfuse = 0\n',
            {"BENCHMARK_TURNS": str(folder / "turns")},
        )
        self.turns.clear()  # before the agent listens, no check waits
        self.until(lambda: re.search('"store (reached|back)"', self._log()), "all is known")

    def ask(self, method: str, path: str, body: object = None) -> bytes:
        api = Api.of(self.program, _PATIENCE)
        status, answer = api(method, path, body)
        if status >= 400 and status != http.client.NOT_FOUND:
            sys.exit(f"{method} {path}: {status} {answer!r}")
        return answer

    def status(self, section: str, name: str) -> int:
        return int(Api.of(self.program, _PATIENCE).get("/v1/status")[section][name])

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > deadline or self.program.process.poll() is not None:
                sys.exit(f"not within {_PATIENCE} s: {what}\n{self._log()[-3000:]}")
            time.sleep(0.1)

    def _log(self) -> str:
        return self.program.log.read_text()

    # What is timed; each waits until the agent has done it.

    def settle(self) -> None:
        """Wait until Redis has been told everything."""
        self.until(lambda: self.status("store", "unwritten") == 0, "everything is written")

    def readers(self) -> None:
        threads = [
            threading.Thread(target=self.ask, args=("GET", f"/v1/blocks?limit=1000&q={number}"))
            for number in range(_READERS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def by_hand(self, key: str) -> None:
        self.ask("POST", "/v1/blocks", {"key": key, "ttl": 60})
        self.ask("DELETE", f"/v1/blocks/{key.replace('/', '%2F')}")

    def events(self) -> None:
        """Listen, from the thousand events on that came up before the last reload."""
        connection = Api.of(self.program, _PATIENCE).connection
        with contextlib.closing(connection):
            connection.request("GET", "/v1/events", headers={"Last-Event-ID": "1"})
            answer = connection.getresponse()
            while not answer.readline().startswith(b"event: reload"):
                pass

    def reload(self) -> None:
        reloads = self._log().count('"configuration reloaded"')
        self.program.process.send_signal(signal.SIGHUP)
        self.until(lambda: self._log().count('"configuration reloaded"') > reloads, "a reload")

    def other_prefixes(self) -> None:
        """Reload with limits that count other clients."""
        file = self._programs.folder / "agent.toml"
        before, after = ("= 32", "= 24") if "= 32" in file.read_text() else ("= 24", "= 32")
        file.write_text(file.read_text().replace(before, after))
        self.reload()

    def outage(self) -> None:
        """Have Redis away for a moment, after which the whole list is read again."""
        backs = self._log().count('"store back"')
        losses = self._log().count('"store lost"')
        self._redis.process.send_signal(signal.SIGSTOP)
        self.until(lambda: self._log().count('"store lost"') > losses, "Redis is away")
        self._redis.process.send_signal(signal.SIGCONT)
        self.until(lambda: self._log().count('"store back"') > backs, "Redis is back")

    def emptied(self) -> None:
        """Have Redis lose all of it; it is told the whole list."""
        told = self._log().count("they were written back")
        host, _, port = self._url.removeprefix("redis://").rpartition(":")
        with socket.create_connection((host, int(port)), _PATIENCE) as sock:
            sock.sendall(b"FLUSHALL\r\n")
            sock.recv(100)
        self.until(lambda: self._log().count("they were written back") > told, "Redis is told")

    def block_many(self) -> None:
        """Have many clients blocked, whose blocks end at about the same time."""
        self._clients += ENDING
        hits = wire.int64(2)
        frames = Frames.of(range(self._clients, self._clients + ENDING), ("short",), hits=hits)
        size = _AT_ONCE * frames.size
        with harness.connect(self._spop) as sock:
            for start in range(0, ENDING * frames.size, size):
                sock.sendall(frames.data[start : start + size])
                answers = b""
                while answers.count(b"block_until") < _AT_ONCE:
                    answers += sock.recv(1 << 16)

    def ended(self) -> None:
        """Wait until all of these are forgotten."""
        path = f"/v1/blocks/{IPv4Address(self._clients + ENDING - 1)}"
        self.until(lambda: Api.of(self.program, _PATIENCE)("GET", path)[0] == 404, "they end")

    def compare(self) -> None:
        """Compare an edge table that refuses clients which are not blocked."""
        end = int(time.time()) + 3600
        keys = (f"::ffff:{IPv4Address(_STALE + n)}" for n in range(ENTRIES))
        before = self.status("edges", "corrected")
        for line in batches(set_entry(key, end) for key in keys):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(self._edge))
                sock.sendall(line.encode() + b"\n")
                while sock.recv(1 << 16):
                    pass
        self.turns.clear()
        self.reload()
        self.until(lambda: self.status("edges", "corrected") >= before + ENTRIES, "it is compared")


async def _tell(url: str, blocks: Iterable[Block]) -> None:
    store = RedisStore(parse(url))
    await store.start()
    for block in blocks:
        store.put(block)
        while len(store.outbox) > 10_000:
            await asyncio.sleep(0.01)
    while len(store.outbox):
        await asyncio.sleep(0.01)
    await store.close()


def _blocks(now: int) -> Iterator[Block]:
    rnd = random.Random(1)
    for n in range(BLOCKS):
        until = now - 10 if n < _ENDED else now + rnd.randrange(3600, 86_400)
        if n < BLOCKS - BY_HAND:
            key = str(IPv4Address(_LIMITS + n))
            yield Block(key, "default", "over 100 in 1s", 1, now - 60, until, order=now * 1_000_000)
            continue
        m = n - BLOCKS + BY_HAND
        first = IPv4Address(_HANDS + (min(m, NETWORKS) << 8) + max(0, m - NETWORKS))
        key = f"{first}/24" if m < NETWORKS else str(first)
        yield Block(key, EVERY_LIMIT, "scrapes", 0, now, until, "ann", order=now * 1_000_000)


@dataclass
class Taken:
    """What was found each time."""

    longest: list[float] = field(default_factory=list)
    long: list[int] = field(default_factory=list)


def works(site: Site) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what is timed in a round, by its name in the report."""
    yield f"ticks, {ENDING:,} blocks are forgotten", site.ended
    for name, path in ROUTES.items():
        yield name, functools.partial(site.ask, "GET", path)
    yield f"GET /v1/blocks, {_READERS} at once", site.readers
    yield "POST /v1/keys", lambda: site.ask("POST", "/v1/keys", {"key": "12.0.0.0/24"})
    yield "POST /v1/blocks, DELETE /v1/blocks/{key}, an address", lambda: site.by_hand("192.0.2.7")
    yield (
        "POST /v1/blocks, DELETE /v1/blocks/{key}, a network",
        lambda: site.by_hand("198.51.0.0/20"),
    )
    fuse = "/v1/limits/{name}/fuse"
    yield f"DELETE {fuse}", lambda: site.ask("DELETE", fuse.format(name="default"))
    server = "/v1/haproxy/servers/{backend}/{server}"
    app1 = server.format(backend="app", server="app1")
    yield f"POST {server}", lambda: site.ask("POST", app1, {"weight": 100})
    yield "POST /v1/reload", lambda: site.ask("POST", "/v1/reload", {})
    yield "GET /v1/events, resumed", site.events
    yield "a reload that counts other clients", site.other_prefixes
    yield f"an edge table of {ENTRIES:,} is compared", site.compare
    yield "recovery, Redis was away", site.outage
    yield "recovery, Redis was emptied", site.emptied


def memory(seconds: float) -> Taken:
    """Time random reads of as much memory as the agent has, in pieces of about a millisecond.

    Nothing in this can take longer but the machine. Where the host gives memory to a virtual
    machine when it is touched, the first reads cost the reader CPU time.
    """
    words = array.array("q", range(25_000_000))
    rnd, turns, taken = random.Random(1), [], Taken()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        places = rnd.choices(range(len(words)), k=2000)
        began = time.thread_time_ns()
        sum(map(words.__getitem__, places))
        turns.append((time.thread_time_ns() - began) / 1e6)
    taken.longest.append(max(turns))
    taken.long.append(sum(turn > 1 for turn in turns))
    return taken


def run(programs: Programs, options: argparse.Namespace) -> Report:
    found: dict[str, Taken] = {}
    site = Site(programs)

    def take(name: str, work: Callable[[], object]) -> None:
        site.turns.clear()
        work()
        taken = found.setdefault(name, Taken())
        taken.longest.append(site.turns.longest)
        taken.long.append(site.turns.long)
        site.settle()

    take("a start, all is read", site.start)
    if (entries := site.status("blocklist", "entries")) != BLOCKS:
        sys.exit(f"the agent knows {entries} blocks")
    for number in range(1, options.rounds + 1):
        site.block_many()
        for name, work in works(site):
            harness.progress(f"round {number} of {options.rounds}: {name}")
            take(name, work)
    table = Table(
        "longest turn",
        f"of the agent's event loop; {BLOCKS:,} blocks, {NETWORKS:,} of them of networks by hand, "
        f"{LISTED:,} networks on a list",
        (Column("longest, ms of CPU", "less"), Column("turns above 1 ms", "less", 0)),
        tuple(
            Row.of(name, Figure.of(taken.longest), Figure.of(taken.long))
            for name, taken in found.items()
        ),
        drawn=False,
    )
    harness.progress("the machine alone")
    alone = memory(60 if options.rounds > 1 else 10)
    machine = Table(
        "the machine alone",
        "reading 200 MB of memory at random; a turn can't be told shorter than this",
        (Column("longest, ms of CPU"), Column("pieces above 1 ms", digits=0)),
        (Row.of("2,000 reads", Figure.of(alone.longest), Figure.of(alone.long)),),
        drawn=False,
    )
    targets = tuple(
        Target(f"ms of a turn, {name}", max(taken.longest), BOUND, at_most=True)
        for name, taken in found.items()
    )
    return Report((table, machine), targets)


if __name__ == "__main__":
    command.main("turns", __doc__, run, rounds=(2, 1))
