"""Keeps a node and the store in step: counts, blocks, time, and what is known of the fleet.

Counts are exchanged every ``interval``, at once when a client is near its limit, and one exchange
at a time for each limit: what comes up meanwhile goes with the next. None of it is on the request
path, unless the operator asks for that with an interval of 0. Then what was read is held, the store
hears of all of it in one exchange, and the answers follow by what it knows of the whole fleet. What
is read while an exchange is under way waits for that one first, and for both no longer than
``_DEADLINE``; then it is answered by the counts of this node.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
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

# Windows after which counts go to a new key, and the old one ends; it keeps all clients until then.
_GENERATION = 64
_GENERATION_LONG = 4  # of a minute at least
_GAP = 0.002  # seconds from the beginning of an exchange to that of the next, at least
_DEADLINE = 0.03
"""Seconds that an answer waits for the store; under HAProxy's ``timeout processing``."""
_RECORDS = 1000  # of a call of the store, where answers wait for more
_SILENCE = 60.0  # seconds from one line about late answers to the next
_MAX_HELD = 1 << 20  # bytes that wait for the store; with more, nothing waits
_SHARD = 0  # a limit's counts are one key, so the limits are what a cluster spreads

log = structlog.get_logger()


class Peer(Protocol):
    """A connection, as far as it matters here."""

    def reserve(self, data: bytes) -> None:
        """Have the store hear of what ``answer(data)`` will count."""

    def answer(self, data: bytes, now: int) -> None:
        """Answer what was read."""


class Sync:
    """What a node and its store tell each other.

    Args:
        limiter: of this node.
        interval: seconds between exchanges.
        share: whether, while the store is away, a node enforces its part of a limit only, by the
            number of nodes known last, instead of the whole.

    ``epoch`` added to ``time.monotonic_ns()`` is the time that all nodes go by, in nanoseconds
    since the epoch: a wrong clock of this machine changes no verdict. ``waits`` says that answers
    wait for the store: what was read then goes to ``hold()``. ``late`` counts the checks that were
    answered without it all the same, though it was up: it did not answer within ``_DEADLINE``, or
    more was read than may wait. ``failures`` counts the exchanges that failed. ``times`` has how
    long each took, and ``records`` counts the clients in them. ``flying`` says that checks have a
    time of their own, for the store has heard of them and they have no answer yet. ``on_lost`` and
    ``on_back`` are called when an outage of the store begins and ends.
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
        self._deadline = 0.0  # of what is held, in loop time
        self._under_way: set[asyncio.Task[None]] = set()
        self._told = (0, -math.inf)  # how many late ones the log has, and since when
        self.store: Store | None = None
        self._node: Node | None = None
        self.on_lost: list[Callable[[], object]] = []
        self.on_back: list[Callable[[], object]] = []
        self._ticked = (time.monotonic(), 0, 0)
        self.events = Events(
            on_block=limiter.apply,
            on_lift=limiter.lift,
            merge=self._merge,
            on_hot=self._warm,
            on_lost=self._lost,
            on_back=self._back,
            forget=limiter.forget,
        )
        self._urgent = asyncio.Event()
        self._last = 0.0  # when the last exchange began, and when the next one is to, in loop time
        self._next = math.inf
        self._timer: asyncio.TimerHandle | None = None
        limiter.on_made.append(self.put)
        limiter.on_taken.append(self._keep)
        self.reloaded()

    def attach(self, store: Store, node: Node) -> None:
        """Take the store, which was made with ``events``, and what it tells of this node."""
        self.store = store
        self._node = node

    def reloaded(self) -> None:
        """Take the limits that the limiter now has."""
        for exchange in self.limiter.engine.exchanges:
            exchange.interval = round(self.interval * SECOND)
        self._divide()

    def now(self) -> int:
        """Return the time that all nodes go by."""
        return time.monotonic_ns() + self.epoch

    @property
    def lag(self) -> int:
        """Nanoseconds that the counts of other nodes are old; 0 while no client needs them."""
        if self.waits or not any(exchange.due for exchange in self.limiter.engine.exchanges):
            return 0
        return time.monotonic_ns() - self._answered

    def hurry(self) -> None:
        """Exchange counts as soon as some client needs it, if no exchange is under way."""
        self.limiter.engine.urgent = False
        self._plan()

    def hold(self, peer: Peer, data: bytes) -> None:
        """Answer what was read as soon as the store has heard of it, in the order of the calls."""
        if not self._held:
            self._deadline = asyncio.get_running_loop().time() + _DEADLINE
        # A frame may be spread over reads, so those of a peer are joined.
        self._held[peer] = self._held.get(peer, b"") + data
        self._held_bytes += len(data)
        self._urgent.set()

    def release(self) -> None:
        """Answer what is held without the store, and hold nothing more."""
        self.waits = False
        held, self._held = self._held, {}
        for peer, data in held.items():
            peer.answer(data, self.now())

    def tick(self) -> None:
        """Do what is due about once a second."""
        if self.store is None:
            return
        self._report()
        offset = self.store.clock_offset
        self.epoch = time.time_ns() + offset - time.monotonic_ns()
        # A tenth of a second is let pass: else half of the nodes with a right clock would add one.
        self.limiter.engine.ahead = (offset + SECOND // 10) // SECOND
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
        """Exchange counts until cancelled; does nothing where counts are not shared."""
        store = self.store
        if not isinstance(store, SharedStore):
            await asyncio.Event().wait()
            return
        try:
            while True:
                await self._urgent.wait()
                self._urgent.clear()
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
                self.limiter.engine.at(now)
                if batch := exchange.pack(self.limiter.engine.now):
                    await self._exchange(store, exchange, batch, exchange.notice(), now)
            self._plan()

    def _plan(self) -> None:
        """See to it that the next exchange begins in time; without the store, its return does."""
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
        self._urgent.set()
        for listener in self.on_back:
            listener()

    async def _flush(self, store: SharedStore) -> None:
        """Answer all that is held, after the store has heard of it or when the time is over."""
        loop = asyncio.get_running_loop()
        while self._under_way and store.up:
            if self._held and self._deadline <= loop.time():
                break
            # More may be held meanwhile.
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
            # What was counted without the store having heard of it.
            self._urgent.set()

    def _begin_exchanges(self, store: SharedStore, now: int) -> None:
        """Have the store hear of all that was reserved, and of what it has not heard before."""
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
            task.result()  # the loop tells the supervisor of a fault of ours

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
        # What the batch carried counts as sent if this fails: hits may be lost to the others, none
        # is counted twice. The store tells of its outages itself.
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
        """Log that answers were late, in a number of lines that does not depend on how many."""
        told, at = self._told
        if self.late > told and time.monotonic() - at >= _SILENCE:
            self._told = self.late, time.monotonic()
            log.warning(
                "checks were answered by the counts of this node alone: the store is too slow",
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
        """Have the store keep a block or a lift that was made here."""
        if self.store is not None:
            self.store.put(entry)

    async def take(self, entries: Sequence[Entry]) -> None:
        """Merge what another process has known of this node's list, and have the store keep it."""
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

    def _merge(self) -> Merge:
        self.tick()
        self.limiter.engine.at(self.now())
        return Merge(self.limiter, self.store.kept.secret if self.store is not None else b"")

    def _divide(self) -> None:
        store = self.store
        if store is None:
            return
        away = self.share and not store.up
        self.limiter.degrade(store.nodes if away else 1)
        if isinstance(store, SharedStore):
            self.limiter.divide(store.nodes, store.up)
