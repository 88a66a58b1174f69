"""One SPOP connection of HAProxy, as a state machine without I/O.

``receive_data()`` takes bytes and returns bytes to send; the owner of the socket sends them and
closes the socket once ``closed`` is set. All state transitions are in this module:

    HELLO ──HAPROXY-HELLO──> OPEN ──NOTIFY/ACK──> OPEN
      │                        │
      └── health check ────────┴── DISCONNECT, an error, close() ──> closed

In state OPEN, the responder answers NOTIFY frames.
"""

from __future__ import annotations

from ratelimit.exceptions import FrameError, SpopError
from ratelimit.spop.constants import MAX_FRAME_SIZE, MIN_FRAME_SIZE, FrameType, Status
from ratelimit.spop.handshake import (
    Hello,
    read_disconnect,
    read_hello,
    write_agent_disconnect,
    write_agent_hello,
)
from ratelimit.spop.respond import Responder
from ratelimit.wire.reader import Reader

_LENGTH = 4  # bytes before each frame


class Connection:
    """The agent's side of one SPOP connection.

    Attributes:
        hello: HAProxy's HELLO, once received.
        closed: nothing more is read or sent; the socket must be closed.
        error: why the connection failed: a protocol error, or an error reported by HAProxy.
    """

    def __init__(self, responder: Responder) -> None:
        self._responder = responder
        self._pending = bytearray()
        self._wanted = 0
        self._max_frame_size = MAX_FRAME_SIZE
        self.hello: Hello | None = None
        self.closed = False
        self.error: SpopError | None = None

    @property
    def in_frame(self) -> bool:
        """Whether a frame has arrived only in part."""
        return bool(self._pending)

    def reserve(self, data: bytes) -> None:
        """Announce to the store the messages that ``receive_data(data)`` will answer."""
        if self.hello is not None and not self.closed:
            whole = bytes(self._pending) + data if self._pending else data
            self._responder.reserve(whole, 0, self._max_frame_size)

    def receive_data(self, data: bytes, now: int) -> bytes:
        """Process data read at ``now`` (epoch nanoseconds); return the data to send."""
        if self.closed:
            return b""
        if self._pending:
            # Frames may arrive one byte at a time; joining at every byte would be quadratic.
            self._pending += data
            if len(self._pending) < self._wanted:
                return b""
            data = bytes(self._pending)
            self._pending.clear()
        self._responder.engine.at(now)
        if self.hello is None:
            return self._receive(data, 0)
        # A typical read has only NOTIFY frames.
        try:
            pos = self._responder.answer(data, 0, self._max_frame_size)
        except FrameError as error:
            return self._responder.take() + self._fail(error)
        answers = self._responder.take()
        if pos == len(data):
            return answers
        return answers + self._receive(data, pos)

    def _receive(self, data: bytes, pos: int) -> bytes:
        answers = []
        try:
            while not self.closed and self._has_frame(data, pos):
                if self.hello is not None and data[pos + _LENGTH] == FrameType.NOTIFY:
                    try:
                        pos = self._responder.answer(data, pos, self._max_frame_size)
                    finally:
                        answers.append(self._responder.take())
                else:
                    end = pos + _LENGTH + int.from_bytes(data[pos : pos + _LENGTH])
                    answers.append(self._control(data, pos + _LENGTH, end))
                    pos = end
        except FrameError as error:
            answers.append(self._fail(error))
        return b"".join(answers)

    def _has_frame(self, data: bytes, pos: int) -> bool:
        """Return whether a whole frame is at ``pos``; otherwise keep the incomplete one."""
        left = len(data) - pos
        length = int.from_bytes(data[pos : pos + _LENGTH]) if left >= _LENGTH else 0
        limit = self._max_frame_size
        if length > limit:
            raise SpopError(Status.TOO_BIG, f"a frame of {length} bytes; the maximum is {limit}")
        if left >= _LENGTH and length == 0:
            raise SpopError(Status.INVALID, "an empty frame")
        self._wanted = _LENGTH + length
        if left > _LENGTH and left >= self._wanted:
            return True
        self._pending += data[pos:]
        return False

    def _control(self, data: bytes, start: int, end: int) -> bytes:
        """Handle the frame ``data[start:end]``, which is not a NOTIFY in state OPEN."""
        reader = Reader()
        reader.reset(data, start + 1, end)
        kind = data[start]
        if kind == FrameType.HAPROXY_DISCONNECT:
            status, message = read_disconnect(reader)
            # 0 is a normal end, 2 an idle connection.
            if status not in (Status.NORMAL, Status.TIMEOUT):
                self.error = SpopError(status, f"HAProxy disconnected: {message}")
            return self.close(Status.NORMAL, "")
        if kind == FrameType.UNSET:
            raise SpopError(Status.FRAGMENTED, "fragmented frame; fragmentation was not announced")
        if self.hello is None:
            if kind != FrameType.HAPROXY_HELLO:
                raise SpopError(Status.INVALID, f"a frame of type {kind} before HAPROXY-HELLO")
            hello = self.hello = read_hello(reader)
            self._max_frame_size = hello.max_frame_size
            if hello.healthcheck:
                self.closed = True
                # HAProxy 3.2 rejects a size that its own buffers are too small for, though it
                # offered it.
                self._max_frame_size = MIN_FRAME_SIZE
            return write_agent_hello(self._max_frame_size)
        if kind == FrameType.HAPROXY_HELLO:
            raise SpopError(Status.INVALID, "a second HAPROXY-HELLO")
        return b""  # "Unknown frames may be silently skipped" (SPOE.txt, section 3.2.2)

    def close(self, status: int, message: str) -> bytes:
        """Close the connection from this side; return the AGENT-DISCONNECT to send."""
        if self.closed:
            return b""
        self.closed = True
        self._pending.clear()
        return write_agent_disconnect(status, message or Status(status).name.lower())

    def _fail(self, error: FrameError) -> bytes:
        if not isinstance(error, SpopError):
            error = SpopError(Status.INVALID, str(error))
        self.error = error
        return self.close(error.status, str(error))
