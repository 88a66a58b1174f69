"""The frames of the handshake and of the end (SPOE.txt, sections 3.2.4, 3.2.5, 3.2.8, 3.2.9).

NOTIFY and ACK are not here: ``spop.notify`` turns the bytes of one into those of the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from ratelimit.exceptions import SpopError
from ratelimit.spop.codec import Reader, Writer
from ratelimit.spop.constants import (
    MAX_FRAME_SIZE,
    MIN_FRAME_SIZE,
    VERSION,
    DataType,
    FrameType,
    Status,
)

_FIN = 1
_TRUE = 0x11
_MAX_MESSAGE = 120  # bytes; the smallest maximum of a frame leaves room for them


@dataclass(frozen=True, slots=True)
class Hello:
    """What HAPROXY-HELLO asks for; ``max_frame_size`` is already the lower of both sides'."""

    max_frame_size: int
    healthcheck: bool
    engine_id: str


def read_hello(reader: Reader) -> Hello:
    """Read the rest of a HAPROXY-HELLO, from its flags on, or raise SpopError."""
    _read_metadata(reader)
    items = reader.kv_list()
    versions = items.get("supported-versions")
    if not isinstance(versions, bytes):
        raise SpopError(Status.NO_VERSION, "HELLO without supported-versions")
    # "Major.Minor" announces every minor version up to it: any 2.x of HAProxy's includes ours.
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
    """Read the rest of a HAPROXY-DISCONNECT: its status and message."""
    _read_metadata(reader)
    items = reader.kv_list()
    status = items.get("status-code")
    message = items.get("message")
    if not isinstance(status, int) or not isinstance(message, bytes):
        raise SpopError(Status.INVALID, "DISCONNECT without status-code or message")
    return status, _shown(message)


def write_agent_hello(max_frame_size: int) -> bytes:
    """Return the AGENT-HELLO that ends the handshake.

    It announces pipelining alone: "async" and "fragmentation" promise what HAProxy from 3.1 on no
    longer does.
    """
    writer = _begin(FrameType.AGENT_HELLO)
    writer.string(b"version")
    writer.typed_string(VERSION.encode())
    writer.string(b"max-frame-size")
    writer.byte(DataType.UINT32)
    writer.varint(max_frame_size)
    writer.string(b"capabilities")
    writer.typed_string(b"pipelining")
    return _end(writer)


def write_agent_disconnect(status: int, message: str) -> bytes:
    """Return the AGENT-DISCONNECT after which the connection is closed."""
    writer = _begin(FrameType.AGENT_DISCONNECT)
    writer.string(b"status-code")
    writer.byte(DataType.UINT32)
    writer.varint(status)
    writer.string(b"message")
    writer.typed_string(message.encode("ascii", "backslashreplace")[:_MAX_MESSAGE])
    return _end(writer)


def write_health_check() -> bytes:
    """Return the HAPROXY-HELLO of a health check (section 3.2.4), to ask another agent."""
    writer = _begin(FrameType.HAPROXY_HELLO)
    writer.string(b"supported-versions")
    writer.typed_string(VERSION.encode())
    writer.string(b"max-frame-size")
    writer.byte(DataType.UINT32)
    writer.varint(MAX_FRAME_SIZE)
    writer.string(b"capabilities")
    writer.typed_string(b"pipelining")
    writer.string(b"healthcheck")
    writer.byte(_TRUE)
    return _end(writer)


def read_health(frame: bytes) -> str:
    """Return what is wrong with the agent that sent this frame, less its length, as an answer.

    Empty if it is well. Raises SpopError if that is no answer.
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
    flags = 0
    for _ in range(4):
        flags = flags << 8 | reader.byte()
    if flags != _FIN:
        raise SpopError(Status.FRAGMENTED, "a fragmented handshake frame")
    reader.varint()
    reader.varint()


def _begin(frame_type: FrameType) -> Writer:
    writer = Writer(MIN_FRAME_SIZE)
    writer.pos = 4
    writer.byte(frame_type)
    writer.u32(writer.pos, _FIN)
    writer.pos += 4
    writer.varint(0)
    writer.varint(0)
    return writer


def _end(writer: Writer) -> bytes:
    writer.u32(0, writer.pos - 4)
    return writer.take()


def _shown(value: bytes) -> str:
    return value[:64].decode("ascii", "backslashreplace")
