"""Types that all packages share: limits, verdicts, blocks, addresses."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

SUB_WINDOWS = 16
"""Parts into which a window is divided; see ``engine.table``."""

EVERY_LIMIT = "*"
"""``limit`` of a block that applies to every limit; no limit can have this name."""

NAME = r"[A-Za-z0-9_.:-]{1,64}"
"""What names a limit, as HAProxy takes it for a SPOE message, or begins the keys of Redis, where
braces would change in which part of a cluster they are."""

UNKNOWN = "unknown"
"""Name of the limit for requests whose client no trusted proxy named."""

MAX_RATE = 10_000_000
"""Highest rate of a limit, in hits per window."""

MAX_BYTES = 100_000_000
"""Highest rate of a limit that counts bytes, in bytes per window; a counter holds 2^27."""

SHARED_CLIENTS = 16_384
"""Default number of clients per limit that a node shares with other nodes at a time."""


MAX_OPEN = 10_000_000
"""Highest number of requests of a client that a limit lets be open at a time."""

TABLE_PREFIX = "rl_"
"""Begins the name of a stick table of HAProxy whose counts a limit takes."""

VERDICT_PREFIX = "rlv_"
"""Begins the name of a stick table of HAProxy with verdicts; the name of the limit follows."""

Counts = Literal["requests", "errors", "failures", "bytes_in", "bytes_out"]
"""What a limit counts of a stick table: requests, answers 4xx, answers 5xx, or bytes."""


class Verdict(enum.IntEnum):
    """The result of a check; a higher one is more severe."""

    ALLOW = 0
    THROTTLE = 1
    BLOCK = 2


FUSE = 0.2
"""Default share of all clients above which a limit is probably wrong; see ``Limit``."""

VERDICTS = ("allowed", "throttled", "blocked", "denied")
"""Verdicts that are counted for each limit; counters of ``engine.rule.Rule``."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit: at most ``rate`` hits of one client in any ``window``.

    Attributes:
        name: name of its SPOE message; 1 to 64 bytes of ASCII.
        rate: hits per window, 1 to ``MAX_RATE``, or bytes, to ``MAX_BYTES``.
        window: nanoseconds; a multiple of ``SUB_WINDOWS``, from 100 ms to 24 h.
        block: block lengths in seconds, by strikes; empty to throttle only.
        forget: seconds after the end of a block in which strikes still count.
        strict: count the oldest sub-window whole, so that no window has more than ``rate`` hits.
        ipv4_prefix: prefix length of a client's IPv4 network, 1 to 32.
        ipv6_prefix: prefix length of a client's IPv6 network, 1 to 128.
        shadow: count and show verdicts, but allow every request.
        headers: set the variables of the ``RateLimit`` fields for allowed requests too.
        fuse: share of all clients, 0 to 1; if more than that are refused at once, the limit only
            throttles; 0 disables it.
        secret: keys that are not addresses are stored and shown as hashes; see
            ``limiter.string_keys``.
        table: HAProxy's stick table whose counts the limit takes; empty for ``rl_`` and ``name``.
        counts: what it counts of this table.
        open: requests of a client that may be open at a time, on all HAProxies; 0 for any number.
        count_refused: count the requests too that HAProxy has refused because of a verdict.
    """

    name: str = "default"
    rate: int = 100
    window: int = 1_000_000_000
    block: tuple[int, ...] = (10, 60, 600, 3600)
    forget: int = 86_400
    strict: bool = False
    ipv4_prefix: int = 32
    ipv6_prefix: int = 64
    shadow: bool = False
    headers: bool = False
    fuse: float = FUSE
    secret: bool = True
    table: str = ""
    counts: Counts = "requests"
    open: int = 0
    count_refused: bool = True

    @property
    def count_table(self) -> str:
        """The name of the stick table whose counts the limit takes."""
        return self.table or TABLE_PREFIX + self.name


@dataclass(frozen=True, slots=True)
class Block:
    """An entry of the blocklist; times are whole epoch seconds.

    HAProxy's ``date`` has whole seconds, so that the agent and HAProxy end a block at the same
    time. ``limit`` is ``EVERY_LIMIT`` for a block by hand. ``strikes`` counts the client's blocks
    that are not forgotten yet, including this one; 0 for a block by hand. ``by`` is the caller who
    made a block by hand, ``node`` the node that made the entry. A ``shadow`` block is made by a
    limit in shadow mode and has no effect. ``order`` decides which of two entries of a client is
    newer; see ``limiter.entry_order``. ``text`` is shown instead of a hashed key; empty for an
    address. ``wire`` is the key of a string in HAProxy's tables, a digest in hexadecimal digits;
    empty if it is not known.
    """

    key: str
    limit: str
    reason: str
    strikes: int
    since: int
    until: int
    by: str = ""
    node: str = ""
    shadow: bool = False
    order: int = 0
    text: str = ""
    wire: str = ""

    @property
    def shown(self) -> str:
        """The key to show."""
        return self.text or self.key


@dataclass(frozen=True, slots=True)
class Lift:
    """The record of an unblocked client; its earlier strikes are forgotten too.

    It ends every block of the client whose ``order`` is not higher. It is kept until the epoch
    second ``until``, after which no block that it ended could be active or count as a strike.
    """

    key: str
    limit: str
    order: int
    until: int


Entry = Block | Lift
"""An entry about a client, as exchanged between nodes, store and journals."""


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a socket: host and port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect; of host names only ``localhost`` counts."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def host_port(self) -> str:
        """``HOST:PORT``, with an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"unix://{self.path}" if self.path else f"tcp://{self.host_port}"
