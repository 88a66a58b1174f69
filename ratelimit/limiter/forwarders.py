"""Detects peers in no list of trusted proxies that send requests of many clients; no I/O.

HAProxy counts such a peer as one client. It is a load balancer missing in ``lb.lst``, whose
visitors share one limit, or a foreign proxy, or a client that forges the header. The peers change
no verdict, because an attacker could forge the header to escape a limit; they are reported to the
operator. Time is an argument.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ratelimit.engine.layout import ADDRESS, SIGHTS
from ratelimit.limiter.keys import client_key
from ratelimit.steps import Steps

MANY = 10
"""Number of different X-Forwarded-For values from which on a peer is reported."""

FORGET = 600
"""Seconds after which a peer that is not reported, or is quiet, is forgotten."""

MAX_PEERS = 256
"""Peers that are watched at a time; a new one replaces the oldest."""

_STEP = 64  # sights per step


@dataclass(slots=True)
class Forwarder:
    """A watched peer.

    Attributes:
        key: its address.
        values: hashes of different values of its header, up to ``MANY``.
        since: epoch second of the first request seen.
        seen: epoch second of the last request seen.
        told: whether the peer was reported.
    """

    key: str
    since: int
    seen: int = 0
    told: bool = False
    values: set[int] = field(default_factory=set)


class Forwarders:
    """The watched peers of a node, from samples of the engine."""

    def __init__(self) -> None:
        self._peers: dict[tuple[int, int], Forwarder] = {}
        self._sights = 0

    def found(self) -> list[Forwarder]:
        """Return the reported peers, the latest last."""
        return [peer for peer in self._peers.values() if peer.told]

    def look(self, seen: Sequence[int], sights: int, now: int) -> Steps[list[Forwarder]]:
        """Process ``Engine.seen`` since the last call; return newly reported peers.

        ``sights`` is the engine's counter, ``now`` is in epoch seconds.
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
        """Yield the peers in the order in which to forget them: unreported ones first."""
        yield from (place for place, peer in self._peers.items() if not peer.told)
        yield from list(self._peers)


def _is_old(peer: Forwarder, now: int) -> bool:
    return now - (peer.seen if peer.told else peer.since) >= FORGET
