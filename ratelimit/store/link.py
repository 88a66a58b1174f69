"""One connection to a Redis server: requests sent without waiting for the answers before them.

redis-py connects, logs in and parses; which request gets which answer, and until when, is decided
here. It never sends a request twice: what is counted must not be counted again.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog
from hiredis import PushNotification
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from ratelimit.store.base import StoreError
from ratelimit.store.explain import explain
from ratelimit.store.url import Endpoint, Login, Target

MAX_PENDING = 1024
"""Requests without an answer; the next one is refused."""

log = structlog.get_logger()

Push = Callable[[list[Any]], object]


class Link:
    """A connection; ``broken`` says why it can't be used any more, and is empty until then.

    ``push`` gets the messages that are no answers, and an empty one when the connection breaks.
    """

    def __init__(self, endpoint: Endpoint, push: Push = lambda message: None) -> None:
        self.endpoint = endpoint
        self.broken = ""
        self._push = push
        self._connection: AbstractConnection
        # With the time by which each is to be answered, also if its caller waits no longer.
        self._pending: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._reader: asyncio.Task[None] | None = None

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
        except (RedisError, OSError, AttributeError) as error:
            # AttributeError: redis-py reads an answer to HELLO that is none.
            await link.close()
            raise StoreError(explain(error, endpoint), unsent=True) from error
        except BaseException:
            await link.close()
            raise
        link._reader = asyncio.create_task(link._read(), name=f"store {endpoint}")
        return link

    async def call(self, timeout: float, *args: bytes | str | int, asking: bool = False) -> Any:
        """Send a command and return its answer.

        Raises redis.ResponseError for an answer that is an error; StoreError for everything else,
        after which the connection is closed, for its answers can't be told apart any more.
        """
        if self.broken:
            raise StoreError(self.broken, unsent=True)
        if len(self._pending) >= MAX_PENDING:
            raise StoreError(f"{self.endpoint}: {MAX_PENDING} requests without an answer", True)
        loop = asyncio.get_running_loop()
        if self._pending and self._pending[0][1] < loop.time():
            self._break(f"{self.endpoint}: no answer in time")
            raise StoreError(self.broken, unsent=True)
        packed = self._connection.pack_command(*args)
        deadline = loop.time() + timeout
        if asking:
            # Its answer is dropped; it is about the next command of this connection only.
            packed[:0] = self._connection.pack_command("ASKING")
            dropped = loop.create_future()
            dropped.cancel()
            self._pending.append((dropped, deadline))
        answer = loop.create_future()
        self._pending.append((answer, deadline))
        try:
            async with asyncio.timeout_at(deadline):
                # Nothing is awaited before the bytes are handed over, so the order is kept.
                await self._connection.send_packed_command(packed, check_health=False)
                return await answer
        except TimeoutError:
            self._break(f"{self.endpoint}: no answer within {timeout * 1000:.0f} ms")
            raise StoreError(self.broken) from None
        except ResponseError:
            raise
        except (RedisError, OSError) as error:
            self._break(explain(error, self.endpoint))
            raise StoreError(self.broken) from error

    async def send(self, timeout: float, *args: bytes | str | int) -> None:
        """Send a command that is answered by messages; StoreError if that can't be done."""
        if self.broken:
            raise StoreError(self.broken, unsent=True)
        try:
            async with asyncio.timeout(timeout):
                await self._connection.send_packed_command(
                    self._connection.pack_command(*args), check_health=False
                )
        except TimeoutError:
            self._break(f"{self.endpoint}: nothing was read within {timeout * 1000:.0f} ms")
            raise StoreError(self.broken) from None
        except (RedisError, OSError) as error:
            self._break(explain(error, self.endpoint))
            raise StoreError(self.broken) from error

    async def close(self) -> None:
        """Close; whoever waits for an answer gets an error."""
        self._break(f"{self.endpoint}: closed")
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        with contextlib.suppress(RedisError, OSError):
            await self._connection.disconnect(nowait=True)

    async def _read(self) -> None:
        while not self.broken:
            try:
                answer: Any = await self._connection.read_response(
                    timeout=math.inf, disconnect_on_error=False, push_request=True
                )
            except ResponseError as error:
                answer = error
            except (RedisError, OSError) as error:
                self._break(explain(error, self.endpoint))
                break
            if isinstance(answer, PushNotification):
                try:
                    self._push(list(answer))
                except Exception:
                    log.exception("a message could not be handled")
                    self._break(f"{self.endpoint}: a message could not be handled")
                continue
            if not self._pending:
                self._break(f"{self.endpoint}: an answer that nobody asked for")
                break
            waiter, _ = self._pending.popleft()
            if waiter.done():
                continue
            if isinstance(answer, ResponseError):
                waiter.set_exception(answer)
            else:
                waiter.set_result(answer)
        with contextlib.suppress(RedisError, OSError):
            await self._connection.disconnect(nowait=True)

    def _break(self, why: str) -> None:
        if self.broken:
            return
        self.broken = why
        for waiter, _ in self._pending:
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
