"""The file of the journal of a node with a shared store.

Its name is ``journal-FLEET.sqlite3`` in the state directory, where FLEET is a hash of the store's
URL without credentials and of the prefix. If another agent of this machine has that file open, the
name is ``journal-FLEET.2.sqlite3``, and so on. Files that no agent has open, because it ended or
handed over, are merged by the next agent into its own file and removed. This is safe, because
entries are always merged.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from ratelimit.exceptions import StartError
from ratelimit.model import Entry
from ratelimit.store.redis.url import Target
from ratelimit.store.sqlite import BlockFile, LockedError

SLOTS = 16
"""Agents of one fleet on one machine that can have a journal."""


def fleet_of(target: Target, prefix: str) -> str:
    """Return the name of a fleet for file names."""
    endpoints = sorted(str(endpoint) for endpoint in target.endpoints)
    fleet = "\n".join((target.kind.value, *endpoints, str(target.db), target.service, prefix))
    return hashlib.blake2b(fleet.encode(), digest_size=5).hexdigest()


class SlotFile(BlockFile):
    """The first free file; ``path`` is final once it is open."""

    def __init__(
        self, folder: Path, target: Target, prefix: str, forget: Callable[[str], int]
    ) -> None:
        name = f"journal-{fleet_of(target, prefix)}"
        self._paths = [folder / f"{name}.sqlite3"]
        self._paths += [folder / f"{name}.{slot}.sqlite3" for slot in range(2, SLOTS + 1)]
        self._leftovers: list[BlockFile] = []
        super().__init__(self._paths[0], forget)

    def open(self) -> None:
        """Open the first free file. Raises StartError."""
        problem: LockedError | None = None
        for path in self._paths:
            self.path = path
            try:
                super().open()
            except LockedError as error:
                problem = error
            else:
                return
        raise StartError(f"{self._paths[0]}: all {SLOTS} journals are in use") from problem

    def adopt(self, now: int) -> Iterator[list[Entry]]:
        """Read the files that no agent has open; they stay locked until ``drop()``."""
        for path in self._paths:
            if path == self.path or not path.exists():
                continue
            other = BlockFile(path, self._forget)
            try:
                other.open()
                yield from other.pages(now)
            except (StartError, sqlite3.Error, OSError):
                # In use or damaged: the agent that owns the file reports it.
                other.close()
            else:
                self._leftovers.append(other)

    def drop(self) -> None:
        """Remove the files whose entries are now in this one."""
        while self._leftovers:
            self._leftovers.pop().delete()
