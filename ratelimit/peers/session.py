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

from ratelimit.exceptions import FrameError, PeersError
from ratelimit.peers.constants import (
    ACKNOWLEDGE,
    HANDSHAKE,
    HEARTBEAT,
    PATIENCE,
    SILENCE,
    Class,
    Control,
    ErrorType,
    Message,
    Status,
)
from ratelimit.peers.definition import Definition
from ratelimit.peers.handshake import read_hello, read_status, write_hello, write_status
from ratelimit.peers.listener import Listener
from ratelimit.peers.messages import Messages
from ratelimit.peers.sender import Sender
from ratelimit.peers.tables import Incoming, Tables
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
        self._acknowledged = now - ACKNOWLEDGE
        self._messages = Messages()
        self._dials = bool(remote)
        self._sender = Sender()
        self._reader = Reader()
        self._shared = Shared()
        self._tables = Tables()
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
        return self._messages.waiting()

    @property
    def unacknowledged(self) -> int:
        """Updates that the peer has not acknowledged, of tables that both sides have.

        HAProxy acknowledges nothing while it is taught: those before ``finished()`` do not count.
        """
        return self._sender.pending(self._tables) if self._confirmed else 0

    def receive_data(self, data: bytes, now: int) -> bytes:
        """Process data read at ``now``; return the data to send."""
        if self.closed:
            return b""
        self._now = now
        messages = self._messages
        if not messages.feed(data):
            return b""
        count = self.updates
        try:
            if not self.opened:
                self._greet()
            while self.opened and not self.closed and messages.next():
                self._process()
                self._heard = now
            self._release()
        except FrameError as error:
            self._fail(error)
        if self.closed:
            messages.drop()
        else:
            messages.keep()
        if self.updates != count:
            self._listener.on_read(self)
        return self.take()

    def take(self) -> bytes:
        """Return the bytes written since the last call."""
        written = self._sender.take()
        if written:
            self._spoke = self._now
        return written

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

    def finished(self, whole: bool = True) -> bool:
        """Tell the peer that all entries were taught; return false if there is no room.

        HAProxy confirms it whether it asked or not; from then on, acknowledgements are expected.
        """
        kind = Control.FINISHED if whole else Control.PARTIAL
        return not self.closed and self._sender.offer(_CONTROL, kind)

    def look(self, now: int, unread: bool = False) -> None:
        """Send a heartbeat if one is due; close a session that is silent. Call it each second.

        With ``unread``, data of the peer waits to be processed: the peer is not silent.
        """
        if self.closed:
            return
        if unread or now - self._now > HEARTBEAT:
            self._heard = now  # this side did not run: what the peer sent may be unread
        self._now = now
        if unread or self.unacknowledged == 0:
            self._answered = now
        if self._changed:
            self._acknowledge()
        late = self._late()
        if late:
            self._fail(PeersError(ErrorType.PROTOCOL if self.opened else Status.PROTOCOL, late))
        elif self.opened and now - self._spoke >= HEARTBEAT:
            self._sender.offer(_CONTROL, Control.HEARTBEAT)

    def _late(self) -> str:
        """Return what the peer has not done in time, or nothing."""
        if not self.opened:
            return "no handshake within 5 s" if self._now - self._heard > HANDSHAKE else ""
        if self._now - self._heard > SILENCE:
            return "no message for more than 5 s"
        if self._now - self._answered > PATIENCE:
            return "no update acknowledged for more than 30 s"
        return ""

    def close(self, status: int) -> None:
        """Close the session from this side; ``status`` is told if the peer waits for one."""
        if not self.closed and not self.opened and not self._dials:
            self._sender.raw(write_status(status))
        self.closed = True

    def _fail(self, error: FrameError) -> None:
        """Close the session with the error of either side; tell it to the peer."""
        if not isinstance(error, PeersError):
            error = PeersError(ErrorType.PROTOCOL, str(error))
        self.error = error
        if self.opened:
            self._sender.offer(_ERROR, error.status)
        self.close(error.status)

    def _greet(self) -> None:
        """Read a hello or a status, once it is complete."""
        data = self._messages.data
        size = self._read_status(data) if self._dials else self._read_hello(data)
        if size > 0:
            self._messages.pos = size
            self._heard = self._now
            self.opened = True
            self._sender.open()
            self._sender.say(_CONTROL, Control.ASK)
            self._listener.on_open(self)

    def _read_hello(self, data: bytes) -> int:
        hello = read_hello(data)
        if hello is None:
            return 0
        self.name = hello.local
        self.pid = hello.pid
        if hello.remote != self._local:
            raise PeersError(
                Status.LOCAL_NAME, f"{self.name} expects a peer {hello.remote}, not {self._local}"
            )
        status = self._listener.admits(self)
        if status != Status.SUCCESS:
            meaning = Status(status).name.lower().replace("_", " ")
            raise PeersError(status, f"{self.name} is not admitted: {meaning}")
        self._sender.raw(write_status(status))
        return hello.size

    def _read_status(self, data: bytes) -> int:
        found = read_status(data)
        if found is None:
            return 0
        status, size = found
        if status != Status.SUCCESS:
            raise PeersError(status, f"{self.name} answers {status}")
        return size

    def _process(self) -> None:
        """Process a message; skip one of an unknown type, as of a newer version."""
        messages = self._messages
        kind = messages.kind
        if messages.group != _TABLE:
            self._control(messages.group, kind)
        elif kind in (_UPDATE, _INCREMENTAL, _TIMED, _INCREMENTAL_TIMED):
            self._update(kind)
        elif kind == _DEFINITION:
            self._define()
        elif kind in (_ACK, _SWITCH):
            reader = self._reader
            reader.reset(messages.data, messages.start, messages.end)
            number = reader.varint()
            if kind == _ACK:
                self._sender.acknowledged(number, reader.u32())
                self._answered = self._now
            else:
                self._table = self._tables.switched(number)

    def _update(self, kind: int) -> None:
        messages = self._messages
        table = self._table
        if table is None:
            raise PeersError(ErrorType.PROTOCOL, "an update before the definition of its table")
        reader = table.reader
        if reader is not None:
            reader.read(kind, messages.data, messages.start, messages.end)
            self.updates += 1
            if not table.changed:
                table.changed = True
                self._changed.append(table)
            self._listener.on_update(self, reader.definition, reader)

    def _control(self, kind: int, message: int) -> None:
        if kind == _ERROR:
            told = "a message that is too long" if message == ErrorType.SIZE else "an error"
            self.error = PeersError(message, f"{self.name} reports {told}")
            self.closed = True
        elif kind == _CONTROL:
            if message == Control.ASK:
                self._listener.on_sync_wanted(self)
            elif message == Control.FINISHED or message == Control.PARTIAL:
                self._sender.say(_CONTROL, Control.CONFIRMED)
                self.synced = True
                self._listener.on_synced(self, message == Control.FINISHED)
            elif message == Control.CONFIRMED:
                self._sender.forgive()
                self._confirmed = True

    def _define(self) -> None:
        """Switch to the table of a definition; tell the listener of a new one."""
        messages = self._messages
        tables = self._tables
        self._table = tables.defined(messages.data, messages.start, messages.end)
        if tables.fresh:
            table = self._table
            if table.definition is None:
                self._listener.on_refused(self, table.name, table.why)
            else:
                owner = self._listener.on_table(self, table.definition)
                if owner:
                    table.reader = UpdateReader(table.definition, self._shared)
                    table.reader.owner = owner

    def _release(self) -> None:
        """Release the data of this read; acknowledge the updates if the last time is long ago."""
        for table in self._changed:
            if table.reader is not None:
                table.reader.forget()
        if self._changed and self._now - self._acknowledged >= ACKNOWLEDGE:
            self._acknowledge()

    def _acknowledge(self) -> None:
        """Acknowledge the last update of each table."""
        self._acknowledged = self._now
        for table in self._changed:
            table.changed = False
            if table.reader is not None and not self.closed:
                self._sender.acknowledge(table.number, table.reader.id)
        self._changed.clear()
