"""Writes HAProxy's maps to files, which HAProxy reads when it starts without the agent."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from pathlib import Path

from ratelimit.files import write_whole
from ratelimit.haproxy.maps import NAMES, Lines, pieces
from ratelimit.process.thread import Thread

PAUSE = 1.0
"""Seconds between writes of the files, at least."""

TIMEOUT = 10.0
"""Seconds to write a file; a disk may hang."""


class MapFiles:
    """The files in a directory; without a directory, none are written."""

    def __init__(self, folder: str, lines: Lines) -> None:
        self._folder = Path(folder) if folder else None
        self._lines = lines
        self._written: dict[str, bytes] = {}
        self._changed = asyncio.Event()
        self._thread = Thread("map files")
        self._writing: asyncio.Future[None] | None = None

    def changed(self) -> None:
        """Note that the content of the files may have changed."""
        self._changed.set()

    async def run(self) -> None:
        """Write the files after changes, until cancelled. Raises OSError."""
        while self._folder is not None:
            await self._changed.wait()
            self._changed.clear()
            try:
                for name in NAMES:
                    await self._write(self._folder / name)
            except BaseException:
                self._changed.set()
                raise
            await asyncio.sleep(PAUSE)

    async def _write(self, path: Path) -> None:
        parts = [b"# Written by ratelimit.\n"]
        digest = hashlib.blake2b()
        async for text in pieces(self._lines(path.name)):
            parts.append(text.encode())
            digest.update(parts[-1])
        if self._written.get(path.name) == digest.digest():
            return
        await self._in_thread(path, parts)
        self._written[path.name] = digest.digest()

    async def _in_thread(self, path: Path, parts: list[bytes]) -> None:
        """Write a file; another one waits for a disk that hangs, but the caller does not."""
        if self._writing is None or self._writing.done():
            # HAProxy's user must be able to read it.
            self._writing = self._thread.run(functools.partial(write_whole, path, parts, 0o644))
            await asyncio.wait([self._writing], timeout=TIMEOUT)
            if self._writing.done():
                return self._writing.result()
        raise OSError(f"{path}: not written within {TIMEOUT:g} s")
