"""One connection to a Redis server: requests sent without waiting for the answers before them.

redis-py connects and logs in; from then on the transport is ours, and hiredis packs and parses. So
an exchange of counts costs one write and one read, and no task, stream or timer of its own; which
request gets which answer, and until when, is decided here. It never sends a request twice: what is
counted must not be counted again.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis
import structlog
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError, ResponseError

from ratelimit import turns
from ratelimit.steps import Steps
from ratelimit.store.base import StoreError
from ratelimit.store.redis.errors import explain
from ratelimit.store.redis.url import Endpoint, Login, Target

MAX_PENDING = 1024
"""Requests without an answer; the next one is refused."""

MAX_UNSENT = 1 << 20
"""Bytes that a server has not read; with more, the connection is broken."""

log = structlog.get_logger()

Push = Callable[[list[Any]], Steps[None] | None]

_NOTHING = object()


class Link(asyncio.Protocol):
    """A connection; ``broken`` says why it can't be used any more, and is empty until then.

    ``push`` gets the messages that are no answers, one after the other: what it returns is done in
    slices before the next. It gets an empty one when the connection breaks.
    """

    def __init__(self, endpoint: Endpoint, push: Push = lambda message: None) -> None:
        self.endpoint = endpoint
        self.broken = ""
        self._push = push
        self._connection: AbstractConnection
        self._transport: asyncio.Transport | None = None
        self._reader: hiredis.Reader
        self._loop = asyncio.get_running_loop()
        # With the time by which each is to be answered, also if its caller waits no longer, and how
        # many seconds that gave it.
        self._pending: deque[tuple[asyncio.Future[Any], float, float]] = deque()
        self._reading: Steps[None] | None = None  # what has come and was not taken yet
        self._paused = False
        self._heard = -math.inf  # when the last message was taken
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    @classmethod
    async def open(
        cls,
        target: Target,
        endpoint: Endpoint,
        login: Login,
        timeout: float,
        push: Push = lambda message: None,
    ) -> Link:
        """Connect and log in; StoreError says why not, after ``timeout`` seconds at most."""
        link = cls(endpoint, push)
        try:
            link._connection = _connection(target, endpoint, login)
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"password_file: {login.password_file}: {error}", True) from error
        try:
            async with asyncio.timeout(timeout):
                await link._connection.connect()  # type: ignore[no-untyped-call]
        except TimeoutError:
            await link.close()
            problem = f"{endpoint}: no answer within {timeout * 1000:.0f} ms"
            if target.tls is not None:
                problem += "; see to it that the port speaks TLS"
            raise StoreError(problem, unsent=True) from None
        except Exception as error:
            # Of any kind: redis-py reads an answer to HELLO that is none.
            await link.close()
            raise StoreError(explain(error, endpoint), unsent=True) from error
        except BaseException:
            await link.close()
            raise
        link._take_over()
        return link

    async def call(self, timeout: float, *args: bytes | str | int, asking: bool = False) -> Any:
        """Send a command and return its answer.

        Raises redis.ResponseError for an answer that is an error; StoreError for everything else,
        after which the connection is closed, for its answers can't be told apart any more.
        """
        if len(self._pending) >= MAX_PENDING:
            raise StoreError(f"{self.endpoint}: {MAX_PENDING} requests without an answer", True)
        deadline = self._loop.time() + timeout
        if asking:
            # Its answer is dropped; it is about the next command of this connection only.
            self.send("ASKING")
            dropped = self._loop.create_future()
            dropped.cancel()
            self._pending.append((dropped, deadline, timeout))
        self.send(*args)
        if self.broken:
            # The write itself filled the buffer: only the requests before this one were told.
            raise StoreError(self.broken)
        answer = self._loop.create_future()
        self._pending.append((answer, deadline, timeout))
        if self._timer is None or deadline < self._timer_at:
            self._watch(deadline)
        return await answer

    def send(self, *args: bytes | str | int) -> None:
        """Send a command, whose answers are messages; StoreError if that can't be done."""
        if self.broken or self._transport is None:
            raise StoreError(self.broken, unsent=True)
        # Its stub says one argument; it takes any number.
        self._transport.write(hiredis.pack_command(args))  # type: ignore[arg-type]

    async def close(self) -> None:
        """Close; whoever waits for an answer gets an error."""
        self._break(f"{self.endpoint}: closed")
        with contextlib.suppress(RedisError, OSError):
            await self._connection.disconnect(nowait=True)

    def _take_over(self) -> None:
        """Read and write without redis-py, which has no interface for a protocol of others."""
        connection: Any = self._connection
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=connection._parser.parse_error,  # noqa: SLF001
            notEnoughData=_NOTHING,
        )
        self._transport = cast(asyncio.Transport, connection._writer.transport)  # noqa: SLF001
        self._transport.set_write_buffer_limits(high=MAX_UNSENT)
        self._transport.set_protocol(self)
        if self._transport.is_closing():
            self.connection_lost(None)

    def _watch(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        """Break the connection if a request is overdue, or look again when the next one is."""
        self._timer = None
        if not self._pending:
            return
        _, deadline, timeout = min(self._pending, key=lambda request: request[1])
        # Its answer may have been behind messages.
        deadline = max(deadline, self._heard + timeout)
        if deadline <= self._loop.time():
            self._break(f"{self.endpoint}: no answer within {timeout * 1000:.0f} ms")
        else:
            self._watch(deadline)

    # What the transport calls.

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        if self._reading is None:
            self._reading = self._read()
            self._go_on()
        elif self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _go_on(self) -> None:
        """Take what has come, for a slice of the loop."""
        assert self._reading is not None  # noqa: S101 - there is more to take
        try:
            if not turns.advance(self._reading):
                self._heard = self._loop.time()
                turns.call(self._go_on)
                return
        except RedisError as error:
            self._break(explain(error, self.endpoint))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            # Such as a MOVED that says no address, or a map whose keys are lists.
            self._break(f"{self.endpoint}: an answer has an unknown form; is this Redis? ({error})")
        self._reading = None
        if self._paused and self._transport is not None and not self.broken:
            self._paused = False
            self._transport.resume_reading()

    def _read(self) -> Steps[None]:
        while not self.broken and (answer := self._reader.gets()) is not _NOTHING:
            if isinstance(answer, hiredis.PushNotification):
                yield from self._hear(list(answer))
            else:
                self._take(answer)

    def _hear(self, message: list[Any]) -> Steps[None]:
        try:
            for _ in self._push(message) or ():
                yield
                if self.broken:
                    return
        except Exception:
            log.exception("a message could not be handled")
            self._break(f"{self.endpoint}: a message could not be handled")
        yield

    def connection_lost(self, exc: Exception | None) -> None:
        error = RedisConnectionError("Connection closed by server.")
        error.__cause__ = exc
        self._break(explain(error, self.endpoint))

    def pause_writing(self) -> None:
        self._break(f"{self.endpoint}: reads nothing of what it is sent")

    def _take(self, answer: Any) -> None:
        if isinstance(answer, RedisError) and not isinstance(answer, ResponseError):
            raise answer
        if not self._pending:
            self._break(f"{self.endpoint}: an answer that nobody asked for")
            return
        waiter, _, _ = self._pending.popleft()
        if waiter.done():
            return
        if isinstance(answer, ResponseError):
            waiter.set_exception(answer)
        else:
            waiter.set_result(answer)

    def _break(self, why: str) -> None:
        if self.broken:
            return
        self.broken = why
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        for waiter, _, _ in self._pending:
            if not waiter.done():
                waiter.set_exception(StoreError(why))
        self._pending.clear()
        self._push([])


def _connection(target: Target, endpoint: Endpoint, login: Login) -> AbstractConnection:
    options: dict[str, Any] = {
        "db": target.db,
        "username": login.user or None,
        "password": login.read_password() or None,
        "protocol": 3,
        "retry": Retry(NoBackoff(), 0),
        # Waiting is limited here, for whole requests.
        "socket_timeout": None,
        "socket_connect_timeout": None,
        # CLIENT SETINFO is not always permitted.
        "driver_info": None,
    }
    if endpoint.path:
        return UnixDomainSocketConnection(path=endpoint.path, **options)
    options |= {"host": endpoint.host, "port": endpoint.port}
    if target.tls is None:
        return Connection(**options)
    connection = SSLConnection(**options)
    connection.ssl_context.context = target.tls
    return connection
