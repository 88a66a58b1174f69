"""Merges another complete blocklist with this node's, in both directions; no I/O.

Entries of the other list are merged page by page. Entries that are newer here, or missing in the
other list, are returned at the end: the other list has lost them or has not received them yet. Only
a lift removes a block, see ``limiter.entry_order``. Strings that an earlier version stored in clear
are removed there once they are hashed (``limiter.string_keys``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ratelimit.large import LargeDict
from ratelimit.limiter.limiter import Limiter
from ratelimit.model import Entry, Lift
from ratelimit.steps import Steps

_PAGE = 64  # entries per step


class Merge:
    """One comparison with another list.

    Args:
        limiter: has the list of this node.
        secret: the fleet's secret for strings; empty if unknown.

    ``outdated`` has the limits and keys of blocks that this node now stores under another key; they
    must be deleted from the other list, without a lift, after it has received all newer entries.
    """

    def __init__(self, limiter: Limiter, secret: bytes = b"") -> None:
        self._limiter = limiter
        self._secret = secret
        # Places where the other list has the same block, or the same lift.
        self._blocks: LargeDict[str, bool] = LargeDict()
        self._lifts: LargeDict[str, bool] = LargeDict()
        self.outdated: list[tuple[str, str]] = []

    def take(self, entries: Sequence[Entry]) -> Steps[None]:
        """Merge a page of the other list."""
        if self._secret:
            self._limiter.rekey(self._secret)
        blocklist = self._limiter.blocklist
        for start in range(0, len(entries), _PAGE):
            page = entries[start : start + _PAGE]
            yield from self._limiter.load(page)
            for entry in page:
                place = f"{entry.limit}\0{entry.key}"
                if isinstance(entry, Lift):
                    if blocklist.lifts.get(entry.limit, entry.key) == entry:
                        self._lifts[place] = True
                elif blocklist.get(entry.limit, entry.key) == entry:
                    self._blocks[place] = True
                elif self._limiter.kept(entry).key != entry.key:
                    self.outdated.append((entry.limit, entry.key))
            yield

    def newer(self) -> Iterator[list[Entry]]:
        """Yield in small steps what the other list lacks; call it after the last page."""
        for _ in self._limiter.cut():
            yield []
        blocklist = self._limiter.blocklist
        last = "", ""
        while blocks := blocklist.after(*last, _PAGE):
            last = blocks[-1].limit, blocks[-1].key
            yield [one for one in blocks if f"{one.limit}\0{one.key}" not in self._blocks]
        ended: Lift | None = None
        while lifts := blocklist.lifts.after(ended, _PAGE):
            ended = lifts[-1]
            yield [one for one in lifts if f"{one.limit}\0{one.key}" not in self._lifts]
        for places in (self._blocks, self._lifts):
            for _ in places.clear():
                yield []
