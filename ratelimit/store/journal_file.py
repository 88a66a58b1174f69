"""Where the journal of a node with a shared store is: a file that no other agent has open.

``journal-FLEET.sqlite3`` in the state folder, where FLEET is a hash of the store's URL, without
its credentials, and of the prefix. If another agent of this machine has that file open, it is
``journal-FLEET.2.sqlite3``, and so on. What is in those files that no agent has open, because it
ended or handed over, the next agent takes into its own file, and removes them. That is always
right: what is in them is merged.
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
"""Agents of one fleet on one machine that have a journal."""


def fleet_of(target: Target, prefix: str) -> str:
    """Return the name of a fleet, in the names of its files."""
    endpoints = sorted(str(endpoint) for endpoint in target.endpoints)
    fleet = "\n".join((target.kind.value, *endpoints, str(target.db), target.service, prefix))
    return hashlib.blake2b(fleet.encode(), digest_size=5).hexdigest()


class SlotFile(BlockFile):
    """The first of the files that is free; ``path`` is known when it is open."""

    def __init__(
        self, folder: Path, target: Target, prefix: str, forget: Callable[[str], int]
    ) -> None:
        name = f"journal-{fleet_of(target, prefix)}"
        self._paths = [folder / f"{name}.sqlite3"]
        self._paths += [folder / f"{name}.{slot}.sqlite3" for slot in range(2, SLOTS + 1)]
        self._leftovers: list[BlockFile] = []
        super().__init__(self._paths[0], forget)

    def open(self) -> None:
        """Open the first file that is free; StartError says why that can't be done."""
        problem: LockedError | None = None
        for path in self._paths:
            self.path = path
            try:
                super().open()
            except LockedError as error:
                problem = error
            else:
                return
        raise StartError(f"{self._paths[0]}: all {SLOTS} journals are used") from problem

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
                # Used, or damaged: the agent whose file it is says so.
                other.close()
            else:
                self._leftovers.append(other)

    def drop(self) -> None:
        """Remove the files whose entries are kept in this one by now."""
        while self._leftovers:
            self._leftovers.pop().delete()
