"""Limits the time that the process takes to end.

A thread that waits for a disk can't be cancelled, and Python waits for its threads.
"""

from __future__ import annotations

import os
import threading
import time

import structlog

from ratelimit.process import log as logs

log = structlog.get_logger()


class LastResort:
    """Ends the process ``timeout`` seconds after ``begin()``."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._begun = threading.Event()
        # Started now, because a new thread may be impossible later.
        threading.Thread(target=self._run, name="last resort", daemon=True).start()

    def begin(self) -> None:
        """Start the timer; later calls have no effect."""
        self._begun.set()

    def _run(self) -> None:
        self._begun.wait()
        time.sleep(self._timeout)
        threads = [one.name for one in threading.enumerate() if not one.daemon]
        log.error("the process did not end in time and was terminated", threads=threads)
        logs.flush()
        os._exit(1)
