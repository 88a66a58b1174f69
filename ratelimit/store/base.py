"""What a store is: the blocklist kept and, if nodes share one, told to all.

Everything here is asked of it off the request path. Nothing waits without a limit: what can't be
written now stays in an ``Outbox`` of fixed size and is written as soon as the store can.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import structlog

from ratelimit.exceptions import RatelimitError
from ratelimit.model import Block
from ratelimit.store.outbox import Change, Outbox

log = structlog.get_logger()


class StoreError(RatelimitError):
    """The store can't be used now, or gave no answer in time.

    ``unsent`` is true if nothing of what was asked can have happened, so that it may be asked
    again without being counted twice.
    """

    def __init__(self, message: str, unsent: bool = False) -> None:
        super().__init__(message)
        self.unsent = unsent


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """What a store tells and asks its owner; all are called in the event loop and must not block.

    Attributes:
        on_block: an entry as the store now has it, which may be one's own.
        on_lift: limit and key of an entry taken off.
        on_loaded: the whole list, at start and after any gap; the iterator that it returns
            replaces what the owner has, in steps between which other work may go.
        on_hot: the clients that some node, or this one, has declared hot.
        on_lost: an outage begins; not called again before ``on_back``.
        on_back: it has ended; also after the first contact, if that was not made at once.
        held: asked when the store has lost its memory: the entries that the owner has.
        forget: seconds that the strikes of a limit are remembered.
    """

    on_block: Callable[[Block], object] = lambda block: None
    on_lift: Callable[[str, str], object] = lambda limit, key: None
    on_loaded: Callable[[list[Block]], Iterator[None]] = lambda blocks: iter(())
    on_hot: Callable[[bytes], object] = lambda ids: None
    on_lost: Callable[[], object] = lambda: None
    on_back: Callable[[], object] = lambda: None
    held: Callable[[], Iterable[Block]] = lambda: ()
    forget: Callable[[str], int] = lambda limit: 86_400


class Store(ABC):
    """A store of blocks.

    Attributes:
        up: it can be used. Blocks go on being made and counted locally while it can't.
        problem: while it is not up: what is wrong and what to do, in a line for operators.
        outages: since the start.
        nodes: live nodes, this one included; during an outage as it was last known.
        outbox: what is still to be written; ``_work`` wakes the ``_task`` that does so.
    """

    def __init__(self, events: Events) -> None:
        self.events = events
        self.up = False
        self.problem = ""
        self.outages = 0
        self.nodes = 1
        self.outbox = Outbox()
        self._task: asyncio.Task[None] | None = None
        self._work = asyncio.Event()
        self._closing = False

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

    @abstractmethod
    async def load(self) -> list[Block]:
        """Read all entries whose strikes are not forgotten; StoreError if that fails."""

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

    def put(self, block: Block) -> None:
        """Write an entry as soon as possible."""
        self.outbox.add(Change(block.limit, block.key, block))
        self._work.set()

    async def save(self, block: Block, timeout: float = 1) -> None:
        """Write an entry, and return when it can't be lost any more.

        Raises StoreError after ``timeout`` seconds without that; it is still written later, unless
        the error says ``unsent``.
        """
        await self._written(Change(block.limit, block.key, block), timeout)

    async def lift(self, limit: str, key: str, timeout: float = 1) -> bool:
        """Take an entry off the list of all nodes, its strikes too; true if there was one.

        Raises StoreError as ``save()`` does.
        """
        return await self._written(Change(limit, key), timeout)

    async def _written(self, change: Change, timeout: float) -> bool:
        written = asyncio.get_running_loop().create_future()
        change.waiters.append(written)
        if not self.outbox.add(change):
            raise StoreError("too many changes wait for the store", unsent=True)
        self._work.set()
        try:
            async with asyncio.timeout(timeout):
                return bool(await written)
        except TimeoutError:
            raise StoreError(self.problem or "the store gave no answer in time") from None

    async def _finish(self, timeout: float) -> None:
        """Let the task write the rest, for so many seconds at most, and end it."""
        self._closing = True
        self._work.set()
        if self._task is None:
            return
        await asyncio.wait([self._task], timeout=timeout)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        if len(self.outbox):
            log.warning("blocks are lost, for the store stops first", count=len(self.outbox))


class SharedStore(Store):
    """A store that nodes share, and with it their counts."""

    @property
    @abstractmethod
    def secret(self) -> bytes:
        """16 bytes that all nodes of the store share and nobody else knows, once it was up."""

    @abstractmethod
    async def exchange(
        self, limit: str, shard: int, generation: int, ttl: int, batch: bytes, hot: bytes = b""
    ) -> bytes:
        """Add what this node has counted, and return what all have.

        ``batch`` and the answer are of ``engine.exchange``; ``ttl`` is in milliseconds; ``hot``
        goes to the ``on_hot`` of every node. Raises StoreError; if that does not say ``unsent``,
        the batch may have been counted.
        """
