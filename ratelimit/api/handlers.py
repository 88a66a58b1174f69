"""The handlers of the API's paths; ``routes`` assigns them."""

from __future__ import annotations

import dataclasses
import time

from aiohttp import web

from ratelimit import __version__
from ratelimit.api import models
from ratelimit.api.blocks import entries, key_of
from ratelimit.api.call import Call, Reply
from ratelimit.api.errors import ProblemError
from ratelimit.api.events import send_events
from ratelimit.api.listing import listing
from ratelimit.api.page import PAGE, POLICY
from ratelimit.engine import compiled
from ratelimit.events.bus import Full
from ratelimit.haproxy.counted import Counted
from ratelimit.limiter.key_input import Given
from ratelimit.limiter.keys import canonical, first_address
from ratelimit.limiter.limiter import ClientState
from ratelimit.notation import SECOND, format_duration
from ratelimit.peers.constants import DataType
from ratelimit.peers.definition import Definition
from ratelimit.process import log as logs
from ratelimit.store import StoreError
from ratelimit.turns import paced

DESCRIPTION = web.AppKey("description", bytes)
"""The OpenAPI description, made by ``openapi`` from the routes."""


# Clients.


async def list_clients(call: Call) -> Reply:
    """Answer with the busiest clients."""
    query: models.ClientsQuery = call.query
    control = call.control
    found = await control.busiest.find(query.n, query.sort)
    limits = {rule.limit.name: rule.limit for rule in control.limiter.engine.rules}
    known: dict[tuple[str, str], list[Counted]] = {}
    if query.counted:
        clients = [(limits[one.limit], one.key) for one in found if one.limit in limits]
        for entry in await control.counted(clients):
            known.setdefault((entry.table, canonical(entry.key) or ""), []).append(entry)
    listed = (
        models.ListedClient(
            **dataclasses.asdict(one),
            haproxy=_own(known.get((limits[one.limit].count_table, first_address(one.key)), []))
            if one.limit in limits
            else None,
        )
        for one in found
    )
    return Reply(await paced(listing(models.BusyClients(clients=[]), "clients", listed)))


def _own(entries: list[Counted]) -> models.OwnCounts | None:
    """Return the sums of what the HAProxies have counted of a client."""
    if not entries:
        return None
    requests, refused, still_open = (
        sum(entry.values[kind] for entry in entries)
        if all(kind in entry.values for entry in entries)
        else None
        for kind in ("http_req_cnt", "gpc0", "conn_cur")
    )
    return models.OwnCounts(requests=requests, refused=refused, open=still_open)


async def explain(call: Call) -> Reply:
    """Answer with everything known about a key."""
    given = key_of(call)
    control = call.control
    known = await control.explain(given.key)
    limits = (
        models.LimitOf(
            limit=state.limit.name,
            key=_counted(given, state),
            hits=state.hits,
            rate=state.limit.rate,
            window=format_duration(state.limit.window),
            remaining=state.remaining,
            until=state.until,
            strikes=state.block.strikes if state.block else 0,
            block=entries(control, [state.block])[0] if state.block else None,
        )
        for state in known.limits
    )
    explained = models.Explained(
        key=control.shown(given) or given.key,
        note=given.note,
        lists=known.listed,
        limits=[],
        by_hand=entries(control, known.by_hand),
        edge=known.edge,
        counted=known.counted,
    )
    return Reply(await paced(listing(explained, "limits", limits)))


def _counted(given: Given, state: ClientState) -> str:
    """Return the key under which a limit counts a client, as the API shows it."""
    if state.block is not None:
        return state.block.shown
    return given.shown(state.limit.secret) if state.key == given.key else state.key


# The node and the fleet.


async def list_limits(call: Call) -> Reply:
    """Answer with the limits in force."""
    limits = (
        models.LimitInForce(
            **dataclasses.asdict(limit)
            | {
                "table": limit.count_table,
                "window": format_duration(limit.window),
                "block": [format_duration(seconds * SECOND) for seconds in limit.block],
                "forget": format_duration(limit.forget * SECOND),
            }
        )
        for limit in [rule.limit for rule in call.control.limiter.engine.rules]
    )
    return Reply(await paced(listing(models.Limits(limits=[]), "limits", limits)))


async def clear_fuse(call: Call) -> Reply:
    """Reset the fuse of a limit."""
    limiter, name = call.control.limiter, call.names["name"]
    if limiter.rule(name) is None:
        raise ProblemError.field(404, "name", "is not a limit in force")
    if not limiter.clear_fuse(name):
        raise ProblemError.field(404, "name", "its fuse has not blown")
    return Reply(status=204)


async def status(call: Call) -> Reply:
    """Answer with the state of this node."""
    control = call.control
    agent, store, engine = control.agent, control.store, control.limiter.engine
    blocklist, reload = control.limiter.blocklist, control.reloaded
    limits = (
        models.LimitCounters(
            name=rule.limit.name,
            allowed=rule.allowed,
            throttled=rule.throttled,
            blocked=rule.blocked,
            denied=rule.denied,
            asked=rule.asked,
            fuse_blown=rule.fused,
        )
        for rule in list(engine.rules)
    )
    state = models.Status(
        version=__version__,
        compiled=compiled(),
        node=control.about.id,
        ready=control.ready,
        degraded=not store.up,
        started=control.started,
        uptime=round(time.time() - control.started, 3),
        checks=engine.checks,
        unknown=agent.responder.unknown,
        keyless=agent.responder.keyless,
        unchecked=[
            models.Unchecked(problem=problem, message=name)
            for problem, name in agent.responder.notes
        ],
        forwarders=control.forwarders.found(),
        connections=len(agent.peers),
        connections_refused=agent.refused,
        connections_untrusted=agent.untrusted,
        protocol_errors=agent.protocol_errors,
        nodes=store.nodes,
        table=models.TableFill(
            capacity=engine.table.capacity,
            entries=engine.table.entries,
            evictions=engine.table.evictions,
            bytes=engine.table.size,
        ),
        limits=[],
        blocklist=models.BlocklistState(
            entries=len(blocklist), made=control.limiter.blocks, refused=blocklist.refused
        ),
        store=models.StoreState(
            # Not the URL: it may contain a password.
            kind=control.config.store.url.partition(":")[0],
            up=store.up,
            problem=store.problem,
            outages=store.outages,
            unwritten=len(store.outbox),
            dropped=store.outbox.dropped,
            sync_failures=control.sync.failures,
            late=control.sync.late,
            journal=store.journal,
            journal_problem=store.journal_problem,
            unsigned=store.unsigned,
        ),
        edges=models.EdgeState(
            faults=control.runtime.missed,
            dropped=control.edges.dropped,
            corrected=control.runtime.corrected,
        ),
        peers=[
            models.PeerState(
                name=link.name,
                pid=link.pid,
                address=link.address,
                since=link.since,
                taught=link.complete,
                counting=link.origin is not None and link.origin.counting,
                counted_by=link.lease.holder if link.lease is not None else "",
                updates=link.session.updates,
                waiting=link.waiting,
                clock_offset=link.offset / 1_000 if link.clocked else None,
                tables=[_table(link.announced[name]) for name in sorted(link.announced)],
                refused=dict(link.refused),
                unused=sorted(link.unused),
            )
            for link in control.peers.hub.by_name.values()
        ],
        events=models.EventState(listeners=len(control.bus), dropped=control.bus.dropped),
        reload=models.ReloadState.model_validate(reload) if reload else None,
        tasks=[models.TaskState.model_validate(task) for task in control.tasks.tasks.values()],
        log=models.LogState.model_validate(logs.state()),
        haproxy=await control.runtime.report(),
    )
    return Reply(await paced(listing(state, "limits", limits)))


def _table(told: Definition) -> models.PeerTable:
    return models.PeerTable(
        name=told.name,
        type=told.key_type.name.lower(),
        key_size=told.key_size,
        expire=told.expire / 1_000,
        stores=[kind.name.lower() for kind in told.types],
        period=told.periods.get(DataType.HTTP_REQ_RATE, 0) / 1_000,
    )


async def nodes(call: Call) -> Reply:
    """Answer with the live nodes."""
    try:
        found = await call.control.store.nodes_list()
    except StoreError as error:
        raise ProblemError(503, f"the store is not available: {error}") from error
    here = call.control.about.id
    return Reply(
        models.Nodes(
            nodes=[
                models.NodeState(**dataclasses.asdict(node), here=node.id == here)
                for node in sorted(found, key=lambda node: node.id)
            ]
        )
    )


async def haproxy(call: Call) -> Reply:
    """Answer with the state of the HAProxy processes."""
    return Reply(models.Haproxy(haproxy=await call.control.runtime.report()))


async def reload(call: Call) -> Reply:
    """Reload the configuration."""
    result = await call.control.reload()
    if not result.ok:
        raise ProblemError(
            422 if result.invalid else 503,
            "the configuration is unchanged",
            [_configured(problem) for problem in result.problems],
        )
    return Reply(models.ReloadState.model_validate(result))


def _configured(problem: str) -> models.FieldProblem:
    """Return a line of ConfigError, ``source: field: problem``, as a problem."""
    parts = problem.split(": ", 2)
    if len(parts) < 3:
        return models.FieldProblem(field="", message=problem)
    return models.FieldProblem(field=parts[1], message=parts[2])


async def events(call: Call) -> web.StreamResponse:
    """Send events until the listener disconnects."""
    try:
        return await send_events(call.request, call.control.bus)
    except Full:
        raise ProblemError(503, "too many listeners", headers={"Retry-After": "10"}) from None


# Health.


async def alive(_call: Call) -> Reply:
    """Answer that the process is alive."""
    return Reply(models.Health(status="ok"))


async def ready(call: Call) -> Reply:
    """Answer whether the node accepts requests."""
    control = call.control
    if not control.ready:
        raise ProblemError(503, "starting or draining", headers={"Retry-After": "1"})
    if not control.store.up:
        return Reply(models.Health(status="degraded", detail="the store is down"))
    return Reply(models.Health(status="ready"))


async def metrics(call: Call) -> web.Response:
    """Answer with the metrics for Prometheus."""
    body, content_type = call.control.metrics(call.request.headers.get("Accept", ""))
    return web.Response(body=body, headers={"Content-Type": content_type})


async def openapi(call: Call) -> web.Response:
    """Answer with the OpenAPI description."""
    return web.Response(
        body=call.request.app[DESCRIPTION], content_type="application/vnd.oai.openapi+json"
    )


async def page(_call: Call) -> web.Response:
    """Answer with the web page."""
    policy = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
    return web.Response(text=PAGE, content_type="text/html", headers=policy)
