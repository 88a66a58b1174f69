"""HAProxy's runtime API: blocks pushed to the edges and lifted there, its figures, its servers.

All HAProxy processes beside this agent are asked at once, each by its own thread (``edge``). None
that is dead or hangs makes anybody wait for longer than the time limit: the answers say so.
"""

from __future__ import annotations

import asyncio
import csv
import functools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from ratelimit.exceptions import RatelimitError
from ratelimit.haproxy.commands import (
    Entry,
    Network,
    Prefixes,
    clear_entry,
    entries_of,
    entry_to_push,
    network_key,
    parse_key,
    read_entries,
    refusal,
    set_entry,
    show_entries,
    taken_for,
)
from ratelimit.haproxy.mirror import Mirror, Truth
from ratelimit.haproxy.runtime_socket import Edge, EdgeError
from ratelimit.haproxy.stats import (
    MAX_WEIGHT,
    REPORT,
    Backend,
    Frontend,
    Report,
    Server,
    Table,
    read_report,
    set_server,
)

__all__ = [
    "Acted",
    "Action",
    "Backend",
    "Drain",
    "EdgeEntry",
    "Entry",
    "Fault",
    "Frontend",
    "Network",
    "Prefixes",
    "Ready",
    "Report",
    "Runtime",
    "Server",
    "Table",
    "Telling",
    "Truth",
    "UnknownServerError",
    "Weight",
]

TIMEOUT = 0.9
"""Seconds that a HAProxy is waited for, so that nobody waits for an answer longer than one."""

SCAN = 5.0
"""Seconds for a whole edge table to be read."""

_GRACE = 0.05  # seconds for a question that had no answer to say so

_LATER = "it is told as soon as it can be"


class UnknownServerError(RatelimitError):
    """No HAProxy has a server of this name."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What could not be done at one HAProxy, and why."""

    socket: str
    problem: str


@dataclass(frozen=True, slots=True)
class EdgeEntry:
    """What one HAProxy knows of a key; ``until`` is the epoch second at which the block ends."""

    socket: str
    key: str
    until: int


@dataclass(frozen=True, slots=True)
class Drain:
    """No new requests to a server; those that it has may end."""

    @property
    def setting(self) -> str:
        return "state drain"


@dataclass(frozen=True, slots=True)
class Ready:
    """Back to normal, from a drain or from maintenance."""

    @property
    def setting(self) -> str:
        return "state ready"


@dataclass(frozen=True, slots=True)
class Weight:
    """A server's share of the load, 0 to 256; ValueError for anything else."""

    weight: int

    def __post_init__(self) -> None:
        if type(self.weight) is not int or not 0 <= self.weight <= MAX_WEIGHT:
            raise ValueError(f"a weight is a whole number from 0 to {MAX_WEIGHT}")

    @property
    def setting(self) -> str:
        return f"weight {self.weight}"


Action = Drain | Ready | Weight


@dataclass(frozen=True, slots=True)
class Acted:
    """What became of a server at one HAProxy; with a ``problem``, ``server`` is as it was."""

    socket: str
    server: Server | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Telling:
    """Changes that the edges are told of, in the order in which they were asked for.

    To await it returns where they failed, or were not done in time; no one has to.
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
    """The HAProxy processes beside this agent.

    Args:
        sockets: paths of their ``stats socket``.
        timeout: seconds that a HAProxy is waited for; that many changes take, but for those of a
            network, see ``SCAN``.
        prefixes: what is a client at the edges; may be changed.

    No method raises for a HAProxy that can't be asked.
    """

    def __init__(
        self, sockets: Sequence[str], timeout: float = TIMEOUT, prefixes: Prefixes | None = None
    ) -> None:
        self.prefixes = prefixes or Prefixes()
        self._edges = [Edge(path, timeout) for path in sockets]
        self._mirrors = [Mirror(edge) for edge in self._edges]
        self._timeout = timeout + _GRACE
        self._known = asyncio.Event()

    @property
    def sockets(self) -> list[str]:
        """The paths."""
        return [edge.path for edge in self._edges]

    @property
    def faults(self) -> list[Fault]:
        """What is known to be wrong, without asking."""
        return [Fault(edge.path, edge.problem) for edge in self._edges if edge.problem]

    @property
    def missed(self) -> int:
        """How many changes some HAProxy did not take at once."""
        return sum(mirror.faults for mirror in self._mirrors)

    @property
    def dropped(self) -> int:
        """How many of these found no room to wait."""
        return sum(mirror.dropped for mirror in self._mirrors)

    @property
    def corrected(self) -> int:
        """How many entries comparisons have removed, changed or added."""
        return sum(mirror.corrected for mirror in self._mirrors)

    @property
    def behind(self) -> int:
        """How many tables may not be as the blocklist says."""
        return sum(mirror.due for mirror in self._mirrors)

    async def run(self, truth: Truth) -> None:
        """Keep the edge tables in step with the blocklist, from ``compare()`` on, until cancelled.

        Each is compared with it then, and when its HAProxy is another process, or did not answer.
        """
        await self._known.wait()
        async with asyncio.TaskGroup() as tasks:
            for mirror in self._mirrors:
                tasks.create_task(mirror.run(truth, lambda: self.prefixes))
            await asyncio.Event().wait()

    def compare(self) -> None:
        """Compare all edge tables: the blocklist is known, or may have changed unseen."""
        self._known.set()
        for mirror in self._mirrors:
            mirror.compare()

    def push(self, key: str, until: int, by_hand: int = 0) -> Telling:
        """Have every edge refuse a client until an epoch second.

        ``by_hand`` is until when the key is blocked by hand, which the maps have of any addresses.

        A HAProxy that could not be told is told later. A key that is no address or network has no
        entry at the edge, nor has one of which the edge knows only more than is to be blocked, such
        as a single IPv6 address: the agent refuses these.
        """
        network = parse_key(key)
        entry = None if network is None else entry_to_push(network, self.prefixes)
        changes = [] if entry is None else [set_entry(entry, until)]
        return self._change(self._timeout, *changes, mark=network, until=by_hand)

    def lift(self, key: str, by_hand: int = 0) -> Telling:
        """Have every edge forget a client, or all clients of a network; ``by_hand`` as in push().

        A HAProxy that could not be told is told later. Of a single address the entry of the
        client that it is part of goes too, as that refuses it.
        """
        network = parse_key(key)
        if network is None:
            return self._change(0)
        if network.num_addresses == 1:
            command = ";".join(clear_entry(entry) for entry in entries_of(network, self.prefixes))
            return self._change(self._timeout, command, mark=network, until=by_hand)
        inside = taken_for(network, self.prefixes)
        changes = [network] if inside is None else [network, inside]
        return self._change(SCAN, *changes, mark=network, until=by_hand)

    async def edge(self, key: str) -> list[EdgeEntry]:
        """Return what the edges hold for a key; those that can't be asked are in ``faults``."""
        network = parse_key(key)
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

    async def report(self) -> list[Report]:
        """Return what each HAProxy says of itself."""
        return list(await asyncio.gather(*(_report(edge) for edge in self._edges)))

    async def act(self, server: str, action: Action) -> list[Acted]:
        """Change a server, ``BACKEND/SERVER``, at every HAProxy that has it.

        Raises UnknownServerError if none of those that answered has one of this name.
        """
        reports = await self.report()
        chosen = [_find(report, server) for report in reports]
        if not any(chosen) and not any(report.problem for report in reports):
            raise UnknownServerError("no HAProxy beside this node has such a server")
        doing = [
            _act(edge, report, found, action)
            for edge, report, found in zip(self._edges, reports, chosen, strict=True)
            if found is not None or report.problem
        ]
        return list(await asyncio.gather(*doing))

    async def close(self) -> None:
        """Let go of all; what was not told by now is not told any more."""
        await asyncio.gather(*(mirror.close() for mirror in self._mirrors))

    def _change(
        self,
        timeout: float,
        *changes: str | Network,
        mark: Network | None = None,
        until: int = 0,
    ) -> Telling:
        made = {}
        for mirror in self._mirrors:
            marked = "" if mark is None else mirror.maps.mark(network_key(mark), until)
            made[mirror.edge.path] = [
                mirror.change(change) for change in (marked, *changes) if change
            ]
        return Telling(made, timeout)


async def _asked(edge: Edge, command: str) -> list[str] | EdgeError:
    try:
        return await edge.ask(command)
    except EdgeError as error:
        return error


async def _report(edge: Edge) -> Report:
    try:
        return await edge.read(REPORT, functools.partial(_read_report, edge.path))
    except EdgeError as error:
        return Report(edge.path, problem=str(error))


def _read_report(path: str, answer: Sequence[str]) -> Report:
    try:
        return read_report(path, answer)
    except (TypeError, ValueError, LookupError, csv.Error) as error:
        return Report(path, problem=f"its answer can't be read: {ascii(str(error))[1:-1]}")


async def _act(edge: Edge, report: Report, server: Server | None, action: Action) -> Acted:
    if server is None:
        return Acted(edge.path, problem=report.problem)
    answer = await _asked(edge, set_server(server, action.setting))
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
