"""The embedded store, ``memory://``: the blocklist of one node in a SQLite file.

One thread of its own does all that touches the file. An entry is acknowledged when its transaction
is on the disk (``synchronous=FULL``). The file is locked for as long as it is open, so that two
processes can't keep two lists in one place.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import platformdirs
import structlog

from ratelimit.exceptions import StartError
from ratelimit.model import Block
from ratelimit.store.base import Events, Node, Store, StoreError
from ratelimit.store.outbox import Change, block_from_json, block_to_json

FILE = "blocklist.sqlite3"
"""Name of the file in the state folder; ``-wal`` stands beside it while it is open."""

SCHEMA = 1

_APPLICATION = 0x726C696D  # "rlim", in the file's header
_BATCH = 1000  # changes in one transaction
_PURGE = 60  # seconds between removals of what is forgotten
_RETRY = 1.0  # seconds
_CLOSE_TIMEOUT = 2.0

_TABLE = """
CREATE TABLE IF NOT EXISTS blocks (
    name TEXT NOT NULL,       -- of the limit
    client TEXT NOT NULL,     -- the key
    since INTEGER NOT NULL,   -- epoch seconds
    forget INTEGER NOT NULL,  -- epoch seconds; the row is deleted then
    entry TEXT NOT NULL,      -- JSON
    PRIMARY KEY (name, client)
) WITHOUT ROWID
"""

_DAMAGED = (
    "damaged; it is left as it is: "
    "put back a copy, or move it away and start with an empty blocklist"
)

_P = ParamSpec("_P")
_R = TypeVar("_R")

log = structlog.get_logger()


def state_folder(configured: str) -> Path:
    """Return where state is kept: as configured, else systemd's place, else the platform's."""
    if configured:
        return Path(configured).expanduser()
    # systemd.exec(5): several folders are separated by colons.
    systemd = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(systemd) if systemd else Path(platformdirs.user_state_dir("ratelimit", False))


class MemoryStore(Store):
    """Keeps blocks in a file; ``path`` says where."""

    def __init__(
        self, state_dir: str = "", events: Events | None = None, node: Node | None = None
    ) -> None:
        super().__init__(events or Events())
        self.path = state_folder(state_dir) / FILE
        self._file: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="blocklist")
        self._node = node or Node("", "", int(time.time()))

    async def start(self) -> None:
        """Open the file, made if it is not there, and load the list; StartError says why not."""
        try:
            await self._in_thread(self._open)
            blocks = await self._in_thread(self._load, int(time.time()))
        except BaseException:
            await self._in_thread(self._close)
            self._thread.shutdown(wait=False)
            raise
        self.up = True
        # Where answers went on meanwhile, what they changed is newer than the file.
        entries = {(block.limit, block.key): block for block in blocks}
        self.outbox.apply(entries)
        for _ in self.events.on_loaded(list(entries.values())):
            await asyncio.sleep(0)
        self._task = asyncio.create_task(self._run(), name="store")

    async def close(self) -> None:
        """Write the rest and close the file."""
        await self._finish(_CLOSE_TIMEOUT)
        self.up = False
        await self._in_thread(self._close)
        self._thread.shutdown(wait=False)

    async def load(self) -> list[Block]:
        try:
            return await self._in_thread(self._load, int(time.time()))
        except (sqlite3.Error, StartError) as error:
            raise StoreError(f"{self.path}: {error}") from error

    async def nodes_list(self) -> list[Node]:
        return [self._node]

    def announce(self, node: Node) -> None:
        self._node = node

    async def _run(self) -> None:
        """Write what comes, and once in a while remove what is forgotten."""
        purged = -math.inf
        while True:
            self._work.clear()
            try:
                while changes := self.outbox.first(_BATCH):
                    results = await self._in_thread(self._write, changes)
                    self.outbox.written(changes, results)
                    self._back()
                if time.monotonic() - purged >= _PURGE:
                    purged = time.monotonic()
                    await self._in_thread(self._purge, int(time.time()))
                    self._back()
                if self._closing:
                    return
            except sqlite3.Error as error:
                self._lost(f"{self.path}: {error}; see to the disk, writing is tried again")
                if self._closing:
                    return
                await asyncio.sleep(_RETRY)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PURGE):
                    await self._work.wait()

    def _lost(self, problem: str) -> None:
        self.problem = problem
        if self.up:
            self.up = False
            self.outages += 1
            log.error("store lost", why=problem)
            self.events.on_lost()

    def _back(self) -> None:
        if not self.up:
            self.up = True
            self.problem = ""
            log.info("store back")
            self.events.on_back()

    async def _in_thread(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, functools.partial(work, *args, **kwargs))

    # What follows runs in the thread.

    def _open(self) -> None:
        folder = self.path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite makes files that others may read; the mode of the first one is passed on.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StartError(
                f"store.state_dir: can't write to {self.path}: {error.strerror}"
            ) from error
        try:
            self._file = sqlite3.connect(
                self.path, timeout=0, isolation_level=None, check_same_thread=False
            )
            self._file.execute("PRAGMA locking_mode = EXCLUSIVE")
            new = self._check()
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = FULL")
            # Takes the lock, which is kept.
            self._file.execute("BEGIN IMMEDIATE")
            if new:
                self._file.execute(_TABLE)
                self._file.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._file.execute(f"PRAGMA user_version = {SCHEMA}")
            self._file.execute("COMMIT")
        except sqlite3.Error as error:
            raise StartError(f"{self.path}: {_explain(error)}") from error

    def _check(self) -> bool:
        """Refuse a file that is not ours, not whole, or of a later version; true for a new one."""
        file = self._opened()
        application = _number(file, "PRAGMA application_id")
        version = _number(file, "PRAGMA user_version")
        if application != _APPLICATION:
            if application or version or _number(file, "SELECT count(*) FROM sqlite_schema"):
                raise StartError(
                    f"{self.path}: not a blocklist of ratelimit; it is left as it is: "
                    "choose another store.state_dir or move the file away"
                )
            return True
        if version > SCHEMA:
            raise StartError(
                f"{self.path}: written by a later version of ratelimit; it is left as it is: "
                "run that version or move the file away"
            )
        problem = file.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise StartError(f"{self.path}: {_DAMAGED} ({problem})")
        return False

    def _load(self, now: int) -> list[Block]:
        rows = self._opened().execute(
            "SELECT entry FROM blocks WHERE forget > ? ORDER BY since", (now,)
        )
        try:
            return [block_from_json(entry) for (entry,) in rows]
        except ValueError as error:
            raise StartError(f"{self.path}: {_DAMAGED} ({error})") from error

    def _write(self, changes: list[Change]) -> list[bool]:
        file = self._opened()
        file.execute("BEGIN IMMEDIATE")
        try:
            results = [self._write_one(file, change) for change in changes]
            file.execute("COMMIT")
        except BaseException:
            if file.in_transaction:
                file.execute("ROLLBACK")
            raise
        return results

    def _write_one(self, file: sqlite3.Connection, change: Change) -> bool:
        block = change.block
        if block is None:
            lifted = file.execute(
                "DELETE FROM blocks WHERE name = ? AND client = ?", (change.limit, change.key)
            )
            return lifted.rowcount > 0
        forget = max(block.until, block.since) + self.events.forget(block.limit)
        file.execute(
            "INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?, ?)",
            (block.limit, block.key, block.since, forget, block_to_json(block)),
        )
        return True

    def _purge(self, now: int) -> None:
        self._opened().execute("DELETE FROM blocks WHERE forget <= ?", (now,))

    def _opened(self) -> sqlite3.Connection:
        if self._file is None:
            raise sqlite3.ProgrammingError("the file is not open")
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _number(file: sqlite3.Connection, query: str) -> int:
    return int(file.execute(query).fetchone()[0])


def _explain(error: sqlite3.Error) -> str:
    match error.sqlite_errorcode & 0xFF if hasattr(error, "sqlite_errorcode") else None:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return "used by another process; each agent needs a store.state_dir of its own"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return f"{_DAMAGED} ({error})"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return f"can't be written ({error}); see to the folder's owner and mode"
        case _:
            return str(error)
