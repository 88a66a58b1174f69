"""What a store is: the blocklist kept and, if nodes share one, told to all.

Everything here is asked of it off the request path. Nothing waits without a limit: what can't be
written now stays in an ``Outbox`` of fixed size and is written as soon as the store can.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from ratelimit.exceptions import StoreError
from ratelimit.limiter.strings import masked
from ratelimit.model import Block, Entry, Lift
from ratelimit.steps import Steps
from ratelimit.store.entries import check
from ratelimit.store.pending import Change, Outbox
from ratelimit.store.secret import KeptSecret
from ratelimit.turns import SLICE, turn

_TOLD = 1000  # entries written at a time

log = structlog.get_logger()

__all__ = ["Events", "Node", "SharedStore", "Store", "StoreError"]


@dataclass(frozen=True, slots=True)
class Node:
    """A node as it announces itself.

    Attributes:
        id: made at start.
        version: of the program.
        since: epoch seconds of its start.
        checks: checks a second, lately.
        allowed: of these, how many a second were allowed.
    """

    id: str
    version: str
    since: int
    checks: float = 0
    allowed: float = 0


Place = tuple[str, str]
"""A limit and a key."""


class Merging(Protocol):
    """How the owner of a store merges its list with another one.

    ``outdated`` has the places of blocks that the owner keeps by another key now: the other list is
    to forget them, without a lift, when it has been told all that is newer.
    """

    outdated: list[Place]

    def take(self, entries: Sequence[Entry]) -> Steps[None]:
        """Merge a page of the other list."""

    def newer(self) -> Iterator[list[Entry]]:
        """Yield in small steps what the other list is to be told, after all of it was taken."""


class NoList:
    """The ``Merging`` of an owner without a list."""

    def __init__(self) -> None:
        self.outdated: list[Place] = []

    def take(self, entries: Sequence[Entry]) -> Steps[None]:
        yield from ()

    def newer(self) -> Iterator[list[Entry]]:
        yield from ()


async def tell(
    newer: Iterator[list[Entry]], write: Callable[[Sequence[Entry]], Awaitable[object]]
) -> None:
    """Write what another list is to be told, without holding up what else the loop does."""
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
    """What a store tells and asks its owner; all are called in the event loop and must not block.

    Attributes:
        on_block: an entry as the store now has it, or as a person of this node has just made it;
            the same one may be told several times.
        on_lift: a lift, likewise.
        merge: called at the start and after any gap, to merge the whole list with the owner's.
        on_hot: the clients that some node, or this one, has declared hot.
        on_lost: an outage begins; not called again before ``on_back``.
        on_back: it has ended; also after the first contact, if that was not made at once.
        forget: seconds that the strikes of a limit are remembered.
    """

    on_block: Callable[[Block], object] = lambda block: None
    on_lift: Callable[[Lift], object] = lambda lift: None
    merge: Callable[[], Merging] = NoList
    on_hot: Callable[[bytes], object] = lambda ids: None
    on_lost: Callable[[], object] = lambda: None
    on_back: Callable[[], object] = lambda: None
    forget: Callable[[str], int] = lambda limit: 86_400

    def tell(self, entry: Entry) -> None:
        """Tell of a block or a lift."""
        if isinstance(entry, Lift):
            self.on_lift(entry)
        else:
            self.on_block(entry)


class Store(ABC):
    """A store of blocks.

    Attributes:
        up: it can be used. Blocks go on being made and counted locally while it can't.
        problem: while it is not up: what is wrong and what to do, in a line for operators.
        outages: since the start.
        nodes: live nodes, this one included; during an outage as it was last known.
        outbox: what is still to be written.
        kept: the secret by which strings are hashed.
        journal: the file in which this node keeps what it knows, empty without one.
        journal_problem: what is wrong with that file, in a line for operators; else empty.
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
        """Entries and lifts that were ignored because they had no valid signature."""
        return 0

    @property
    def clock_offset(self) -> int:
        """Nanoseconds from ``time.time_ns()`` of this node to the time that all nodes go by."""
        return 0

    @abstractmethod
    async def start(self) -> None:
        """Open the store and load the blocklist.

        Raises StartError if that can't work without somebody doing something here; a store beyond
        the network that is not there is an outage instead.
        """

    @abstractmethod
    async def close(self) -> None:
        """Write what is unwritten, within a time limit, and let go of everything."""

    async def release(self, timeout: float) -> None:
        """Let a successor of this process open what only one can have open; what changes waits.

        Raises StoreError after ``timeout`` seconds without that. ``reopen()`` undoes it.
        """
        return None  # noqa: RET501 - several processes can use a shared store

    def reopen(self) -> None:
        """Go on as before ``release()``."""
        return None  # noqa: RET501

    def adopt(self) -> None:
        """Take what an agent on this machine that has ended has left behind."""
        return None  # noqa: RET501

    @abstractmethod
    async def load(self) -> list[Entry]:
        """Read all blocks whose strikes are not forgotten, and all lifts; StoreError if it
        fails."""

    @abstractmethod
    async def nodes_list(self) -> list[Node]:
        """Return the live nodes; StoreError if that fails."""

    async def claim(self, name: str, value: str, ttl: float) -> bool:
        """Set a value that all nodes share, for ``ttl`` seconds; true if that changed it.

        So of all nodes that say the same, one is the first. Raises StoreError.
        """
        return True

    @abstractmethod
    def announce(self, node: Node) -> None:
        """Say this about this node from the next heartbeat on."""

    def put(self, entry: Entry) -> None:
        """Write an entry that this node has made as soon as possible."""
        try:
            check(entry)
        except StoreError as error:
            log.warning("an entry can't be kept", key=ascii(masked(entry.key)), why=str(error))
        else:
            self.outbox.add(Change(entry))

    def keep(self, entry: Entry) -> None:
        """Keep an entry that others have made and the owner has taken, where nodes do so."""
        return None  # noqa: RET501 - a store of one node has it already

    def save(self, block: Block, timeout: float = 1) -> Coroutine[Any, Any, Block]:
        """Write an entry that a person has made; the owner is told at once, as of any other.

        Raises StoreError, ``unsent``, if it can't be written ever; nothing has happened then.

        To await the result returns the entry when it can't be lost any more, as it then is. It
        raises StoreError after ``timeout`` seconds without that; the entry is still written later.
        """
        written = self._submit(block, timeout)

        async def saved() -> Block:
            entry, _ = await written
            return entry if isinstance(entry, Block) else block

        return saved()

    async def lift(self, lift: Lift, timeout: float = 1) -> bool:
        """Take an entry off the list of all nodes, its strikes too; true if there was one.

        Raises StoreError as ``save()`` and its result do.
        """
        _, found = await self._submit(lift, timeout)
        return found

    def _submit(self, entry: Entry, timeout: float) -> Coroutine[Any, Any, tuple[Entry, bool]]:
        """Have an entry written, and tell the owner; return what waits until it is."""
        check(entry)
        change = self.outbox.submit(entry)
        self.events.tell(entry)
        return self.outbox.written(change, timeout, lambda: self.problem)


class SharedStore(Store):
    """A store that nodes share, and with it their counts."""

    @abstractmethod
    async def exchange(
        self, limit: str, shard: int, generation: int, ttl: int, batch: bytes, hot: bytes = b""
    ) -> bytes:
        """Add what this node has counted, and return what all have.

        ``batch`` and the answer are of ``engine.sharing``; ``ttl`` is in milliseconds; ``hot``
        goes to the ``on_hot`` of every node. Raises StoreError; if that does not say ``unsent``,
        the batch may have been counted.
        """
