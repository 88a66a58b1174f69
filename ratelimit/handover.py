"""A process ends, and another one of the same command line takes its place without a gap.

At SIGUSR2 the process starts its successor and passes it the listening sockets, as systemd would.
Both are joined by a pair of sockets: the successor writes a byte as soon as it answers, and reads
the end of the stream when its predecessor has gone. If it fails before, nothing has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Sequence

import structlog

from ratelimit.signals import HELD
from ratelimit.systemd import FIRST_FD, OURS, Passed

START_TIMEOUT = 60
"""Seconds for the successor to answer."""

END_TIMEOUT = 10
"""Seconds for the predecessor to end."""

_VARIABLE = "RATELIMIT_PREDECESSOR"  # its file descriptor of the pair
_LONGEST_FD = 6  # digits
_LOOK = 0.02  # seconds between looks for the end of a child

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

    async def replace(self) -> None:
        """Have it end, if it has not, and wait until it has."""
        with contextlib.suppress(OSError, TimeoutError):
            self._sock.send(b"\n")
            async with asyncio.timeout(END_TIMEOUT):
                await asyncio.get_running_loop().sock_recv(self._sock, 1)
        self._sock.close()


async def hand_over(sockets: Sequence[Passed]) -> int | None:
    """Start a successor with these sockets; return its process id once it answers.

    This process is then to end. None if there is no successor, which the log explains; nothing has
    changed then.
    """
    try:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                pid = _spawn(sockets, theirs)
            log.info("successor started", successor=pid)
            ours.setblocking(False)
            if not await _answers(ours, pid):
                return None
            # Held until this process ends, by which the successor knows that it has.
            ours.detach()
    except OSError as error:
        why = str(error)
        log.error("no successor can be started, and this process goes on", why=why)  # noqa: TRY400
        return None
    log.info("the successor answers")
    return pid


async def _answers(ours: socket.socket, pid: int) -> bool:
    """Wait until the successor answers; false if it has failed, and ended."""
    try:
        async with asyncio.timeout(START_TIMEOUT):
            answers = await asyncio.get_running_loop().sock_recv(ours, 1)
    except TimeoutError:
        answers = b""
        os.kill(pid, signal.SIGKILL)
    except asyncio.CancelledError:
        os.kill(pid, signal.SIGTERM)
        raise
    if answers:
        return True
    # It may hang before its end, too.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_TIMEOUT):
            code = await _ended(pid)
            log.error("the successor failed, and this process goes on", code=code)
            return False
    os.kill(pid, signal.SIGKILL)  # it is waited for by whoever waits for this process
    log.error("the successor hangs, and this process goes on", successor=pid)
    return False


async def _ended(pid: int) -> int:
    """Wait for the end of a child; no thread is started for it, since there may be none to get."""
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        await asyncio.sleep(_LOOK)


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
