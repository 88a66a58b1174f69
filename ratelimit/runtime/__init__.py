"""HAProxy's runtime API: blocks pushed to the edges and lifted there, its figures, its servers.

All HAProxy processes beside this agent are asked at once, each by its own thread (``edge``). None
that is dead or hangs makes anybody wait for longer than the time limit: the answers say so.
"""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ratelimit.exceptions import RatelimitError
from ratelimit.runtime.edge import Change, Edge, EdgeError
from ratelimit.runtime.figures import (
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
from ratelimit.runtime.words import (
    Entry,
    Prefixes,
    clear_entry,
    entries_of,
    entry_to_push,
    parse_key,
    read_entries,
    refusal,
    set_entry,
    show_entries,
    taken_for,
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
    "Prefixes",
    "Ready",
    "Report",
    "Runtime",
    "Server",
    "Table",
    "UnknownServerError",
    "Weight",
]

TIMEOUT = 0.9
"""Seconds that a HAProxy is waited for, so that nobody waits for an answer longer than one."""


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


class Runtime:
    """The HAProxy processes beside this agent.

    Args:
        sockets: paths of their ``stats socket``.
        timeout: seconds that any call takes at most.
        prefixes: what is a client at the edges; may be changed.

    No method raises for a HAProxy that can't be asked.
    """

    def __init__(
        self, sockets: Sequence[str], timeout: float = TIMEOUT, prefixes: Prefixes | None = None
    ) -> None:
        self.prefixes = prefixes or Prefixes()
        self._edges = [Edge(path, timeout) for path in sockets]

    @property
    def sockets(self) -> list[str]:
        """The paths."""
        return [edge.path for edge in self._edges]

    @property
    def faults(self) -> list[Fault]:
        """What is known to be wrong, without asking."""
        return [Fault(edge.path, edge.problem) for edge in self._edges if edge.problem]

    async def push(self, key: str, until: int) -> list[Fault]:
        """Have every edge refuse a client until an epoch second; return where that failed.

        A HAProxy that could not be told is told later. A key that is no address or network has no
        entry at the edge, nor has one of which the edge knows only more than is to be blocked, such
        as a single IPv6 address: the agent refuses these.
        """
        network = parse_key(key)
        entry = None if network is None else entry_to_push(network, self.prefixes)
        if entry is None:
            return []
        command = set_entry(entry, until)
        return await self._change(str(network), lambda: Change(command, until))

    async def lift(self, key: str) -> list[Fault]:
        """Have every edge forget a client, or all clients of a network; return where that failed.

        A HAProxy that could not be told is told later. Of a single address the entry of the
        client that it is part of goes too, as that refuses it.
        """
        network = parse_key(key)
        if network is None:
            return []
        if network.num_addresses > 1:
            faults = await self._change(str(network), lambda: Change(network=network))
            inside = taken_for(network, self.prefixes)
            if inside is not None:
                more = await self._change(str(inside), lambda: Change(network=inside))
                faults = list(dict.fromkeys(faults + more))
            return faults
        command = ";".join(clear_entry(entry) for entry in entries_of(network, self.prefixes))
        return await self._change(str(network), lambda: Change(command))

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
        await asyncio.gather(*(edge.close() for edge in self._edges))

    async def _change(self, name: str, make: Callable[[], Change]) -> list[Fault]:
        problems = await asyncio.gather(*(edge.change(name, make()) for edge in self._edges))
        return [
            Fault(edge.path, problem)
            for edge, problem in zip(self._edges, problems, strict=True)
            if problem
        ]


async def _asked(edge: Edge, command: str) -> list[str] | EdgeError:
    try:
        return await edge.ask(command)
    except EdgeError as error:
        return error


async def _report(edge: Edge) -> Report:
    answer = await _asked(edge, REPORT)
    if isinstance(answer, EdgeError):
        return Report(edge.path, problem=str(answer))
    try:
        return read_report(edge.path, answer)
    except (TypeError, ValueError, LookupError, csv.Error) as error:
        return Report(edge.path, problem=f"its answer can't be read: {ascii(str(error))[1:-1]}")


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
