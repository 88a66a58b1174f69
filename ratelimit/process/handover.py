"""Replaces the process by a new one with the same command line, without a gap.

At SIGUSR2 the process starts its successor and passes it the listening sockets, as systemd would. A
pair of sockets connects the two processes:

1. If only one process can have the store open, the successor requests it. The predecessor writes
its queue, closes the store, confirms, and continues to answer from memory.
2. The successor opens the store, answers requests, and confirms.
3. The predecessor closes its connections, sends the changes since step 1, one per line, and ends.
The end of the stream tells the successor.

If anything fails before step 2 is complete, the predecessor opens its store again and continues.
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
from ratelimit.process.hold_signals import HELD
from ratelimit.process.systemd import FIRST_FD, OURS, Passed

START_TIMEOUT = 60
"""Seconds for the successor to start answering."""

RELEASE_TIMEOUT = 5
"""Seconds for the predecessor to close its store."""

END_TIMEOUT = 10
"""Seconds without a message after which a process is considered hung."""

_VARIABLE = "RATELIMIT_PREDECESSOR"  # file descriptor of its socket of the pair
_LONGEST_FD = 6  # digits
_LOOK = 0.02  # seconds between checks for the end of a child
_READ = 1 << 13  # bytes; their lines take less than a millisecond

_RELEASE, _ANSWERS = b"r", b"\n"  # messages of the successor
_RELEASED, _KEPT = b"r", b"k"  # messages of the predecessor

log = structlog.get_logger()


class Predecessor:
    """The process that passed its sockets to this one."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(False)

    @classmethod
    def of_environment(cls) -> Predecessor | None:
        """Return the predecessor, if there is one."""
        fd = os.environ.pop(_VARIABLE, "")
        if not fd.isascii() or not fd.isdigit() or len(fd) > _LONGEST_FD:
            return None
        os.set_inheritable(int(fd), False)
        return cls(socket.socket(fileno=int(fd)))

    async def release(self) -> None:
        """Make the predecessor close the store while it continues to answer. Raises StartError."""
        loop = asyncio.get_running_loop()
        answer = _KEPT
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * RELEASE_TIMEOUT):
                try:
                    await loop.sock_sendall(self._sock, _RELEASE)
                    answer = await loop.sock_recv(self._sock, 1)
                except ConnectionError:
                    answer = b""
        # An empty answer: the predecessor has ended.
        if answer not in (_RELEASED, b""):
            raise StartError("the previous process does not close the store; see its log")

    async def replace(self, take: Callable[[list[bytes]], Awaitable[object]]) -> None:
        """Make the predecessor end; return when it has.

        ``take`` is called with its last changes, as lines.
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
            why = str(error) or f"no end within {END_TIMEOUT} s"
            log.warning("the previous process did not end properly", why=why)
        finally:
            self._sock.close()


@dataclass(frozen=True, slots=True)
class Successor:
    """The process that continues with the sockets; ``sock`` must stay open until this one ends."""

    pid: int
    sock: socket.socket

    async def leave(self, lines: Iterable[bytes]) -> None:
        """Send the last changes to the successor; call it last."""
        data = b"".join(line + b"\n" for line in lines)
        try:
            async with asyncio.timeout(END_TIMEOUT):
                await asyncio.get_running_loop().sock_sendall(self.sock, data)
        except OSError as error:
            why = str(error)
            log.error("changes were lost because the successor did not read them", why=why)  # noqa: TRY400


async def hand_over(
    sockets: Sequence[Passed],
    release: Callable[[], Awaitable[None]],
    reopen: Callable[[], object],
) -> Successor | None:
    """Start a successor with these sockets; return it once it answers, and this process must end.

    ``release`` closes the store or raises RatelimitError; ``reopen`` undoes it. Returns None if the
    successor failed, which is logged; nothing has changed then.
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
        log.error("no successor can be started; this process continues", why=why)  # noqa: TRY400
        return None
    if successor is not None:
        log.info("the successor answers requests")
    return successor


async def _answers(ours: socket.socket, pid: int, release: Callable[[], Awaitable[None]]) -> bool:
    """Wait until the successor answers; return false if it failed and has ended."""
    answers = False
    try:
        async with asyncio.timeout(START_TIMEOUT):
            answers = await _converse(ours, release)
    except ConnectionError:
        pass  # the successor has ended
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
    except asyncio.CancelledError:
        # The successor does not answer yet but may have the store open.
        os.kill(pid, signal.SIGKILL)
        await _ended(pid)
        raise
    if answers:
        return True
    code = await _ended(pid)
    if code is None:
        os.kill(pid, signal.SIGKILL)
        code = await _ended(pid)
    log.error("the successor failed; this process continues", code=code)
    return False


async def _converse(ours: socket.socket, release: Callable[[], Awaitable[None]]) -> bool:
    loop = asyncio.get_running_loop()
    while (word := await loop.sock_recv(ours, 1)) == _RELEASE:
        answer = _RELEASED
        try:
            await release()
        except RatelimitError as error:
            log.warning("the store was not released", why=str(error))
            answer = _KEPT
        await loop.sock_sendall(ours, answer)
    return word == _ANSWERS


async def _ended(pid: int) -> int | None:
    """Wait for the end of a child; return None on timeout. Needs no thread, which may be
    unavailable.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_TIMEOUT):
            while True:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    return os.waitstatus_to_exitcode(status)
                await asyncio.sleep(_LOOK)
    return None


def _spawn(sockets: Sequence[Passed], pair: socket.socket) -> int:
    """Start this program again, with its sockets where sd_listen_fds(3) expects them."""
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
            # Move them out of the way of the target numbers.
            moved.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, last + 1))  # noqa: PERF401
        return os.posix_spawn(
            sys.executable,
            [sys.executable, *sys.orig_argv[1:]],
            environment,
            setsigmask=HELD,  # until it handles them
            file_actions=[
                (os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate(moved, start=FIRST_FD)
            ],
        )
    finally:
        for fd in moved:
            os.close(fd)
