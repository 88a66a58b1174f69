"""Every path of the API, once: the server and the OpenAPI description are made from this."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

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
        role: who may.
        query, body: what is asked; without ``body`` none is read.
        answer: what is answered, or its content type where that is not JSON; None for nothing.
        status: of that answer.
        partly: what is answered, with 200, where HAProxy has not taken all of it.
        problems: the other statuses that it may have, and what they mean.
        cached: the answer changes seldom and has an ETag.
    """

    method: str
    path: str
    handler: Callable[[Call], Awaitable[Reply | web.StreamResponse]]
    summary: str
    role: Role = Role.VIEW
    query: type[BaseModel] = models.NoQuery
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | str | None
    status: int = 200
    partly: type[BaseModel] | None = None
    problems: dict[int, str]
    cached: bool = False

    @property
    def name(self) -> str:
        """The operation's name."""
        return self.handler.__name__


_INVALID = "A field is wrong; `errors` names it."
_STORE = "The store can't be used; `detail` says what is in force."

ROUTES = (
    Route(
        method="GET",
        path="/v1/blocks",
        handler=blocks.list_blocks,
        summary="The blocklist, a page at a time",
        query=models.BlocksQuery,
        answer=models.BlocksPage,
        problems={422: _INVALID},
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
            422: _INVALID,
            503: _STORE,
            507: "The blocklist is full and all its entries are in force; nothing was done.",
        },
    ),
    Route(
        method="GET",
        path="/v1/blocks/{key}",
        handler=blocks.show_block,
        summary="The blocks of a key",
        answer=models.KeyBlocks,
        problems={404: "It has none.", 422: _INVALID},
    ),
    Route(
        method="DELETE",
        path="/v1/blocks/{key}",
        handler=blocks.lift_block,
        summary="Lift all blocks of a key, on every node and in every edge table",
        role=Role.BLOCKS,
        answer=None,
        status=204,
        partly=models.Lifted,
        problems={404: "It has none.", 422: _INVALID, 503: _STORE},
    ),
    Route(
        method="POST",
        path="/v1/keys",
        handler=blocks.show_key,
        summary="A key as it is shown, for one that should not be in a path",
        body=models.GivenKey,
        answer=models.ShownKey,
        problems={422: _INVALID},
    ),
    Route(
        method="GET",
        path="/v1/clients",
        handler=handlers.list_clients,
        summary="The busiest clients of this node",
        query=models.ClientsQuery,
        answer=models.BusyClients,
        problems={422: _INVALID},
    ),
    Route(
        method="GET",
        path="/v1/clients/{key}",
        handler=handlers.explain,
        summary="Everything known about a key",
        answer=models.Explained,
        problems={422: _INVALID},
    ),
    Route(
        method="GET",
        path="/v1/limits",
        handler=handlers.list_limits,
        summary="The limits in force",
        answer=models.Limits,
        problems={422: _INVALID},
        cached=True,
    ),
    Route(
        method="DELETE",
        path="/v1/limits/{name}/fuse",
        handler=handlers.clear_fuse,
        summary="Let a limit whose fuse has blown block again",
        role=Role.OPERATE,
        answer=None,
        status=204,
        problems={404: "There is no such limit, or its fuse has not blown.", 422: _INVALID},
    ),
    Route(
        method="GET",
        path="/v1/status",
        handler=handlers.status,
        summary="This node",
        answer=models.Status,
        problems={422: _INVALID},
    ),
    Route(
        method="GET",
        path="/v1/nodes",
        handler=handlers.nodes,
        summary="The live nodes of the fleet",
        answer=models.Nodes,
        problems={422: _INVALID, 503: "The store can't say."},
    ),
    Route(
        method="GET",
        path="/v1/haproxy",
        handler=handlers.haproxy,
        summary="The HAProxy processes beside this node",
        answer=models.Haproxy,
        problems={422: _INVALID},
    ),
    Route(
        method="POST",
        path="/v1/haproxy/servers/{backend}/{server}",
        handler=haproxy.change_server,
        summary="Drain a server, make it ready, or set its weight, at every HAProxy",
        role=Role.OPERATE,
        body=haproxy.ServerChange,
        answer=haproxy.ChangedServer,
        problems={
            403: "It would take the agents away, and with them the limits.",
            404: "HAProxy has no such server.",
            422: _INVALID,
            503: "No HAProxy did it; `detail` says why.",
        },
    ),
    Route(
        method="GET",
        path="/v1/events",
        handler=handlers.events,
        summary="What happens, as server-sent events; Last-Event-ID resumes",
        answer="text/event-stream",
        problems={422: _INVALID, 503: "Too many listen already."},
    ),
    Route(
        method="POST",
        path="/v1/reload",
        handler=handlers.reload,
        summary="Read the configuration again",
        role=Role.OPERATE,
        body=models.Nothing,
        answer=models.ReloadState,
        problems={422: "It is wrong, and the one in force stays; `errors` says why."},
    ),
    Route(
        method="GET",
        path="/healthz",
        handler=handlers.alive,
        summary="Whether the process lives",
        role=Role.NOBODY,
        answer=models.Health,
        problems={422: _INVALID},
    ),
    Route(
        method="GET",
        path="/readyz",
        handler=handlers.ready,
        summary="Whether requests should come here; they may while the store is away",
        role=Role.NOBODY,
        answer=models.Health,
        problems={422: _INVALID, 503: "It starts or drains."},
    ),
    Route(
        method="GET",
        path="/metrics",
        handler=handlers.metrics,
        summary="What Prometheus scrapes",
        answer="text/plain",
        problems={422: _INVALID},
    ),
    Route(
        method="GET",
        path="/openapi.json",
        handler=handlers.openapi,
        summary="This description",
        answer="application/vnd.oai.openapi+json",
        problems={422: _INVALID},
        cached=True,
    ),
    Route(
        method="GET",
        path="/",
        handler=handlers.page,
        summary="A page for people, with nothing of the node in it; it asks the API",
        role=Role.NOBODY,
        answer="text/html",
        problems={422: _INVALID},
    ),
)
