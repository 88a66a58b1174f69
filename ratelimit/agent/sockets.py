"""Listening sockets: bound here or passed by another process, on TCP and unix paths."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import stat
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ratelimit.exceptions import StartError
from ratelimit.model import Address
from ratelimit.process.systemd import Passed

_BACKLOG = 1024


class Listening:
    """The listening sockets of one protocol; ``make`` returns the object for a connection.

    ``sockets`` are those in use, to pass on to another process.
    """

    def __init__(
        self, make: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None = None
    ) -> None:
        self.sockets: list[Passed] = []
        self._make = make
        self._tls = tls
        self._servers: list[asyncio.Server] = []
        self._paths: list[tuple[str, int]] = []

    async def listen(self, address: Address, passed: Sequence[Passed] = ()) -> Address:
        """Accept connections; return the address with the actual port for port 0.

        ``passed`` are sockets of this address that another process has bound; without them, one is
        bound. TLS is for TCP only. Raises StartError.
        """
        try:
            sockets = passed or [_bind(address)]
            for one in sockets:
                await self._accept(one)
        except OSError as error:
            raise StartError(f"can't listen on {address}: {error.strerror or error}") from error
        return sockets[0].address

    async def _accept(self, one: Passed) -> None:
        loop = asyncio.get_running_loop()
        if one.address.path:
            # close() decides whether to remove the socket file; Python 3.13 would always remove it.
            keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
            server = await loop.create_unix_server(
                self._make, sock=one.sock, backlog=_BACKLOG, **keep
            )
        else:
            # Accepted connections inherit keepalive, which detects peers that vanished.
            one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            server = await loop.create_server(
                self._make, sock=one.sock, backlog=_BACKLOG, ssl=self._tls
            )
        self._servers.append(server)
        self.sockets.append(one)
        if one.ours:
            self._paths.append((one.address.path, os.stat(one.address.path).st_ino))

    def close(self, handed_over: bool = False) -> None:
        """Stop accepting; remove socket files unless another process continues with them."""
        for server in self._servers:
            server.close()
        for path, inode in [] if handed_over else self._paths:
            # Another process may have bound a new socket there.
            if os.path.exists(path) and os.stat(path).st_ino == inode:
                os.unlink(path)


def _bind(address: Address) -> Passed:
    if address.path:
        return Passed(_bind_unix(address.path), ours=True)
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.host, address.port))
    except OSError:
        sock.close()
        raise
    return Passed(sock)


def _bind_unix(path: str) -> socket.socket:
    """Bind a socket file of mode 0660; replace one on which no process listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.setblocking(False)
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)
                except BlockingIOError:
                    pass  # a full backlog: a process listens
        umask = os.umask(0o117)
        try:
            sock.bind(path)
        finally:
            os.umask(umask)
    except OSError:
        sock.close()
        raise
    return sock
