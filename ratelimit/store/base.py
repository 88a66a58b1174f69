"""What a store is: the blocklist kept and, if nodes share one, told to all.

Everything here is asked of it off the request path. Nothing waits without a limit: what can't be
written now stays in an ``Outbox`` of fixed size and is written as soon as the store can.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace

import structlog

from ratelimit.exceptions import RatelimitError
from ratelimit.model import Block

log = structlog.get_logger()

MAX_UNWRITTEN = 100_000
"""Changes that wait for the store; the next one is refused, see ``Outbox.dropped``."""


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
        on_loaded: the whole list, at start and after any gap; replaces what the owner has.
        on_hot: the clients that some node, or this one, has declared hot.
        on_lost: an outage begins; not called again before ``on_back``.
        on_back: it has ended; also after the first contact, if that was not made at once.
        held: asked when the store has lost its memory: the entries that the owner has.
        forget: seconds that the strikes of a limit are remembered.
    """

    on_block: Callable[[Block], object] = lambda block: None
    on_lift: Callable[[str, str], object] = lambda limit, key: None
    on_loaded: Callable[[list[Block]], object] = lambda blocks: None
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


class Change:
    """An entry to write or, without a block, to take off; ``waiters`` are told of the outcome."""

    __slots__ = ("block", "key", "limit", "waiters")

    def __init__(self, limit: str, key: str, block: Block | None = None) -> None:
        self.limit = limit
        self.key = key
        self.block = block
        self.waiters: list[asyncio.Future[bool]] = []


class Outbox:
    """Changes not yet written, in order, the last one for each client only.

    ``dropped`` counts those that found no room, and ``overflowed`` says that there were any: then
    the owner's whole list is to be written.
    """

    def __init__(self, size: int = MAX_UNWRITTEN) -> None:
        self.dropped = 0
        self.overflowed = False
        self._size = size
        # A block may follow a lift of the same client, but nothing follows a block.
        self._changes: dict[tuple[str, str, bool], Change] = {}

    def __len__(self) -> int:
        return len(self._changes)

    def add(self, change: Change) -> bool:
        """Add a change; false if there is no room."""
        lifts = change.block is None
        old = self._take(change.limit, change.key, True)
        if lifts:
            old = self._take(change.limit, change.key, False) or old
        if old is None and len(self._changes) >= self._size:
            self.dropped += 1
            self.overflowed = True
            return False
        if old is not None:
            change.waiters += old.waiters
        self._changes[change.limit, change.key, not lifts] = change
        return True

    def first(self, count: int) -> list[Change]:
        """Return up to ``count`` changes of one kind, the oldest first; they stay."""
        changes: list[Change] = []
        for change in self._changes.values():
            if len(changes) == count or (
                changes and (change.block is None) != (changes[0].block is None)
            ):
                break
            changes.append(change)
        return changes

    def written(self, changes: Sequence[Change], results: Iterable[bool]) -> None:
        """Remove changes that were written, unless newer ones have taken their place."""
        for change, result in zip(changes, results, strict=True):
            place = (change.limit, change.key, change.block is not None)
            if self._changes.get(place) is change:
                del self._changes[place]
            for waiter in change.waiters:
                if not waiter.done():
                    waiter.set_result(result)

    def forget_block(self, limit: str, key: str) -> None:
        """Drop an entry that was lifted elsewhere before it could be written."""
        change = self._take(limit, key, True)
        if change is not None:
            self.written([change], [False])

    def shift(self, seconds: int) -> None:
        """Move the times of all entries, which were made by another clock."""
        for change in self._changes.values():
            if change.block is not None:
                since, until = change.block.since + seconds, change.block.until + seconds
                change.block = replace(change.block, since=since, until=until)

    def apply(self, blocks: dict[tuple[str, str], Block]) -> None:
        """Change a list as it will be once all is written."""
        for change in self._changes.values():
            if change.block is not None:
                blocks[change.limit, change.key] = change.block
            else:
                blocks.pop((change.limit, change.key), None)

    def _take(self, limit: str, key: str, blocks: bool) -> Change | None:
        return self._changes.pop((limit, key, blocks), None)


def block_to_json(block: Block) -> str:
    """Return an entry as the store has it."""
    return json.dumps(asdict(block), separators=(",", ":"), ensure_ascii=False)


def block_from_json(text: str | bytes) -> Block:
    """Return the entry; ValueError if it is none. Fields of a later version are left out."""
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError("not an entry")  # noqa: TRY004 - of the text, not of the argument
    values: dict[str, object] = {}
    for field in fields(Block):
        if field.name in data:
            value = data[field.name]
            if field.type == "int" and isinstance(value, float):
                with contextlib.suppress(OverflowError):
                    value = int(value)
            if type(value).__name__ != field.type:
                raise ValueError(f"{field.name} is not {field.type}")
            values[field.name] = value
    try:
        return Block(**values)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(str(error)) from None
