"""Collects facts about a running installation, almost without changing it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError

from ratelimit.api.client import Client, path_of
from ratelimit.exceptions import ApiError, FrameError, RatelimitError
from ratelimit.haproxy.api import Runtime
from ratelimit.haproxy.commands import (
    Entry,
    Prefixes,
    clear_entry,
    read_entries,
    read_prefixes,
    refusal,
    set_entry,
    show_entries,
    show_prefixes,
)
from ratelimit.haproxy.maps import entries as map_entries
from ratelimit.haproxy.peers import Section, read_peers
from ratelimit.haproxy.runtime_socket import Edge
from ratelimit.haproxy.stats import Report
from ratelimit.model import Address
from ratelimit.spop.constants import MAX_FRAME_SIZE
from ratelimit.spop.handshake import read_health, write_health_check
from ratelimit.store import MEMORY, StoreError
from ratelimit.store.redis.probe import Sight, look
from ratelimit.store.redis.url import parse

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratelimit.config import Config

TIMEOUT = 1.0
"""Timeout in seconds of each query; that of a request to the application is 5 s."""

SAMPLE = 20
"""Entries of an edge table that are compared with the blocklist."""

_M = TypeVar("_M", bound=BaseModel)

_PROBE_TIMEOUT = 5
_LOOK = 0.05  # seconds between looks whether the agent has heard of a request
_UNROUTED = "100::1"  # in the discard-only prefix (RFC 6666), which no client uses


class Note(BaseModel):
    """A message of HAProxy that the agent could not check."""

    problem: str
    message: str


class UnlistedProxy(BaseModel):
    """A peer in no list of trusted proxies that sends requests of many clients."""

    key: str


class Counts(BaseModel):
    """A limit and the numbers of its verdicts."""

    name: str
    allowed: int = 0
    throttled: int = 0
    blocked: int = 0
    denied: int = 0
    asked: int = 0

    @property
    def checks(self) -> int:
        """The number of checks; ``asked`` of them were questions of HAProxy."""
        return self.allowed + self.throttled + self.blocked + self.denied


class PeerTable(BaseModel):
    """A stick table that an HAProxy has announced to the agent as its peer; times are seconds."""

    name: str
    type: str
    key_size: int
    expire: float
    period: float


class PeerStatus(BaseModel):
    """An HAProxy that is connected to the agent as a peer."""

    name: str
    address: str
    taught: bool
    updates: int
    clock_offset: float | None
    tables: list[PeerTable]
    refused: dict[str, str]
    unused: list[str]
    counting: bool
    counted_by: str


class AgentStatus(BaseModel):
    """The fields of ``GET /v1/status`` that the checks use."""

    version: str
    node: str
    checks: int
    unknown: int = 0
    keyless: int = 0
    unchecked: list[Note] = []
    forwarders: list[UnlistedProxy] = []
    limits: list[Counts] = []
    peers: list[PeerStatus] = []


class _Limit(BaseModel):
    block: object | None


class _Explained(BaseModel):
    """The fields of ``GET /v1/clients/{key}`` that the checks use."""

    lists: str
    limits: list[_Limit]
    by_hand: list[object]


@dataclass(frozen=True, slots=True)
class Spop:
    """An address of ``[agent] listen``, and what is wrong with the agent there."""

    address: Address
    problem: str


@dataclass(frozen=True, slots=True)
class EdgeTable:
    """The result of writing a test entry to an edge table, and the contents of the table.

    Attributes:
        problem: why the test failed, or empty.
        kept: seconds for which the table keeps a new entry.
        stale: entries that HAProxy blocks although the agent has no block.
        compared: number of entries that were compared with the agent's blocklist.
        prefixes: prefix lengths of the edge table, as far as HAProxy's environment shows them.
        maps: number of entries of each map.
        maps_problem: why the maps can't be read, or empty.
    """

    problem: str = ""
    kept: float = 0
    stale: tuple[Entry, ...] = ()
    compared: int = 0
    prefixes: Prefixes = field(default_factory=Prefixes)
    maps: dict[str, int] = field(default_factory=dict)
    maps_problem: str = ""


@dataclass(frozen=True, slots=True)
class Moment:
    """State of HAProxy and the agent at one time; ``ahead`` are HAProxy's clocks minus the local
    one.
    """

    reports: tuple[Report, ...]
    ahead: tuple[float, ...]
    status: AgentStatus | None
    status_problem: str


@dataclass(frozen=True, slots=True)
class Setup:
    """The configuration of peers mode: addresses, the agent's name, and accepted HAProxies.

    ``alone`` is true if the agent shares its store with no other.
    """

    listen: tuple[str, ...] = ()
    name: str = ""
    allowed: tuple[str, ...] = ()
    alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All facts; ``before`` and ``after`` are the same without a request to the application.

    ``edges`` and ``sections`` are in the order of the reports; ``sections`` are HAProxy's peers.
    """

    spop: tuple[Spop, ...]
    setup: Setup = field(default_factory=Setup)
    api: str
    sight: Sight | None = None
    store_problem: str = ""
    before: Moment
    after: Moment
    edges: tuple[EdgeTable, ...]
    sections: tuple[tuple[Section, ...], ...] = ()
    exposed: tuple[str, ...] = ()
    probe: str = ""
    probe_problem: str = ""


class Api:
    """The API of the agent, called in a thread."""

    def __init__(self, client: Client) -> None:
        self.url = client.url
        self._client = client

    async def status(self) -> AgentStatus:
        """Return the agent's state. Raises RatelimitError."""
        return await self._get("/v1/status", AgentStatus)

    async def refuses(self, key: str) -> bool:
        """Return whether the agent has a reason to block this client. Raises RatelimitError."""
        known = await self._get(path_of("/v1/clients", key), _Explained)
        return bool(known.lists or known.by_hand or any(one.block for one in known.limits))

    async def _get(self, path: str, model: type[_M]) -> _M:
        try:
            return model.model_validate(await asyncio.to_thread(self._client.get, path))
        except ValidationError:
            raise ApiError("the answer does not come from a ratelimit agent") from None


async def gather(config: Config, api: Api, probe: str, clock: Callable[[], float]) -> Facts:
    """Collect all facts; writes and removes one entry of each edge table and nothing else.

    ``clock`` returns the local time in epoch seconds.
    """
    runtime = Runtime(config.haproxy.sockets, TIMEOUT)
    try:
        spop, (sight, store_problem), before = await asyncio.gather(
            asyncio.gather(*(_spop(address) for address in config.agent.listen)),
            _store(config, clock),
            _moment(runtime, api, clock),
        )
        after, probe_problem = before, ""
        if probe:
            probe_problem = await _request(probe)
            after = await _after(before, runtime, api, clock)
        reachable = after.status is not None
        edges, sections = await asyncio.gather(
            asyncio.gather(
                *(_edge_table(report, api if reachable else None) for report in after.reports)
            ),
            asyncio.gather(*map(_sections, after.reports)),
        )
    finally:
        await runtime.close()
    return Facts(
        spop=tuple(spop),
        api=api.url,
        sight=sight,
        store_problem=store_problem,
        before=before,
        after=after,
        setup=Setup(
            tuple(map(str, config.agent.peers)),
            config.agent.peer_name,
            config.agent.peers_allowed,
            config.store.url == MEMORY,
        ),
        edges=tuple(edges),
        sections=tuple(sections),
        exposed=tuple(config.exposed_files()),
        probe=probe,
        probe_problem=probe_problem,
    )


async def _spop(address: Address) -> Spop:
    """Send a health check to an agent, as HAProxy does."""
    try:
        async with asyncio.timeout(TIMEOUT):
            if address.path:
                reader, writer = await asyncio.open_unix_connection(address.path)
            else:
                reader, writer = await asyncio.open_connection(address.host, address.port)
            try:
                writer.write(write_health_check())
                size = int.from_bytes(await reader.readexactly(4))
                if size > MAX_FRAME_SIZE:
                    return Spop(address, "the program at this address does not speak SPOP")
                return Spop(address, read_health(await reader.readexactly(size)))
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError:
        return Spop(address, f"no answer within {TIMEOUT:g} s")
    except asyncio.IncompleteReadError:
        return Spop(address, "the program at this address closes the connection without an answer")
    except FrameError as error:
        return Spop(address, f"the program at this address does not speak SPOP: {error}")
    except OSError as error:
        return Spop(address, error.strerror or str(error))


async def _store(config: Config, clock: Callable[[], float]) -> tuple[Sight | None, str]:
    if config.store.url == MEMORY:
        return None, ""
    try:
        target = parse(config.store.url, config.store.tls_server_name)
        return await look(target, config.store.prefix, TIMEOUT, clock), ""
    except StoreError as error:
        return None, str(error)


async def _moment(runtime: Runtime, api: Api, clock: Callable[[], float]) -> Moment:
    began = clock()
    status: AgentStatus | None = None
    problem = ""
    reports, answer = await asyncio.gather(runtime.report(), api.status(), return_exceptions=True)
    if isinstance(reports, BaseException):
        raise reports
    if isinstance(answer, RatelimitError):
        problem = str(answer)
    elif isinstance(answer, BaseException):
        raise answer
    else:
        status = answer
    middle = (began + clock()) / 2
    ahead = tuple(report.clock - middle if report.clock else 0 for report in reports)
    return Moment(tuple(reports), ahead, status, problem)


async def _after(before: Moment, runtime: Runtime, api: Api, clock: Callable[[], float]) -> Moment:
    """Return the state after a request; wait for the agent to hear of it from a peer."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        after = await _moment(runtime, api, clock)
        peers = before.status is not None and after.status is not None and after.status.peers
        if not peers or _more(before, after) or time.monotonic() > deadline:
            return after
        await asyncio.sleep(_LOOK)


def _more(before: Moment, after: Moment) -> bool:
    old, new = before.status, after.status
    return old is None or new is None or new.checks > old.checks


async def _request(url: str) -> str:
    """Send one request through HAProxy; return why there was no answer, or an empty string."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_PROBE_TIMEOUT)) as session,
            session.get(url, allow_redirects=False, ssl=False) as answer,
        ):
            await answer.read()
    except (aiohttp.ClientError, ValueError) as error:
        return str(error) or type(error).__name__
    except TimeoutError:
        return f"no answer within {_PROBE_TIMEOUT} s"
    return ""


async def _edge_table(report: Report, api: Api | None) -> EdgeTable:
    """Write, read and remove an entry; compare some entries with the agent's blocklist.

    Of an HAProxy in peers mode, which has no such table, read only the maps.
    """
    if report.problem or (report.edge is None and not report.in_peers_mode):
        return EdgeTable(report.problem)
    edge = Edge(report.socket, TIMEOUT)
    try:
        if report.edge is None:
            maps, hidden = _maps(await edge.ask("show map"))
            return EdgeTable(maps=maps, maps_problem=hidden)
        answer = await edge.ask(f"{set_entry(_UNROUTED, 0)};{show_entries([_UNROUTED])}")
        entries = [entry for entry in read_entries(answer) if entry.key == _UNROUTED]
        if not entries:
            return EdgeTable(refusal(answer) or "HAProxy did not keep the entry")
        await edge.ask(clear_entry(_UNROUTED))
        prefixes = read_prefixes(await edge.ask(show_prefixes()))
        maps, hidden = _maps(await edge.ask("show map"))
        live = [] if api is None else await _live(edge, int(time.time()) + 1)
        stale = [one for one in live if api is not None and not await api.refuses(one.key)]
    except RatelimitError as error:
        return EdgeTable(str(error))
    finally:
        await edge.close()
    kept = entries[0].expires_in / 1000
    return EdgeTable("", kept, tuple(stale), len(live), prefixes, maps, hidden)


def _maps(shown: list[str]) -> tuple[dict[str, int], str]:
    """Return the number of entries of each map, and why the maps can't be read, or nothing."""
    maps = map_entries(shown)
    return maps, "" if maps or any(line.startswith("#") for line in shown) else refusal(shown)


async def _sections(report: Report) -> tuple[Section, ...]:
    """Return HAProxy's peers; none if it does not answer."""
    if report.problem:
        return ()
    edge = Edge(report.socket, TIMEOUT)
    try:
        return await edge.read("show peers", read_peers)
    except RatelimitError:
        return ()
    finally:
        await edge.close()


async def _live(edge: Edge, now: int) -> list[Entry]:
    """Return the first entries whose block ends after ``now`` in epoch seconds."""
    live: list[Entry] = []
    async with contextlib.aclosing(edge.entries()) as pieces:
        async for lines in pieces:
            live += (entry for entry in read_entries(lines) if entry.until > now)
            if len(live) >= SAMPLE:
                break
    return live[:SAMPLE]
