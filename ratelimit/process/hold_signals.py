"""Holds signals back while the process starts.

SIGHUP and SIGUSR2 end a process that does not handle them yet, and imports take some tenths of a
second. The kernel keeps them until the process handles them.
"""

from __future__ import annotations

import signal

HELD = (signal.SIGHUP, signal.SIGUSR2)


def hold() -> None:
    """Block these signals; the kernel keeps one of each."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


def let_through() -> None:
    """Unblock them; signals that were kept are delivered."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
