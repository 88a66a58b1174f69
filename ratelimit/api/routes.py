"""The routes of the API; the server and the OpenAPI description are built from them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web
from pydantic import BaseModel

from ratelimit.api import blocks, handlers, models
from ratelimit.api import servers as haproxy
from ratelimit.api.call import Call, Reply
from ratelimit.api.tokens import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A path and a method.

    Attributes:
        role: least role that the caller needs.
        query, body: models of the input; without ``body`` the request must have none.
        answer: model of the answer, or its content type if it is not JSON; None for no body.
        status: of that answer.
        partly: model of the answer, with status 200, if not every HAProxy applied the change.
        problems: other possible statuses and their meaning, besides those of every route.
        cached: whether the answer changes seldom and has an ETag.
    """

    method: str = "GET"
    path: str
    handler: Callable[[Call], Awaitable[Reply | web.StreamResponse]]
    summary: str
    role: Role = Role.VIEW
    query: type[BaseModel] = models.NoQuery
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | str | None = None
    status: int = 200
    partly: type[BaseModel] | None = None
    problems: dict[int, str] = field(default_factory=dict)
    cached: bool = False

    @property
    def name(self) -> str:
        """The name of the operation."""
        return self.handler.__name__


_STORE = "The store is not available; `detail` says what was done."

ROUTES = (
    Route(
        path="/v1/blocks",
        handler=blocks.list_blocks,
        summary="Read a page of the blocklist",
        query=models.BlocksQuery,
        answer=models.BlocksPage,
    ),
    Route(
        method="POST",
        path="/v1/blocks",
        handler=blocks.add_block,
        summary="Block an address, a network or another key on every node",
        role=Role.BLOCKS,
        body=models.NewBlock,
        answer=models.MadeBlock,
        status=201,
        problems={
            503: _STORE,
            507: "The blocklist is full of active blocks; nothing was done.",
        },
    ),
    Route(
        path="/v1/blocks/{key}",
        handler=blocks.show_block,
        summary="Read the blocks of a key",
        answer=models.KeyBlocks,
        problems={404: "The key has no block."},
    ),
    Route(
        method="DELETE",
        path="/v1/blocks/{key}",
        handler=blocks.lift_block,
        summary="Unblock a key on every node and in every edge table",
        role=Role.BLOCKS,
        status=204,
        partly=models.Lifted,
        problems={404: "The key has no block.", 503: _STORE},
    ),
    Route(
        method="POST",
        path="/v1/keys",
        handler=blocks.show_key,
        summary="Convert a key to the form in which it may be in a path",
        body=models.GivenKey,
        answer=models.ShownKey,
    ),
    Route(
        path="/v1/clients",
        handler=handlers.list_clients,
        summary="List the busiest clients of this node",
        query=models.ClientsQuery,
        answer=models.BusyClients,
    ),
    Route(
        path="/v1/clients/{key}",
        handler=handlers.explain,
        summary="Explain everything known about a key",
        answer=models.Explained,
    ),
    Route(
        path="/v1/limits",
        handler=handlers.list_limits,
        summary="List the limits in force",
        answer=models.Limits,
        cached=True,
    ),
    Route(
        method="DELETE",
        path="/v1/limits/{name}/fuse",
        handler=handlers.clear_fuse,
        summary="Reset the fuse of a limit",
        role=Role.OPERATE,
        status=204,
        problems={404: "The limit does not exist, or its fuse has not blown."},
    ),
    Route(
        path="/v1/status",
        handler=handlers.status,
        summary="Read the state of this node",
        answer=models.Status,
    ),
    Route(
        path="/v1/nodes",
        handler=handlers.nodes,
        summary="List the live nodes of the fleet",
        answer=models.Nodes,
        problems={503: "The store is not available."},
    ),
    Route(
        path="/v1/haproxy",
        handler=handlers.haproxy,
        summary="Read the state of the HAProxy processes of this node",
        answer=models.Haproxy,
    ),
    Route(
        method="POST",
        path="/v1/haproxy/servers/{backend}/{server}",
        handler=haproxy.change_server,
        summary="Drain a server, make it ready, or set its weight in every HAProxy of this node",
        role=Role.OPERATE,
        body=haproxy.ServerChange,
        answer=haproxy.ChangedServer,
        problems={
            403: "The change would disable the agents and with them the limits.",
            404: "HAProxy has no such server.",
            503: "No HAProxy applied the change; `detail` says why.",
        },
    ),
    Route(
        path="/v1/events",
        handler=handlers.events,
        summary="Stream events as server-sent events; Last-Event-ID resumes",
        answer="text/event-stream",
        problems={503: "Too many listeners."},
    ),
    Route(
        method="POST",
        path="/v1/reload",
        handler=handlers.reload,
        summary="Reload the configuration",
        role=Role.OPERATE,
        body=models.Nothing,
        answer=models.ReloadState,
        problems={422: "The configuration is invalid and not applied; `errors` says why."},
    ),
    Route(
        path="/healthz",
        handler=handlers.alive,
        summary="Check that the process is alive",
        role=Role.NOBODY,
        answer=models.Health,
    ),
    Route(
        path="/readyz",
        handler=handlers.ready,
        summary="Check that the node accepts requests; true also while the store is down",
        role=Role.NOBODY,
        answer=models.Health,
        problems={503: "The node is starting or draining."},
    ),
    Route(
        path="/metrics",
        handler=handlers.metrics,
        summary="Read the metrics for Prometheus",
        answer="text/plain",
    ),
    Route(
        path="/openapi.json",
        handler=handlers.openapi,
        summary="Read this description",
        answer="application/vnd.oai.openapi+json",
        cached=True,
    ),
    Route(
        path="/",
        handler=handlers.page,
        summary="The web page; it contains no data and queries the API",
        role=Role.NOBODY,
        answer="text/html",
    ),
)
