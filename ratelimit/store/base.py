"""The interface of a store: it keeps the blocklist and, if shared, distributes it.

No method is called on the request path, and every wait is bounded. A change that can't be written
now stays in an ``Outbox`` of fixed size and is written later.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from ratelimit.exceptions import StoreError
from ratelimit.limiter.string_keys import masked
from ratelimit.model import Block, Entry, Lift
from ratelimit.steps import Steps
from ratelimit.store.entries import check
from ratelimit.store.pending import Change, Outbox
from ratelimit.store.secret import KeptSecret
from ratelimit.turns import SLICE, turn

if TYPE_CHECKING:
    from ratelimit.limiter.merge import Merge

CONFIRM_TIMEOUT = 5.0
"""Seconds that a caller waits for a change to be written: a busy disk may need more than one. Less
than the 10 s that the command line waits for an answer."""

OUTAGE_TIMEOUT = 1.0
"""The same while the store is known to be down."""

_TOLD = 1000  # entries per write

log = structlog.get_logger()

__all__ = ["Events", "Node", "SharedStore", "Store", "StoreError"]


@dataclass(frozen=True, slots=True)
class Node:
    """A node as it announces itself.

    Attributes:
        id: random, made at start.
        version: of the program.
        since: epoch seconds of its start.
        checks: recent checks per second.
        allowed: recent allowed checks per second.
    """

    id: str
    version: str
    since: int
    checks: float = 0
    allowed: float = 0


Place = tuple[str, str]
"""A limit and a key."""


class NoList:
    """A ``limiter.merge.Merge`` for an owner without a list."""

    outdated: Sequence[Place] = ()

    def take(self, entries: Sequence[Entry]) -> Steps[None]:
        yield from ()

    def newer(self) -> Iterator[list[Entry]]:
        yield from ()


async def tell(
    newer: Iterator[list[Entry]], write: Callable[[Sequence[Entry]], Awaitable[object]]
) -> None:
    """Write what the other list lacks, in slices of the event loop."""
    done = False
    while not done:
        await turn()
        entries: list[Entry] = []
        end = time.perf_counter() + SLICE
        while not done and len(entries) < _TOLD and time.perf_counter() < end:
            page = next(newer, None)
            done = page is None
            entries += page or ()
        if entries:
            await write(entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Callbacks of a store to its owner; called in the event loop, must not block.

    Attributes:
        on_block: called with a block from the store, or a new one by an operator of this node;
            possibly several times.
        on_lift: the same for a lift.
        merge: called at the start and after any gap; returns what merges the whole list.
        on_hot: called with the clients that any node has declared hot.
        on_lost: called at the start of an outage; not again before ``on_back``.
        on_back: called at the end of an outage, and after a first contact that was delayed.
        on_clock: called when ``clock_offset`` is known, before blocks get times of that clock.
        forget: returns for how many seconds strikes of a limit are remembered.
    """

    on_block: Callable[[Block], object] = lambda block: None
    on_lift: Callable[[Lift], object] = lambda lift: None
    merge: Callable[[], Merge | NoList] = NoList
    on_hot: Callable[[bytes], object] = lambda ids: None
    on_lost: Callable[[], object] = lambda: None
    on_back: Callable[[], object] = lambda: None
    on_clock: Callable[[], object] = lambda: None
    forget: Callable[[str], int] = lambda limit: 86_400

    def tell(self, entry: Entry) -> None:
        """Call the callback for a block or a lift."""
        if isinstance(entry, Lift):
            self.on_lift(entry)
        else:
            self.on_block(entry)


class Store(ABC):
    """A store of blocks.

    Attributes:
        up: whether the store works. Otherwise blocks are made and counted locally.
        problem: if not up, what is wrong and what to do, in one line.
        outages: number of outages since the start.
        nodes: number of live nodes, including this one; during an outage the last known number.
        outbox: changes to be written.
        kept: the secret with which strings are hashed.
        journal: path of the file in which this node keeps the blocklist, or empty.
        journal_problem: what is wrong with that file, in one line, or empty.
    """

    def __init__(self, events: Events, kept: KeptSecret | None = None) -> None:
        self.events = events
        self.kept = kept or KeptSecret()
        self.up = False
        self.problem = ""
        self.outages = 0
        self.nodes = 1
        self.outbox = Outbox()
        self.journal = ""
        self.journal_problem = ""

    @property
    def unsigned(self) -> int:
        """Number of entries ignored because of an invalid signature."""
        return 0

    @property
    def clock_offset(self) -> int:
        """Nanoseconds to add to ``time.time_ns()`` of this node to get the fleet's common time."""
        return 0

    @abstractmethod
    async def start(self) -> None:
        """Open the store and load the blocklist.

        Raises StartError for a local problem that an operator must fix; an unreachable remote store
        is an outage instead.
        """

    @abstractmethod
    async def close(self) -> None:
        """Write pending changes, within a time limit, and close everything."""

    async def release(self, timeout: float) -> None:
        """Close what only one process can have open, for a successor; further changes wait.

        Raises StoreError after ``timeout`` seconds. ``reopen()`` undoes it.
        """
        return None  # noqa: RET501 - several processes can use a shared store

    def reopen(self) -> None:
        """Continue as before ``release()``."""
        return None  # noqa: RET501

    def adopt(self) -> None:
        """Merge the files of agents of this machine that have ended."""
        return None  # noqa: RET501

    @abstractmethod
    async def nodes_list(self) -> list[Node]:
        """Return the live nodes. Raises StoreError."""

    async def claim(self, name: str, value: str, ttl: float) -> bool:
        """Set a value that all nodes share, for ``ttl`` seconds; return true if it has changed.

        So exactly one of several nodes with the same value gets true. Raises StoreError.
        """
        return True

    @abstractmethod
    def announce(self, node: Node) -> None:
        """Use this description of the node from the next heartbeat on."""

    def put(self, entry: Entry) -> None:
        """Write an entry of this node as soon as possible."""
        try:
            check(entry)
        except StoreError as error:
            log.warning("an entry can't be stored", key=ascii(masked(entry.key)), why=str(error))
        else:
            self.outbox.add(Change(entry))

    def keep(self, entry: Entry) -> None:
        """Keep an entry from elsewhere that the owner has merged, if the store does so."""
        return None  # noqa: RET501 - a store of one node has the entry already

    def save(self, block: Block, timeout: float | None = None) -> Coroutine[Any, Any, Block]:
        """Write a block by an operator; the owner's callback is called at once.

        Raises StoreError, ``unsent``, if it can never be written; nothing has happened then.

        Awaiting the result returns the block as stored, once it can't be lost any more. It raises
        StoreError after ``timeout`` seconds, by default ``CONFIRM_TIMEOUT``; the block is still
        written later.
        """
        written = self._submit(block, self._limit(timeout))

        async def saved() -> Block:
            entry, _ = await written
            return entry if isinstance(entry, Block) else block

        return saved()

    async def lift(self, lift: Lift, timeout: float | None = None) -> bool:
        """Remove a block and its strikes for all nodes; return true if there was one.

        Raises StoreError like ``save()`` and its result.
        """
        _, found = await self._submit(lift, self._limit(timeout))
        return found

    def _limit(self, timeout: float | None) -> float:
        if timeout is not None:
            return timeout
        return OUTAGE_TIMEOUT if self.problem else CONFIRM_TIMEOUT

    def _submit(self, entry: Entry, timeout: float) -> Coroutine[Any, Any, tuple[Entry, bool]]:
        """Queue an entry and notify the owner; awaiting the result waits until it is written."""
        check(entry)
        change = self.outbox.submit(entry)
        self.events.tell(entry)
        return self.outbox.written(change, timeout, lambda: self.problem)


class SharedStore(Store):
    """A store that nodes share, including their counts."""

    @abstractmethod
    async def exchange(
        self, limit: str, shard: int, generation: int, ttl: int, batch: bytes, hot: bytes = b""
    ) -> bytes:
        """Add the counts of this node; return the counts of all nodes.

        ``batch`` and the answer have the format of ``engine.sharing``; ``ttl`` is in milliseconds;
        ``hot`` is passed to ``on_hot`` of every node. Raises StoreError; unless ``unsent``, the
        batch may have been counted.
        """

    @abstractmethod
    async def lease(
        self, names: Sequence[str], agent: str, life: int
    ) -> dict[str, tuple[str, str]]:
        """Take or renew leases for ``life`` milliseconds, or give them back with 0.

        A lease goes to an agent if no other agent has it. Returns for each name which agent had it
        last, empty for none, and which one has it now. Raises StoreError.
        """
