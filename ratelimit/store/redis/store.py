"""The shared store: one blocklist and one set of counts for all nodes, in Redis or Valkey.

One task maintains the store: it connects, subscribes, writes pending changes, loads the blocklist,
and then sends a heartbeat every second, which also reads the store's time. Any failed request ends
all connections; the next attempt starts from the beginning. So there is only one way to start,
after which nothing has been missed.

Keys: ``PREFIX:{fleet}:nodes``, ``PREFIX:{fleet}:blocks``, ``PREFIX:{fleet}:lifts``,
``PREFIX:{fleet}:claim:NAME`` and ``PREFIX:{fleet}:lease:NAME``, and for counts
``PREFIX:{LIMIT.SHARD}:hits:GENERATION``. Channels: ``PREFIX:{fleet}:news`` and
``PREFIX:{fleet}:hot``; in databases other than 0 they end with ``:DB``, because the databases of a
server share channels. ``scripts/`` describes the contents.

A request without an answer may have been executed. So counts are not sent again (see
``StoreError.unsent``); blocks are, because writing them twice changes nothing.

A server may be set back in time: restored from a snapshot, or a replica that was promoted without
the last changes. So at each start the list is compared with that of this node (``blocklist``),
which is also kept in a journal that outlives the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

import structlog

from ratelimit.backoff import Backoff
from ratelimit.engine.layout import ANSWER_BYTES, RECORD_BYTES
from ratelimit.exceptions import ConfigError, StartError
from ratelimit.model import NAME, Entry
from ratelimit.notation import SECOND
from ratelimit.steps import Steps
from ratelimit.store.base import Events, Node, SharedStore, StoreError
from ratelimit.store.journal import Journal
from ratelimit.store.pending import Change
from ratelimit.store.redis.blocklist import SharedBlocklist
from ratelimit.store.redis.nodes import HEARTBEAT, Members, nodes_key
from ratelimit.store.redis.session import Life, Script
from ratelimit.store.redis.url import Target
from ratelimit.store.secret import KeptSecret
from ratelimit.store.sqlite import BlockFile, FolderError

TIMEOUT = 0.5
"""Seconds for a connection, and for a request other than ``exchange()``."""

EXCHANGE_TIMEOUT = 0.25
"""Seconds for ``exchange()``."""

BACKOFF = (0.05, 0.5)
"""First and longest pause in seconds before a new attempt. The pause doubles each time and is
shortened by a random part of up to a half, so that nodes do not reconnect at the same time.
"""

_START_TIMEOUT = 5.0
_BEGIN_TIMEOUT = 300.0  # for a whole start; 200,000 entries take a minute on a busy core
_STEADY = 5.0  # seconds without an outage after which the pause is reset
_CLOSE_TIMEOUT = 1.0

_LATE = "the journal was not written in time"
_UNJOURNALED = 5_000
"""Changes that may wait for the journal: the garbage collector visits their objects, which takes
5 ms for 10,000 changes.
"""

log = structlog.get_logger()

_EXCHANGE = Script("exchange")
_LEASE = Script("lease")


class RedisStore(SharedStore):
    """The store that nodes share.

    Attributes:
        strays: messages on our channels from another program.
        exchanges: answered calls of ``exchange()``.
        server: kind and version of the server, such as ``redis 7.2.4``.

    ``journal`` is the file of this node's journal; with ``journal_needed`` the store does not start
    if its directory is unusable. ``replicas`` must confirm an operator's change. Nodes with a
    ``secret`` sign their entries and ignore unsigned ones.
    """

    def __init__(
        self,
        target: Target,
        prefix: str = "ratelimit",
        events: Events | None = None,
        *,
        node: Node | None = None,
        kept: KeptSecret | None = None,
        journal: BlockFile | None = None,
        journal_needed: bool = False,
        replicas: int = 0,
        secret: bytes = b"",
        timeout: float = TIMEOUT,
        exchange_timeout: float = EXCHANGE_TIMEOUT,
    ) -> None:
        super().__init__(events or Events(), kept)
        self.strays = 0
        self.exchanges = 0
        self.server = ""
        self._target = target
        self._timeout = timeout
        self._exchange_timeout = exchange_timeout
        self._prefix = prefix
        self._members = Members(nodes_key(prefix), node)
        db = f":{target.db}" if target.db else ""
        self._hot = f"{prefix}:{{fleet}}:hot{db}".encode()
        news = f"{prefix}:{{fleet}}:news{db}".encode()
        self._blocklist = SharedBlocklist(
            prefix, news, self.events, self.outbox, self.kept, replicas, secret
        )
        self._journal: Journal | None = None
        self._journal_needed = journal_needed
        if journal is not None:
            self._journal = Journal(
                journal,
                self.events,
                self._journal_changed,
                self._compare_later,
                self._seconds,
                _UNJOURNALED,
            )
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._life: Life | None = None
        self._known = target.endpoints[:0]
        self._tried = asyncio.Event()
        self._lost_at = 0.0
        self._back_at = math.inf
        self._emptied = False
        self._reload = False
        # Keys and lifetime of the counts of a failed exchange: the store is up again once these
        # keys work.
        self._suspect: tuple[tuple[bytes, ...], int] | None = None
        if not re.fullmatch(NAME, prefix):
            raise ConfigError(["store.prefix: must have 1 to 64 characters of A-Za-z0-9_.:-"])

    @property
    def unsigned(self) -> int:
        return self._blocklist.signer.refused

    @property
    def clock_offset(self) -> int:
        return self.now() - time.time_ns() if self._members.clock.known else 0

    def now(self) -> int:
        """Return the store's time in epoch nanoseconds, or the local time until it is known."""
        clock, local = self._members.clock, time.monotonic_ns()
        return local + clock.offset(local) if clock.known else time.time_ns()

    async def start(self) -> None:
        """Load the journal and try to reach the store once; an outage begins if that fails.

        Raises StartError if the configured directory of the journal is unusable.
        """
        if self._journal is not None:
            await self._start_journal(self._journal)
        self._task = asyncio.create_task(self._run(), name="store")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_TIMEOUT):
                await self._tried.wait()

    async def close(self) -> None:
        self._closing = True
        self.outbox.woken.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=_CLOSE_TIMEOUT)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if len(self.outbox):
            where = "in the journal only" if self.journal and not self.journal_problem else "lost"
            log.warning("the store lacks some blocks", count=len(self.outbox), they_are=where)
        await self._hang_up()
        self.up = False
        if self._journal is not None:
            await self._journal.close()

    async def _start_journal(self, journal: Journal) -> None:
        try:
            await journal.start()
        except StartError as error:
            await journal.close()
            if self._journal_needed and isinstance(error, FolderError):
                raise
            self._journal, self.journal_problem = None, str(error)
            log.warning("no journal; only the store keeps blocks", why=str(error))
        else:
            self.journal = journal.path

    def _journal_changed(self) -> None:
        assert self._journal is not None  # noqa: S101 - it calls this
        was, self.journal_problem = self.journal_problem, self._journal.problem
        if self.journal_problem and not was:
            log.error("journal lost; only the store keeps blocks", why=self.journal_problem)
        elif was and not self.journal_problem:
            log.info("journal back")

    def _compare_later(self) -> None:
        """Compare the list with the store's, which may lack entries of a file."""
        self._reload = self.up
        self.outbox.woken.set()

    def _seconds(self) -> float:
        return self.now() / SECOND

    def put(self, entry: Entry) -> None:
        super().put(entry)
        self.keep(entry)

    def keep(self, entry: Entry) -> None:
        if self._journal is not None:
            self._journal.outbox.add(Change(entry))

    def _submit(self, entry: Entry, timeout: float) -> Coroutine[Any, Any, tuple[Entry, bool]]:
        """Write to the store and the journal; if the journal is down, the store alone decides."""
        stored = super()._submit(entry, timeout)
        journal, kept = self._journal, None
        if journal is not None:
            # A journal that is too far behind compares the whole list soon.
            with contextlib.suppress(StoreError):
                kept = journal.outbox.submit(entry)
        deadline = time.monotonic() + timeout

        async def written() -> tuple[Entry, bool]:
            held, found = await stored
            if journal is not None and kept is not None and journal.up:
                change = kept if held == entry else journal.outbox.submit(held)
                left = max(0.0, deadline - time.monotonic())
                await journal.outbox.written(change, left, lambda: journal.problem or _LATE)
            return held, found

        return written()

    def announce(self, node: Node) -> None:
        self._members.node = replace(node, id=self._members.node.id)

    async def nodes_list(self) -> list[Node]:
        return await self._members.read(self._connected(), self.now() // 1_000_000)

    async def claim(self, name: str, value: str, ttl: float) -> bool:
        key = f"{self._prefix}:{{fleet}}:claim:{name}".encode()
        milliseconds = round(ttl * 1000)
        old = await self._connected().call(key, "SET", key, value, "PX", milliseconds, "GET")
        return bool(old != value.encode())

    async def lease(
        self, names: Sequence[str], agent: str, life: int
    ) -> dict[str, tuple[str, str]]:
        keys = tuple(f"{self._prefix}:{{fleet}}:lease:{name}".encode() for name in names)
        connected = self._connected()
        answer = await connected.run(_LEASE, keys, b"-", agent, life)
        if not isinstance(answer, list) or len(answer) != 2 * len(names):
            raise connected.odd("the answer to a lease")
        said = [one.decode("ascii", "replace") for one in answer]
        return dict(zip(names, zip(said[::2], said[1::2], strict=True), strict=True))

    def adopt(self) -> None:
        if self._journal is not None:
            self._journal.adopt()

    async def exchange(
        self,
        limit: str,
        shard: int,
        generation: int,
        ttl: int,
        batch: bytes,
        hot: bytes = b"",
    ) -> bytes:
        """Add the counts of this node; return the counts of all nodes; see ``exchange.lua``.

        ``ttl`` is in milliseconds; ``hot`` is passed to ``on_hot`` of every node. Raises
        StoreError; unless ``unsent``, the batch may have been counted.
        """
        if not self.up:
            raise StoreError(self.problem or "not started", unsent=True)
        keys = tuple(
            f"{self._prefix}:{{{limit}.{shard}}}:hits:{number}".encode()
            for number in (generation, generation - 1)
        )
        life = self._connected()
        args = (b"-", ttl, batch, self._hot, hot)
        try:
            answer = await life.run(_EXCHANGE, keys, *args, timeout=self._exchange_timeout)
            if not isinstance(answer, bytes) or (
                len(answer) * RECORD_BYTES != len(batch) * ANSWER_BYTES
            ):
                raise life.odd("the answer to an exchange")
        except StoreError:
            self._suspect = keys, ttl
            raise
        self.exchanges += 1
        return answer

    # The connection to the store.

    async def _run(self) -> None:
        backoff = Backoff(*BACKOFF)
        while not self._closing:
            self._back_at = math.inf
            try:
                async with asyncio.timeout(_BEGIN_TIMEOUT):
                    life = await self._begin()
                self._tried.set()
                await self._keep(life)
            except StoreError as error:
                self._lost(str(error))
            except TimeoutError:
                self._lost(f"start not finished within {_BEGIN_TIMEOUT:.0f} s")
            except Exception as error:
                # An internal error: continue with local counts.
                log.exception("internal error in the store")
                self._lost(f"internal error: {error!r}")
            finally:
                await self._hang_up()
                self._tried.set()
            if self._closing:
                return
            if time.monotonic() - self._back_at >= _STEADY:
                backoff.reset()
            await self._sleep(backoff.next())

    async def _sleep(self, seconds: float) -> None:
        """Wait, unless the store closes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._closing:
                    self.outbox.woken.clear()
                    await self.outbox.woken.wait()

    async def _begin(self) -> Life:
        """Connect and load the state of the store."""
        life = self._life = Life(self._target, self._timeout, self._members.key, self._ended)
        self.server = await life.open(self._known)
        self._members.begin()
        self._blocklist.begin()
        await life.subscribe((self._blocklist.channel, self._hot), self._hear)
        await self._heartbeat(life)
        if self._suspect is not None:
            # Without records the script only checks the keys, and creates missing ones.
            keys, ttl = self._suspect
            await life.run(_EXCHANGE, keys, b"-", ttl, b"", self._hot, b"")
            self._suspect = None
        await self._write(life)
        await self._compare(life)
        self._back()
        return life

    async def _keep(self, life: Life) -> None:
        """Send heartbeats and write changes until something fails."""
        due = time.monotonic() + HEARTBEAT
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0, due - time.monotonic())):
                    await self.outbox.woken.wait()
            self.outbox.woken.clear()
            if life.failure:
                raise StoreError(life.failure)
            await self._write(life, None if self._closing else due)
            if self._closing:
                await self._members.leave(life, self._blocklist)
                return
            if self._reload or self.outbox.overflowed:
                await self._compare(life)
            if time.monotonic() >= due:
                due = time.monotonic() + HEARTBEAT
                await self._heartbeat(life)
                await life.follow()

    async def _write(self, life: Life, until: float | None = None) -> None:
        await self._blocklist.write(life, until)
        if len(self.outbox):
            self.outbox.woken.set()

    async def _compare(self, life: Life) -> None:
        written = await self._blocklist.compare(life, self.up)
        if life.failure:
            raise StoreError(life.failure)
        self._reload = False
        if written:
            log.warning("the store lacked blocks or lifts; they were written back", count=written)

    async def _heartbeat(self, life: Life) -> None:
        known, before = self._members.clock.known, self._blocklist.changes
        era, changes = await self._members.heartbeat(life, self._blocklist)
        seconds = round(self.clock_offset / SECOND)
        if not known and seconds:
            self.events.on_clock()
            # Blocks from before the first contact have times of the local clock.
            for entry in self.outbox.shift(seconds, self.events.forget):
                self.events.tell(entry)
        self.nodes = self._members.live
        if self._blocklist.learn(era, changes, before):
            if self.up:
                log.warning("the store has lost data; the blocklist is compared again")
            self._emptied = not self.up
            self._reload = self.up
            self.outbox.woken.set()

    async def _hang_up(self) -> None:
        life, self._life = self._life, None
        if life is not None:
            self._known = life.known or self._known
            await life.close()

    def _connected(self) -> Life:
        if self._life is None:
            raise StoreError(self.problem or "not started", unsent=True)
        return self._life

    def _ended(self, problem: str) -> None:
        if self.up:
            self._lost(problem)
        self.outbox.woken.set()

    def _lost(self, problem: str) -> None:
        if self.up or not self.problem:
            self.outages += 1
            self._lost_at = time.monotonic()
            log.error("store lost", why=problem)
            if self.up:
                self.up = False
                self.problem = problem
                self.events.on_lost()
        self.problem = problem

    def _back(self) -> None:
        if self.problem:
            seconds = round(time.monotonic() - self._lost_at, 3)
            log.info("store back", server=self.server, seconds=seconds, emptied=self._emptied)
        else:
            log.info("store reached", server=self.server)
        self.problem = ""
        self.up = True
        self._back_at = time.monotonic()
        self.events.on_back()

    def _hear(self, channel: bytes, text: bytes) -> Steps[None]:
        if channel == self._hot:
            self.events.on_hot(text)
        elif not (yield from self._blocklist.hear(text)):
            self.strays += 1
            if self.strays == 1:
                log.warning("another program publishes on this channel", channel=channel.decode())
