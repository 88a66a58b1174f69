"""What a hit means: the limits in force, the engine that counts, the blocks that follow."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ratelimit.blocklist import Blocklist
from ratelimit.engine.answer import Engine
from ratelimit.engine.constants import SECOND
from ratelimit.engine.rule import Rule
from ratelimit.keys import key_text
from ratelimit.model import Block, Limit

_MAX_NEWS = 16


class Limiter:
    """The limiter of one node; no I/O, and time is always an argument.

    ``blocks`` counts the blocks since the start, ``blocks_unreported`` those that nobody has logged
    yet, and ``news`` holds the latest of them.
    """

    def __init__(
        self, limits: Sequence[Limit], max_clients: int, secret: bytes | None = None
    ) -> None:
        self.blocklist = Blocklist()
        self.engine = Engine(limits, max_clients, self._strike, secret)
        self.blocks = 0
        self.blocks_unreported = 0
        self.news: deque[Block] = deque(maxlen=_MAX_NEWS)

    def tick(self, now: int) -> None:
        """Do what is due about once a second; ``now`` in nanoseconds since the epoch."""
        self.engine.at(now)
        self.engine.table.sweep()
        for rule in self.engine.rules:
            self.blocklist.forget(rule.limit, now // SECOND)

    def _strike(self, rule: Rule, text: bytes, kind: int, hi: int, lo: int, now: int) -> int:
        limit = rule.limit
        key = key_text(kind, hi, lo, text, limit.ipv4_prefix, limit.ipv6_prefix)
        # Up to the next whole second, so that no block is shorter than the ladder says.
        block = self.blocklist.strike(limit, key, -(-now // SECOND))
        if block is None:
            return 0
        self.blocks += 1
        self.blocks_unreported += 1
        self.news.append(block)
        return block.until
