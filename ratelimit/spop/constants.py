"""Constants of the protocol (SPOE.txt, section 3.2)."""

from __future__ import annotations

import enum

MAX_FRAME_SIZE = 16_380
"""Largest accepted frame without its length field; HAProxy's default."""

MIN_FRAME_SIZE = 256
"""Smallest maximum that a peer may negotiate (section 3.5, status 9); every ACK fits into it."""

MAX_ACK = 256
"""Bytes of the longest ACK."""

VERSION = "2.0"

CHECKED, UNKNOWN, KEYLESS, EMPTY = range(4)
"""What the parser finds: a message with a limit and a key; one whose name is no limit; one without
a valid key or valid hits; a frame without messages, which has an ACK too.
"""


class FrameType(enum.IntEnum):
    """The first byte of a frame (section 3.2.2)."""

    UNSET = 0
    HAPROXY_HELLO = 1
    HAPROXY_DISCONNECT = 2
    NOTIFY = 3
    AGENT_HELLO = 101
    AGENT_DISCONNECT = 102
    ACK = 103


class DataType(enum.IntEnum):
    """The lower four bits of the byte before typed data (section 3.1)."""

    NULL = 0
    BOOL = 1
    INT32 = 2
    UINT32 = 3
    INT64 = 4
    UINT64 = 5
    IPV4 = 6
    IPV6 = 7
    STRING = 8
    BINARY = 9


class Status(enum.IntEnum):
    """Status codes of DISCONNECT (section 3.5)."""

    NORMAL = 0
    IO = 1
    TIMEOUT = 2
    TOO_BIG = 3
    INVALID = 4
    NO_VERSION = 5
    NO_MAX_FRAME_SIZE = 6
    NO_CAPABILITIES = 7
    BAD_VERSION = 8
    BAD_MAX_FRAME_SIZE = 9
    FRAGMENTED = 10
    INTERLACED = 11
    NO_FRAME = 12
    RESOURCES = 13
    UNKNOWN = 99
