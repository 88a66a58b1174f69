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

SET_WORDS = 128
SLOT_WORDS = 15
"""Words of 64 bits of a set of the table, and of a slot in it."""

STAMP_BITS = 24
"""Binary digits of the nanoseconds that a visit leaves out: visits are told apart by 17 ms."""

RING = SUB_WINDOWS + 1
"""Counters of a client: the parts of a window, and the one that is leaving it."""

WEIGHT_BITS = 20
"""Binary digits of the share of the oldest counter that still counts."""

SUM = 8
"""Where a slot of the table has the sum of its counters, in 32-bit words."""

UNTIL = 9
"""Where a slot of the table has the end of the block of its client, in 32-bit words."""

FIRST_COUNTER = 10
"""Where the counters begin in a slot of the table, in 32-bit words."""

HOT = 27
"""Where a slot of the table says that its client is shared, in 32-bit words."""

EPOCH = 28
"""Where a slot of the table has the epoch of its hits, in 32-bit words."""

MISSED = 29
"""Where a slot of the table has the tick in which its client found no room among those that are
shared, in 32-bit words; 0 if it is shared, or need not be."""

SIGHTS = 1024
"""Clients that say for whom they speak and are remembered until they are looked at."""

FETCHED = 64
"""Checks for which the table is fetched at a time: what the nearest cache holds."""

RECORD_BYTES = 96
"""A client in a batch to the store: key, epoch, tick, counters."""

ANSWER_BYTES = 80
"""A client in the store's answer: epoch, tick, counters."""

NOTICE_BYTES = 17
"""A client that the other nodes are told of: key, kind."""

NONE = 0
MIXED = 1
DENY = 2
ALLOW = 3
LOOK = 4
APART = 5
"""What the lists say of a client. LOOK: it is to be looked up each time, for a block that ends.
APART: its addresses are not all alike, which ``networks`` calls MIXED."""

LISTED_BITS = 3
BY_HAND = 1 << LISTED_BITS
"""In a client's mark: its block was made by a person."""

TELL = 0
TOLD = 1
TELL_NEAR = 2
TOLD_NEAR = 3
"""What the other nodes know of a shared client; they are told twice, then near its limit."""

MAPPED = 0xFFFF
"""The upper 96 bits of ::ffff:0:0/96, where a key has an IPv4 address."""
