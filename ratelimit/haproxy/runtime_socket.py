"""One runtime API socket of HAProxy: its own thread, and a pause after a failure.

haproxyadmin blocks, and opens a connection for each command. So each socket has a thread; an
HAProxy that hangs delays only its own callers, for at most the time limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import socket
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog
from haproxyadmin.exceptions import HAProxyBaseError, SocketConnectionError, SocketTimeout
from haproxyadmin.haproxy import HAProxy

from ratelimit.backoff import Backoff
from ratelimit.exceptions import RatelimitError
from ratelimit.haproxy.commands import refusal, show_entries
from ratelimit.haproxy.stats import read_tables

MAX_QUEUED = 64
"""Queries that wait for one HAProxy; further ones fail."""

FIRST_REST = 0.1
"""First pause in seconds after a failure; doubles up to ``LONGEST_REST``."""

LONGEST_REST = 2.0

_FIRST_WORD = b"Name: "  # of `show info`; the rest differs between builds of HAProxy
_READ = 1 << 14  # bytes of the edge table per read
_LONGEST_LINE = 1 << 12

_UNREADABLE = (HAProxyBaseError, OSError, ValueError, LookupError, TypeError, AttributeError)
"""Errors of haproxyadmin for a failed connection or an unexpected answer."""

T = TypeVar("T")

log = structlog.get_logger()


_STRANGER = "this is no `stats socket` of an HAProxy process; the master's socket is not accepted"


class EdgeError(RatelimitError):
    """HAProxy did not answer or refused; the text says why, for operators."""


class _TooLateError(EdgeError):
    """The caller's time limit has passed, so the query was not sent."""


class Edge:
    """The socket of an HAProxy; ``problem`` says why it is unreachable, or is empty."""

    def __init__(self, path: str, timeout: float) -> None:
        self.path = path
        self.problem = ""
        self.timeout = timeout
        self._thread = ThreadPoolExecutor(1, f"haproxy {path}")
        self._haproxy: HAProxy | None = None  # used only in the thread
        self._queued = 0
        self._rest = Backoff(FIRST_REST, LONGEST_REST, spread=0)
        self._again_at = 0.0

    async def ask(self, command: str) -> list[str]:
        """Return the lines of the answer. Raises EdgeError if there is none in time."""
        return await self.read(command, list)

    async def read(self, command: str, read: Callable[[Sequence[str]], T]) -> T:
        """Return the result of ``read`` on the lines of the answer; ``read`` runs in the thread."""
        now = time.monotonic()
        if now < self._again_at:
            raise EdgeError(self.problem)
        if self._queued >= MAX_QUEUED:
            raise EdgeError(f"the queue of {MAX_QUEUED} queries is full")
        self._queued += 1
        loop = asyncio.get_running_loop()
        deadline = now + self.timeout
        try:
            answer = loop.run_in_executor(self._thread, self._run, command, read, deadline)
        except RuntimeError as error:
            self._queued -= 1
            raise EdgeError(f"can't start its thread: {error}") from error
        answer.add_done_callback(self._ran)
        try:
            async with asyncio.timeout(self.timeout):
                return await asyncio.shield(answer)
        except TimeoutError:
            raise EdgeError(self.problem or _hangs(self.timeout)) from None

    async def entries(self) -> AsyncGenerator[list[str]]:
        """Yield the lines of the edge table, some hundreds at a time, whatever its size.

        HAProxy waits while the caller works. Raises EdgeError on a timeout.
        """
        try:
            async with asyncio.timeout(self.timeout):
                streams = await asyncio.open_unix_connection(self.path, limit=_READ)
        except (OSError, TimeoutError) as error:
            raise EdgeError(_why(error, self.timeout, late=False)) from None
        reader, writer = streams
        try:
            writer.write(f"{show_entries()}\n".encode())
            rest, first, left = b"", True, 0
            while True:
                try:
                    async with asyncio.timeout(self.timeout):
                        data = await reader.read(_READ)
                except (OSError, TimeoutError) as error:
                    raise EdgeError(_why(error, self.timeout, late=False)) from None
                *parts, rest = (rest + data).split(b"\n")
                lines = [part.decode("ascii", "replace") for part in parts]
                if first and lines:
                    first, left = False, _size(lines)
                left -= len(lines)
                if left < 0 or len(rest) > _LONGEST_LINE:
                    raise EdgeError(_STRANGER)
                if lines:
                    yield lines
                if not data:
                    return
        finally:
            writer.close()

    async def close(self) -> None:
        """Stop; a query in progress ends within its time limit, in its thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    # ---- the thread ------------------------------------------------------------------------

    def _run(self, command: str, read: Callable[[Sequence[str]], T], deadline: float) -> T:
        if time.monotonic() > deadline:
            raise _TooLateError("asked too late")
        try:
            if self._haproxy is None:
                self._knock()
                self._haproxy = HAProxy(
                    socket_file=self.path, retry=None, retry_interval=0, timeout=self.timeout
                )
            [(_, answer)] = self._haproxy.command(command)
        except _UNREADABLE as error:
            # The next query gets a new object: this one may belong to a process that has ended.
            self._haproxy = None
            # The frames keep a socket open, in a reference cycle with the error.
            traceback.clear_frames(error.__traceback__)
            late = time.monotonic() > deadline - self.timeout / 10
            raise EdgeError(_why(error, self.timeout, late)) from None
        return read(answer)

    def _knock(self) -> None:
        """Check that HAProxy is at the socket: haproxyadmin reads any other answer without end.

        haproxyadmin also hides the reason of a failed connection.
        """
        deadline = time.monotonic() + self.timeout
        heard = b""
        with socket.socket(socket.AF_UNIX) as knock:
            knock.settimeout(self.timeout)
            knock.connect(self.path)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                knock.sendall(b"show info\n")
                while len(heard) < len(_FIRST_WORD):
                    knock.settimeout(max(0.001, deadline - time.monotonic()))
                    part = knock.recv(len(_FIRST_WORD) - len(heard))
                    if not part:
                        break
                    heard += part
        if heard != _FIRST_WORD:
            raise ValueError("not HAProxy")

    def _ran(self, answer: asyncio.Future[T]) -> None:
        """Update the state after a query; called in the event loop."""
        self._queued -= 1
        error = None if answer.cancelled() else answer.exception()
        if isinstance(error, EdgeError):
            if isinstance(error, _TooLateError):
                return
            if not self.problem:
                log.warning("haproxy lost", socket=self.path, problem=str(error))
            self.problem = str(error)
            self._again_at = time.monotonic() + self._rest.next()
        elif error is None and not answer.cancelled():
            if self.problem:
                log.info("haproxy back", socket=self.path)
            self.problem = ""
            self._rest.reset()
            self._again_at = 0.0


def _size(lines: list[str]) -> int:
    """Return the maximum number of lines of a table from its first line. Raises EdgeError."""
    tables = list(read_tables(lines[:1]))
    if not tables:
        raise EdgeError(refusal(lines) or _STRANGER)
    if any("insufficient" in line for line in lines[1:2]):
        raise EdgeError(refusal(["Permission denied"]))
    if tables[0].type != "ipv6":
        raise EdgeError(refusal(["Invalid key"]))
    return tables[0].size + 10


def _hangs(timeout: float) -> str:
    return f"no answer within {timeout:g} s: HAProxy hangs, is stopped, or is overloaded"


def _why(error: Exception, timeout: float, late: bool) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such socket: HAProxy does not run, or its `stats socket` line has another path"
    if isinstance(error, PermissionError):
        with contextlib.suppress(KeyError):
            name = pwd.getpwuid(os.geteuid()).pw_name
            return f"user {name} may not open it: check `user`, `group`, `mode` of `stats socket`"
        return "permission denied: check `user`, `group`, `mode` of `stats socket`"
    if isinstance(error, ConnectionRefusedError | SocketConnectionError):
        return "connection refused: HAProxy does not run"
    if isinstance(error, TimeoutError | SocketTimeout) or late:
        return _hangs(timeout)
    if isinstance(error, ValueError | LookupError | TypeError | AttributeError):
        return _STRANGER
    return f"{error}"
