"""The server of the API: its socket, its limits, and the steps common to all requests."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar, cast

import structlog
from aiohttp import HttpVersion11, web
from pydantic import BaseModel, ValidationError

from ratelimit.agent.trust import Trusted
from ratelimit.api.access import Access
from ratelimit.api.audit import Attempt, Audit
from ratelimit.api.call import Call
from ratelimit.api.connections import (
    IDLE_TIMEOUT,
    MAX_CONNECTIONS,
    Connections,
    Http,
    HttpConnection,
)
from ratelimit.api.errors import ProblemError
from ratelimit.api.handlers import DESCRIPTION
from ratelimit.api.openapi import describe
from ratelimit.api.paths import loggable
from ratelimit.api.routes import ROUTES, Route
from ratelimit.api.tokens import Role, Tokens, read_tokens
from ratelimit.config import Config
from ratelimit.exceptions import ConfigError
from ratelimit.limiter.key_input import told
from ratelimit.model import Address
from ratelimit.node.operations import Control
from ratelimit.process.systemd import Passed

MAX_BODY = 65_536
"""Largest body in bytes."""

BODY_TIMEOUT = 5.0
"""Seconds for a body to arrive."""

_MAX_HEAD = 8190  # bytes per line, aiohttp's default
_CLOSE_TIMEOUT = 1.0
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
_NOT_ENCODED = {"Accept-Encoding": "identity"}  # RFC 9110, section 15.5.16

log = structlog.get_logger()

# aiohttp logs every malformed request to this logger; what matters is logged here instead.
_SILENT = logging.getLogger("ratelimit.api.http")
_SILENT.disabled = True

# The request that the current task answers, for the audit log.
_attempt: ContextVar[Attempt] = ContextVar("attempt")

T = TypeVar("T")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def tokens_of(config: Config) -> Tokens | None:
    """Return the tokens of the configuration; None if it has none. Raises ConfigError."""
    if not config.ops.token_file:
        return None
    try:
        return read_tokens(Path(config.ops.token_file).expanduser())
    except ValueError as error:
        raise config.wrong("ops.token_file", str(error)) from error


class ApiServer:
    """The API of a node.

    Attributes:
        access: decides which requests are accepted.
        audit: writes the audit log.
        connections: the open connections.
        sockets: the listening sockets.
    """

    def __init__(self, control: Control) -> None:
        config = control.config
        self.control = control
        self.access = Access(
            tokens_of(config), config.ops, Trusted(config.agent.trusted_proxies), self._pause
        )
        self.audit = Audit()
        self.connections = Connections(self._protocol)
        self.sockets: list[Passed] = []
        self._servers: list[asyncio.Server] = []
        app = web.Application(middlewares=[self._meet], client_max_size=MAX_BODY)
        app[DESCRIPTION] = describe(ROUTES)
        app.on_response_prepare.append(_add_headers)
        for route in ROUTES:
            path = route.path.replace("{key}", "{key:(?s:.+)}")
            answer = self._answering(route)
            # GET implies HEAD (RFC 9110, section 9.3.2); aiohttp omits the content.
            for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
                app.router.add_route(method, path, answer, expect_handler=_expect)
        self._runner = web.AppRunner(
            app,
            handle_signals=False,
            access_log=None,
            logger=_SILENT,
            keepalive_timeout=IDLE_TIMEOUT,
            max_line_size=_MAX_HEAD,
            max_field_size=_MAX_HEAD,
            auto_decompress=False,
            shutdown_timeout=_CLOSE_TIMEOUT,
        )
        control.reloader.own(self._reload, "ops.token_file")

    async def start(self, passed: Sequence[Passed] = ()) -> Address:
        """Listen; return the address. Raises ConfigError on failure.

        ``passed`` are sockets of this address that another process has bound.
        """
        listen = self.control.config.ops.listen
        places: list[dict[str, Any]] = [{"sock": one.sock} for one in passed]
        await self._runner.setup()
        try:
            for place in places or [{"host": listen.host, "port": listen.port}]:
                server = await asyncio.get_running_loop().create_server(
                    lambda: HttpConnection(self.connections), **place, backlog=MAX_CONNECTIONS
                )
                self._servers.append(server)
        except OSError as error:
            await self._runner.cleanup()
            why = os.strerror(error.errno) if error.errno else str(error)
            raise self.control.config.wrong(
                "ops.listen", f"can't listen on {listen.host} port {listen.port}: {why}"
            ) from error
        self.sockets = list(passed) or [Passed(sock) for sock in self._servers[0].sockets]
        return Address(listen.host, self.sockets[0].address.port)

    async def run(self) -> None:
        """Enforce the time limits until cancelled."""
        while True:
            await asyncio.sleep(1)
            self.audit.tick()
            self.connections.cut_overdue(time.monotonic())

    async def close(self) -> None:
        """Stop listening and close all connections, within about a second."""
        for server in self._servers:
            server.close()
        self.control.bus.close()
        await self._runner.cleanup()
        self.connections.abort()

    def _reload(self, config: Config) -> Callable[[], object]:
        tokens = tokens_of(config)
        if tokens is None and not self.control.config.ops.listen.is_loopback:
            raise config.wrong("ops.token_file", "is required unless listen is on loopback")

        def change() -> None:
            if tokens != self.access.tokens:
                # Listeners must authenticate again; they resume where they stopped.
                self.control.bus.close()
            self.access.tokens = tokens

        return change

    # Connections.

    def _protocol(self) -> Http:
        """Return the HTTP protocol of a new connection, which is aiohttp's."""
        server = self._runner.server
        if server is None:
            raise ConfigError(["ops.listen: not started"])
        http = server()
        http.__class__ = _Http  # aiohttp offers no other way
        return cast(_Http, http)

    # Requests.

    @web.middleware
    async def _meet(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Answer a request, errors included, when it is the connection's turn."""
        connection = self.connections.of(request.transport)
        if connection is None or not await connection.begin():
            return web.Response(status=408)  # not sent: the client has disconnected
        try:
            return await self._try(request, handler)
        finally:
            connection.end()

    async def _try(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        attempt = self.access.attempt(request, loggable(self.control.limiter, request))
        _attempt.set(attempt)
        try:
            response = await self._answer(request, handler, attempt)
            attempt.status = response.status
        finally:
            self.audit.record(attempt)
        return response

    async def _answer(
        self, request: web.Request, handler: _Handler, attempt: Attempt
    ) -> web.StreamResponse:
        try:
            if request.match_info.http_exception is not None:
                # An unknown path: tell this only to callers with access.
                await self.access.admit(request, Role.VIEW, attempt)
            return await handler(request)
        except ProblemError as problem:
            attempt.why = problem.detail
            return problem.response()
        except web.HTTPException as error:
            attempt.why = error.reason
            allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            return ProblemError(error.status, error.reason, headers=allowed).response()
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("an API request failed", path=attempt.path)
            attempt.why = "internal error"
            return ProblemError(500, "internal error; see the log").response()

    async def _pause(self, request: web.Request, seconds: float) -> None:
        await self._wait(request, asyncio.sleep(seconds))

    async def _wait(self, request: web.Request, what: Awaitable[T]) -> T:
        """Wait for ``what``; meanwhile the connection may be closed if its place is needed."""
        connection = self.connections.of(request.transport)
        if connection is not None:
            connection.end()
        result = await what
        connection = self.connections.of(request.transport)
        if connection is None:
            raise ProblemError(408, "the client has disconnected")
        connection.go_on()
        return result

    def _answering(self, route: Route) -> _Handler:
        """Return the handler of a route for aiohttp."""

        async def answer(request: web.Request) -> web.StreamResponse:
            attempt = _attempt.get()
            attempt.what, attempt.names = route.name, self._loggable(request.match_info)
            caller = await self.access.admit(request, route.role, attempt)
            if not _is_expected(request):
                raise ProblemError(417, "Expect: must be 100-continue")
            call = Call(self.control, request, caller, names=dict(request.match_info))
            try:
                return await self._reply(route, call)
            finally:
                if call.body is not None:
                    attempt.asked = self._loggable(call.body.model_dump(exclude_none=True))

        return answer

    def _loggable(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters in the form for the log."""
        limiter = self.control.limiter
        return {
            name: told(limiter, value) if name == "key" else value for name, value in given.items()
        }

    async def _reply(self, route: Route, call: Call) -> web.StreamResponse:
        call.query = _query(route.query, call.request)
        if route.body is not None:
            raw = await self._wait(call.request, _body(call.request))
            call.body = _parse(route.body, raw)
        elif call.request.body_exists:
            raise ProblemError(400, "this request must have no body")
        if route.answer == "text/event-stream":
            if call.request.method == "HEAD":
                # An event stream has no end to wait for.
                return web.Response(content_type=route.answer)
            connection = self.connections.of(call.request.transport)
            if connection is not None:
                connection.stream = asyncio.current_task()
        reply = await route.handler(call)
        if isinstance(reply, web.StreamResponse):
            response = reply
        elif reply.body is None:
            response = web.Response(status=reply.status, headers=reply.headers)
        else:
            body = reply.body
            response = web.Response(
                status=reply.status,
                body=body if isinstance(body, bytes) else body.model_dump_json().encode(),
                content_type="application/json",
                headers=reply.headers,
            )
        if route.cached and isinstance(response, web.Response):
            return _unless_known(call.request, response)
        return response


class _Http(web.RequestHandler):
    """aiohttp's HTTP protocol, with error answers in the format of this API."""

    __slots__ = ()

    @property
    def full(self) -> bool:
        """Whether reading is paused until earlier input is processed."""
        return bool(self._reading_paused or getattr(self, "_buffer_paused", False))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        super().handle_error(request, status, exc, message)
        detail = "malformed HTTP request, or its first line or headers are too long"
        response = ProblemError(status, detail).response()
        response.headers.update(_HEADERS)
        response.force_close()
        return response


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "ratelimit"
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)


async def _expect(request: web.Request) -> None:
    """Tell a client that waits before its body to continue (RFC 9110, section 10.1.1)."""
    if not _is_expected(request):
        return  # refused later, so that the audit log has the request
    if request.version >= HttpVersion11 and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _is_expected(request: web.Request) -> bool:
    return request.headers.get("Expect", "100-continue").lower() == "100-continue"


def _query(model: type[BaseModel], request: web.Request) -> BaseModel:
    values: dict[str, str] = {}
    for name, value in request.query.items():
        if name in values:
            raise ProblemError.field(422, name[:100], "is given more than once")
        values[name] = value
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ProblemError.of(error) from None


async def _body(request: web.Request) -> bytes:
    if request.content_type != "application/json":
        raise ProblemError(415, "Content-Type: must be application/json")
    if "Content-Encoding" in request.headers:
        raise ProblemError(415, "Content-Encoding: must not be used", headers=_NOT_ENCODED)
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            return await request.read()
    except TimeoutError:
        raise ProblemError(408, "the body did not arrive in time") from None
    except web.HTTPRequestEntityTooLarge:
        raise ProblemError(413, f"the body is larger than {MAX_BODY} bytes") from None
    except (ConnectionError, web.RequestPayloadError):
        raise ProblemError(400, "the body is incomplete") from None


def _parse(model: type[BaseModel], raw: bytes) -> BaseModel:
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise ProblemError(400, f"the body is not JSON: {first['ctx']['error']}") from None
        raise ProblemError.of(error) from None


def _unless_known(request: web.Request, response: web.Response) -> web.Response:
    """Return an answer with an ETag, or status 304 if it matches (RFC 9110, section 13.1.2)."""
    body = response.body if isinstance(response.body, bytes) else b""
    etag = hashlib.sha256(body).hexdigest()[:32]
    known = request.if_none_match or ()
    if any(one.value in (etag, "*") for one in known):
        response = web.Response(status=304)
    response.etag = etag
    response.headers["Cache-Control"] = "private, no-cache"
    return response
