"""Slows down peers that guess tokens.

After wrong tokens, a peer's next token is checked only after a pause, whether right or wrong.
Giving up early does not shorten the pause, and a right token is late but never refused. The number
of waiting connections bounds the guesses of one peer.
"""

from __future__ import annotations

from collections import OrderedDict

from ratelimit.agent.trust import peer_address

FREE = 3
"""Wrong tokens of a peer before its first pause."""

FIRST = 0.125
"""First pause in seconds, doubled after each further wrong token."""

LONGEST = 2.0
"""Longest pause in seconds."""

FORGOTTEN = 60.0
"""Seconds without a wrong token after which a peer's count restarts."""

PEERS = 1024
"""Peers that are remembered; a new one replaces the peer with the oldest last guess."""


class Guesses:
    """Counts wrong tokens by peer; times are those of ``time.monotonic``."""

    def __init__(self) -> None:
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of peers that are remembered."""
        return len(self._wrong)

    def wait(self, peer: str, now: float) -> float:
        """Return the pause in seconds before a token of this peer is checked."""
        count, last = self._wrong.get(_network(peer), (0, now))
        if count <= FREE or now - last > FORGOTTEN:
            return 0
        return min(LONGEST, FIRST * 2.0 ** min(count - FREE - 1, 10))

    def note(self, peer: str, now: float) -> None:
        """Count a wrong token."""
        peer = _network(peer)
        count, last = self._wrong.pop(peer, (0, now))
        if len(self._wrong) >= PEERS:
            self._wrong.popitem(last=False)
        self._wrong[peer] = (1 if now - last > FORGOTTEN else count + 1, now)


def _network(peer: str) -> str:
    """Return the addresses that one host may have: for IPv6 its /64."""
    address = peer_address(peer)
    if address is None:
        return peer
    return str(address) if address.version == 4 else str(int(address) >> 64)
