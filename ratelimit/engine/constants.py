"""Numbers that the compiled modules share; each declares the C type of those it imports."""

from __future__ import annotations

from ratelimit.model import SUB_WINDOWS

ADDRESS = 1
"""Kind of a key that is an address."""

TEXT = 2
"""Kind of a key that is a string or other bytes."""

WAYS = 8
"""Clients of a set of the table."""

CLIENT_BYTES = 128
"""Memory that a client takes in the table, with everything."""

RING = SUB_WINDOWS + 1
"""Counters of a client: the parts of a window, and the one that is leaving it."""

WEIGHT_BITS = 20
"""Binary digits of the share of the oldest counter that still counts."""

SECOND = 1_000_000_000
"""In nanoseconds."""
