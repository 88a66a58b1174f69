"""A text stream that a thread writes, so that writing to the log never waits and never fails.

The reader of a log may hang, and a disk may be full. Text waits in a queue of fixed size; text that
does not fit is dropped and counted. Writing is retried until it works; then a line reports the
number of dropped lines.
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
"""Bytes that may wait to be written."""

KEPT_ROOM = 2 * ROOM
"""The same for lines that are dropped last; see ``LogWriter.keep()``."""

RETRY = 0.5
"""Seconds between attempts to write."""

PATIENCE = 5.0
"""Seconds without progress after which a reader counts as hung."""

log = structlog.get_logger()


class LogWriter:
    """Replaces standard output or standard error.

    Attributes:
        dropped: pieces of text that were dropped, one per log entry.
        encoding, errors: as in a text stream.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, fd: int, terminal: bool = False) -> None:
        self.dropped = 0
        self._fd = fd
        self._terminal = terminal
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        # The writing thread does not hold this lock. Re-entrant, because a finalizer may log.
        self._lock = threading.RLock()
        self._put = 0
        self._taken = 0
        self._told = 0
        self._began = 0.0  # of the write in progress
        self._why = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, stream: TextIO | None) -> LogWriter:
        """Return a writer for a stream; None is a stream that was closed before the start."""
        if stream is None:
            # Its file descriptor may belong to another file now.
            return cls(os.open(os.devnull, os.O_WRONLY))
        stream.flush()
        return cls(stream.fileno(), stream.isatty())

    @property
    def waiting(self) -> int:
        """Bytes not yet written."""
        return self._put - self._taken

    @property
    def problem(self) -> str:
        """Why writing fails; empty if it works."""
        began = self._began
        if began and time.monotonic() - began > PATIENCE:
            return "the reader does not read"
        return self._why

    def write(self, text: str) -> int:
        """Queue text; never waits."""
        return self._add(text, ROOM)

    def keep(self, text: str) -> int:
        """Queue text that is dropped later than other text if there is no room."""
        return self._add(text, KEPT_ROOM)

    def flush(self) -> None:
        """Do nothing: text is written as soon as possible."""

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._terminal

    def fileno(self) -> int:
        return self._fd

    def close(self, timeout: float) -> None:
        """Write the queue for at most ``timeout`` seconds; the rest is lost.

        Later writes to the file descriptor go to /dev/null if it hangs.
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

    # Methods of the thread.

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            self._write(data)
            self._taken += len(data)
            if self.dropped > self._told and self._queue.empty() and not self._why:
                count, self._told = self.dropped - self._told, self.dropped
                log.warning(
                    "lines of the log were dropped because they could not be written", count=count
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


def stand_in(name: str) -> LogWriter:
    """Replace ``sys.stdout`` or ``sys.stderr`` by a writer."""
    writer = LogWriter.of(getattr(sys, name))
    setattr(sys, name, writer)
    return writer
