"""Peers in no list of trusted proxies that speak for many clients; no I/O, and time is an argument.

HAProxy takes such a peer for one client. It is a load balancer that ``lb.lst`` lacks, whose
visitors are limited for each other; or a proxy of somebody else, or a client that forges the
header. What it says changes no verdict, or an attacker would forge it to escape: it is told to the
operator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ratelimit.engine.layout import ADDRESS, SIGHTS
from ratelimit.limiter.keys import client_key
from ratelimit.steps import Steps

MANY = 10
"""Different values of X-Forwarded-For from which on a peer is told of."""

FORGET = 600
"""Seconds after which a peer that is not told of, or has gone quiet, is forgotten."""

MAX_PEERS = 256
"""Peers that are watched at a time; the one that was seen first makes room."""

_STEP = 64  # sights of a step


@dataclass(slots=True)
class Forwarder:
    """A peer.

    Attributes:
        key: its address.
        values: different values of its header that were seen, up to ``MANY``.
        since: epoch second at which it was first seen.
        seen: likewise, last.
    """

    key: str
    since: int
    seen: int = 0
    told: bool = False
    values: set[int] = field(default_factory=set)


class Forwarders:
    """Those of a node, found in samples of what the engine has seen."""

    def __init__(self) -> None:
        self._peers: dict[tuple[int, int], Forwarder] = {}
        self._sights = 0

    def found(self) -> list[Forwarder]:
        """Return the peers that speak for many, the latest last."""
        return [peer for peer in self._peers.values() if peer.told]

    def look(self, seen: Sequence[int], sights: int, now: int) -> Steps[list[Forwarder]]:
        """Look at what ``Engine.seen`` has since the last time; return peers that are new.

        ``sights`` is the engine's, ``now`` epoch seconds.
        """
        fresh: list[Forwarder] = []
        first = max(self._sights, sights - SIGHTS)
        self._sights = sights
        for number in range(first, sights):
            at = 3 * (number % SIGHTS)
            peer = self._peer(seen[at], seen[at + 1], now)
            peer.seen = now
            if len(peer.values) < MANY:
                peer.values.add(seen[at + 2])
                if len(peer.values) == MANY:
                    peer.told = True
                    fresh.append(peer)
            if number % _STEP == 0:
                yield
        for place in [place for place, peer in self._peers.items() if _is_old(peer, now)]:
            del self._peers[place]
        return fresh

    def _peer(self, hi: int, lo: int, now: int) -> Forwarder:
        peer = self._peers.get((hi, lo))
        if peer is None:
            if len(self._peers) >= MAX_PEERS:
                self._peers.pop(next(self._quiet()))
            peer = Forwarder(client_key(ADDRESS, hi, lo, 32, 128), now)
            self._peers[hi, lo] = peer
        return peer

    def _quiet(self) -> Iterator[tuple[int, int]]:
        """Yield the peers to forget first: those that speak for few."""
        yield from (place for place, peer in self._peers.items() if not peer.told)
        yield from list(self._peers)


def _is_old(peer: Forwarder, now: int) -> bool:
    return now - (peer.seen if peer.told else peer.since) >= FORGET
