"""Constants that the compiled modules share; each declares the C types of those it imports."""

from __future__ import annotations

from ratelimit.model import SUB_WINDOWS

ADDRESS = 1
"""Kind of a key that is an address."""

TEXT = 2
"""Kind of a key that is a string or other bytes."""

WAYS = 8
"""Clients per set of the table."""

CLIENT_BYTES = 128
"""Memory of a client in the table, including everything."""

SET_WORDS = 128
SLOT_WORDS = 15
"""Words of 64 bits of a set of the table, and of a slot in it."""

STAMP_BITS = 24
"""Binary digits of the nanoseconds that a visit leaves out: visits are told apart by 17 ms."""

RING = SUB_WINDOWS + 1
"""Counters of a client: the parts of a window, and the one that is leaving it."""

WEIGHT_BITS = 20
"""Bits of the share of the oldest counter that still counts."""

HALF = 1 << WEIGHT_BITS - 1
"""Rounds this share to the nearest."""

M32 = (1 << 32) - 1
M64 = (1 << 64) - 1
"""Masks that keep a Python integer within the bits of a C integer."""

SUM = 8
"""Where a slot of the table has the sum of its counters, in 32-bit words."""

UNTIL = 9
"""Where a slot of the table has the end of the block of its client, in 32-bit words."""

FIRST_COUNTER = 10
"""Position of the counters in a slot of the table, in 32-bit words."""

HOT = 27
"""Position of a client's place among the shared clients, in 32-bit words."""

EPOCH = 28
"""Position of the epoch of a client's hits, in 32-bit words."""

MISSED = 29
"""Position of the tick in which there was no room to share the client, in 32-bit words; 0 if it is
shared or need not be.
"""

DENYLIST = 3
"""A verdict next to those of ``model.Verdict``: refused by the deny list."""

UNTOLD = 1 << 62
"""``Query.left`` if no other answer has reported the hits left."""

SIGHTS = 1024
"""Queries with ``via`` that are kept until they are processed."""

FETCHED = 64
"""Checks that are prefetched at a time: what the L1 cache holds."""

RECORD_BYTES = 96
"""Size of a client in a batch to the store: key, epoch, tick, counters."""

ANSWER_BYTES = 80
"""Size of a client in the store's answer: epoch, tick, counters."""

NOTICE_BYTES = 17
"""Size of a client in a notice to other nodes: key, kind."""

NONE = 0
MIXED = 1
DENY = 2
ALLOW = 3
LOOK = 4
APART = 5
"""Value of a client in the lists. LOOK: look it up at each check, because a block may end. APART:
its addresses have different values, which ``networks`` calls MIXED.
"""

LISTED_BITS = 3
BY_HAND = 1 << LISTED_BITS
"""Bit of a client's mark: its block was made by hand."""

TELL = 0
TOLD = 1
TELL_NEAR = 2
TOLD_NEAR = 3
"""What the other nodes know of a shared client; they are notified at first, and again near its
limit.
"""

MAPPED = 0xFFFF
"""The upper 96 bits of ::ffff:0:0/96, which mark a key as an IPv4 address."""
