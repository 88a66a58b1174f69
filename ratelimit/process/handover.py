"""A process ends, and another one of the same command line takes its place without a gap.

At SIGUSR2 the process starts its successor and passes it the listening sockets, as systemd would.
A pair of sockets joins the two:

1. Where only one process can have the store open, the successor asks for it. Its predecessor
   writes what waits, lets go of the store, says so, and goes on answering from memory.
2. The successor opens the store, answers, and says so.
3. The predecessor ends its connections, sends what has changed since it let go of the store, a
   line for each change, and ends. The end of the stream tells the successor.

Whatever fails before step 2 is done, the predecessor takes its store back and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from ratelimit.exceptions import RatelimitError, StartError
from ratelimit.process.signals import HELD
from ratelimit.process.systemd import FIRST_FD, OURS, Passed

START_TIMEOUT = 60
"""Seconds for the successor to answer."""

RELEASE_TIMEOUT = 5
"""Seconds for the predecessor to let go of its store."""

END_TIMEOUT = 10
"""Seconds without a word in which a process must have ended."""

_VARIABLE = "RATELIMIT_PREDECESSOR"  # its file descriptor of the pair
_LONGEST_FD = 6  # digits
_LOOK = 0.02  # seconds between looks for the end of a child
_READ = 1 << 13  # bytes; the lines in them are dealt with in less than a millisecond

_RELEASE, _ANSWERS = b"r", b"\n"  # what the successor says
_RELEASED, _KEPT = b"r", b"k"  # what its predecessor does

log = structlog.get_logger()


class Predecessor:
    """The process whose sockets this one was given."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(False)

    @classmethod
    def of_environment(cls) -> Predecessor | None:
        """Return it, if there is one."""
        fd = os.environ.pop(_VARIABLE, "")
        if not fd.isascii() or not fd.isdigit() or len(fd) > _LONGEST_FD:
            return None
        os.set_inheritable(int(fd), False)
        return cls(socket.socket(fileno=int(fd)))

    async def release(self) -> None:
        """Have it let go of the store while it goes on answering; StartError if it does not."""
        loop = asyncio.get_running_loop()
        answer = _KEPT
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * RELEASE_TIMEOUT):
                try:
                    await loop.sock_sendall(self._sock, _RELEASE)
                    answer = await loop.sock_recv(self._sock, 1)
                except ConnectionError:
                    answer = b""
        # An empty answer: it has ended.
        if answer not in (_RELEASED, b""):
            raise StartError("the process before does not let go of the store; its log says why")

    async def replace(self, take: Callable[[list[bytes]], Awaitable[object]]) -> None:
        """Have it end, if it has not; return when it has.

        ``take`` is called with the lines that it leaves.
        """
        if self._sock.fileno() < 0:
            return
        loop = asyncio.get_running_loop()
        rest = b""
        try:
            await loop.sock_sendall(self._sock, _ANSWERS)
            while True:
                async with asyncio.timeout(END_TIMEOUT):
                    data = await loop.sock_recv(self._sock, _READ)
                if not data:
                    break
                *lines, rest = (rest + data).split(b"\n")
                await take(lines)
        except OSError as error:
            why = str(error) or f"it has not ended within {END_TIMEOUT} s"
            log.warning("the process before ended without a word", why=why)
        finally:
            self._sock.close()


@dataclass(frozen=True, slots=True)
class Successor:
    """The process that goes on with the sockets of this one, which holds ``sock`` to its end."""

    pid: int
    sock: socket.socket

    async def leave(self, lines: Iterable[bytes]) -> None:
        """Tell it what it can't know, as the last thing that this process does."""
        data = b"".join(line + b"\n" for line in lines)
        try:
            async with asyncio.timeout(END_TIMEOUT):
                await asyncio.get_running_loop().sock_sendall(self.sock, data)
        except OSError as error:
            log.error("changes are lost, for the successor takes none", why=str(error))  # noqa: TRY400


async def hand_over(
    sockets: Sequence[Passed],
    release: Callable[[], Awaitable[None]],
    reopen: Callable[[], object],
) -> Successor | None:
    """Start a successor with these sockets; return it once it answers, for this process to end.

    ``release`` lets go of the store, or raises RatelimitError; ``reopen`` undoes it. None if there
    is no successor, which the log explains; nothing has changed then.
    """
    successor = None
    try:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                pid = _spawn(sockets, theirs)
            log.info("successor started", successor=pid)
            ours.setblocking(False)
            if await _answers(ours, pid, release):
                successor = Successor(pid, ours)
        finally:
            if successor is None:
                ours.close()
                reopen()
    except OSError as error:
        why = str(error)
        log.error("no successor can be started, and this process goes on", why=why)  # noqa: TRY400
        return None
    if successor is not None:
        log.info("the successor answers")
    return successor


async def _answers(ours: socket.socket, pid: int, release: Callable[[], Awaitable[None]]) -> bool:
    """Wait until the successor answers; false if it has failed, and ended."""
    answers = False
    try:
        async with asyncio.timeout(START_TIMEOUT):
            answers = await _converse(ours, release)
    except ConnectionError:
        pass  # it has ended
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
    except asyncio.CancelledError:
        # It has not answered yet, and may have the store open.
        os.kill(pid, signal.SIGKILL)
        await _ended(pid)
        raise
    if answers:
        return True
    code = await _ended(pid)
    if code is None:
        os.kill(pid, signal.SIGKILL)
        code = await _ended(pid)
    log.error("the successor failed, and this process goes on", code=code)
    return False


async def _converse(ours: socket.socket, release: Callable[[], Awaitable[None]]) -> bool:
    loop = asyncio.get_running_loop()
    while (word := await loop.sock_recv(ours, 1)) == _RELEASE:
        answer = _RELEASED
        try:
            await release()
        except RatelimitError as error:
            log.warning("the store is kept", why=str(error))
            answer = _KEPT
        await loop.sock_sendall(ours, answer)
    return word == _ANSWERS


async def _ended(pid: int) -> int | None:
    """Wait for the end of a child; None if it hangs. It takes no thread: there may be none."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_TIMEOUT):
            while True:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    return os.waitstatus_to_exitcode(status)
                await asyncio.sleep(_LOOK)
    return None


def _spawn(sockets: Sequence[Passed], pair: socket.socket) -> int:
    """Start this program anew, with its sockets where sd_listen_fds(3) has them."""
    files = [*(one.sock.fileno() for one in sockets), pair.fileno()]
    last = FIRST_FD + len(sockets)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "WATCHDOG_PID"},
        "LISTEN_FDS": str(len(sockets)),
        "LISTEN_FDNAMES": ":".join(OURS if one.ours else "passed" for one in sockets),
        _VARIABLE: str(last),
    }
    moved: list[int] = []
    try:
        for fd in files:
            # Out of the way of those that they become.
            moved.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, last + 1))  # noqa: PERF401
        return os.posix_spawn(
            sys.executable,
            [sys.executable, *sys.orig_argv[1:]],
            environment,
            setsigmask=HELD,  # until it listens for them
            file_actions=[
                (os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate(moved, start=FIRST_FD)
            ],
        )
    finally:
        for fd in moved:
            os.close(fd)
