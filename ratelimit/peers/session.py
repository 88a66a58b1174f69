"""One session with a peer, as a state machine without I/O.

``receive_data()`` takes bytes and returns bytes to send; the owner of the socket sends them and
closes the socket once ``closed`` is set. All state transitions are in this module:

    GREETING ──hello, 200──> OPEN ──(0,1) or (0,2)──> OPEN, synced
       │                       │
       └── a bad hello ────────┴── an error, silence, close() ──> closed

A session that dials sends the hello and waits for the status instead. When it is open, each side
may ask the other for all entries (0,0); this side always does.
"""

from __future__ import annotations

from collections.abc import Sequence

from ratelimit.exceptions import FrameError
from ratelimit.peers.constants import (
    MAX_MESSAGE,
    Class,
    Control,
    Message,
)
from ratelimit.peers.definition import Definition
from ratelimit.peers.handshake import write_hello, write_status
from ratelimit.peers.listener import Listener
from ratelimit.peers.sender import Sender
from ratelimit.peers.updates import Shared, UpdateReader
from ratelimit.wire.reader import Reader

# Of C's int type when compiled.
_CONTROL = int(Class.CONTROL)
_ERROR = int(Class.ERROR)
_TABLE = int(Class.TABLE)
_UPDATE = int(Message.UPDATE)
_INCREMENTAL = int(Message.INCREMENTAL)
_DEFINITION = int(Message.DEFINITION)
_SWITCH = int(Message.SWITCH)
_ACK = int(Message.ACK)
_TIMED = int(Message.TIMED)
_INCREMENTAL_TIMED = int(Message.INCREMENTAL_TIMED)
_MAX_LENGTH = MAX_MESSAGE

_VARIABLE = 128  # from this type on, a message has a length


class Incoming:
    """A table of the peer: its definition as received, and the reader of its updates.

    Without a reader, the updates are skipped.
    """

    def __init__(self, number: int, name: str, raw: bytes) -> None:
        self.number = number
        self.name = name
        self.raw = raw
        self.reader: UpdateReader | None = None
        self.changed = False


class Session:
    """This side of one session.

    Attributes:
        name: of the peer, after its hello.
        pid: its process.
        opened: the handshake is complete.
        synced: the peer has taught its entries.
        closed: nothing more is read or sent; the socket must be closed.
        error: why the session failed: an error of this side, or one that the peer reported.
        updates: number of updates passed to the listener.
    """

    def __init__(
        self, listener: Listener, local: str, now: int, remote: str = "", pid: int = 0
    ) -> None:
        """Begin a session; times are nanoseconds of any clock that never goes back.

        ``local`` is our name. With ``remote``, this side dials: ``take()`` has the hello from our
        process ``pid`` to the peer of that name.
        """
        self._listener = listener
        self._local = local
        self._now = now
        self._heard = now
        self._spoke = now
        self._answered = now
        self._pending = bytearray()
        self._wanted = 0
        self._dials = bool(remote)
        self._sender = Sender()
        self._reader = Reader()
        self._shared = Shared()
        self._tables: dict[int, Incoming] = {}
        self._latest: list[Incoming | None] = [None] * 256  # by the first byte of the definition
        self._table: Incoming | None = None
        self._changed: list[Incoming] = []
        self._confirmed = False
        self.name = remote
        self.pid = 0
        self.opened = False
        self.synced = False
        self.closed = False
        self.error: FrameError | None = None
        self.updates = 0
        if remote:
            self._sender.raw(write_hello(remote, local, pid))

    @property
    def in_message(self) -> bool:
        """Whether a message has arrived only in part."""
        return bool(self._pending)

    @property
    def unacknowledged(self) -> int:
        """Updates that the peer has not acknowledged, without those of the first teaching.

        HAProxy acknowledges nothing while it is taught.
        """
        if not self._confirmed:
            return 0
        return sum(table.sent - table.acknowledged for table in self._sender.tables.values())

    def receive_data(self, data: bytes, now: int) -> bytes:
        """Process data read at ``now``; return the data to send."""
        if self.closed:
            return b""
        self._now = now
        if self._pending:
            # Messages may arrive one byte at a time; joining at every byte would be quadratic.
            self._pending += data
            if len(self._pending) < self._wanted:
                return b""
            data = bytes(self._pending)
            self._pending.clear()
        try:
            pos = 0 if self.opened else self._greet(data)
            if self.opened:
                self._receive(data, pos)
        except FrameError as error:
            self._fail(error)
        return self.take()

    def take(self) -> bytes:
        """Return the bytes written since the last call."""
        self._spoke = self._now
        return self._sender.take()

    def room(self) -> int:
        """Return the bytes that updates may fill before ``take()``."""
        return self._sender.room()

    def define(self, definition: Definition) -> bool:
        """Announce a table of ours, whose id we choose; return false if there is no room."""
        return not self.closed and self._sender.define(definition)

    def update(
        self,
        definition: Definition,
        key: bytes,
        values: Sequence[int],
        expire_ms: int | None = None,
        text: bytes = b"",
    ) -> bool:
        """Tell an entry of a table of ours; return false if there is no room until ``take()``.

        ``values`` are all those of the table, in the order of its data types. The key of an integer
        table has four bytes. ``text`` is the text of SERVER_KEY, the first time its number is told.
        """
        return not self.closed and self._sender.update(definition, key, values, expire_ms, text)

    def finished(self, whole: bool = True) -> None:
        """Tell the peer that all entries were taught; it confirms."""
        if not self.closed:
            self._sender.say(_CONTROL, Control.FINISHED if whole else Control.PARTIAL)

    def look(self, now: int) -> None:
        """Send a heartbeat if one is due; close a session that is silent. Call it each second."""
        raise NotImplementedError

    def close(self, status: int) -> None:
        """Close the session from this side; ``status`` is told if the peer waits for one."""
        if not self.closed and not self.opened and not self._dials:
            self._sender.raw(write_status(status))
        self.closed = True
        self._pending.clear()

    def _greet(self, data: bytes) -> int:
        raise NotImplementedError

    def _receive(self, data: bytes, pos: int) -> None:
        raise NotImplementedError

    def _fail(self, error: FrameError) -> None:
        raise NotImplementedError
