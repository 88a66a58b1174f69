"""Slows down peers that guess tokens.

A peer that has given wrong tokens waits before its next token is looked at, right or wrong: the
answer comes no sooner to one who gives up early, and a right token is late but never refused. What
bounds the guesses of one peer is then the number of connections that may wait.
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import ip_address

FREE = 3
"""Wrong tokens of a peer without a wait."""

FIRST = 0.125
"""Seconds to wait after the next one, doubled with each further one."""

LONGEST = 2.0
"""Seconds to wait at most."""

FORGOTTEN = 60.0
"""Seconds without a wrong token after which a peer begins again."""

PEERS = 1024
"""Peers that are remembered; the one whose last guess is the oldest makes room."""


class Guesses:
    """Wrong tokens by peer; times are those of ``time.monotonic``."""

    def __init__(self) -> None:
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        """How many peers are remembered."""
        return len(self._wrong)

    def wait(self, peer: str, now: float) -> float:
        """Return the seconds to wait before a token of this peer is looked at."""
        count, last = self._wrong.get(_network(peer), (0, now))
        if count <= FREE or now - last > FORGOTTEN:
            return 0
        return min(LONGEST, FIRST * 2.0 ** min(count - FREE - 1, 10))

    def note(self, peer: str, now: float) -> None:
        """Remember a wrong token."""
        peer = _network(peer)
        count, last = self._wrong.pop(peer, (0, now))
        if len(self._wrong) >= PEERS:
            self._wrong.popitem(last=False)
        self._wrong[peer] = (1 if now - last > FORGOTTEN else count + 1, now)


def _network(peer: str) -> str:
    """Return what one host can have of addresses: of IPv6 a /64."""
    try:
        address = ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    return str(address) if address.version == 4 else str(int(address) >> 64)
