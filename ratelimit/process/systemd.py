"""What a service manager gives a process and hears of it: sockets, readiness, a watchdog.

The protocols are those of sd_listen_fds(3) and sd_notify(3). They are so small that they take less
than a library would; without systemd, nothing here does anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import stat
from dataclasses import dataclass
from ipaddress import ip_address

from ratelimit.exceptions import StartError
from ratelimit.model import Address

FIRST_FD = 3
"""SD_LISTEN_FDS_START."""

OURS = "ours"
"""Name of a socket whose file is ours to remove; systemd's own are called by their unit."""


@dataclass(frozen=True, slots=True)
class Passed:
    """A listening socket that was passed to this process; ``ours`` as of ``OURS``."""

    sock: socket.socket
    ours: bool = False

    @property
    def address(self) -> Address:
        name = self.sock.getsockname()
        return (
            Address(path=os.fsdecode(name))
            if isinstance(name, (str, bytes))
            else Address(*name[:2])
        )


class Sockets:
    """The sockets that were passed to this process, until somebody takes them.

    ``trusted`` is whether they were a process of the same configuration's.
    """

    def __init__(self, passed: list[Passed], trusted: bool = False) -> None:
        self._left = passed
        self._trusted = trusted

    @classmethod
    def inherited(cls, trusted: bool = False) -> Sockets:
        """Return those of the environment, and remove the variables, which are for nobody else.

        ``trusted`` takes them without ``LISTEN_PID``, which whoever began this process could not
        know. Raises StartError if they are none to listen with.
        """
        pid = os.environ.pop("LISTEN_PID", "")
        count = os.environ.pop("LISTEN_FDS", "")
        names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
        if not count or (pid != str(os.getpid()) and not trusted):
            return cls([])
        if not count.isascii() or not count.isdigit() or len(count) > 4:
            raise StartError(f"LISTEN_FDS: {count!r} is no number of sockets")
        names += [""] * int(count)
        passed = []
        for fd, name in zip(range(FIRST_FD, FIRST_FD + int(count)), names, strict=False):
            passed.append(Passed(_listening(fd), name == OURS))
        return cls(passed, trusted)

    def take(self, address: Address) -> list[Passed]:
        """Return the sockets of an address, which the caller then owns.

        Port 0 stands for the port that the process before was given.
        """
        if not address.path and address.port == 0:
            ports = [one.address.port for one in self._left] if self._trusted else []
            address = Address(address.host, next(filter(None, ports), 0))
        found = [one for one in self._left if _same(one.address, address)]
        self._left = [one for one in self._left if one not in found]
        return found

    def done(self) -> None:
        """Let go of sockets that nobody has taken: StartError if they are a service manager's.

        Those of a process before are of addresses that the configuration no longer has.
        """
        if self._trusted:
            for one in self._left:
                one.sock.close()
        elif self._left:
            names = ", ".join(str(one.address) for one in self._left)
            raise StartError(
                f"the service manager passes a socket on {names}, which is neither in agent.listen"
                f" nor ops.listen; name it there too, or not in the socket unit"
            )


class Manager:
    """The service manager, as the environment names it; without one, nothing here does anything.

    Its socket is opened once, so that the manager hears of the process also while there is no file
    descriptor to be had.
    """

    def __init__(self, path: str = "", watchdog: float = 0) -> None:
        self._path = path.replace("@", "\0", 1) if path.startswith("@") else path
        self._watchdog = watchdog
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if path else None
        if self._sock is not None:
            self._sock.setblocking(False)

    @classmethod
    def of_environment(cls) -> Manager:
        """Return the manager that ``NOTIFY_SOCKET`` and ``WATCHDOG_USEC`` name."""
        path = os.environ.get("NOTIFY_SOCKET", "")
        wait = os.environ.get("WATCHDOG_USEC", "")
        ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watched = ours and re.fullmatch(r"0*[1-9][0-9]{0,17}", wait)
        return cls(
            path if path.startswith(("/", "@")) else "", int(wait) / 1_000_000 if watched else 0
        )

    def tell(self, *lines: str) -> None:
        """Say something, such as ``READY=1``; it may not be heard."""
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.sendto("\n".join(lines).encode(), self._path)

    async def watch(self) -> None:
        """Feed the watchdog from this loop, until cancelled; a loop that hangs is found by it."""
        if not self._watchdog:
            return
        while True:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(self._watchdog / 3)

    def close(self) -> None:
        """Let go of the socket."""
        if self._sock is not None:
            self._sock.close()


def _listening(fd: int) -> socket.socket:
    """Return the socket of a file descriptor."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise StartError(f"LISTEN_FDS: file descriptor {fd} is no socket")
        sock = socket.socket(fileno=fd)
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise StartError(f"LISTEN_FDS: the socket {fd} does not listen; is it Accept=no?")
    except OSError as error:
        raise StartError(f"LISTEN_FDS: file descriptor {fd}: {error.strerror}") from error
    os.set_inheritable(fd, False)
    sock.setblocking(False)
    return sock


def _same(have: Address, wanted: Address) -> bool:
    if (wanted.path, wanted.port) != (have.path, have.port):
        return False
    if wanted.path:
        return True
    try:
        hosts = [wanted.host] if ip_address(wanted.host) else []
    except ValueError:
        found = socket.getaddrinfo(wanted.host, wanted.port, type=socket.SOCK_STREAM)
        hosts = [str(where[0]) for *_, where in found]
    return any(ip_address(host) == ip_address(have.host) for host in hosts)
