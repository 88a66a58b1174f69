"""One connection to a Redis server, with pipelined requests.

redis-py connects and logs in; afterwards this module owns the transport, and hiredis packs and
parses. So an exchange of counts costs one write and one read, without a task, stream or timer of
its own. This module matches answers to requests and enforces timeouts. It never sends a request
twice, so that nothing is counted twice.
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
from ratelimit.process.thread import Thread
from ratelimit.steps import Steps
from ratelimit.store.base import StoreError
from ratelimit.store.redis.errors import explain
from ratelimit.store.redis.url import Endpoint, Login, Target

MAX_PENDING = 1024
"""Requests without an answer; further ones fail."""

MAX_UNSENT = 1 << 20
"""Bytes that a server has not read; above this the connection is closed."""

log = structlog.get_logger()

Push = Callable[[list[Any]], Steps[None] | None]

_NOTHING = object()


class Link(asyncio.Protocol):
    """A connection; ``broken`` says why it is unusable, and is empty before.

    ``push`` receives messages that are not answers, one after the other; the steps that it returns
    are run in slices before the next message. It receives an empty message when the connection
    breaks.
    """

    def __init__(self, endpoint: Endpoint, push: Push = lambda message: None) -> None:
        self.endpoint = endpoint
        self.broken = ""
        self._push = push
        self._connection: AbstractConnection
        self._transport: asyncio.Transport | None = None
        self._reader: hiredis.Reader
        self._loop = asyncio.get_running_loop()
        # Future, deadline and timeout of each request. The deadline applies even if the caller no
        # longer waits.
        self._pending: deque[tuple[asyncio.Future[Any], float, float]] = deque()
        self._reading: Steps[None] | None = None  # received data that is not processed yet
        self._paused = False
        self._heard = -math.inf  # when the last message was processed
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
        """Connect and log in. Raises StoreError, after ``timeout`` seconds at most."""
        link = cls(endpoint, push)
        deadline = link._loop.time() + timeout
        try:
            async with asyncio.timeout_at(deadline):
                password = await _password(login)
        except TimeoutError:
            why = f"{login.password_file}: no answer from the disk"
            raise StoreError(f"password_file: {why}", unsent=True) from None
        except (OSError, UnicodeDecodeError, RuntimeError) as error:
            raise StoreError(f"password_file: {login.password_file}: {error}", True) from error
        link._connection = _connection(target, endpoint, login.user, password)
        try:
            async with asyncio.timeout_at(deadline):
                await link._connection.connect()  # type: ignore[no-untyped-call]
        except TimeoutError:
            await link.close()
            problem = f"{endpoint}: no answer within {timeout * 1000:.0f} ms"
            if target.tls is not None:
                problem += "; check that the port uses TLS"
            raise StoreError(problem, unsent=True) from None
        except Exception as error:
            # Any exception: redis-py fails in many ways on an invalid answer to HELLO.
            await link.close()
            raise StoreError(explain(error, endpoint), unsent=True) from error
        except BaseException:
            await link.close()
            raise
        link._take_over()
        return link

    async def call(self, timeout: float, *args: bytes | str | int, asking: bool = False) -> Any:
        """Send a command and return its answer.

        Raises redis.ResponseError for an error answer, and StoreError for everything else; after a
        StoreError the connection is closed, because answers can't be matched any more.
        """
        if len(self._pending) >= MAX_PENDING:
            raise StoreError(f"{self.endpoint}: {MAX_PENDING} requests without an answer", True)
        deadline = self._loop.time() + timeout
        if asking:
            # Its answer is dropped; it applies only to the next command of this connection.
            self.send("ASKING")
            dropped = self._loop.create_future()
            dropped.cancel()
            self._pending.append((dropped, deadline, timeout))
        self.send(*args)
        if self.broken:
            # The write itself filled the buffer; only earlier requests have got the error.
            raise StoreError(self.broken)
        answer = self._loop.create_future()
        self._pending.append((answer, deadline, timeout))
        if self._timer is None or deadline < self._timer_at:
            self._watch(deadline)
        return await answer

    def send(self, *args: bytes | str | int) -> None:
        """Send a command whose answers are messages. Raises StoreError."""
        if self.broken or self._transport is None:
            raise StoreError(self.broken, unsent=True)
        # The type stub has one argument; the function takes any number.
        self._transport.write(hiredis.pack_command(args))  # type: ignore[arg-type]

    async def close(self) -> None:
        """Close; waiting callers get an error."""
        self._break(f"{self.endpoint}: closed")
        with contextlib.suppress(RedisError, OSError):
            await self._connection.disconnect(nowait=True)

    def _take_over(self) -> None:
        """Replace redis-py's protocol, for which redis-py has no public interface."""
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
        """Break the connection if a request is overdue; otherwise set the timer to the next
        deadline.
        """
        self._timer = None
        if not self._pending:
            return
        _, deadline, timeout = min(self._pending, key=lambda request: request[1])
        # The answer may have been behind messages.
        deadline = max(deadline, self._heard + timeout)
        if deadline <= self._loop.time():
            self._break(f"{self.endpoint}: no answer within {timeout * 1000:.0f} ms")
        else:
            self._watch(deadline)

    # Called by the transport.

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        if self._reading is None:
            self._reading = self._read()
            self._go_on()
        elif self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _go_on(self) -> None:
        """Process received data for one slice of the loop."""
        assert self._reading is not None  # noqa: S101 - called while there is data
        try:
            if not turns.advance(self._reading):
                self._heard = self._loop.time()
                turns.call(self._go_on)
                return
        except RedisError as error:
            self._break(explain(error, self.endpoint))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            # For example a MOVED without an address, or a map with lists as keys.
            self._break(f"{self.endpoint}: unexpected answer; is this Redis? ({error})")
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
            log.exception("internal error while handling a message")
            self._break(f"{self.endpoint}: internal error while handling a message")
        yield

    def connection_lost(self, exc: Exception | None) -> None:
        error = RedisConnectionError("Connection closed by server.")
        error.__cause__ = exc
        self._break(explain(error, self.endpoint))

    def pause_writing(self) -> None:
        self._break(f"{self.endpoint}: the server does not read")

    def _take(self, answer: Any) -> None:
        if isinstance(answer, RedisError) and not isinstance(answer, ResponseError):
            raise answer
        if not self._pending:
            self._break(f"{self.endpoint}: an answer without a request")
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


_passwords: dict[str, asyncio.Future[str]] = {}
"""Files that are being read. A file is read once at a time: a disk that hangs keeps one thread."""


async def _password(login: Login) -> str:
    """Return the password; a file is read in a thread, because its disk may hang."""
    path = login.password_file
    if not path:
        return login.password
    reading = _passwords.get(path)
    if reading is None or reading.get_loop() is not asyncio.get_running_loop():
        thread = Thread("password")
        reading = _passwords[path] = thread.run(login.read_password)
        thread.stop()
        reading.add_done_callback(lambda _: _passwords.pop(path, None))
    return await asyncio.shield(reading)


def _connection(target: Target, endpoint: Endpoint, user: str, password: str) -> AbstractConnection:
    options: dict[str, Any] = {
        "db": target.db,
        "username": user or None,
        "password": password or None,
        "protocol": 3,
        "retry": Retry(NoBackoff(), 0),
        # Timeouts are enforced here, for whole requests.
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
