"""HAProxy's side of the SPOP, written from SPOE.txt and sharing no line with the agent's.

Tests and benchmarks speak to the agent with it. The peers protocol has the same integers.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

NULL = b"\x00"
TRUE = b"\x11"
FALSE = b"\x01"

HAPROXY_HELLO, HAPROXY_DISCONNECT, NOTIFY = 1, 2, 3
AGENT_HELLO, AGENT_DISCONNECT, ACK = 101, 102, 103

Value = None | bool | int | bytes | str


def varint(value: int) -> bytes:
    """Section 3.1, "Variable-length integer"."""
    if value < 240:
        return bytes([value])
    out = [value & 0xFF | 0xF0]
    value = (value - 240) >> 4
    while value >= 128:
        out.append(value & 0xFF | 0x80)
        value = (value - 128) >> 7
    return bytes([*out, value])


def string(value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return varint(len(raw)) + raw


def int64(value: int) -> bytes:
    return b"\x04" + varint(value & (1 << 64) - 1)


def uint32(value: int) -> bytes:
    return b"\x03" + varint(value)


def text(value: bytes | str) -> bytes:
    return b"\x08" + string(value)


def binary(value: bytes) -> bytes:
    return b"\x09" + string(value)


def address(value: str) -> bytes:
    packed = ipaddress.ip_address(value).packed
    return (b"\x06" if len(packed) == 4 else b"\x07") + packed


def frame(kind: int, payload: bytes, ids: tuple[int, int] = (0, 0), flags: int = 1) -> bytes:
    body = bytes([kind]) + struct.pack(">I", flags) + varint(ids[0]) + varint(ids[1]) + payload
    return struct.pack(">I", len(body)) + body


def message(name: str, **arguments: bytes) -> bytes:
    """A message with arguments that are already encoded."""
    listed = b"".join(string(key) + value for key, value in arguments.items())
    return string(name) + bytes([len(arguments)]) + listed


def notify(*messages: bytes, ids: tuple[int, int] = (1, 1)) -> bytes:
    return frame(NOTIFY, b"".join(messages), ids)


def hello(
    versions: bytes | None = text("2.0"),
    size: bytes | None = uint32(16380),
    capabilities: bytes | None = text("pipelining,async"),
    **more: bytes,
) -> bytes:
    items = {"supported-versions": versions, "max-frame-size": size, "capabilities": capabilities}
    listed = {key: value for key, value in items.items() if value is not None}
    listed |= {key.replace("_", "-"): value for key, value in more.items()}
    return frame(HAPROXY_HELLO, b"".join(string(k) + v for k, v in listed.items()))


def disconnect(status: int = 0, reason: str = "normal") -> bytes:
    payload = string("status-code") + uint32(status) + string("message") + text(reason)
    return frame(HAPROXY_DISCONNECT, payload)


@dataclass
class Frame:
    """A frame from the agent, taken apart: ``items`` of a KV-LIST or variables of an ACK.

    A variable that is to be unset is None.
    """

    kind: int
    ids: tuple[int, int]
    items: dict[str, Value]
    scopes: set[int]


class Cursor:
    """Reads the values of a frame."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.pos = 0

    def take(self, count: int) -> bytes:
        taken = self.data[self.pos : self.pos + count]
        assert len(taken) == count, "the frame is too short"
        self.pos += count
        return taken

    def varint(self) -> int:
        value = self.take(1)[0]
        if value >= 240:
            shift = 4
            while True:
                byte = self.take(1)[0]
                value += byte << shift
                shift += 7
                if byte < 128:
                    break
        return value

    def string(self) -> bytes:
        return self.take(self.varint())

    def typed(self) -> Value:
        kind = self.take(1)[0]
        match kind & 15:
            case 0:
                return None
            case 1:
                return bool(kind & 0x10)
            case 2 | 3 | 4 | 5:
                return self.varint()
            case 6:
                return self.take(4)
            case 7:
                return self.take(16)
            case 8:
                return self.string().decode()
            case 9:
                return self.string()
        raise AssertionError(f"type {kind}")


def frames(data: bytes) -> list[Frame]:
    """Parse data from the agent, which must consist of whole frames."""
    found = []
    while data:
        (length,) = struct.unpack(">I", data[:4])
        body, data = data[4 : 4 + length], data[4 + length :]
        assert len(body) == length, "the last frame is cut"
        cursor = Cursor(body)
        kind = cursor.take(1)[0]
        assert cursor.take(4) == b"\0\0\0\1", "FIN alone is set"
        ids = (cursor.varint(), cursor.varint())
        items: dict[str, Value] = {}
        scopes = set()
        while cursor.pos < len(body):
            unset = False
            if kind == ACK:
                action = cursor.take(2)
                assert action in (b"\x01\x03", b"\x02\x02"), "set-var of three, unset-var of two"
                unset = action[0] == 2
                scopes.add(cursor.take(1)[0])
            name = cursor.string().decode()
            assert name not in items, f"{name} is set twice"
            items[name] = None if unset else cursor.typed()
        found.append(Frame(kind, ids, items, scopes))
    return found
