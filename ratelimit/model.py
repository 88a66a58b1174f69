"""The words that every floor shares: what a limit is, what a check answers, what a block is."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import ip_address

SUB_WINDOWS = 16
"""Parts into which a window is divided; see ``engine.table``."""

EVERY_LIMIT = "*"
"""What a block names that holds whatever the limit; no limit can have this name."""

UNKNOWN = "unknown"
"""The limit of requests whose client a trusted proxy did not name."""

MAX_RATE = 10_000_000
"""Highest rate of a limit, in hits per window."""

SHARED_CLIENTS = 16_384
"""Clients of each limit that a node shares with others at a time, unless it is told otherwise."""


class Verdict(enum.IntEnum):
    """What becomes of a request; the higher one is the more severe."""

    ALLOW = 0
    THROTTLE = 1
    BLOCK = 2


FUSE = 0.2
"""Share of all clients of the site above which a limit is likely to be wrong; see ``Limit``."""

VERDICTS = ("allowed", "throttled", "blocked", "denied")
"""What is counted of each limit; counters of ``engine.rule.Rule``."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A named rule: at most ``rate`` hits of one client in any ``window``.

    Attributes:
        name: the name of the SPOE message that asks for it; 1 to 64 bytes of ASCII.
        rate: hits per window, 1 to ``MAX_RATE``.
        window: nanoseconds; a multiple of ``SUB_WINDOWS``, from 100 ms to 24 h.
        block: block lengths in seconds, by strikes; empty means that the client is throttled only.
        forget: seconds after the end of a block in which strikes still count.
        strict: count the oldest sub-window whole, so that no window ever holds more than ``rate``.
        ipv4_prefix: bits of an IPv4 address that make the client, 1 to 32.
        ipv6_prefix: bits of an IPv6 address that make the client, 1 to 128.
        shadow: count, evaluate and show, but refuse nothing.
        headers: tell allowed requests, too, what is left.
        fuse: share of all clients of the site, 0 to 1, above which so many are refused at once that
            no more are blocked; 0 for never.
        secret: keys that are not addresses are kept and shown as hashes; see ``limiter.strings``.
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


@dataclass(frozen=True, slots=True)
class Block:
    """An entry of the blocklist; times are whole epoch seconds.

    Whole seconds, because that is what HAProxy's ``date`` compares at the edge: agent and edge see
    a block end at the same moment. ``strikes`` counts the blocks of this client that are not yet
    forgotten, this one included; 0 for a block that a person made. ``by`` is that person, and
    ``node`` the node that made the entry. ``limit`` is ``EVERY_LIMIT`` for a block by hand. A
    ``shadow`` block is one that a limit would have made, was it not in shadow: it refuses nothing.
    ``order`` says which of two facts about a client is the newer; see ``limiter.orders``.
    ``text`` is what people see of a key that is a hash; empty for an address.
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

    @property
    def shown(self) -> str:
        """The key as people see it."""
        return self.text or self.key


@dataclass(frozen=True, slots=True)
class Lift:
    """What remains of a block that was lifted; the strikes before it are forgotten, too.

    It ends every block of the client whose ``order`` is not higher. Kept until the epoch second
    ``until``, when nothing that it ended could be in force or count as a strike any more.
    """

    key: str
    limit: str
    order: int
    until: int


Entry = Block | Lift
"""A fact about a client, as the nodes, the store and the journals exchange it."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the agent listens: a host and a port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it; of names, ``localhost`` alone is known to be so."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}"
        return (
            f"tcp://[{self.host}]:{self.port}"
            if ":" in self.host
            else f"tcp://{self.host}:{self.port}"
        )
