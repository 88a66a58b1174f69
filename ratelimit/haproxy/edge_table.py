"""Keeps the edge table of one HAProxy equal to the blocklist.

Changes are made one after the other, in order. A failed change is not retried: a comparison of the
whole table with the blocklist corrects everything once HAProxy answers. The table is also compared
whenever one side may have changed without the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from ratelimit.backoff import Backoff
from ratelimit.haproxy.commands import (
    MAX_COMMAND,
    TABLE,
    Prefixes,
    batches,
    clear_entry,
    entry_to_push,
    read_entry,
    refusal,
    set_entry,
    within,
)
from ratelimit.haproxy.maps import Maps
from ratelimit.haproxy.runtime_socket import Edge, EdgeError
from ratelimit.haproxy.stats import read_tables
from ratelimit.large import LargeDict
from ratelimit.limiter.keys import Network, key_network
from ratelimit.model import VERDICT_PREFIX
from ratelimit.steps import Steps
from ratelimit.turns import paced

MAX_UNSENT = 10_000
"""Changes that wait for one HAProxy; beyond that, the table is compared instead."""

LOOK = 2.0
"""Seconds between checks that HAProxy answers and is the same process."""

LONGEST_PAUSE = 60.0
"""Longest pause in seconds between failed comparisons; the first is ``LOOK``."""

COMPARE_TIMEOUT = 120.0
"""Timeout of a comparison in seconds."""

_SPACE = 0.5  # seconds between comparisons, at least
_SLACK = 2  # seconds that an entry may end late: clocks drift
_JUDGED = 8  # entries per step
_KEYS = 16  # keys per read

log = structlog.get_logger()


class Truth(Protocol):
    """The wanted content of the edge tables."""

    def until(self, client: Network) -> int:
        """Return until when HAProxy may block a client itself, by the clock of this machine.

        An epoch second; 0 if it must not.
        """

    def by_hand(self) -> Iterator[str]:
        """Yield the keys of blocks by hand; they may change meanwhile."""

    def lines(self, name: str) -> Iterator[str]:
        """Yield the lines of a map, see ``haproxy.maps``; they may change meanwhile."""


@dataclass(slots=True)
class _Change:
    """Commands, or a network whose entries must be removed; the result is a problem or empty.

    ``maps`` is true for commands that change no table.
    """

    what: str | Network
    maps: bool = False
    made: asyncio.Future[str] = field(default_factory=asyncio.Future)


class EdgeTable:
    """The edge table of one HAProxy.

    ``faults`` counts changes that could not be made at once, ``dropped`` those that were dropped
    from the full queue, ``corrected`` the entries that comparisons corrected. An HAProxy in peers
    mode has no such table, because verdicts reach it as the agent's peer: then only maps change.
    """

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.maps = Maps(edge)
        self.faults = 0
        self.dropped = 0
        self.corrected = 0
        self._present: bool | None = None  # whether HAProxy has the table, if known
        self._unsent: deque[_Change] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._pid = ""
        self._wanted = 1  # comparisons requested; _compared is the last one that succeeded
        self._compared = 0
        self._woken = asyncio.Event()
        self._refill = False

    def change(self, what: str | Network, maps: bool = False) -> asyncio.Future[str]:
        """Queue commands, or the removal of all entries of a network.

        ``maps`` is for commands that change no table. The result is an empty text on success, or
        the problem.
        """
        change = _Change(what, maps)
        if len(self._unsent) >= MAX_UNSENT:
            self.dropped += 1
            self._fail([change], f"the queue of {MAX_UNSENT} changes is full")
            return change.made
        self._unsent.append(change)
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send(), name=f"haproxy {self.edge.path}")
        return change.made

    @property
    def due(self) -> bool:
        """Whether the table may differ from the blocklist."""
        return self._compared < self._wanted

    def compare(self) -> None:
        """Request a comparison of the table with the blocklist."""
        self._wanted += 1
        self._woken.set()

    def refill(self) -> None:
        """Request to fill the maps, at the next look at HAProxy: often enough for wide blocks."""
        self._refill = True

    async def run(self, truth: Truth, prefixes: Callable[[], Prefixes]) -> None:
        """Compare the table when necessary, until cancelled."""
        backoff = Backoff(LOOK, LONGEST_PAUSE, spread=0)
        told = ""
        while True:
            try:
                await self._look()
                refill, self._refill = self._refill, False
                async with asyncio.timeout(COMPARE_TIMEOUT):
                    if self.due:
                        wanted = self._wanted
                        await self._compare(truth, prefixes())
                        self._compared = wanted
                    elif refill:
                        await self.maps.fill(truth.lines)
            except (EdgeError, TimeoutError) as error:
                self._wanted += 1
                problem = str(error) or f"not finished after {COMPARE_TIMEOUT:g} s"
                if self.edge.problem:  # already logged
                    backoff.reset()
                elif problem != told:
                    log.warning("edge not compared", socket=self.edge.path, problem=problem)
                told = problem
                await asyncio.sleep(backoff.next())
            else:
                backoff.reset()
                told = ""
                await asyncio.sleep(_SPACE)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK - _SPACE):
                        await self._woken.wait()
            self._woken.clear()

    async def close(self) -> None:
        """Stop; pending changes are dropped."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
        await self.edge.close()

    # ---- changes ---------------------------------------------------------------------------

    async def _send(self) -> None:
        """Make changes until the queue is empty."""
        while self._unsent:
            changes = [self._unsent.popleft()]
            try:
                what = changes[0].what
                if await self._skips(changes[0]):
                    pass
                elif isinstance(what, str):
                    await self._tell(what + self._more(changes, MAX_COMMAND - len(what)))
                else:
                    await self._clear(what)
            except EdgeError as error:
                # The next changes would fail too; a comparison replaces all of them.
                changes += self._unsent
                self._unsent.clear()
                self._fail(changes, str(error))
            else:
                _end(changes, "")

    def _more(self, changes: list[_Change], room: int) -> str:
        """Take further commands off the queue, as many as fit."""
        line = ""
        while self._unsent and isinstance(what := self._unsent[0].what, str):
            if not (self._present or self._unsent[0].maps):
                break
            if len(line) + 1 + len(what) > room:
                break
            line += f";{what}"
            changes.append(self._unsent.popleft())
        return line

    async def _skips(self, change: _Change) -> bool:
        """Return whether HAProxy has no table in which to make a change."""
        if self._present is None:
            await self._find()
        return not (self._present or change.maps)

    async def _find(self) -> None:
        tables = list(read_tables(await self.edge.ask("show table")))
        names = {table.last_name for table in tables}
        in_peers_mode = any(name.startswith(VERDICT_PREFIX) for name in names)
        self._present = TABLE in names or not in_peers_mode

    def _fail(self, changes: list[_Change], problem: str) -> None:
        self.faults += len(changes)
        _end(changes, problem)
        self.compare()

    async def _tell(self, line: str) -> None:
        problem = refusal(await self.edge.ask(line))
        if problem:
            raise EdgeError(problem)

    async def _clear(self, network: Network) -> None:
        """Remove all entries of a network."""
        async with contextlib.aclosing(self.edge.entries()) as pieces:
            async for lines in pieces:
                for line in await paced(_clearing(lines, network)):
                    await self._tell(line)

    # ---- comparison ------------------------------------------------------------------------

    async def _look(self) -> None:
        """Check that HAProxy answers, and whether it is the same process as before."""
        answer = await self.edge.ask("show info")
        pid = next((line for line in answer if line.startswith("Pid:")), "")
        if pid != self._pid:
            self._pid = pid
            self._present = None
            self._wanted += 1

    async def _compare(self, truth: Truth, prefixes: Prefixes) -> None:
        await self.maps.fill(truth.lines)
        await self._find()
        if not self._present:
            return
        before = self.corrected
        right: LargeDict[str, bool] = LargeDict()
        async with contextlib.aclosing(self.edge.entries()) as pieces:
            async for lines in pieces:
                await self._correct(_judged(lines, truth, prefixes, right))
        keys = truth.by_hand()
        while some := list(itertools.islice(keys, _KEYS)):
            await self._correct(_missing(some, truth, prefixes, right))
        if self.corrected > before:
            corrected = self.corrected - before
            log.info("edge corrected", socket=self.edge.path, entries=corrected)

    async def _correct(self, commands: Steps[list[str]]) -> None:
        """Make the changes of a part of the comparison. Raises EdgeError."""
        made = [self.change(command) for command in await paced(commands)]
        for problem in await asyncio.gather(*made):
            if problem:
                raise EdgeError(problem)
        self.corrected += len(made)


def _judged(
    lines: list[str], truth: Truth, prefixes: Prefixes, right: LargeDict[str, bool]
) -> Steps[list[str]]:
    """Return the changes of entries that block too long; add correct ones to ``right``."""
    commands: list[str] = []
    now = int(time.time())
    for number, entry in enumerate(map(read_entry, lines), 1):
        network = None if entry is None or entry.until <= now else key_network(entry.key)
        if entry is not None and network is not None:
            until = truth.until(prefixes.client(network))
            if until + _SLACK >= entry.until:
                right[entry.written] = True
            else:
                written = entry.written
                commands.append(set_entry(written, until) if until > now else clear_entry(written))
        if number % _JUDGED == 0:
            yield
    return commands


def _missing(
    keys: list[str], truth: Truth, prefixes: Prefixes, right: LargeDict[str, bool]
) -> Steps[list[str]]:
    """Return the changes that add missing blocks by hand."""
    commands: list[str] = []
    now = int(time.time())
    for number, key in enumerate(keys, 1):
        network = key_network(key)
        written = None if network is None else entry_to_push(network, prefixes)
        if network is not None and written is not None and written not in right:
            until = truth.until(prefixes.client(network))
            if until > now:
                commands.append(set_entry(written, until))
        if number % _JUDGED == 0:
            yield
    return commands


def _clearing(lines: list[str], network: Network) -> Steps[list[str]]:
    """Return the lines of commands that remove the entries of a network."""
    commands: list[str] = []
    for number, entry in enumerate(map(read_entry, lines), 1):
        if entry is not None and within(entry.key, network):
            commands.append(clear_entry(entry.written))
        if number % _JUDGED == 0:
            yield
    return list(batches(commands))


def _end(changes: list[_Change], problem: str) -> None:
    for change in changes:
        if not change.made.done():
            change.made.set_result(problem)
