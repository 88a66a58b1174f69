"""One HAProxy, by one socket of its runtime API: a thread of its own, a rest after a failure.

haproxyadmin blocks, and opens a connection for each command. So each socket has one thread, and a
HAProxy that hangs keeps waiting nobody but those who ask it; they wait no longer than the time
limit. What this HAProxy should learn and could not is kept, and sent when it answers again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import socket
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import structlog
from haproxyadmin.exceptions import HAProxyBaseError, SocketConnectionError, SocketTimeout
from haproxyadmin.haproxy import HAProxy

from ratelimit.exceptions import RatelimitError
from ratelimit.runtime.figures import read_tables
from ratelimit.runtime.words import (
    TABLE,
    Network,
    batches,
    clear_entry,
    read_entries,
    refusal,
    show_entries,
    within,
)

MAX_QUEUED = 64
"""Questions that wait for one HAProxy; the next one is refused."""

MAX_UNSENT = 100_000
"""Changes that wait for one HAProxy; the next one is refused."""

MAX_SCANNED = 250_000
"""Entries of the edge table that are read to find those of a network."""

FIRST_REST = 0.1
"""Seconds after a failure in which a HAProxy is not asked; doubles up to ``LONGEST_REST``."""

LONGEST_REST = 2.0

_FIRST_WORD = b"Name: "  # of `show info`; what follows differs among HAProxy's builds
_SCAN_TIMEOUT = 10  # seconds to read the whole table; each read of it has the usual limit
_LATER = "it is told as soon as it can be"

_UNREADABLE = (HAProxyBaseError, OSError, ValueError, LookupError, TypeError, AttributeError)
"""What haproxyadmin raises where it can't ask, or where an answer is not as it expects."""

log = structlog.get_logger()


class EdgeError(RatelimitError):
    """HAProxy can't be asked, or refused; the text says why, for operators."""


class _TooLateError(EdgeError):
    """Nobody waits for the answer any more, so the question was not asked."""


class Change:
    """Something that HAProxy is to learn: the commands, or a network of which nothing is to stay.

    ``waiters`` get an empty text when it is done, and a problem as soon as there is one.
    """

    __slots__ = ("command", "network", "until", "waiters")

    def __init__(self, command: str = "", until: int = 0, network: Network | None = None) -> None:
        self.command = command
        self.until = until
        self.network = network
        self.waiters: list[asyncio.Future[str]] = []


class Edge:
    """A HAProxy; ``problem`` says why it can't be asked at present, and is empty if it can."""

    def __init__(self, path: str, timeout: float) -> None:
        self.path = path
        self.problem = ""
        self._timeout = timeout
        self._thread = ThreadPoolExecutor(1, f"haproxy {path}")
        self._haproxy: HAProxy | None = None  # used in the thread only
        self._queued = 0
        self._rest = FIRST_REST
        self._again_at = 0.0
        self._refusal = ""
        self._unsent: dict[str, Change] = {}
        self._sender: asyncio.Task[None] | None = None

    async def ask(self, command: str, timeout: float | None = None) -> list[str]:
        """Return the lines of the answer; EdgeError after ``timeout`` seconds without one."""
        timeout = timeout or self._timeout
        now = time.monotonic()
        if now < self._again_at:
            raise EdgeError(self.problem)
        if self._queued >= MAX_QUEUED:
            raise EdgeError(f"{MAX_QUEUED} questions wait for it already")
        self._queued += 1
        loop = asyncio.get_running_loop()
        try:
            answer = loop.run_in_executor(self._thread, self._run, command, now + timeout)
        except RuntimeError as error:
            self._queued -= 1
            raise EdgeError(f"its thread can't be started: {error}") from error
        answer.add_done_callback(self._ran)
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(answer)
        except TimeoutError:
            raise EdgeError(self.problem or _hangs(timeout)) from None

    async def change(self, name: str, change: Change) -> str:
        """Make a change, in place of one of the same name that is not made yet.

        Returns an empty text, or what is wrong; then it is tried again until it is done, or until
        it would have no effect any more.
        """
        old = self._unsent.pop(name, None)
        if old is None and len(self._unsent) >= MAX_UNSENT:
            return f"{MAX_UNSENT} changes wait for it already"
        if change.network is not None:
            for other in [key for key in self._unsent if within(key, change.network)]:
                change.waiters += self._unsent.pop(other).waiters
        if old is not None:
            change.waiters += old.waiters
        done = asyncio.get_running_loop().create_future()
        change.waiters.append(done)
        self._unsent[name] = change
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send(), name=f"haproxy {self.path}")
            self._sender.add_done_callback(_failed)
        elif self.problem or self._refusal:
            return f"{self.problem or self._refusal}; {_LATER}"
        try:
            async with asyncio.timeout(self._timeout):
                problem = await done
        except TimeoutError:
            problem = self.problem or _hangs(self._timeout)
        return f"{problem}; {_LATER}" if problem else ""

    async def close(self) -> None:
        """Stop asking; a question under way ends by its own time limit, in its thread."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    # ---- what is still to be told ----------------------------------------------------------

    async def _send(self) -> None:
        """Make the changes, as often as it takes."""
        rest = FIRST_REST
        while self._unsent:
            try:
                await self._send_all()
                self._refusal = ""
            except EdgeError as error:
                problem = str(error)
                if problem not in (self._refusal, self.problem):
                    log.warning("haproxy refuses", socket=self.path, problem=problem)
                self._refusal = "" if problem == self.problem else problem
                self._tell_waiters(problem)
                await asyncio.sleep(max(rest, self._again_at - time.monotonic()))
                rest = min(2 * rest, LONGEST_REST)
                self._drop_ended(time.time())

    async def _send_all(self) -> None:
        for name, change in list(self._unsent.items()):
            if change.network is not None:
                await self._clear(change.network)
                self._made([name], {name: change})
        sent = {name: change for name, change in self._unsent.items() if change.command}
        for names, line in batches((name, change.command) for name, change in sent.items()):
            await self._tell(line)
            self._made(names, sent)

    async def _clear(self, network: Network) -> None:
        """Remove all entries of a network."""
        tables = {table.name: table for table in read_tables(await self.ask("show table"))}
        if TABLE in tables and tables[TABLE].used > MAX_SCANNED:
            raise EdgeError(
                f"the table {TABLE} has {tables[TABLE].used} entries, too many to look through "
                f"for a network; `clear table {TABLE}` empties it, and the agent goes on refusing"
            )
        answer = await self.ask(show_entries(), _SCAN_TIMEOUT)
        if not any(read_tables(answer)) or any("insufficient" in line for line in answer[1:2]):
            raise EdgeError(refusal(["Permission denied"] if answer[1:] else answer))
        entries = [entry for entry in read_entries(answer) if within(entry.key, network)]
        for _, line in batches((entry.key, clear_entry(entry.written)) for entry in entries):
            await self._tell(line)

    async def _tell(self, line: str) -> None:
        problem = refusal(await self.ask(line))
        if problem:
            raise EdgeError(problem)

    def _made(self, names: Iterable[str], changes: dict[str, Change]) -> None:
        for name in names:
            change = changes[name]
            if self._unsent.get(name) is change:
                del self._unsent[name]
            _wake(change, "")

    def _tell_waiters(self, problem: str) -> None:
        for change in self._unsent.values():
            _wake(change, problem)

    def _drop_ended(self, now: float) -> None:
        """Forget blocks that have ended; a lift stays, for how long an entry lives is not known."""
        ended = [name for name, change in self._unsent.items() if 0 < change.until <= now]
        for name in ended:
            del self._unsent[name]

    # ---- the thread ------------------------------------------------------------------------

    def _run(self, command: str, deadline: float) -> list[str]:
        if time.monotonic() > deadline:
            raise _TooLateError("asked too late")
        try:
            if self._haproxy is None:
                self._knock()
                self._haproxy = HAProxy(
                    socket_file=self.path, retry=None, retry_interval=0, timeout=self._timeout
                )
            [(_, answer)] = self._haproxy.command(command)
        except _UNREADABLE as error:
            # The next question gets a new object, as this one may hold on to a process that ended.
            self._haproxy = None
            # The frames hold a socket, in a circle with the error.
            traceback.clear_frames(error.__traceback__)
            late = time.monotonic() > deadline - self._timeout / 10
            raise EdgeError(_why(error, self._timeout, late)) from None
        else:
            return list(answer)

    def _knock(self) -> None:
        """See who is there: haproxyadmin reads without an end whatever comes.

        The reason, if nobody is, it keeps to itself.
        """
        deadline = time.monotonic() + self._timeout
        heard = b""
        with socket.socket(socket.AF_UNIX) as knock:
            knock.settimeout(self._timeout)
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

    def _ran(self, answer: asyncio.Future[list[str]]) -> None:
        """Learn from a question how HAProxy is; called in the event loop."""
        self._queued -= 1
        error = None if answer.cancelled() else answer.exception()
        if isinstance(error, EdgeError):
            if isinstance(error, _TooLateError):
                return
            if not self.problem:
                log.warning("haproxy lost", socket=self.path, problem=str(error))
            self.problem = str(error)
            self._again_at = time.monotonic() + self._rest
            self._rest = min(2 * self._rest, LONGEST_REST)
        elif error is None and not answer.cancelled():
            if self.problem:
                log.info("haproxy back", socket=self.path)
            self.problem = ""
            self._rest = FIRST_REST


def _failed(sender: asyncio.Task[None]) -> None:
    """Say that a sender ended by a mistake of ours; the next change starts another."""
    if not sender.cancelled() and (error := sender.exception()) is not None:
        log.error("telling haproxy failed", exc_info=error)


def _wake(change: Change, problem: str) -> None:
    for waiter in change.waiters:
        if not waiter.done():
            waiter.set_result(problem)
    change.waiters.clear()


def _hangs(timeout: float) -> str:
    return f"no answer within {timeout:g} s: HAProxy hangs, is stopped, or is overloaded"


def _why(error: Exception, timeout: float, late: bool) -> str:
    if isinstance(error, FileNotFoundError):
        return (
            "there is no such socket: HAProxy does not run, or its `stats socket` line names "
            "another path"
        )
    if isinstance(error, PermissionError):
        with contextlib.suppress(KeyError):
            name = pwd.getpwuid(os.geteuid()).pw_name
            return f"user {name} may not open it: see `user`, `group` and `mode` of `stats socket`"
        return "it may not be opened: see `user`, `group` and `mode` of `stats socket`"
    if isinstance(error, ConnectionRefusedError | SocketConnectionError):
        return "nobody listens on it: HAProxy does not run"
    if isinstance(error, TimeoutError | SocketTimeout) or late:
        return _hangs(timeout)
    if isinstance(error, ValueError | LookupError | TypeError | AttributeError):
        return (
            "what answers there is no `stats socket` of a HAProxy process; the master's socket "
            "is none"
        )
    return f"{error}"
