"""The side of HAProxy in a session of peers, as far as a load needs it."""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

from tests.helpers.peers_wire import CONFIRMED, FINISHED, HEARTBEAT, define

RATED = (2, 9, 10, 22)
"""Data types of a count table as shipped: gpc0, http_req_cnt, http_req_rate, gpt(1)."""

ALL_COUNTERS = (2, 6, 9, 10, 11, 13, 15, 20)
"""Those of a table for all limits: gpc0, conn_cur, http_req_cnt, http_req_rate, http_err_cnt,
bytes_in_cnt, bytes_out_cnt, http_fail_cnt."""

VERDICTS = define(2, "/rlv_default", bits=(22,), parameters=(22, 3), expire=3_600_000)
"""The definition of the table of verdicts."""

_RATE, _TAGS = 10, 22
_WELCOME = b"200\n"
_ACK = 0x84
_UPDATES = {0x80: 4, 0x85: 8}
"""Kinds of updates, and the bytes before the key: the number, and perhaps the expiry."""
_TABLE = 10  # class of the messages with a length
_ONE_BYTE = 240  # lengths below take one byte
_SILENCE = 30  # seconds without progress after which a load is given up
_BEAT = 1.0  # seconds from one heartbeat to the next
_CHUNK = 1 << 18


def counts(types: Sequence[int] = RATED) -> bytes:
    """Return the definition of a count table with such data types."""
    parameters = {_RATE: (_RATE, 1000), _TAGS: (_TAGS, 1)}
    told = [value for kind in types for value in parameters.get(kind, ())]
    return define(1, "/rl_default", bits=types, parameters=told, expire=3_600_000)


def key(address: int) -> bytes:
    """Return the key of an IPv4 address."""
    return bytes(10) + b"\xff\xff" + address.to_bytes(4)


class Heard:
    """What the agent has said so far.

    ``controls`` counts the control messages by their kind, ``acknowledged`` is the number of the
    last update that the agent acknowledged, ``told`` counts its updates.
    """

    def __init__(self) -> None:
        self.controls: Counter[int] = Counter()
        self.acknowledged = -1
        self.told = 0
        self._rest = b""

    def take(self, received: bytes) -> list[tuple[bytes, bytes]]:
        """Take data as it came; return key and values of each update, for keys of 16 bytes."""
        data = self._rest + received
        at = 0
        found = []
        while len(data) - at >= 2:
            kind, end = data[at + 1], at + 2
            if data[at] != _TABLE:
                self.controls[kind] += 1
            else:
                try:
                    size, start = _integer(data, at + 2)
                except IndexError:
                    break
                end = start + size
                if end > len(data):
                    break
                if kind in _UPDATES:
                    first = start + _UPDATES[kind]
                    found.append((data[first : first + 16], data[first + 16 : end]))
                elif kind == _ACK:
                    self.acknowledged = int.from_bytes(data[end - 4 : end])
            at = end
        self._rest = data[at:]
        self.told += len(found)
        return found


def integers(data: bytes) -> list[int]:
    """Return the integers in the values of an update."""
    found, at = [], 0
    while at < len(data):
        value, at = _integer(data, at)
        found.append(value)
    return found


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """Return an integer and the place after it. Raises IndexError if it is not complete."""
    value, shift = data[at], 4
    at += 1
    while value >= _ONE_BYTE and (shift == 4 or data[at - 1] >= 128):
        value += data[at] << shift
        shift += 7
        at += 1
    return value, at


class Edge(Heard):
    """One session of an HAProxy."""

    def __init__(self, path: str, definitions: bytes, name: str = "edge") -> None:
        super().__init__()
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_SILENCE)
        self.sock.connect(path)
        self.sock.sendall(f"HAProxyS 2.1\nagent\n{name} 1 1\n".encode())
        received = self.sock.recv(1 << 16)
        if not received.startswith(_WELCOME):
            sys.exit(f"{path}: the agent answers {received!r}")
        self.take(received.removeprefix(_WELCOME))
        self.sock.sendall(definitions)

    def receive(self) -> list[tuple[bytes, bytes]]:
        """Read once; see ``take()``."""
        received = self.sock.recv(_CHUNK)
        if not received:
            sys.exit("the agent closed the session")
        return self.take(received)

    def until(self, condition: Callable[[], bool]) -> None:
        """Read until a condition holds."""
        beat = end = time.monotonic()
        end += _SILENCE
        while not condition():
            now = time.monotonic()
            if now > end:
                sys.exit(f"the agent has not answered for {_SILENCE} s")
            if now > beat:
                beat = now + _BEAT
                self.send(HEARTBEAT)
            if select.select([self.sock], [], [], _BEAT)[0]:
                self.receive()
                end = now + _SILENCE

    def send(self, data: bytes | memoryview) -> None:
        """Send, and read meanwhile."""
        left = memoryview(data)
        while left:
            readable, writable, _ = select.select([self.sock], [self.sock], [], _SILENCE)
            if not readable and not writable:
                sys.exit(f"the agent does not read for {_SILENCE} s")
            if readable:
                self.receive()
            if writable:
                with contextlib.suppress(BlockingIOError):
                    left = left[self.sock.send(left[:_CHUNK], socket.MSG_DONTWAIT) :]

    def finish(self) -> None:
        """Say that all entries are told, and wait until the agent has read them."""
        confirmed = self.controls[CONFIRMED[1]]
        self.send(FINISHED)
        self.until(lambda: self.controls[CONFIRMED[1]] > confirmed)
