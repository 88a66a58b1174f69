"""The interface to a service manager: passed sockets, readiness, watchdog.

Implements sd_listen_fds(3) and sd_notify(3); the code is smaller than a library's. Without systemd
it does nothing.
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
"""Name of a socket whose file this program must remove; systemd names sockets after their unit."""


@dataclass(frozen=True, slots=True)
class Passed:
    """A listening socket that was passed to this process; ``ours`` if its name is ``OURS``."""

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
    """The sockets that were passed to this process and are not taken yet.

    ``trusted`` is true if they come from a predecessor with the same configuration.
    """

    def __init__(self, passed: list[Passed], trusted: bool = False) -> None:
        self._left = passed
        self._trusted = trusted

    @classmethod
    def inherited(cls, trusted: bool = False) -> Sockets:
        """Return the sockets of the environment and remove its variables.

        ``trusted`` accepts them without ``LISTEN_PID``, which a predecessor can't know. Raises
        StartError if they are not listening sockets.
        """
        pid = os.environ.pop("LISTEN_PID", "")
        count = os.environ.pop("LISTEN_FDS", "")
        names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
        if not count or (pid != str(os.getpid()) and not trusted):
            return cls([])
        if not count.isascii() or not count.isdigit() or len(count) > 4:
            raise StartError(f"LISTEN_FDS: {count!r} is not a number of sockets")
        names += [""] * int(count)
        passed = []
        for fd, name in zip(range(FIRST_FD, FIRST_FD + int(count)), names, strict=False):
            passed.append(Passed(_listening(fd), name == OURS))
        return cls(passed, trusted)

    def take(self, address: Address) -> list[Passed]:
        """Return the sockets of an address and pass their ownership to the caller.

        Port 0 means the port of the predecessor.
        """
        if not address.path and address.port == 0:
            ports = [one.address.port for one in self._left] if self._trusted else []
            address = Address(address.host, next(filter(None, ports), 0))
        found = [one for one in self._left if _same(one.address, address)]
        self._left = [one for one in self._left if one not in found]
        return found

    def done(self) -> None:
        """Close the remaining sockets; raise StartError if they come from a service manager.

        Those of a predecessor belong to addresses that the configuration no longer has.
        """
        if self._trusted:
            for one in self._left:
                one.sock.close()
        elif self._left:
            names = ", ".join(str(one.address) for one in self._left)
            raise StartError(
                f"the service manager passed a socket on {names}, which is neither in agent.listen"
                f" nor in ops.listen; add it there or remove it from the socket unit"
            )


class Manager:
    """The service manager of the environment; without one, all methods do nothing.

    Its socket is opened once, so that notifications work without a free file descriptor.
    """

    def __init__(self, path: str = "", watchdog: float = 0) -> None:
        self._path = path.replace("@", "\0", 1) if path.startswith("@") else path
        self._watchdog = watchdog
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if path else None
        if self._sock is not None:
            self._sock.setblocking(False)

    @classmethod
    def of_environment(cls) -> Manager:
        """Return the manager of ``NOTIFY_SOCKET`` and ``WATCHDOG_USEC``."""
        path = os.environ.get("NOTIFY_SOCKET", "")
        wait = os.environ.get("WATCHDOG_USEC", "")
        ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watched = ours and re.fullmatch(r"0*[1-9][0-9]{0,17}", wait)
        return cls(
            path if path.startswith(("/", "@")) else "", int(wait) / 1_000_000 if watched else 0
        )

    def tell(self, *lines: str) -> None:
        """Send a notification such as ``READY=1``; errors are ignored."""
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.sendto("\n".join(lines).encode(), self._path)

    async def watch(self) -> None:
        """Feed the watchdog from the event loop until cancelled, to detect a hung loop."""
        if not self._watchdog:
            return
        while True:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(self._watchdog / 3)

    def close(self) -> None:
        """Close the socket."""
        if self._sock is not None:
            self._sock.close()


def _listening(fd: int) -> socket.socket:
    """Return the socket of a file descriptor."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise StartError(f"LISTEN_FDS: file descriptor {fd} is not a socket")
        sock = socket.socket(fileno=fd)
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise StartError(f"LISTEN_FDS: the socket {fd} does not listen; is Accept=no set?")
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
