"""Constants of the protocol (peers.txt), and the places of values in a read update."""

from __future__ import annotations

import enum

VERSION = b"2.1"

MAX_HELLO = 1_024
"""Bytes of the longest accepted hello; three names are shorter."""

MAX_MESSAGE = 65_535
"""Bytes of the longest accepted message without its header; HAProxy counts them in 16 bits."""

MAX_KEY = 16_384
"""Bytes of the longest key; HAProxy's default buffer holds no longer one."""

MAX_TABLES = 256
"""Tables that a peer may announce in a session."""

MAX_ARRAY = 100
"""Most values of an array (HAProxy's manual, "store", gpt)."""

MAX_ENTRIES = 128
"""Entries of the dictionary that both sides of a session keep."""

HANDSHAKE = 5_000_000_000
"""Nanoseconds in which a handshake must be complete."""

ACKNOWLEDGE = 100_000_000
"""Nanoseconds from one acknowledgement to the next: HAProxy only needs them when it connects again,
and each costs both sides a system call."""

HEARTBEAT = 3_000_000_000
"""Nanoseconds without a message of ours, after which a heartbeat is sent (section "Control")."""

SILENCE = 5_000_000_000
"""Nanoseconds without a message of the peer, after which the session ends (same section)."""

PATIENCE = 30_000_000_000
"""Nanoseconds in which a peer must acknowledge an update; HAProxy does so after each read."""


class Status(enum.IntEnum):
    """Status codes of the handshake."""

    SUCCESS = 200
    TRY_LATER = 300
    PROTOCOL = 501
    VERSION = 502
    LOCAL_NAME = 503
    """The name that the peer expects is not ours."""
    REMOTE_NAME = 504
    """The name of the peer is unknown."""


class Class(enum.IntEnum):
    """The first byte of a message."""

    CONTROL = 0
    ERROR = 1
    TABLE = 10


class Control(enum.IntEnum):
    """Types of class CONTROL."""

    ASK = 0
    FINISHED = 1
    PARTIAL = 2
    CONFIRMED = 3
    HEARTBEAT = 4


class ErrorType(enum.IntEnum):
    """Types of class ERROR."""

    PROTOCOL = 0
    SIZE = 1


class Message(enum.IntEnum):
    """Types of class TABLE; peers.txt lacks the timed updates, and gives 133 for ACK.

    HAProxy sends these numbers in all versions.
    """

    UPDATE = 0x80
    INCREMENTAL = 0x81
    DEFINITION = 0x82
    SWITCH = 0x83
    ACK = 0x84
    TIMED = 0x85
    INCREMENTAL_TIMED = 0x86


class KeyType(enum.IntEnum):
    """Types of keys."""

    INTEGER = 2
    IPV4 = 4
    IPV6 = 5
    STRING = 6
    BINARY = 7


class Form(enum.IntEnum):
    """How a data type is written: as one integer, or several."""

    SIGNED = 0
    U32 = 1
    U64 = 2
    RATE = 3
    """Milliseconds since the start of the current period, events in the current one and in the
    previous one."""
    ENTRY = 4
    """An entry of the dictionary."""


class DataType(enum.IntEnum):
    """Data types; the value is the bit in a definition."""

    SERVER_ID = 0
    GPT0 = 1
    GPC0 = 2
    GPC0_RATE = 3
    CONN_CNT = 4
    CONN_RATE = 5
    CONN_CUR = 6
    SESS_CNT = 7
    SESS_RATE = 8
    HTTP_REQ_CNT = 9
    HTTP_REQ_RATE = 10
    HTTP_ERR_CNT = 11
    HTTP_ERR_RATE = 12
    BYTES_IN_CNT = 13
    BYTES_IN_RATE = 14
    BYTES_OUT_CNT = 15
    BYTES_OUT_RATE = 16
    GPC1 = 17
    GPC1_RATE = 18
    SERVER_KEY = 19
    HTTP_FAIL_CNT = 20
    HTTP_FAIL_RATE = 21
    GPT = 22
    GPC = 23
    GPC_RATE = 24
    GLITCH_CNT = 25
    GLITCH_RATE = 26

    @property
    def form(self) -> Form:
        """How one value of the type is written."""
        if self.name.endswith("_RATE"):
            return Form.RATE
        return _FORMS.get(self, Form.U32)

    @property
    def array(self) -> bool:
        """Whether the type is an array, whose size the definition tells."""
        return self in _ARRAYS

    @property
    def width(self) -> int:
        """Integers of one value, or of one element."""
        return 3 if self.form == Form.RATE else 1


_FORMS = {
    DataType.SERVER_ID: Form.SIGNED,
    DataType.BYTES_IN_CNT: Form.U64,
    DataType.BYTES_OUT_CNT: Form.U64,
    DataType.SERVER_KEY: Form.ENTRY,
}

_ARRAYS = {DataType.GPT, DataType.GPC, DataType.GPC_RATE}


def _places() -> dict[DataType, int]:
    places = {}
    at = 0
    for kind in DataType:
        places[kind] = at
        at += kind.width * (MAX_ARRAY if kind.array else 1)
    return places


PLACE = _places()
"""The index of each data type in ``UpdateReader.values``; the same for all tables.

A rate has three values: age in milliseconds, current, previous. Elements of an array follow each
other.
"""

VALUES = PLACE[DataType.GLITCH_RATE] + DataType.GLITCH_RATE.width
"""Length of ``UpdateReader.values``."""
