"""Blocks and lifts in a SQLite file, for the embedded store and for the journal of a node.

All methods block and run in a thread (``journal``). Data is on the disk when ``write()`` returns
(``synchronous=FULL``). The file is locked while it is open, so that two processes can't use it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import platformdirs

from ratelimit.exceptions import StartError
from ratelimit.limiter.entry_order import MAX_LIFTS, beats
from ratelimit.model import EVERY_LIMIT, Block, Entry, Lift
from ratelimit.store.entries import Damage, block_from_json, block_to_json, make_lift

SCHEMA = 2

_APPLICATION = 0x726C696D  # "rlim", in the file's header

_PAGE = 500  # rows per read

_TABLES = (
    """
CREATE TABLE IF NOT EXISTS blocks (
    name TEXT NOT NULL,       -- of the limit
    client TEXT NOT NULL,     -- the key
    since INTEGER NOT NULL,   -- epoch seconds
    forget INTEGER NOT NULL,  -- epoch seconds; the row is deleted then
    entry TEXT NOT NULL,      -- JSON
    PRIMARY KEY (name, client)
) WITHOUT ROWID
""",
    """
CREATE TABLE IF NOT EXISTS lifts (
    name TEXT NOT NULL,
    client TEXT NOT NULL,
    rank INTEGER NOT NULL,    -- the order
    until INTEGER NOT NULL,   -- epoch seconds; the row is deleted then
    PRIMARY KEY (name, client)
) WITHOUT ROWID
""",
)

_DAMAGED = (
    "damaged; the file is not changed: "
    "restore a copy, or move the file away to start with an empty blocklist"
)


class LockedError(StartError):
    """Another process has the file open."""


class FolderError(StartError):
    """A file can't be created in the directory."""


def state_folder(configured: str) -> Path:
    """Return the state directory: as configured, else systemd's, else the platform's."""
    if configured:
        return Path(configured).expanduser()
    # systemd.exec(5): several directories are separated by colons.
    systemd = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(systemd) if systemd else Path(platformdirs.user_state_dir("ratelimit", False))


class BlockFile:
    """The file at ``path``, with ``-wal`` next to it while it is open.

    Every method may also raise sqlite3.Error or OSError for disk errors. ``forget`` returns for how
    many seconds after its end the strikes of a limit are remembered.
    """

    def __init__(self, path: Path, forget: Callable[[str], int]) -> None:
        self.path = path
        self._forget = forget
        self._file: sqlite3.Connection | None = None
        self._identity: tuple[tuple[int, int] | None, tuple[int, int] | None] = (None, None)

    @property
    def _wal(self) -> Path:
        return Path(f"{self.path}-wal")

    def open(self) -> None:
        """Open or create the file. Raises StartError."""
        self.close()
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite creates files that others can read; it copies the mode of the first file.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise FolderError(
                f"store.state_dir: can't write to {self.path}: {error.strerror}"
            ) from error
        try:
            before = _identity(self.path)
            file = self._file = sqlite3.connect(
                self.path, timeout=0, isolation_level=None, check_same_thread=False
            )
            # Invalid bytes in one entry must not make the others unreadable.
            file.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
            file.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._check(file)
            file.execute("PRAGMA journal_mode = WAL")
            file.execute("PRAGMA synchronous = FULL")
            file.execute("PRAGMA secure_delete = ON")  # shown keys may have become secret
            # Takes the lock and keeps it.
            file.execute("BEGIN IMMEDIATE")
            for table in _TABLES:
                file.execute(table)
            file.execute(f"PRAGMA application_id = {_APPLICATION}")
            file.execute(f"PRAGMA user_version = {SCHEMA}")
            file.execute("COMMIT")
            self._identity = before, _identity(self._wal)
        except sqlite3.Error as error:
            self.close()
            raise _explain(self.path, error) from error
        except BaseException:
            self.close()
            raise

    def _check(self, file: sqlite3.Connection) -> None:
        """Refuse a file of another program, a damaged one, or one of a later version."""
        application = _number(file, "PRAGMA application_id")
        version = _number(file, "PRAGMA user_version")
        if application != _APPLICATION:
            if application or version or _number(file, "SELECT count(*) FROM sqlite_schema"):
                raise StartError(
                    f"{self.path}: not a blocklist of ratelimit; the file is not changed: "
                    "choose another store.state_dir or move the file away"
                )
            return
        if version > SCHEMA:
            raise StartError(
                f"{self.path}: written by a later version of ratelimit; the file is not changed: "
                "run that version or move the file away"
            )
        problem = file.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise StartError(f"{self.path}: {_DAMAGED} ({problem})")

    def lost(self) -> str:
        """Return what happened to the open file if its path no longer leads to it, or nothing."""
        if self._file is None:
            return f"{self.path}: could not be reopened"
        for path, identity in zip((self.path, self._wal), self._identity, strict=True):
            found = _identity(path)
            if found != identity:
                return f"{path}: {'replaced' if found else 'deleted'} while it was open"
        return ""

    def pages(self, now: int) -> Iterator[list[Entry]]:
        """Read entries that are not forgotten at an epoch second, blocks by hand first.

        Each page is read on demand. A damaged row is logged and ignored.
        """
        damage = Damage(str(self.path))
        for table, columns, time in (
            ("blocks", "entry", "forget"),
            ("lifts", "rank, until", "until"),
        ):
            place = "", ""
            query = (
                f"SELECT name, client, {columns} FROM {table} "  # noqa: S608 - all from above
                f"WHERE (name, client) > (?, ?) AND {time} > ? ORDER BY name, client LIMIT {_PAGE}"
            )
            while rows := self._opened().execute(query, (*place, now)).fetchall():
                place = rows[-1][:2]
                entries: list[Entry] = []
                for name, client, *values in rows:
                    try:
                        entries.append(_entry(name, client, *values))
                    except (ValueError, TypeError) as error:
                        damage.note(f"{name}|{client}", error)
                yield entries
        damage.done()

    def write(self, entries: Sequence[Entry]) -> list[bool | Exception]:
        """Write entries in one transaction.

        Returns for each entry true if it is a block or a lift that ended one, or the error that
        makes it impossible to write.
        """
        file = self._opened()
        file.execute("BEGIN IMMEDIATE")
        try:
            results = [self._write_one(file, entry) for entry in entries]
            file.execute("COMMIT")
        except BaseException:
            if file.in_transaction:
                file.execute("ROLLBACK")
            raise
        return results

    def _write_one(self, file: sqlite3.Connection, entry: Entry) -> bool | Exception:
        try:
            return self._lift(file, entry) if isinstance(entry, Lift) else self._block(file, entry)
        except (sqlite3.DataError, UnicodeError, OverflowError, TypeError, ValueError) as error:
            # An error of this entry, not of the disk: the others must not wait for it.
            return error

    def _block(self, file: sqlite3.Connection, block: Block) -> bool:
        place = block.limit, block.key
        for (rank,) in file.execute("SELECT rank FROM lifts WHERE name = ? AND client = ?", place):
            if block.order <= rank:
                return True
        if block.limit == EVERY_LIMIT and self._has_newer(file, block):
            return True
        forget = max(block.until, block.since) + self._forget(block.limit)
        file.execute(
            "INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?, ?)",
            (*place, block.since, forget, block_to_json(block)),
        )
        return True

    def _has_newer(self, file: sqlite3.Connection, block: Block) -> bool:
        """Return whether there is a newer block by hand, received while this one waited."""
        query = "SELECT entry FROM blocks WHERE name = ? AND client = ?"
        for (text,) in file.execute(query, (block.limit, block.key)):
            with contextlib.suppress(ValueError, TypeError):
                return beats(block_from_json(text), block)
        return False

    def _lift(self, file: sqlite3.Connection, lift: Lift) -> bool:
        place = lift.limit, lift.key
        file.execute(
            "INSERT INTO lifts VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "rank = max(rank, excluded.rank), until = max(until, excluded.until)",
            (*place, lift.order, lift.until),
        )
        ended = file.execute(
            "DELETE FROM blocks WHERE name = ? AND client = ? "
            # Entries of an earlier version have no order.
            "AND (NOT json_valid(entry) OR coalesce(json_extract(entry, '$.order'), 0) <= ?)",
            (*place, lift.order),
        )
        return ended.rowcount > 0

    def forget(self, places: Sequence[tuple[str, str]]) -> None:
        """Delete blocks by limit and key, without a lift."""
        file = self._opened()
        file.execute("BEGIN IMMEDIATE")
        file.executemany("DELETE FROM blocks WHERE name = ? AND client = ?", places)
        file.execute("COMMIT")

    def purge(self, now: int) -> None:
        """Delete entries forgotten at an epoch second, and surplus lifts."""
        file = self._opened()
        file.execute("DELETE FROM blocks WHERE forget <= ?", (now,))
        file.execute("DELETE FROM lifts WHERE until <= ?", (now,))
        over = _number(file, "SELECT count(*) FROM lifts") - MAX_LIFTS
        if over > 0:
            file.execute(
                "DELETE FROM lifts WHERE (name, client) IN "
                "(SELECT name, client FROM lifts ORDER BY until LIMIT ?)",
                (over,),
            )

    def adopt(self, now: int) -> Iterator[list[Entry]]:
        """Read other files that belong to this one, like ``pages()``."""
        yield from ()

    def drop(self) -> None:
        """Remove those other files; their entries are now in this one."""

    def delete(self) -> None:
        """Remove the file, which must be open, and close it."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        with contextlib.suppress(sqlite3.Error):
            file.close()
        # SQLite leaves the -wal of a file that was moved away, and would apply it to the next file.
        if _identity(self.path) != self._identity[0] and _identity(self._wal) == self._identity[1]:
            self._wal.unlink(missing_ok=True)

    def _opened(self) -> sqlite3.Connection:
        if self._file is None:
            raise sqlite3.ProgrammingError("the file is not open")
        return self._file


def _entry(name: str, client: str, *values: Any) -> Entry:
    if len(values) > 1:
        return make_lift(name, client, *values)
    block = block_from_json(values[0])
    if (block.limit, block.key) != (name, client):
        raise ValueError("of another limit or key")
    return block


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _number(file: sqlite3.Connection, query: str) -> int:
    return int(file.execute(query).fetchone()[0])


def _explain(path: Path, error: sqlite3.Error) -> StartError:
    match error.sqlite_errorcode & 0xFF if hasattr(error, "sqlite_errorcode") else None:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return LockedError(
                f"{path}: used by another process; each agent needs its own store.state_dir"
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StartError(f"{path}: {_DAMAGED} ({error})")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return StartError(
                f"{path}: can't be written ({error}); check the owner and mode of the directory"
            )
        case _:
            return StartError(f"{path}: {error}")
