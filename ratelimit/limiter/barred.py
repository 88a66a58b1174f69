"""Blocks by hand that are not exactly one client, such as those of whole networks.

The engine looks them up by address in ``engine.networks``. The structure is rebuilt after every
change: at once if there are few, otherwise in steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from ratelimit.engine.networks import Networks
from ratelimit.large import OrderedSet
from ratelimit.limiter.keys import Network, key_network, network_text
from ratelimit.limiter.lists import Range, cut, span
from ratelimit.steps import Steps

_DIGITS = 32  # of an address, in the text by which ranges are sorted
_PAGE = 32


class Barred:
    """The networks that are blocked by hand; ``until`` returns the end of a key's block.

    Changes take effect with ``cut()``, which is due while ``stale``.
    """

    def __init__(self, networks: Networks, until: Callable[[str], int]) -> None:
        self.networks = networks
        self._until = until
        self._spans = OrderedSet()
        self._lengths: Counter[tuple[int, int]] = Counter()
        self._changes = 0
        self._known = 0  # number of changes that the engine has

    def __len__(self) -> int:
        return len(self._spans)

    @property
    def stale(self) -> bool:
        """Whether the engine lacks some changes."""
        return self._known < self._changes

    def add(self, network: Network, key: str) -> None:
        """Add a network, or note that its block has changed."""
        if self._spans.add(_span(network, key)):
            self._lengths[network.version, network.prefixlen] += 1
        self._changes += 1

    def discard(self, key: str) -> bool:
        """Remove a key; return false if it is absent."""
        network = key_network(key)
        if network is None or not self._spans.discard(_span(network, key)):
            return False
        self._lengths[network.version, network.prefixlen] -= 1
        self._changes += 1
        return True

    def lengths(self, version: int) -> set[int]:
        """Return the prefix lengths of the networks of an IP version."""
        return {at for (one, at), count in self._lengths.items() if count and one == version}

    def within(self, network: Network) -> bool:
        """Return whether one of the networks may be a part of another network."""
        first, last, _ = span(network, 0)
        own = _span(network, network_text(network))
        page = self._spans.after(f"{first:0{_DIGITS}x}", 2)
        return any(text != own and int(text[:_DIGITS], 16) <= last for text in page)

    def cut(self) -> Steps[None]:
        """Rebuild the engine's structure with all changes so far."""
        changes = self._changes
        starts, values = yield from cut(self._ranges())
        if changes > self._known:
            self._known = changes
            self.networks.load(starts, values)

    def _ranges(self) -> Iterator[Range]:
        """Yield the ranges by their first address; changes made meanwhile may be missed."""
        last = ""
        while page := self._spans.after(last, _PAGE):
            for text in page:
                first, end = int(text[:_DIGITS], 16), int(text[_DIGITS : 2 * _DIGITS], 16)
                yield first, end, self._until(text[2 * _DIGITS :])
            last = page[-1]


def _span(network: Network, key: str) -> str:
    first, last, _ = span(network, 0)
    return f"{first:0{_DIGITS}x}{last:0{_DIGITS}x}{key}"
