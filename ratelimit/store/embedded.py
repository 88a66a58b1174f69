"""The embedded store, ``memory://``: the blocklist of one node in a file.

A change is confirmed once it is on the disk; see ``journal``.
"""

from __future__ import annotations

import time

import structlog

from ratelimit.store.base import Events, Node, Store
from ratelimit.store.journal import Journal
from ratelimit.store.secret import KeptSecret
from ratelimit.store.sqlite import BlockFile, state_folder

FILE = "blocklist.sqlite3"
"""Name of the file in the state directory."""

log = structlog.get_logger()


class MemoryStore(Store):
    """Keeps blocks in the file ``path``."""

    def __init__(
        self,
        state_dir: str = "",
        events: Events | None = None,
        node: Node | None = None,
        kept: KeptSecret | None = None,
    ) -> None:
        super().__init__(events or Events(), kept)
        self.path = state_folder(state_dir) / FILE
        self._journal = Journal(
            BlockFile(self.path, self.events.forget), self.events, self._changed
        )
        self.outbox = self._journal.outbox
        self.journal = str(self.path)
        self._node = node or Node("", "", int(time.time()))

    async def start(self) -> None:
        """Open or create the file and load the list. Raises StartError."""
        try:
            await self._journal.start()
        except BaseException:
            await self._journal.close()
            raise
        self.up = True

    async def close(self) -> None:
        """Write pending changes and close the file, within a time limit."""
        await self._journal.close()
        self.up = False

    async def release(self, timeout: float) -> None:
        await self._journal.release(timeout)

    def reopen(self) -> None:
        self._journal.reopen()

    async def nodes_list(self) -> list[Node]:
        return [self._node]

    def announce(self, node: Node) -> None:
        self._node = node

    def _changed(self) -> None:
        was, self.up = self.up, self._journal.up
        self.problem = self.journal_problem = self._journal.problem
        if self.up and not was:
            log.info("store back")
            self.events.on_back()
        elif was and not self.up:
            self.outages += 1
            log.error("store lost", why=self.problem)
            self.events.on_lost()
