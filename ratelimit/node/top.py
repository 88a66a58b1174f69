"""Finds the busiest clients of this node without blocking the event loop.

The table is scanned in slices of about ``SLICE`` seconds, and the result is formatted in steps;
requests are answered in between.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from ratelimit.engine.busiest import Busy, Scan
from ratelimit.engine.layout import ADDRESS
from ratelimit.limiter.keys import client_key
from ratelimit.limiter.limiter import Limiter
from ratelimit.model import Limit
from ratelimit.notation import SECOND
from ratelimit.steps import Steps
from ratelimit.store.sync import Sync
from ratelimit.turns import paced, turn

MAX_BUSIEST = 1000
"""Clients that one scan can find."""

SLICE = 0.000_25
"""Seconds of the event loop per slice."""

SHARE = 0.005
"""Largest share of the time for scans: the result of a long scan is reused for longer."""

_LIFE = 1.0  # seconds for which any result is reused
_FIRST_SETS = 16
_MAX_SETS = 4096
_PIECE = 32  # clients formatted per step


@dataclass(frozen=True, slots=True)
class BusyClient:
    """One of the busiest clients.

    ``key`` is what the limit counts; ``hashed`` is true for a string, of which the table has only
    the hash. ``hits`` are those of the current window on this node, ``rate`` is hits per second,
    ``until`` the epoch second at which its block ends or ended, 0 without a block.
    """

    key: str
    hashed: bool
    limit: str
    hits: int
    rate: float
    until: int


class _Pass:
    """A scan for ``count`` clients, running or done."""

    def __init__(self, count: int, task: asyncio.Task[list[BusyClient]]) -> None:
        self.count = count
        self.task = task
        self.good_until = 0.0


class Busiest:
    """Finds the busiest clients; callers share a recent scan.

    A blocked client has no hits since its block: only ``blocked`` finds it.
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
            # At most twice as many as before, because the next sets may have more clients.
            sets = max(1, min(2 * sets, _MAX_SETS, int(sets * SLICE / took)))
        found = await paced(_read(scan, self._limiter))
        self._passes[sort].good_until = time.monotonic() + max(_LIFE, spent / SHARE)
        return found

    def set_time(self) -> None:
        """Set the engine's clock, unless checks in progress have their own time."""
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
