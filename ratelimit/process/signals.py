"""Signals that come while the process starts.

SIGHUP and SIGUSR2 would end a process that does not know them yet, and to import what the agent
needs takes some tenths of a second. So they are held back until it listens for them.
"""

from __future__ import annotations

import signal

HELD = (signal.SIGHUP, signal.SIGUSR2)


def hold() -> None:
    """Have the kernel keep these signals, one of each kind."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


def let_through() -> None:
    """Take those that were kept, and all that come."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
