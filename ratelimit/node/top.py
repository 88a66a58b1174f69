"""The busiest clients of this node, found without keeping the event loop.

A scan of the table goes in slices, and what it found is made readable in pieces; in between,
requests are answered. Slices take about ``SLICE`` seconds each, whatever the machine and the table.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from ratelimit.engine.busiest import Busy, Scan
from ratelimit.engine.layout import ADDRESS, SECOND
from ratelimit.limiter.keys import client_key
from ratelimit.limiter.limiter import Limiter
from ratelimit.model import Limit
from ratelimit.steps import Steps
from ratelimit.store.sync import Sync
from ratelimit.turns import paced, turn

MAX_BUSIEST = 1000
"""Clients that one scan finds."""

SLICE = 0.000_25
"""Seconds of the loop that a slice is to take."""

SHARE = 0.005
"""The most of the time that scans take: a costly one is good for longer."""

_LIFE = 1.0  # seconds for which any scan is good enough for the next who asks
_FIRST_SETS = 16
_MAX_SETS = 4096
_PIECE = 32  # clients that are made readable in a step


@dataclass(frozen=True, slots=True)
class BusyClient:
    """A client among the busiest.

    ``key`` is what is counted; ``hashed`` says that it is a string, of which the table has the hash
    only. ``hits`` are those of the window that ends now, on this node, ``rate`` is in hits a
    second, and ``until`` is the epoch second at which its block ends or ended, 0 without one.
    """

    key: str
    hashed: bool
    limit: str
    hits: int
    rate: float
    until: int


class _Pass:
    """A scan for ``count`` clients, under way or done."""

    def __init__(self, count: int, task: asyncio.Task[list[BusyClient]]) -> None:
        self.count = count
        self.task = task
        self.good_until = 0.0


class Busiest:
    """Finds them; those who ask at about the same time share a scan.

    A blocked client has done nothing since its block: only by ``blocked`` is it found.
    """

    def __init__(self, limiter: Limiter, sync: Sync) -> None:
        self._limiter = limiter
        self._sync = sync
        self._passes: dict[str, _Pass] = {}

    async def find(self, count: int, sort: str = "rate") -> list[BusyClient]:
        """Return up to ``count`` clients, at most ``MAX_BUSIEST``; for ``sort`` see ``Scan``."""
        last = self._passes.get(sort)
        if (
            last is None
            or last.count < count
            or (last.task.done() and time.monotonic() > last.good_until)
        ):
            last = _Pass(count, asyncio.create_task(self._scan(count, sort), name="scan"))
            self._passes[sort] = last
        found = await asyncio.shield(last.task)
        return found[:count]

    async def _scan(self, count: int, sort: str) -> list[BusyClient]:
        engine = self._limiter.engine
        scan = Scan(engine.table, engine.rules, count, sort)
        sets = _FIRST_SETS
        spent = 0.0
        while not scan.done:
            await turn()
            self.set_time()
            begin = time.perf_counter()
            scan.slice(sets, engine.now)
            took = time.perf_counter() - begin
            spent += took
            # No more than twice as many as before, for the next ones may hold more clients.
            sets = max(1, min(2 * sets, _MAX_SETS, int(sets * SLICE / took)))
        found = await paced(_read(scan, self._limiter))
        self._passes[sort].good_until = time.monotonic() + max(_LIFE, spent / SHARE)
        return found

    def set_time(self) -> None:
        """Set the engine's clock, unless checks under way have a time of their own."""
        if not self._sync.flying:
            self._limiter.engine.at(self._sync.now())


def _read(scan: Scan, limiter: Limiter) -> Steps[list[BusyClient]]:
    found: list[BusyClient] = []
    for number, place in enumerate(scan.order(), 1):
        busy = scan.busy(place)
        if busy is not None:
            found.append(_shown(limiter, scan.rules[busy.index].limit, busy))
        if number % _PIECE == 0:
            yield
    return found


def _shown(limiter: Limiter, limit: Limit, busy: Busy) -> BusyClient:
    key = client_key(busy.kind, busy.hi, busy.lo, limit.ipv4_prefix, limit.ipv6_prefix)
    hashed = busy.kind != ADDRESS
    if hashed and (block := limiter.blocklist.get(limit.name, key)) is not None:
        key = block.shown
    rate = round(busy.hits * SECOND / limit.window, 3)
    return BusyClient(key, hashed, limit.name, busy.hits, rate, busy.until)
