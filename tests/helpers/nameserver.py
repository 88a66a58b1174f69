"""A name server for tests: it answers as it is told to, or not at all.

HAProxy asks it over UDP, the system's resolver over TCP too (RFC 1035, section 4.2). An answer that
does not fit into the size that a question announces (RFC 6891, section 6.2.3), or into 512 bytes
without one, is truncated over UDP.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import struct
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from typing import Any, cast

_A, _OPT, _IN = 1, 41, 1
_RESPONSE, _AUTHORITATIVE, _TRUNCATED = 0x8000, 0x0400, 0x0200
_LEAST = 512  # bytes that every client accepts over UDP
_NAME_OF_QUESTION = b"\xc0\x0c"  # a pointer to it, RFC 1035, section 4.1.4


class Code(IntEnum):
    """Response code (RFC 1035, section 4.1.1)."""

    GOOD = 0
    FAILURE = 2
    NO_SUCH_NAME = 3
    REFUSED = 5


class NameServer:
    """Knows IPv4 ``addresses`` by name, and no other records.

    Each question is answered with ``code`` after ``delay`` seconds, or not at all while ``silent``.
    ``asked`` counts the questions about each name, answered or not.
    """

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.code = Code.GOOD
        self.silent = False
        self.delay = 0.0
        self.asked: Counter[str] = Counter()
        self.host, self.port = "", 0

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        # TCP first, whose ports are more often in use than those of UDP.
        self._tcp = await asyncio.start_server(self._over_tcp, host, port)
        self.host, self.port = self._tcp.sockets[0].getsockname()
        self._udp, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Datagrams(self._over_udp), local_addr=(self.host, self.port)
        )

    def close(self) -> None:
        self._udp.close()
        self._tcp.close()

    def _over_udp(self, data: bytes, addr: tuple[str, int]) -> None:
        if answer := self._answer(data, truncated=True):
            asyncio.get_running_loop().call_later(self.delay, self._send, answer, addr)

    def _send(self, answer: bytes, addr: tuple[str, int]) -> None:
        if not self._udp.is_closing():
            self._udp.sendto(answer, addr)

    async def _over_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (size,) = struct.unpack(">H", await reader.readexactly(2))
                if answer := self._answer(await reader.readexactly(size), truncated=False):
                    await asyncio.sleep(self.delay)
                    writer.write(struct.pack(">H", len(answer)) + answer)
        writer.close()

    def _answer(self, data: bytes, *, truncated: bool) -> bytes:
        name, kind, end = _question(data)
        self.asked[name] += 1
        if self.silent:
            return b""
        known = self.addresses.get(name)
        code = self.code if self.code or known is not None else Code.NO_SUCH_NAME
        found = known if known and kind == _A and code == Code.GOOD else []
        record = _NAME_OF_QUESTION + struct.pack(">HHIH", _A, _IN, 1, 4)
        records = b"".join(record + ipaddress.IPv4Address(one).packed for one in found)
        (announced,) = struct.unpack(">H", data[10:12])
        option, size = b"", _LEAST
        if announced:  # the root's name, a type, then the size (RFC 6891, section 6.1.2)
            size = max(struct.unpack(">xHH", data[end : end + 5])[1], _LEAST)
            option = struct.pack(">xHHIH", _OPT, size, 0, 0)
        count, flags = len(found), _RESPONSE | _AUTHORITATIVE | code
        if truncated and end + len(records) + len(option) > size:
            count, records, flags = 0, b"", flags | _TRUNCATED
        header = data[:2] + struct.pack(">HHHHH", flags, 1, count, 0, 1 if option else 0)
        return header + data[12:end] + records + option


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, received: Callable[[bytes, tuple[str, int]], None]) -> None:
        self._received = received

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self._received(data, cast("tuple[str, int]", addr))


def _question(data: bytes) -> tuple[str, int, int]:
    """Return the name of a question, its type, and the end of the question."""
    labels = []
    at = 12
    while length := data[at]:
        labels.append(data[at + 1 : at + 1 + length].decode())
        at += 1 + length
    (kind,) = struct.unpack(">H", data[at + 1 : at + 3])
    return ".".join(labels).lower(), kind, at + 5
