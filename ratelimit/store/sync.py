"""Keeps a node and the store in sync: counts, blocks, time, and the number of nodes.

Counts are exchanged every ``interval``, at once if a client is near its limit, with one exchange at
a time per limit; new counts wait for the next one. Exchanges are not on the request path, unless
the interval is 0. Then requests are held, announced to the store in one exchange, and answered with
the counts of the whole fleet. Requests that arrive during an exchange wait for it first. A request
waits at most ``_DEADLINE``; then it is answered with the counts of this node.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import structlog

from ratelimit.engine.layout import NOTICE_BYTES, RECORD_BYTES
from ratelimit.engine.sharing import Exchange
from ratelimit.histogram import Histogram
from ratelimit.limiter.limiter import Limiter, Sharing
from ratelimit.limiter.merge import Merge
from ratelimit.model import SUB_WINDOWS, Entry
from ratelimit.notation import SECOND
from ratelimit.steps import Steps
from ratelimit.store.base import Events, Node, SharedStore, Store, StoreError
from ratelimit.turns import paced

# Windows after which counts use a new key; the old one, with all its clients, expires.
_GENERATION = 64
_GENERATION_LONG = 4  # for windows of a minute or more
_GAP = 0.002  # seconds between the starts of exchanges, at least
_DEADLINE = 0.03
"""Seconds that an answer waits for the store; less than HAProxy's ``timeout processing``."""
_RECORDS = 1000  # records per call of the store, if answers wait
_SILENCE = 60.0  # seconds between log lines about late answers
_MAX_HELD = 1 << 20  # bytes of held requests; beyond that, none wait
_EARLY = 1_000_000  # nanoseconds by which a timer of the loop may be early
_SHARD = 0  # a limit's counts are one key, so a cluster distributes the limits

log = structlog.get_logger()


class Peer(Protocol):
    """A connection, as far as this module uses it."""

    def reserve(self, data: bytes) -> None:
        """Announce to the store what ``answer(data)`` will count."""

    def answer(self, data: bytes, now: int) -> None:
        """Answer the requests in ``data``."""


class Sync:
    """Connects a node to its store.

    Args:
        limiter: of this node.
        interval: seconds between exchanges.
        share: whether a node enforces only its share of each limit while the store is down, by the
            last known number of nodes.

    ``epoch`` plus ``time.monotonic_ns()`` is the fleet's common time in epoch nanoseconds, so that
    a wrong clock of this machine changes no verdict. ``waits`` is true if answers wait for the
    store; then requests go to ``hold()``. ``late`` counts checks answered without the store
    although it was up, because it was too slow or too many requests were held. ``failures`` counts
    failed exchanges, ``times`` measures their duration, ``records`` counts the clients in them.
    ``flying`` is true while checks that were announced to the store are not answered yet; they have
    their own time. ``on_lost`` and ``on_back`` are called at the start and the end of an outage;
    ``on_return`` is awaited after an outage, before counts are exchanged.
    """

    def __init__(self, limiter: Limiter, interval: float, share: bool) -> None:
        self.limiter = limiter
        self.interval = interval
        self.share = share
        self.epoch = time.time_ns() - time.monotonic_ns()
        self.failures = 0
        self.late = 0
        self.times = Histogram()
        self.records = 0
        self._answered = time.monotonic_ns()
        self.flying = False
        self.waits = limiter.sharing is Sharing.ALL
        self._held: dict[Peer, bytes] = {}
        self._held_bytes = 0
        self._deadline = 0.0  # of held requests, in loop time
        self._under_way: set[asyncio.Task[None]] = set()
        self._told = (0, -math.inf)  # late checks that are logged, and when
        self.store: Store | None = None
        self._node: Node | None = None
        self.on_lost: list[Callable[[], object]] = []
        self.on_back: list[Callable[[], object]] = []
        self.on_return: list[Callable[[], Awaitable[object]]] = []
        self._returned = False
        self._ticked = (time.monotonic(), 0, 0)
        self.events = Events(
            on_block=limiter.apply,
            on_lift=limiter.lift,
            merge=self._merge,
            on_hot=self._warm,
            on_lost=self._lost,
            on_back=self._back,
            on_clock=self._set_clock,
            forget=limiter.forget,
        )
        self._urgent = asyncio.Event()
        self._last = 0.0  # start of the last exchange, and planned start of the next, in loop time
        self._next = math.inf
        self._timer: asyncio.TimerHandle | None = None
        limiter.on_made.append(self.put)
        limiter.on_taken.append(self._keep)
        self.reloaded()

    def attach(self, store: Store, node: Node) -> None:
        """Set the store, which was made with ``events``, and the description of this node."""
        self.store = store
        self._node = node

    def reloaded(self) -> None:
        """Update after a change of the limits."""
        for exchange in self.limiter.engine.exchanges:
            exchange.interval = round(self.interval * SECOND)
        self._divide()

    def now(self) -> int:
        """Return the fleet's common time."""
        return time.monotonic_ns() + self.epoch

    @property
    def lag(self) -> int:
        """Age of other nodes' counts in nanoseconds; 0 if no client needs them."""
        if self.waits or not any(exchange.due for exchange in self.limiter.engine.exchanges):
            return 0
        return time.monotonic_ns() - self._answered

    def hurry(self) -> None:
        """Plan an exchange as soon as a client needs it."""
        self.limiter.engine.urgent = False
        self._plan()

    def hold(self, peer: Peer, data: bytes) -> None:
        """Hold requests until the store has been asked, and answer them in order."""
        if not self._held:
            self._deadline = asyncio.get_running_loop().time() + _DEADLINE
        # A frame may span several reads, so reads of a peer are joined.
        self._held[peer] = self._held.get(peer, b"") + data
        self._held_bytes += len(data)
        self._urgent.set()

    def release(self) -> None:
        """Answer held requests without the store, and hold no more."""
        self.waits = False
        held, self._held = self._held, {}
        for peer, data in held.items():
            peer.answer(data, self.now())

    def tick(self) -> None:
        """Do the work that is due once a second."""
        if self.store is None:
            return
        self._report()
        self._set_clock()
        self._divide()
        if self._node is not None:
            engine = self.limiter.engine
            last, checks, allowed = self._ticked
            self._ticked = (time.monotonic(), engine.checks, sum(r.allowed for r in engine.rules))
            seconds = max(self._ticked[0] - last, 0.001)
            self.store.announce(
                replace(
                    self._node,
                    checks=round((self._ticked[1] - checks) / seconds, 1),
                    allowed=round((self._ticked[2] - allowed) / seconds, 1),
                )
            )

    async def run(self) -> None:
        """Exchange counts until cancelled; waits if counts are not shared."""
        store = self.store
        if not isinstance(store, SharedStore):
            await asyncio.Event().wait()
            return
        try:
            while True:
                await self._urgent.wait()
                self._urgent.clear()
                while self._returned:
                    self._returned = False
                    for listener in self.on_return:
                        await listener()
                if self.waits:
                    await self._flush(store)
                else:
                    await self._round(store)
        finally:
            for task in self._under_way:
                task.cancel()

    async def _round(self, store: SharedStore) -> None:
        self._last = asyncio.get_running_loop().time()
        if store.up:
            for exchange in tuple(self.limiter.engine.exchanges):
                now = self.now()
                if not _is_due(exchange, now):
                    continue
                self.limiter.engine.at(now)
                if batch := exchange.pack(self.limiter.engine.now):
                    await self._exchange(store, exchange, batch, exchange.notice(), now)
            self._plan()

    def _plan(self) -> None:
        """Schedule the next exchange; without a store, its return schedules one."""
        if self.store is None or not self.store.up or self.waits:
            return
        loop = asyncio.get_running_loop()
        now, here = self.now(), loop.time()
        due = math.inf
        for exchange in self.limiter.engine.exchanges:
            if exchange.due:
                begin = here + (exchange.due - now) / SECOND
                due = min(due, max(begin, self._last + min(_GAP, self.interval)))
            if wait := exchange.wait(now):
                due = min(due, max(here + wait / SECOND, self._last + self.interval))
        if due < self._next:
            if self._timer is not None:
                self._timer.cancel()
            self._next = due
            self._timer = loop.call_at(due, self._begin)

    def _begin(self) -> None:
        self._next = math.inf
        self._urgent.set()

    def _lost(self) -> None:
        self._divide()
        for listener in self.on_lost:
            listener()

    def _back(self) -> None:
        self._divide()
        self._returned = True
        self._urgent.set()
        for listener in self.on_back:
            listener()

    async def _flush(self, store: SharedStore) -> None:
        """Answer held requests after the exchange, or when the time limit has passed."""
        loop = asyncio.get_running_loop()
        while self._under_way and store.up:
            if self._held and self._deadline <= loop.time():
                break
            # More requests may arrive meanwhile.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._deadline if self._held else None):
                    await self._urgent.wait()
            self._urgent.clear()
        engine = self.limiter.engine
        held, self._held = self._held, {}
        size, self._held_bytes = self._held_bytes, 0
        deadline = self._deadline
        now = self.now()
        engine.at(now)
        heard = False
        try:
            if store.up and not self._under_way and size <= _MAX_HELD:
                self.flying = True
                for peer, data in held.items():
                    peer.reserve(data)
                self._begin_exchanges(store, now)
                if held and self._under_way:
                    await asyncio.wait(self._under_way, timeout=deadline - loop.time())
                heard = not self._under_way
        finally:
            self.flying = False
            before = engine.checks
            for peer, data in held.items():
                peer.answer(data, now)
            if store.up and not heard:
                self.late += engine.checks - before
        if store.up and any(exchange.due for exchange in engine.exchanges):
            # Some hits were counted without an announcement to the store.
            self._urgent.set()

    def _begin_exchanges(self, store: SharedStore, now: int) -> None:
        """Announce everything reserved, and earlier hits that the store does not have."""
        for exchange in self.limiter.engine.exchanges:
            batch = exchange.pack(self.limiter.engine.now)
            for begin in range(0, len(batch) // RECORD_BYTES, _RECORDS):
                part = batch[begin * RECORD_BYTES : (begin + _RECORDS) * RECORD_BYTES]
                task = asyncio.create_task(self._exchange(store, exchange, part, b"", now, begin))
                self._under_way.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._urgent.set()
        if not task.cancelled():
            task.result()  # an internal error is reported to the supervisor by the loop

    async def _exchange(
        self,
        store: SharedStore,
        exchange: Exchange,
        batch: bytes,
        notice: bytes,
        now: int,
        begin: int = 0,
    ) -> None:
        """Exchange the counts of a limit; ``batch`` has the records from ``begin`` on."""
        limit = exchange.rule.limit
        hot = limit.name.encode() + b"\0" + notice if notice else b""
        sub_window = limit.window // SUB_WINDOWS
        long = limit.window >= 60 * SECOND
        ticks = (_GENERATION_LONG if long else _GENERATION) * SUB_WINDOWS
        ttl = 2 * ticks * sub_window // 1_000_000
        generation = now // sub_window // ticks
        # If this fails, the batch counts as sent: hits may be lost to other nodes, but none is
        # counted twice. The store reports outages itself.
        sent = time.monotonic_ns()
        self.records += len(batch) // RECORD_BYTES
        try:
            answers = await store.exchange(limit.name, _SHARD, generation, ttl, batch, hot)
        except StoreError:
            self.failures += 1
            return
        exchange.learn(answers, begin)
        self._answered = sent
        self.times.add(time.monotonic_ns() - sent)

    def _report(self) -> None:
        """Log late answers, at most one line per ``_SILENCE``."""
        told, at = self._told
        if self.late > told and time.monotonic() - at >= _SILENCE:
            self._told = self.late, time.monotonic()
            log.warning(
                "checks were answered with local counts only: the store is too slow",
                checks=self.late - told,
                waited_ms=round(_DEADLINE * 1000),
            )

    def _warm(self, hot: bytes) -> None:
        name, _, notices = hot.partition(b"\0")
        rule = self.limiter.rule(name.decode("ascii", "replace"))
        if rule is not None and len(notices) % NOTICE_BYTES == 0:
            engine = self.limiter.engine
            engine.at(self.now())
            engine.exchanges[rule.place].warm(notices, engine.now)
            self._plan()

    def put(self, entry: Entry) -> None:
        """Pass an entry made here to the store."""
        if self.store is not None:
            self.store.put(entry)

    async def take(self, entries: Sequence[Entry]) -> None:
        """Pass the last changes of a predecessor to the store and merge them."""
        # First, because the process may stop before all of it is merged.
        await paced(self._put_all(entries))
        await paced(self._merge().take(entries))
        await paced(self.limiter.cut())

    def _put_all(self, entries: Iterable[Entry]) -> Steps[None]:
        for entry in entries:
            self.put(entry)
            yield

    def _keep(self, entry: Entry) -> None:
        if self.store is not None:
            self.store.keep(entry)

    def _set_clock(self) -> None:
        """Take over the clock of the store."""
        offset = 0 if self.store is None else self.store.clock_offset
        self.epoch = time.time_ns() + offset - time.monotonic_ns()
        # Round to a tenth of a second: otherwise half of the nodes with a right clock would add
        # one.
        self.limiter.engine.ahead = (offset + SECOND // 10) // SECOND
        self.limiter.engine.at(self.now())

    def _merge(self) -> Merge:
        self.tick()
        return Merge(self.limiter, self.store.kept.secret if self.store is not None else b"")

    def _divide(self) -> None:
        store = self.store
        if store is None:
            return
        away = self.share and not store.up
        self.limiter.degrade(store.nodes if away else 1)
        if isinstance(store, SharedStore):
            self.limiter.divide(store.nodes, store.up)


def _is_due(exchange: Exchange, now: int) -> bool:
    """Return whether a limit has something to exchange, or its next round begins."""
    return 0 < exchange.due <= now + _EARLY or 0 < exchange.wait(now) <= _EARLY
