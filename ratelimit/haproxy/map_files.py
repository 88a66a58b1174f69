"""Writes HAProxy's maps to files, which HAProxy reads when it starts without the agent."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from pathlib import Path

from ratelimit.haproxy.maps import NAMES, Lines, pieces

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
        self._writing: asyncio.Future[OSError | None] | None = None

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
        """Write a file in a thread that does not keep the process alive if the disk hangs."""
        late = OSError(f"{path}: not written within {TIMEOUT:g} s")
        if self._writing is not None and not self._writing.done():
            raise late
        loop = asyncio.get_running_loop()
        done: asyncio.Future[OSError | None] = loop.create_future()

        def work() -> None:
            error = _replace(path, parts)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(done.set_result, error)

        self._writing = done
        threading.Thread(target=work, name="map files", daemon=True).start()
        try:
            async with asyncio.timeout(TIMEOUT):
                error = await asyncio.shield(done)
        except TimeoutError:
            raise late from None
        if error is not None:
            raise error


def _replace(path: Path, parts: list[bytes]) -> OSError | None:
    """Write a file atomically, readable by HAProxy's user; return the error, if any."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb", buffering=0) as file:
            for part in parts:
                file.write(part)
            os.fchmod(file.fileno(), 0o644)
        temporary.replace(path)
    except OSError as error:
        return error
    return None
