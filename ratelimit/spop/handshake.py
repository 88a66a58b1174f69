"""The HELLO and DISCONNECT frames (SPOE.txt, sections 3.2.4, 3.2.5, 3.2.8, 3.2.9).

``spop.respond`` handles NOTIFY and ACK.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ratelimit.exceptions import SpopError
from ratelimit.spop.codec import Typed
from ratelimit.spop.constants import (
    MAX_FRAME_SIZE,
    MIN_FRAME_SIZE,
    VERSION,
    DataType,
    FrameType,
    Status,
)
from ratelimit.wire.reader import Reader
from ratelimit.wire.writer import Writer

_FIN = 1
_TRUE = 0x11
_MAX_MESSAGE = 120  # bytes; fits into the smallest negotiated frame


@dataclass(frozen=True, slots=True)
class Hello:
    """The content of HAPROXY-HELLO; ``max_frame_size`` is the lower value of both sides."""

    max_frame_size: int
    healthcheck: bool
    engine_id: str


def read_hello(reader: Reader) -> Hello:
    """Read a HAPROXY-HELLO from its flags on. Raises FrameError."""
    _read_metadata(reader)
    items = Typed(reader).kv_list()
    versions = items.get("supported-versions")
    if not isinstance(versions, bytes):
        raise SpopError(Status.NO_VERSION, "HELLO without supported-versions")
    # "Major.Minor" announces every minor version up to it, so any 2.x includes 2.0.
    if not any(version.strip().split(b".")[0] == b"2" for version in versions.split(b",")):
        raise SpopError(Status.BAD_VERSION, f"HELLO for versions {_shown(versions)}, not {VERSION}")
    size = items.get("max-frame-size")
    if size is None or not isinstance(size, int) or isinstance(size, bool):
        raise SpopError(Status.NO_MAX_FRAME_SIZE, "HELLO without max-frame-size")
    if size < MIN_FRAME_SIZE:
        raise SpopError(
            Status.BAD_MAX_FRAME_SIZE, f"HELLO with max-frame-size {size}, under {MIN_FRAME_SIZE}"
        )
    if not isinstance(items.get("capabilities"), bytes):
        raise SpopError(Status.NO_CAPABILITIES, "HELLO without capabilities")
    engine_id = items.get("engine-id")
    return Hello(
        max_frame_size=min(size, MAX_FRAME_SIZE),
        healthcheck=items.get("healthcheck") is True,
        engine_id=_shown(engine_id) if isinstance(engine_id, bytes) else "",
    )


def read_disconnect(reader: Reader) -> tuple[int, str]:
    """Read a HAPROXY-DISCONNECT from its flags on: status and message."""
    _read_metadata(reader)
    items = Typed(reader).kv_list()
    status = items.get("status-code")
    message = items.get("message")
    if not isinstance(status, int) or not isinstance(message, bytes):
        raise SpopError(Status.INVALID, "DISCONNECT without status-code or message")
    return status, _shown(message)


def write_agent_hello(max_frame_size: int) -> bytes:
    """Return the AGENT-HELLO that ends the handshake.

    It announces only pipelining: HAProxy 3.1 and later support neither "async" nor "fragmentation".
    """
    items = {"version": VERSION, "max-frame-size": max_frame_size, "capabilities": "pipelining"}
    return _frame(FrameType.AGENT_HELLO, items)


def write_agent_disconnect(status: int, message: str) -> bytes:
    """Return the AGENT-DISCONNECT to send before the connection is closed."""
    text = message.encode("ascii", "backslashreplace")[:_MAX_MESSAGE].decode()
    return _frame(FrameType.AGENT_DISCONNECT, {"status-code": status, "message": text})


def write_health_check() -> bytes:
    """Return the HAPROXY-HELLO of a health check (section 3.2.4), for checking another agent."""
    items = {
        "supported-versions": VERSION,
        "max-frame-size": MAX_FRAME_SIZE,
        "capabilities": "pipelining",
        "healthcheck": True,
    }
    return _frame(FrameType.HAPROXY_HELLO, items)


def read_health(frame: bytes) -> str:
    """Return what is wrong with an agent, from its answer to a health check without the length.

    Empty if the agent is healthy. Raises FrameError for an invalid answer.
    """
    reader = Reader()
    reader.reset(frame, 0, len(frame))
    frame_type = reader.byte()
    if frame_type == FrameType.AGENT_HELLO:
        return ""
    if frame_type != FrameType.AGENT_DISCONNECT:
        raise SpopError(Status.INVALID, f"a frame of type {frame_type} instead of AGENT-HELLO")
    status, message = read_disconnect(reader)
    return f"{message} (status {status})"


def _read_metadata(reader: Reader) -> None:
    if reader.u32() != _FIN:
        raise SpopError(Status.FRAGMENTED, "a fragmented handshake frame")
    reader.varint()
    reader.varint()


def _frame(frame_type: FrameType, items: Mapping[str, object]) -> bytes:
    """Return a frame with a KV-LIST of texts, integers (as UINT32) and ``True``."""
    writer = Writer(MIN_FRAME_SIZE)
    writer.pos = 4
    writer.byte(frame_type)
    writer.u32(writer.pos, _FIN)
    writer.pos += 4
    writer.varint(0)
    writer.varint(0)
    for name, value in items.items():
        writer.string(name.encode())
        if isinstance(value, str):
            writer.byte(DataType.STRING)
            writer.string(value.encode())
        elif value is True:
            writer.byte(_TRUE)
        elif isinstance(value, int):
            writer.byte(DataType.UINT32)
            writer.varint(value)
    writer.u32(0, writer.pos - 4)
    return writer.take()


def _shown(value: bytes) -> str:
    return value[:64].decode("ascii", "backslashreplace")
