"""What the owner of sessions is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimit.peers.constants import Status
from ratelimit.peers.updates import UpdateReader

if TYPE_CHECKING:
    from ratelimit.peers.definition import Definition
    from ratelimit.peers.session import Session


class Listener:
    """The owner of sessions; override what you need. Calls of a compiled subclass cost nothing.

    ``receive_data()`` of the session calls the methods. They may call ``define()``, ``update()``,
    ``finished()`` and ``close()`` of the session.
    """

    def admits(self, session: Session) -> Status:
        """Return the status for a hello: SUCCESS, TRY_LATER or REMOTE_NAME.

        ``session.name`` and ``session.pid`` are those of the peer.
        """
        return Status.SUCCESS

    def on_open(self, session: Session) -> None:
        """The handshake is complete.

        HAProxy asks for all entries once after its own start, so teach a reconnected one unasked.
        """

    def on_table(self, session: Session, definition: Definition) -> object:
        """The peer announced a table, once in a session; return false to skip its updates.

        Any other value is the ``owner`` of the updates.
        """
        return True

    def on_update(self, session: Session, definition: Definition, update: UpdateReader) -> None:
        """An update; valid until the call returns. ``session.synced`` is false during teaching."""

    def on_read(self, session: Session) -> None:
        """All updates of a read have been passed, even if the session then failed."""

    def on_sync_wanted(self, session: Session) -> None:
        """The peer wants all entries: teach them, then call ``session.finished()``."""

    def on_synced(self, session: Session, whole: bool) -> None:
        """The peer has taught its entries; not ``whole`` if others have newer ones."""

    def on_refused(self, session: Session, name: str, why: str) -> None:
        """The table ``name`` of the peer can't be read; its updates are skipped."""
