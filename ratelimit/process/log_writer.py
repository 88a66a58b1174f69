"""A stream that a thread writes, so that whoever logs never waits for it and never fails by it.

The reader of a log may hang or be gone, and its disk may be full. Lines then wait in a queue of a
fixed size; what finds no room in it is dropped and counted. Writing is tried again until it works,
and a line in the log says how many others are missing.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from queue import SimpleQueue
from typing import TextIO

import structlog

ROOM = 4 << 20
"""Bytes that wait to be written."""

KEPT_ROOM = 2 * ROOM
"""The same for lines that must not be lost to those that may; see ``Writer.keep()``."""

RETRY = 0.5
"""Seconds after which what could not be written is tried again."""

PATIENCE = 5.0
"""Seconds without a byte taken after which a reader counts as hanging."""

log = structlog.get_logger()


class Writer:
    """Stands in for standard output or standard error.

    Attributes:
        dropped: pieces of text that found no room, a line for each entry of the log.
        encoding, errors: as a text stream has them.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, fd: int, terminal: bool = False) -> None:
        self.dropped = 0
        self._fd = fd
        self._terminal = terminal
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        # Not to be waited for by the thread that writes. Re-entrant, since whatever is freed
        # meanwhile may log.
        self._lock = threading.RLock()
        self._put = 0
        self._taken = 0
        self._told = 0
        self._began = 0.0  # of the write under way
        self._why = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, stream: TextIO | None) -> Writer:
        """Return one for a stream, which may have been closed before this process began."""
        if stream is None:
            # Its number may be that of another file now.
            return cls(os.open(os.devnull, os.O_WRONLY))
        stream.flush()
        return cls(stream.fileno(), stream.isatty())

    @property
    def waiting(self) -> int:
        """Bytes that are not written yet."""
        return self._put - self._taken

    @property
    def problem(self) -> str:
        """Why nothing can be written; empty while all is well."""
        began = self._began
        if began and time.monotonic() - began > PATIENCE:
            return "the reader takes nothing"
        return self._why

    def write(self, text: str) -> int:
        """Have a text written soon; never waits."""
        return self._add(text, ROOM)

    def keep(self, text: str) -> int:
        """Have a text written that is dropped for want of room later than others."""
        return self._add(text, KEPT_ROOM)

    def flush(self) -> None:
        """Do nothing: what waits is written as soon as that is possible."""

    def isatty(self) -> bool:
        """Tell whether a person reads it."""
        return self._terminal

    def fileno(self) -> int:
        return self._fd

    def close(self, timeout: float) -> None:
        """Write what waits, for so many seconds at most; the rest is lost.

        What else writes there after that can't hang any more.
        """
        self._closing.set()
        self._queue.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._fd)

    def _add(self, text: str, room: int) -> int:
        if not isinstance(text, str):
            raise TypeError("a text stream")
        data = text.encode(self.encoding, self.errors)
        with self._lock:
            if self._put - self._taken + len(data) > room:
                self.dropped += 1
            else:
                self._put += len(data)
                self._queue.put(data)
        return len(text)

    # The thread.

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            self._write(data)
            self._taken += len(data)
            if self.dropped > self._told and self._queue.empty() and not self._why:
                count, self._told = self.dropped - self._told, self.dropped
                log.warning(
                    "lines of the log were dropped, for they could not be written", count=count
                )

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            self._began = time.monotonic()
            try:
                left = left[os.write(self._fd, left) :]
                self._why = ""
            except OSError as error:
                self._why = error.strerror or repr(error)
            finally:
                self._began = 0.0
            if self._why and self._closing.wait(RETRY):
                self.dropped += 1
                return


def stand_in(name: str) -> Writer:
    """Have a thread write what goes to ``sys.stdout`` or ``sys.stderr`` from now on."""
    writer = Writer.of(getattr(sys, name))
    setattr(sys, name, writer)
    return writer
