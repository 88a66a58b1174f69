"""The longest turn of the agent's event loop, in CPU time, during all work other than answers.

``python -m benchmarks.turns`` runs an agent with full lists: 200,000 blocks, 100,000 of them by
hand, of which 20,000 are of networks; 100,000 networks on the deny list; and an HAProxy whose edge
table has 100,000 entries. It requests each route of the API, reloads, removes ended blocks,
recovers from outages of Redis, and compares the edge table. A check that arrives meanwhile waits
for the current turn, so the longest turn is the greatest delay by such work.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import functools
import http.client
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address

from benchmarks.harness import command, stored
from benchmarks.harness.haproxy import SHIPPED, HAProxy
from benchmarks.harness.http import Api
from benchmarks.harness.launch import Turns
from benchmarks.harness.programs import Program, Programs, progress, until
from benchmarks.harness.report import Column, Report, Table, Target
from benchmarks.harness.spop import block, networks
from ratelimit.haproxy.commands import batches, set_entry
from ratelimit.model import EVERY_LIMIT, Block

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
_LIMITS = 0x0B000000  # 11.0.0.0: blocked by a limit
_HANDS = 0x0C000000
_STALE = 0x0D000000  # only in the edge table
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
"""The paths that are read, by their name in the report."""


class Site:
    """The agent with its lists, Redis and HAProxy."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        folder = programs.folder
        self._spop = f"{folder}/spop.sock"
        self._server, self._redis = programs.redis()
        (folder / "deny.lst").write_text("\n".join(networks(LISTED, 1)))
        (folder / "maps").mkdir()
        self.turns = Turns(folder / "turns")
        self._clients = _STRANGERS
        stored.write(self._server.url, _blocks(int(time.time())))
        settings = {"RATELIMIT_SPOP": f"unix@{self._spop}", "RATELIMIT_STATS_LEVEL": "admin"}
        self._edge = HAProxy(programs, "edge", SHIPPED, None, **settings)
        self.program: Program

    def start(self) -> None:
        """Start the agent, which reads everything from Redis."""
        folder = self._programs.folder
        self.program = self._programs.agent(
            "agent",
            "compiled",
            self._spop,
            f'[store]\nurl = "{self._server.url}"\n'
            f'[haproxy]\nsockets = ["{self._edge.socket}"]\nmaps_dir = "{folder}/maps"\n'
            f'[lists]\ndeny_files = ["{folder}/deny.lst"]\n'
            "[limits.default]\nipv4_prefix = 32\n[limits.login]\n"
            f'[limits.short]\nrate = 1\nblock = ["{_LENGTH}s"]\nforget = "1s"\nfuse = 0\n',
            {"BENCHMARK_TURNS": str(folder / "turns")},
        )
        self.turns.clear()  # no check waits before the agent listens
        self._until("everything is read", lambda: self.program.logged('"store (reached|back)"'))

    def api(self) -> Api:
        return Api(self.program, _PATIENCE)

    def ask(self, method: str, path: str, body: object = None) -> None:
        status, answer = self.api()(method, path, body)
        if status >= 400 and status != http.client.NOT_FOUND:
            sys.exit(f"{method} {path}: {status} {answer!r}")

    def status(self, section: str, name: str) -> int:
        return int(self.api().get("/v1/status")[section][name])

    def _until(self, what: str, condition: Callable[[], object]) -> None:
        until(what, condition, _PATIENCE, self.program, every=0.1)

    def _logs(self, text: str, action: Callable[[], object]) -> None:
        """Do something and wait until the agent logs a text once more."""
        before = len(self.program.logged(text))
        action()
        self._until(text, lambda: len(self.program.logged(text)) > before)

    # The work that is timed; each method waits until the agent has done it.

    def settle(self) -> None:
        """Wait until everything is written to Redis."""
        self._until("everything is written", lambda: self.status("store", "unwritten") == 0)

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
        """Read events, from the thousand events before the last reload on."""
        with contextlib.closing(self.api().connection) as connection:
            connection.request("GET", "/v1/events", headers={"Last-Event-ID": "1"})
            answer = connection.getresponse()
            while not answer.readline().startswith(b"event: reload"):
                pass

    def reload(self) -> None:
        hang_up = functools.partial(self.program.process.send_signal, signal.SIGHUP)
        self._logs('"configuration reloaded"', hang_up)

    def other_prefixes(self) -> None:
        """Reload with limits that count other clients."""
        file = self._programs.folder / "agent.toml"
        before, after = ("= 32", "= 24") if "= 32" in file.read_text() else ("= 24", "= 32")
        file.write_text(file.read_text().replace(before, after))
        self.reload()

    def outage(self) -> None:
        """Stop Redis for a moment, after which the agent reads the whole list again."""
        self._logs('"store lost"', self._server.pause)
        self._logs('"store back"', self._server.resume)

    def emptied(self) -> None:
        """Empty Redis; the agent writes the whole list again."""
        self._logs("they were written back", lambda: self._server.do("FLUSHALL"))

    def block_many(self) -> None:
        """Block many clients; the blocks end at about the same time."""
        self._clients += ENDING
        block(self._spop, self._clients, ENDING, "short")

    def ended(self) -> None:
        """Wait until all of these are removed."""
        path = f"/v1/blocks/{IPv4Address(self._clients + ENDING - 1)}"
        self._until("they end", lambda: self.api()("GET", path)[0] == http.client.NOT_FOUND)

    def compare(self) -> None:
        """Compare an edge table with entries of clients that are not blocked."""
        end = int(time.time()) + 3600
        keys = (f"::ffff:{IPv4Address(_STALE + n)}" for n in range(ENTRIES))
        before = self.status("edges", "corrected")
        for line in batches(set_entry(key, end) for key in keys):
            self._edge.say(line)
        self.turns.clear()
        self.reload()
        corrected = before + ENTRIES
        self._until("it is compared", lambda: self.status("edges", "corrected") >= corrected)


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


def works(site: Site) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the work of a round, by its name in the report."""
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


def memory(seconds: float) -> list[float]:
    """Time random reads of as much memory as the agent has; return milliseconds of each piece.

    Only the machine can make a piece longer than about a millisecond. If the host gives memory to a
    virtual machine only when the memory is touched, the first reads cost the reader CPU time.
    """
    words = array.array("q", range(25_000_000))
    rnd, pieces = random.Random(1), []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        places = rnd.choices(range(len(words)), k=2000)
        began = time.thread_time_ns()
        sum(map(words.__getitem__, places))
        pieces.append((time.thread_time_ns() - began) / 1e6)
    return pieces


def run(programs: Programs, options: argparse.Namespace) -> Report:
    found: dict[str, tuple[list[float], list[float]]] = {}
    site = Site(programs)

    def take(name: str, work: Callable[[], object]) -> None:
        site.turns.clear()
        work()
        longest, long = found.setdefault(name, ([], []))
        longest.append(site.turns.longest)
        long.append(site.turns.long)
        site.settle()

    take("a start, all is read", site.start)
    if (entries := site.status("blocklist", "entries")) != BLOCKS:
        sys.exit(f"the agent has {entries} blocks")
    for number in range(1, options.rounds + 1):
        site.block_many()
        for name, work in works(site):
            progress(f"round {number} of {options.rounds}: {name}")
            take(name, work)
    table = Table.of(
        "longest turn",
        f"of the agent's event loop; {BLOCKS:,} blocks, {NETWORKS:,} of them of networks by hand, "
        f"{LISTED:,} networks on a list",
        (Column("longest, ms of CPU", "less"), Column("turns above 1 ms", "less", 0)),
        found,
        drawn=False,
    )
    progress("the machine alone")
    pieces = memory(60 if options.rounds > 1 else 10)
    machine = Table.of(
        "the machine alone",
        "random reads of 200 MB of memory; no turn can be measured as shorter than this",
        (Column("longest, ms of CPU"), Column("pieces above 1 ms", digits=0)),
        {"2,000 reads": (max(pieces), sum(piece > 1 for piece in pieces))},
        drawn=False,
    )
    targets = tuple(
        Target(f"ms of a turn, {name}", max(longest), BOUND) for name, (longest, _) in found.items()
    )
    return Report((table, machine), targets)


if __name__ == "__main__":
    command.main("turns", __doc__, run, rounds=(2, 1))
