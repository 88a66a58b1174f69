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

from ratelimit.systemd import FIRST_FD, OURS, Passed, notify

START_TIMEOUT = 60
"""Seconds for the successor to answer."""

END_TIMEOUT = 10
"""Seconds for the predecessor to end."""

_VARIABLE = "RATELIMIT_PREDECESSOR"  # its file descriptor of the pair
_LONGEST_FD = 6  # digits
_HIGH = 64  # file descriptors are moved out of the way of those they become

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


async def hand_over(sockets: Sequence[Passed]) -> bool:
    """Start a successor with these sockets; true once it answers, and this process is to end."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            pid = _spawn(sockets, theirs)
        log.info("successor started", successor=pid)
        ours.setblocking(False)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                answers = await asyncio.get_running_loop().sock_recv(ours, 1)
        except TimeoutError:
            answers = b""
            os.kill(pid, signal.SIGKILL)
        except asyncio.CancelledError:
            os.kill(pid, signal.SIGTERM)
            raise
        if not answers:
            status = os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, pid, 0))[1])
            log.error("the successor failed, and this process goes on", code=status)
            return False
        # Held until this process ends, by which the successor knows that it has.
        ours.detach()
    log.info("the successor answers")
    notify(f"MAINPID={pid}")
    return True


def _spawn(sockets: Sequence[Passed], pair: socket.socket) -> int:
    """Start this program anew, with its sockets where sd_listen_fds(3) has them."""
    files = [*(one.sock.fileno() for one in sockets), pair.fileno()]
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH + len(files)) for fd in files]
    last = FIRST_FD + len(sockets)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "WATCHDOG_PID"},
        "LISTEN_FDS": str(len(sockets)),
        "LISTEN_FDNAMES": ":".join(OURS if one.ours else "passed" for one in sockets),
        _VARIABLE: str(last),
    }
    try:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, *sys.orig_argv[1:]],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate(moved, start=FIRST_FD)
            ],
        )
    finally:
        for fd in moved:
            os.close(fd)
