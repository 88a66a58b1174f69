"""HAProxy's statistics and servers in its runtime API; no I/O."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from ratelimit.haproxy.commands import TABLE
from ratelimit.model import VERDICT_PREFIX

AGENT_BACKEND = "spoa"
"""Name of the backend whose servers are agents."""

MAX_WEIGHT = 256
"""Highest weight of a server (management.txt, section 9.3, "set weight")."""

Change = Literal["drain", "ready"] | int
"""A server's new state or weight: ``drain`` sends no new requests to it, ``ready`` ends this."""

_NEEDED = ("pxname", "svname", "status")
_NAME = re.compile(r"[A-Za-z0-9_.:-]+")
_HEADER = re.compile(r"# table: (\S+), type: (\S+), size:(\d+), used:(\d+)")


@dataclass(frozen=True, slots=True)
class Table:
    """A stick table: type of its keys, maximum and current number of entries."""

    name: str
    type: str
    size: int
    used: int

    @property
    def last_name(self) -> str:
        """The name without that of the ``peers`` section that declares the table."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Frontend:
    """A frontend. Counters start with HAProxy, or when they are cleared.

    ``requests`` may include connections without a request; ``answered`` counts statuses 2xx and
    3xx.
    """

    name: str
    status: str
    sessions: int
    request_rate: int
    requests: int
    answered: int
    denied_requests: int
    denied_connections: int


@dataclass(frozen=True, slots=True)
class Server:
    """A server of a backend; ``status`` is HAProxy's, such as ``UP``, ``DOWN``, ``DRAIN``,
    ``MAINT``.

    ``weight`` is the configured weight, also while a slow start or a drain lowers the effective
    one. ``check`` is the result of the last health check, empty without checks.
    """

    backend: str
    name: str
    address: str
    status: str
    weight: int
    sessions: int
    sessions_total: int
    check: str

    @property
    def full_name(self) -> str:
        """``BACKEND/SERVER``."""
        return f"{self.backend}/{self.name}"


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend and its servers."""

    name: str
    status: str
    sessions_total: int
    servers: tuple[Server, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The state of one HAProxy; with a ``problem``, the rest is empty.

    Attributes:
        socket: path of its socket.
        problem: why the query failed, or empty.
        version: such as ``2.6.12``, with the packager's suffix.
        uptime: seconds.
        level: of the socket: ``user``, ``operator`` or ``admin``.
        files: configuration files; empty if unknown.
        clock: HAProxy's time in epoch seconds; 0 if unknown.
        frontends, backends: backends without servers are omitted.
        agent: status of the agents' backend, ``UP`` or ``DOWN``; empty if there is none.
        edge: the table of blocked clients, or None.
        tables: all stick tables.
    """

    socket: str
    problem: str = ""
    version: str = ""
    uptime: int = 0
    level: str = ""
    files: tuple[str, ...] = ()
    clock: float = 0
    frontends: tuple[Frontend, ...] = ()
    backends: tuple[Backend, ...] = ()
    agent: str = ""
    edge: Table | None = None
    tables: tuple[Table, ...] = ()

    @property
    def in_peers_mode(self) -> bool:
        """Whether this HAProxy has tables in which an agent writes verdicts as its peer."""
        return any(table.last_name.startswith(VERDICT_PREFIX) for table in self.tables)


def set_server(server: Server, change: Change) -> str:
    """Return the command that changes a server. Raises ValueError."""
    if not is_name(server.backend) or not is_name(server.name):
        raise ValueError("not the name of a server")
    setting = f"weight {change}" if isinstance(change, int) else f"state {change}"
    return f"set server {server.backend}/{server.name} {setting}"


def is_name(text: str) -> bool:
    """Return whether HAProxy accepts this name (configuration.txt, section 4)."""
    return _NAME.fullmatch(text) is not None


REPORT = "show info;show stat;show table;show cli level;show activity;show env HAPROXY_CFGFILES"


def read_report(socket: str, answer: Sequence[str]) -> Report:
    """Return the report from the answers to ``REPORT``.

    Raises ValueError, LookupError or csv.Error for an unreadable answer.
    """
    info: dict[str, str] = {}
    rows: list[dict[str, str]] = []
    tables: dict[str, Table] = {}
    level = ""
    files: tuple[str, ...] = ()
    for section in _sections(answer):
        first = section[0]
        if first.startswith("# pxname"):
            rows = list(csv.DictReader([first[2:], *section[1:]]))
            if any(row.get(name) is None for row in rows for name in _NEEDED):
                raise ValueError("a line of `show stat` lacks fields")
        elif first.startswith("# table:"):
            tables |= {table.name: table for table in read_tables(section)}
        elif first in ("user", "operator", "admin"):
            level = first
        elif first.startswith("HAPROXY_CFGFILES="):
            files = tuple(filter(None, first.partition("=")[2].split(";")))
        else:
            info |= {name: value for name, _, value in (line.partition(": ") for line in section)}
    backends = _backends(rows)
    return Report(
        socket,
        version=info.get("Version", ""),
        uptime=_number(info.get("Uptime_sec")),
        level=level,
        files=files,
        clock=_seconds(info.get("date_now", "0")),
        frontends=tuple(_frontend(row) for row in rows if row["svname"] == "FRONTEND"),
        backends=tuple(backend for backend in backends if backend.servers),
        agent=next((b.status for b in backends if b.name == AGENT_BACKEND), ""),
        edge=tables.get(TABLE),
        tables=tuple(tables.values()),
    )


def read_tables(answer: Iterable[str]) -> Iterator[Table]:
    """Yield the tables of ``show table``."""
    for found in map(_HEADER.match, answer):
        if found:
            yield Table(found[1], found[2], int(found[3]), int(found[4]))


def _sections(answer: Sequence[str]) -> Iterator[list[str]]:
    """Yield the answers; each ends with an empty line (management.txt, section 9.3)."""
    section: list[str] = []
    for line in (*answer, ""):
        if line:
            section.append(line)
        elif section:
            yield section
            section = []


def _frontend(row: dict[str, str]) -> Frontend:
    return Frontend(
        name=row["pxname"],
        status=row["status"],
        sessions=_number(row.get("scur")),
        request_rate=_number(row.get("req_rate")),
        requests=_number(row.get("req_tot")),
        answered=_number(row.get("hrsp_2xx")) + _number(row.get("hrsp_3xx")),
        denied_requests=_number(row.get("dreq")),
        denied_connections=_number(row.get("dcon")),
    )


def _backends(rows: Sequence[dict[str, str]]) -> list[Backend]:
    servers: dict[str, list[Server]] = {}
    for row in rows:
        if row["svname"] not in ("FRONTEND", "BACKEND") and row.get("type") == "2":
            servers.setdefault(row["pxname"], []).append(_server(row))
    return [
        Backend(
            name=row["pxname"],
            status=row["status"],
            sessions_total=_number(row.get("stot")),
            servers=tuple(servers.get(row["pxname"], ())),
        )
        for row in rows
        if row["svname"] == "BACKEND"
    ]


def _server(row: dict[str, str]) -> Server:
    return Server(
        backend=row["pxname"],
        name=row["svname"],
        address=row.get("addr") or "",
        status=row["status"],
        weight=_number(row.get("uweight") or row.get("weight")),
        sessions=_number(row.get("scur")),
        sessions_total=_number(row.get("stot")),
        check=" ".join(filter(None, (row.get("check_status"), row.get("last_chk")))),
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not isfinite(seconds):
        raise ValueError(f"not a time: {text}")
    return seconds


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0
