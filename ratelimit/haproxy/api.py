"""HAProxy's runtime API: changes of the edge tables, statistics, servers.

All HAProxy processes of this node are queried at the same time, each by its own thread (``Edge``).
A process that does not answer delays others for at most the time limit; the result names it.
"""

from __future__ import annotations

import asyncio
import csv
import functools
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ratelimit.exceptions import RatelimitError
from ratelimit.haproxy.commands import (
    Prefixes,
    batches,
    clear_entry,
    entries_of,
    entry_to_push,
    network_key,
    read_entries,
    refusal,
    set_entry,
    show_entries,
    taken_for,
)
from ratelimit.haproxy.counted import Counted, read_counted, show_clients
from ratelimit.haproxy.edge_table import EdgeTable, Truth
from ratelimit.haproxy.runtime_socket import Edge, EdgeError
from ratelimit.haproxy.stats import (
    REPORT,
    Change,
    Report,
    Server,
    read_report,
    read_tables,
    set_server,
)
from ratelimit.limiter.keys import Network, key_network
from ratelimit.notation import printable

TIMEOUT = 0.9
"""Seconds to wait for an HAProxy, so that an answer of the API takes at most a second."""

SCAN = 5.0
"""Seconds to read a whole edge table."""

_GRACE = 0.05  # seconds for a query to report its timeout

_LATER = "it is updated as soon as it answers"


class UnknownServerError(RatelimitError):
    """No HAProxy has a server with this name."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A change that failed at one HAProxy, and why."""

    socket: str
    problem: str


@dataclass(frozen=True, slots=True)
class EdgeEntry:
    """An entry of an edge table; ``until`` is the epoch second at which the block ends."""

    socket: str
    key: str
    until: int


@dataclass(frozen=True, slots=True)
class Acted:
    """The result at one HAProxy; with a ``problem``, ``server`` is unchanged."""

    socket: str
    server: Server | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Telling:
    """Changes of the edge tables, in the order of the calls.

    Awaiting it, which is optional, returns the failures, including changes that are not done in
    time.
    """

    made: dict[str, list[asyncio.Future[str]]]
    timeout: float

    def __await__(self) -> Generator[Any, None, list[Fault]]:
        return self._faults().__await__()

    async def _faults(self) -> list[Fault]:
        every = [made for some in self.made.values() for made in some]
        if every:
            await asyncio.wait(every, timeout=self.timeout)
        late = f"not done in {self.timeout:g} s"
        faults = []
        for path, some in self.made.items():
            problems = [made.result() if made.done() else late for made in some]
            if problem := next(filter(None, problems), ""):
                faults.append(Fault(path, f"{problem}; {_LATER}"))
        return faults


class Runtime:
    """The HAProxy processes of this node.

    Args:
        sockets: paths of their ``stats socket``.
        timeout: seconds to wait for an HAProxy; for changes of a network see ``SCAN``.
        prefixes: prefix lengths of the edge tables; may be changed later.

    No method raises an error if an HAProxy does not answer.
    """

    def __init__(
        self, sockets: Sequence[str], timeout: float = TIMEOUT, prefixes: Prefixes | None = None
    ) -> None:
        self.prefixes = prefixes or Prefixes()
        self._edges = [Edge(path, timeout) for path in sockets]
        self._tables = [EdgeTable(edge) for edge in self._edges]
        self._timeout = timeout + _GRACE
        self._known = asyncio.Event()

    @property
    def sockets(self) -> list[str]:
        """The paths of the sockets."""
        return [edge.path for edge in self._edges]

    @property
    def faults(self) -> list[Fault]:
        """The known faults, without a query."""
        return [Fault(edge.path, edge.problem) for edge in self._edges if edge.problem]

    @property
    def missed(self) -> int:
        """The number of changes that an HAProxy did not apply at once."""
        return sum(table.faults for table in self._tables)

    @property
    def dropped(self) -> int:
        """The number of changes that were dropped because the queue was full."""
        return sum(table.dropped for table in self._tables)

    @property
    def corrected(self) -> int:
        """The number of entries that comparisons have corrected."""
        return sum(table.corrected for table in self._tables)

    @property
    def behind(self) -> int:
        """The number of tables that may differ from the blocklist."""
        return sum(table.due for table in self._tables)

    async def run(self, truth: Truth) -> None:
        """Keep the edge tables equal to the blocklist, from ``compare()`` on, until cancelled.

        A table is compared after ``compare()``, and when its HAProxy has restarted or was
        unreachable.
        """
        await self._known.wait()
        async with asyncio.TaskGroup() as tasks:
            for table in self._tables:
                tasks.create_task(table.run(truth, lambda: self.prefixes))
            await asyncio.Event().wait()

    def compare(self) -> None:
        """Compare all edge tables: the blocklist is complete, or has changed without notice."""
        self._known.set()
        for table in self._tables:
            table.compare()

    def refill(self) -> None:
        """Fill the maps of every edge again, at the next look at HAProxy."""
        for table in self._tables:
            table.refill()

    def push(self, key: str, until: int, by_hand: int = 0) -> Telling:
        """Make every HAProxy block a client until an epoch second.

        ``by_hand`` is the end of a block by hand, for the maps, which hold any network.

        A failed change is retried. A key that is not an address or network has no entry in the
        table; nor has a key whose entry would block more than the key, such as a single IPv6
        address. The agent refuses these.
        """
        network = key_network(key)
        entry = None if network is None else entry_to_push(network, self.prefixes)
        changes = [] if entry is None else [set_entry(entry, until)]
        return self._change(self._timeout, *changes, mark=network, until=by_hand)

    def lift(self, key: str, by_hand: int = 0) -> Telling:
        """Remove a client, or all clients of a network, from every edge table; ``by_hand`` as in
        push().

        A failed change is retried. For a single address, the entry of its whole client is removed
        too, because that entry also blocks the address.
        """
        network = key_network(key)
        if network is None:
            return self._change(0)
        if network.num_addresses == 1:
            command = ";".join(clear_entry(entry) for entry in entries_of(network, self.prefixes))
            return self._change(self._timeout, command, mark=network, until=by_hand)
        inside = taken_for(network, self.prefixes)
        changes = [network] if inside is None else [network, inside]
        return self._change(SCAN, *changes, mark=network, until=by_hand)

    def ended(self, key: str) -> None:
        """Have the maps of every edge forget a key; the entries of the tables end by themselves."""
        network = key_network(key)
        if network is not None:
            self._change(0, mark=network)

    async def edge(self, key: str) -> list[EdgeEntry]:
        """Return the entries of all edge tables for a key; ``faults`` has the failures."""
        network = key_network(key)
        if network is None:
            return []
        command = show_entries(entries_of(network, self.prefixes))
        answers = await asyncio.gather(*(_asked(edge, command) for edge in self._edges))
        return [
            EdgeEntry(edge.path, entry.key, entry.until)
            for edge, answer in zip(self._edges, answers, strict=True)
            if not isinstance(answer, EdgeError)
            for entry in read_entries(answer)
        ]

    async def counted(self, wanted: Mapping[str, Collection[Network]]) -> list[Counted]:
        """Return what each HAProxy in peers mode has of clients, by the names of the tables."""
        found = await asyncio.gather(*(_counted(edge, wanted) for edge in self._edges))
        return [entry for entries in found for entry in entries]

    async def report(self) -> list[Report]:
        """Return the state of each HAProxy."""
        return list(await asyncio.gather(*(_report(edge) for edge in self._edges)))

    async def act(self, server: str, change: Change) -> list[Acted]:
        """Change a server, ``BACKEND/SERVER``, in every HAProxy that has it.

        Raises UnknownServerError if all HAProxies answered and none has the server.
        """
        reports = await self.report()
        chosen = [_find(report, server) for report in reports]
        if not any(chosen) and not any(report.problem for report in reports):
            raise UnknownServerError("no HAProxy of this node has such a server")
        doing = [
            _act(edge, report, found, change)
            for edge, report, found in zip(self._edges, reports, chosen, strict=True)
            if found is not None or report.problem
        ]
        return list(await asyncio.gather(*doing))

    async def close(self) -> None:
        """Stop; pending changes are dropped."""
        await asyncio.gather(*(table.close() for table in self._tables))

    def _change(
        self,
        timeout: float,
        *changes: str | Network,
        mark: Network | None = None,
        until: int = 0,
    ) -> Telling:
        made = {}
        for table in self._tables:
            marked = "" if mark is None else table.maps.mark(network_key(mark), until)
            done = [table.change(marked, maps=True)] if marked else []
            made[table.edge.path] = done + [table.change(change) for change in changes]
        return Telling(made, timeout)


async def _asked(edge: Edge, command: str) -> list[str] | EdgeError:
    try:
        return await edge.ask(command)
    except EdgeError as error:
        return error


async def _counted(edge: Edge, wanted: Mapping[str, Collection[Network]]) -> list[Counted]:
    found: list[Counted] = []
    try:
        tables = await edge.read("show table", lambda answer: list(read_tables(answer)))
        for line in batches(show_clients(tables, wanted)):
            found += read_counted(edge.path, await edge.ask(line))
    except EdgeError:
        return []  # ``faults`` has it
    return found


async def _report(edge: Edge) -> Report:
    try:
        return await edge.read(REPORT, functools.partial(_read_report, edge.path))
    except EdgeError as error:
        return Report(edge.path, problem=str(error))


def _read_report(path: str, answer: Sequence[str]) -> Report:
    try:
        return read_report(path, answer)
    except (TypeError, ValueError, LookupError, csv.Error) as error:
        return Report(path, problem=f"unreadable answer: {printable(str(error))}")


async def _act(edge: Edge, report: Report, server: Server | None, change: Change) -> Acted:
    if server is None:
        return Acted(edge.path, problem=report.problem)
    answer = await _asked(edge, set_server(server, change))
    problem = str(answer) if isinstance(answer, EdgeError) else refusal(answer)
    if problem:
        return Acted(edge.path, server, problem)
    after = await _report(edge)
    return Acted(
        edge.path, None if after.problem else _find(after, server.full_name), after.problem
    )


def _find(report: Report, name: str) -> Server | None:
    servers = (server for backend in report.backends for server in backend.servers)
    return next((server for server in servers if server.full_name == name), None)
